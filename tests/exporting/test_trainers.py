"""`onebase export --to openrlhf` and `--to verl`: models, data and a script, and what these do not take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from onebase.cli.main import main
from onebase.errors import MissingExtraError
from onebase.exporting.trainers import openrlhf_dpo, openrlhf_ppo, script_of, verl_ppo, write_data
from tests.exporting.conftest import Make
from tests.recipes.conftest import write_rows

PROMPTS = [{"prompt": "2 + 2?", "gold": "4"}, {"prompt": "Hi"}]
PAIRS = [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}] * 2


def exported(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, words), "--device", "cpu"]) == code
    printed = capsys.readouterr()
    return printed.err[printed.err.index("error: ") + 7 :].strip() if code else printed.out


def test_openrlhf_gets_both_models_its_prompts_and_a_script(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, data, out = make(), write_rows(tmp_path / "prompts.jsonl", PROMPTS), tmp_path / "out"
    said = exported(capsys, made.policy, out, "--to", "openrlhf", "--data", data, "--reward", made.reward)
    assert said.splitlines()[0] == f"bash {out}/train.sh" and "2 prompts; options of OpenRLHF 0.11.0, not run" in said
    assert said.count("checked") == 2
    AutoModelForCausalLM.from_pretrained(out / "model")
    judge = AutoModelForSequenceClassification.from_pretrained(out / "reward")
    assert judge.score.weight.shape[0] == 1, "the head is named as --ds.value_head_prefix says"
    assert AutoTokenizer.from_pretrained(out / "model").chat_template
    rows = [json.loads(line) for line in (out / "data" / "train.jsonl").read_text().splitlines()]
    assert rows == [
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "label": "4"},
        {"prompt": [{"role": "user", "content": "Hi"}]},
    ]
    script = (out / "train.sh").read_text()
    assert "--actor.model_name_or_path model" in script and "--reward.model_name_or_path reward" in script
    for path in re.findall(r"(?:data/\S+|\bmodel\b|\breward\b)(?= \\\n)", script):
        assert (out / path).exists(), path


def test_openrlhf_gets_pairs_for_dpo_as_lists_of_messages(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "out"
    assert "2 pairs; " in exported(capsys, make().policy, out, "--to", "openrlhf", "--data", data)
    row = json.loads((out / "data" / "train.jsonl").read_text().splitlines()[0])
    assert row["prompt"] + row["chosen"] == [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    assert row["rejected"] == [{"role": "assistant", "content": "5"}]
    assert "openrlhf.cli.train_dpo" in (out / "train.sh").read_text() and not (out / "reward").exists()


def test_verl_gets_parquet_with_the_columns_of_its_data_set(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    made, data, out = make(), write_rows(tmp_path / "prompts.jsonl", PROMPTS), tmp_path / "out"
    exported(capsys, made.policy, out, "--to", "verl", "--data", data, "--reward", made.reward)
    rows = parquet.read_table(out / "data" / "train.parquet").to_pylist()
    assert rows[0] == {
        "data_source": "onebase",
        "prompt": [{"role": "user", "content": "2 + 2?"}],
        "ability": "alignment",
        "reward_model": {"style": "model", "ground_truth": "4"},
        "extra_info": {"index": 0},
    }
    assert rows[1]["reward_model"]["ground_truth"] == ""
    assert "reward.reward_model.model_path=reward" in (out / "train.sh").read_text()


@pytest.mark.parametrize("to", ["openrlhf", "verl"])
def test_the_script_is_read_by_a_shell_as_it_was_meant(to: str, tmp_path: Path) -> None:
    """Started with a program in place of Python that prints what it was given."""
    options = openrlhf_ppo("data/a b.jsonl") if to == "openrlhf" else verl_ppo("data/a b.jsonl")
    (tmp_path / "train.sh").write_text(script_of(to, False, options))
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(
        ["bash", tmp_path / "train.sh", "more"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GPUS": "4"},
        capture_output=True,
        text=True,
        check=True,
    )
    given = done.stdout.splitlines()
    assert given[-1] == "more" and done.stderr == ""
    if to == "openrlhf":
        assert given[given.index("--data.prompt_dataset") + 1] == "data/a b.jsonl"
        assert (
            given[given.index("--actor.num_gpus_per_node") + 1] == given[given.index("--vllm.num_engines") + 1] == "4"
        )
    else:
        assert "data.train_files=data/a b.jsonl" in given and "trainer.n_gpus_per_node=4" in given
        assert 'trainer.logger=["console"]' in given


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize(
    ("to", "pairs", "options"),
    [("openrlhf", False, openrlhf_ppo("d")), ("openrlhf", True, openrlhf_dpo("d")), ("verl", False, verl_ppo("d"))],
)
def test_shellcheck_finds_nothing_in_the_scripts(to: str, pairs: bool, options: Any) -> None:
    found = subprocess.run(["shellcheck", "-"], input=script_of(to, pairs, options), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_what_a_trainer_does_not_take_is_one_line(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = make(), tmp_path / "out"
    prompts, pairs = write_rows(tmp_path / "prompts.jsonl", PROMPTS), write_rows(tmp_path / "pairs.jsonl", PAIRS)
    tie = write_rows(tmp_path / "tie.jsonl", [{**PAIRS[0], "tie": True}])
    both = write_rows(tmp_path / "both.jsonl", [{"instruction": "a", "output": o} for o in (["4", "5"], "4")])
    text = write_rows(tmp_path / "text.jsonl", [{"text": "Once upon a time"}])
    for words, code, said in (
        ((made.policy, "--to", "verl"), 2, "--data is missing; name what verl should train on"),
        ((made.policy, "--to", "vllm", "--data", prompts), 2, "--data: vllm does not train; leave it out"),
        ((made.policy, "--to", "tgi", "--reward", made.reward), 2, "--reward: tgi does not train; leave it out"),
        ((made.reward, "--to", "verl", "--data", prompts), 2, "is a reward role; name a policy, and this one with"),
        ((made.policy, "--to", "verl", "--data", prompts), 3, "holds prompts, whose answers need a reward; name a"),
        ((made.policy, "--to", "verl", "--data", pairs), 3, "holds pairs, and verl trains on prompts: it has no"),
        (
            (made.policy, "--to", "openrlhf", "--data", pairs, "--reward", made.reward),
            3,
            "holds pairs, which are trained on without a reward; leave --reward out",
        ),
        ((made.policy, "--to", "openrlhf", "--data", tie), 3, "a tie or a ranked list, and this trainer reads pairs"),
        ((made.policy, "--to", "openrlhf", "--data", both), 3, "pairs and prompts in one file; export one of them"),
        ((made.policy, "--to", "openrlhf", "--data", text), 3, "a text, tools or the beginning of an answer, which"),
    ):
        error = exported(capsys, words[0], out, *words[1:], code=code)
        assert said in error and "\n" not in error, error
        assert not out.exists()


def test_an_empty_file_and_a_missing_package_are_said(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    said = exported(capsys, make().policy, tmp_path / "out", "--to", "verl", "--data", empty, code=3)
    assert said.endswith("empty.jsonl is empty; at least one row is needed")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    with pytest.raises(
        MissingExtraError, match=r'^verl reads Parquet, which needs pyarrow: pip install "onebase\[data\]"$'
    ):
        write_data(prompts, tmp_path / "data", "verl")
