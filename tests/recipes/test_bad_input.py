"""What goes wrong is one line with an exit code, and leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from onebase.cli.main import main
from onebase.config.language import SFTConfig
from onebase.engines import budget
from onebase.engines.opening import load_base
from onebase.errors import CheckpointError, ConfigError, Stopped
from onebase.models.role_files import load_role
from onebase.recipes import sft
from tests.recipes.conftest import (
    SMALL_PPO,
    Options,
    answered_rows,
    common,
    file_bytes,
    leftovers,
    load,
    make_base,
    pair_rows,
    words,
    write_rows,
)

Capture = pytest.CaptureFixture[str]


def error_of(capsys: Capture, code: int, verb: str, *options: Options) -> str:
    """Runs the verb, which has to fail with this code and one error line; returns that line."""
    capsys.readouterr()
    found = main([verb, *words(*options)])
    err = capsys.readouterr().err
    assert found == code, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    return errors[0].removeprefix("error: ")


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "sft.jsonl", answered_rows())


# ------------------------------------------------------------------------------------------------- data


UNUSABLE: list[tuple[str | None, str, str]] = [
    (None, "sft reward ppo", r"a.jsonl does not exist; check the path"),
    ("", "sft reward ppo", r"a.jsonl is empty; at least one row is needed"),
    ("\n\n", "sft reward ppo", r"a.jsonl is empty; at least one row is needed"),
    ("{\n", "sft reward ppo", r"a.jsonl: invalid JSON at line 2"),
    ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n', "sft reward ppo", r"a.jsonl:2: "),
    ('{"question_text": "a"}\n', "sft reward ppo", r"a.jsonl:1: no known layout has the keys question_text;"),
    (
        '{"prompt": "a", "completion": 3}\n',
        "sft reward ppo",
        r"a.jsonl:1: 'completion' is the number 3; expected a string",
    ),
    ('{"prompt": "a", "completion": "b"}\n', "sft reward ppo", r"a.jsonl:1: nothing can be held out"),
    (
        '{"prompt": "a", "completion": ""}\n{"prompt": "b", "completion": "c"}\n',
        "sft reward ppo",
        r"1 of 2 rows cannot be used",
    ),
    ('{"prompt": "a"}\n{"prompt": "b"}\n', "sft", r"a.jsonl:\d: the row has no answer to learn from"),
    ('{"prompt": "a"}\n{"prompt": "b"}\n', "reward", r"a.jsonl:\d: nothing is compared in this row"),
]


@pytest.mark.parametrize(
    ("content", "verb", "message"),
    [(content, verb, message) for content, verbs, message in UNUSABLE for verb in verbs.split()],
)
def test_a_data_file_that_cannot_be_used_is_exit_3(
    content: str | None, verb: str, message: str, base: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    more: Options = SMALL_PPO if verb == "ppo" else {}
    line = error_of(capsys, 3, verb, common(base, tmp_path / "run", path), more)
    assert re.search(message, line), line
    assert not leftovers(tmp_path)


def test_a_wrong_key_names_the_nearest(base: Path, answered: Path, tmp_path: Path, capsys: Capture) -> None:
    line = error_of(capsys, 2, "sft", common(base, tmp_path / "run", answered), {"optimizer.lerning_rate": 1})
    assert line == "command line: 'optimizer.lerning_rate' is unknown; did you mean 'optimizer.learning_rate'?"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["sft", "reward", "ppo"])
def test_a_prompt_over_the_context_is_named_by_its_row(verb: str, base: Path, tmp_path: Path, capsys: Capture) -> None:
    long = [row | {"prompt": f"number {i} " * 80} for i, row in enumerate(pair_rows(3))]
    rows = write_rows(tmp_path / "a.jsonl", long)
    if verb == "sft":
        write_rows(rows, [{"prompt": f"number {i} " * 80, "completion": "a"} for i in range(3)])
    more: Options = SMALL_PPO if verb == "ppo" else {}
    stops: Options = {"data.truncate_prompt": "error"}
    line = error_of(capsys, 3, verb, common(base, tmp_path / "run", rows), more, stops)
    assert re.match(rf"{re.escape(str(rows))}:\d: the prompt has \d+ tokens, and only \d+ fit: ", line), line
    # By default its beginning is cut, and the same rows train.
    assert main([verb, *words(common(base, tmp_path / "run", rows), more, {"max_steps": 1})]) == 0
    assert "prompts lost the beginning of their last user turn" in capsys.readouterr().err


def test_no_room_for_a_prompt_is_said(base: Path, prompts: Path, tmp_path: Path, capsys: Capture) -> None:
    more: Options = {"generation.max_new_tokens": 96}
    line = error_of(capsys, 3, "ppo", common(base, tmp_path / "run", prompts), SMALL_PPO, more)
    assert line.startswith(
        "96 new tokens leave no room for a prompt in the model's context of 96; lower generation.max"
    )


def test_a_row_of_which_nothing_counts_is_refused(base: Path, tmp_path: Path, capsys: Capture) -> None:
    turns = [("user", "a"), ("assistant", ""), ("user", "b c d e"), ("assistant", "f")]
    rows = write_rows(
        tmp_path / "a.jsonl",
        [
            {"messages": [{"role": role, "content": f"{text}{i}" if role == "user" else text} for role, text in turns]}
            for i in range(4)
        ],
    )
    more: Options = {"data.train_on": "assistant", "data.max_completion_tokens": 3, "model.chat_template": "plain"}
    line = error_of(capsys, 3, "sft", common(base, tmp_path / "run", rows), more)
    assert re.search(r"a.jsonl:\d: no completion token counts", line), line


def test_a_limit_that_reaches_one_label_alone_is_said(base: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [{"text": f"text {i}", "label": int(i > 20)} for i in range(40)])
    line = error_of(capsys, 3, "reward", common(base, tmp_path / "run", rows), {"data.limit": 20})
    assert "which needs two labels; found 0" in line


# ------------------------------------------------------------------------------------------------- numbers


def test_a_reward_that_is_no_number_is_refused(base: Path, prompts: Path, tmp_path: Path, capsys: Capture) -> None:
    more: Options = {"reward.callable": "tests.recipes.test_bad_input:not_a_number"}
    line = error_of(capsys, 1, "ppo", common(base, tmp_path / "run", prompts), SMALL_PPO, more)
    assert "returned nan for the completion" in line and "expected a finite number" in line
    assert not (tmp_path / "run" / "policy").exists() and not leftovers(tmp_path)


def not_a_number(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float("nan")] * len(completions)


def failing(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("tests.recipes.test_bad_input:failing", 1, r"failed at .*test_bad_input.py:\d+: KeyError: 'gold'$"),
        ("tests.recipes.test_bad_input:nothing_here", 2, "cannot be imported"),
        ("no_such_module:score", 2, "cannot be imported"),
        ("tests.recipes.test_bad_input:Capture", 1, "failed at .*: TypeError: "),
        ("tests.recipes.test_bad_input:pytest", 2, "is a module, not a function"),
    ],
)
def test_a_function_that_cannot_score_is_one_line(
    path: str, code: int, message: str, base: Path, prompts: Path, tmp_path: Path, capsys: Capture
) -> None:
    line = error_of(capsys, code, "ppo", common(base, tmp_path / "run", prompts), SMALL_PPO, {"reward.callable": path})
    assert re.search(message, line), line


@pytest.mark.parametrize("verb", ["sft", "reward", "ppo"])
def test_training_that_runs_away_stops_and_saves_no_role(
    verb: str, base: Path, answered: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows() if verb == "reward" else answered_rows())
    more: Options = SMALL_PPO if verb == "ppo" else {}
    runaway: Options = {"optimizer.learning_rate": 1e30, "max_steps": 20}
    line = error_of(capsys, 1, verb, common(base, tmp_path / "run", rows), more, runaway)
    assert "not finite" in line and "optimizer.learning_rate" in line
    assert not (tmp_path / "run" / "summary.json").exists() and not leftovers(tmp_path)
    assert not (tmp_path / "run" / "policy").exists() and not (tmp_path / "run" / "reward").exists()


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_a_short_run_that_ends_broken_does_not_pass_for_a_finished_one(
    verb: str, base: Path, answered: Path, tmp_path: Path, capsys: Capture
) -> None:
    more: Options = SMALL_PPO if verb == "ppo" else {}
    runaway: Options = {"optimizer.learning_rate": 1e30, "max_steps": 1 if verb == "ppo" else 3}
    line = error_of(capsys, 1, verb, common(base, tmp_path / "run", answered), more, runaway)
    assert "is not finite (nan), nothing was saved; lower optimizer.learning_rate" in line
    assert not (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "run" / "policy").exists()


# ------------------------------------------------------------------------------------------------- roles and models


def test_a_model_that_is_not_there_is_exit_2(answered: Path, tmp_path: Path, capsys: Capture) -> None:
    line = error_of(capsys, 2, "sft", common(tmp_path / "gone", tmp_path / "run", answered))
    assert line == f"{tmp_path / 'gone'}: no such folder; model.model_name_or_path takes a folder or a hub name"


def test_a_role_of_another_base_is_refused(
    sft_role: Path, reward_role: Path, answered: Path, prompts: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = make_base(tmp_path / "other", seed=7)
    on_other = common(other, tmp_path / "run", answered)
    assert "made on another base" in error_of(capsys, 2, "sft", on_other, {"start_from": str(sft_role)})
    more: Options = {"reward.callable": None, "reward.role": str(reward_role)}
    assert "made on another base" in error_of(capsys, 2, "ppo", on_other, SMALL_PPO, more)


def test_a_reward_role_without_its_head_is_refused(
    base: Path, reward_role: Path, prompts: Path, tmp_path: Path, capsys: Capture
) -> None:
    role = Path(shutil.copytree(reward_role, tmp_path / "role"))
    weights = load_file(role / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, role / "adapter_model.safetensors")
    more: Options = {"reward.callable": None, "reward.role": str(role)}
    line = error_of(capsys, 2, "ppo", common(base, tmp_path / "run", prompts), SMALL_PPO, more)
    assert "a reward role without its head" in line


def test_a_policy_is_no_reward_and_a_reward_no_policy(
    base: Path, sft_role: Path, reward_role: Path, prompts: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = common(base, tmp_path / "run", prompts) | SMALL_PPO
    line = error_of(capsys, 2, "ppo", options, {"reward.callable": None, "reward.role": str(sft_role)})
    assert "this is a policy role, and a reward role is needed here" in line
    line = error_of(capsys, 2, "ppo", options, {"start_from": str(reward_role)})
    assert "this is a reward role, and a policy role is needed here" in line


def test_a_run_folder_in_place_of_a_role_names_the_role(
    base: Path, sft_role: Path, answered: Path, tmp_path: Path, capsys: Capture
) -> None:
    more: Options = {"start_from": str(sft_role.parent)}
    line = error_of(capsys, 2, "sft", common(base, tmp_path / "run", answered), more)
    assert line == f"{sft_role.parent}: no role.json; did you mean {sft_role}?"


def test_a_stop_string_of_several_tokens_is_refused(base: Path, prompts: Path, tmp_path: Path, capsys: Capture) -> None:
    more: Options = {"generation.stop": ["The zebra 猫"]}
    line = error_of(capsys, 2, "ppo", common(base, tmp_path / "run", prompts), SMALL_PPO, more)
    assert "only a single token can stop a completion" in line


@pytest.mark.parametrize("command", [["sfft"], ["rewardd", "a.yaml"], ["--verb"]])
def test_an_unknown_verb_is_exit_2(command: list[str], capsys: Capture) -> None:
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


# --------------------------------------------------------------------------------------- memory, disk, folders


@pytest.mark.parametrize("verb", ["sft", "reward", "ppo"])
def test_what_cannot_fit_is_exit_4(
    verb: str, base: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda device: 1 << 16)
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows() if verb == "reward" else answered_rows())
    more: Options = SMALL_PPO if verb == "ppo" else {}
    auto: Options = {"batch.microbatch_tokens": "auto"}
    line = error_of(capsys, 4, verb, common(base, tmp_path / "run", rows), more, auto)
    assert re.match(r"the longest example has \d+ tokens .* but only 0 MiB are free; lower data.max_prompt", line)


def test_a_finished_run_is_not_written_over(base: Path, answered: Path, tmp_path: Path, capsys: Capture) -> None:
    options = common(base, tmp_path / "run", answered) | {"max_steps": 1}
    assert main(["sft", *words(options)]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    line = error_of(capsys, 2, "sft", options)
    assert line == (
        f"{tmp_path / 'run'} holds a finished run; choose another --output_dir, or remove that folder first. To train "
        "it further, raise max_steps or optimizer.num_epochs and leave everything else as it was"
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_file_where_the_folder_should_be_is_exit_2(
    base: Path, answered: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "run").write_text("")
    line = error_of(capsys, 2, "sft", common(base, tmp_path / "run", answered))
    assert line.startswith(f"{tmp_path / 'run'}: cannot be written")


def full(*arguments: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("verb", ["pretrain", "sft", "reward", "ppo"])
def test_a_disk_that_fills_up_leaves_no_half_a_role(
    verb: str, base: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows() if verb == "reward" else answered_rows())
    if verb == "pretrain":
        write_rows(rows, [{"text": f"The cat is number {i}."} for i in range(20)])
    options = common(base, tmp_path / "run", rows) | (SMALL_PPO if verb == "ppo" else {}) | {"max_steps": 1}
    if verb == "pretrain":
        options["model.chat_template"] = None
    fsync, calls = os.fsync, [0]

    def full_after_the_config_and_the_record(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 4:  # each file, and the folder it is in
            full()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_the_config_and_the_record)
    line = error_of(capsys, 4, verb, options)
    assert "the disk is full; nothing was half-written" in line
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "metrics.jsonl"} and not leftovers(tmp_path)


def test_a_disk_that_is_full_from_the_start_is_exit_4(
    base: Path, answered: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    line = error_of(capsys, 4, "sft", common(base, tmp_path / "run", answered))
    assert "config.yaml: the disk is full" in line and not leftovers(tmp_path)
    assert list((tmp_path / "run").iterdir()) == []


# ------------------------------------------------------------------------------------------------- interruption


def test_ctrl_c_saves_first(base: Path, answered: Path, tmp_path: Path) -> None:
    options = common(base, tmp_path / "run", answered) | {"max_steps": 100_000}
    process = subprocess.Popen(
        [sys.executable, "-m", "onebase", "sft", *words(options)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    lines: list[str] = []
    while not any(line.startswith("sft  ") for line in lines):  # the first line of progress
        lines.append(process.stderr.readline())
        assert lines[-1], "the run ended by itself"
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().splitlines()
    process.stderr.close()
    assert process.wait(timeout=60) == 130
    errors = [line for line in rest if line.startswith("error: ")]
    assert len(errors) == 1 and not any("Traceback" in line for line in rest)
    found = re.fullmatch(r"error: stopped after step (\d+) and saved (.*); run the same command to resume", errors[0])
    assert found, errors
    checkpoint = Path(found[2])
    assert checkpoint == tmp_path / "run" / f"checkpoint-{found[1]}"
    loaded = load_base(str(base), dtype="float32")
    load_role(loaded, "policy", checkpoint / "policy", kinds=("policy",))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, int(found[1]) + 1))
    assert not leftovers(tmp_path) and not (tmp_path / "run" / "summary.json").exists()


def signals_in_step(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: signal.Signals) -> None:
    """Sends this process signals in the middle of an SFT step, counted from 1."""
    language_step, done = sft.language_step, [0]

    def watched(*arguments: Any) -> dict[str, float]:
        done[0] += 1
        if done[0] == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return language_step(*arguments)

    monkeypatch.setattr(sft, "language_step", watched)


def test_what_was_saved_at_sigterm_goes_on(
    base: Path, answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped after step 2 and saved"):
        signals_in_step(patch, 2, signal.SIGTERM)
        sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), {"max_steps": 5}))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    more: Options = {"start_from": str(tmp_path / "run" / "checkpoint-2" / "policy"), "max_steps": 1}
    sft.run(load(SFTConfig, common(base, tmp_path / "on", answered), more))
    # What the stopped run saved is not written over by another one.
    before = file_bytes(tmp_path / "run")
    with pytest.raises(CheckpointError, match="checkpoint-2 was written with another configuration: seed differ$"):
        sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), {"max_steps": 5, "seed": 1}))
    with pytest.raises(ConfigError, match="run: 2 steps are done and 1 are asked for") as caught:
        sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), {"max_steps": 1}))
    assert caught.value.remedy == "more-steps-done"
    assert file_bytes(tmp_path / "run") == before


def test_a_reward_that_fails_on_the_way_leaves_the_roles_of_the_last_rollout(
    base: Path, prompts: Path, tmp_path: Path, capsys: Capture
) -> None:
    CALLS.clear()
    more: Options = {"reward.callable": "tests.recipes.test_bad_input:failing_later", "max_steps": 3}
    line = error_of(capsys, 1, "ppo", common(base, tmp_path / "run", prompts), SMALL_PPO, more)
    assert line.endswith("ValueError: no more")
    loaded = load_base(str(base), dtype="float32")
    for role in ("policy", "critic"):
        load_role(loaded, role, tmp_path / "run" / "checkpoint-1" / role, kinds=(role,))
    assert not (tmp_path / "run" / "policy").exists() and not (tmp_path / "run" / "summary.json").exists()


def test_a_second_ctrl_c_ends_at_once(
    base: Path, answered: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals_in_step(monkeypatch, 2, signal.SIGINT, signal.SIGINT)
    assert error_of(capsys, 130, "sft", common(base, tmp_path / "run", answered), {"max_steps": 5}) == "interrupted"
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not leftovers(tmp_path)


CALLS: list[int] = []


def failing_later(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    CALLS.append(len(prompts))
    if len(CALLS) == 3:  # the reference, the first rollout, the second
        raise ValueError("no more")
    return [float(len(text)) for text in completions]


def stopping(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    CALLS.append(len(prompts))
    if len(CALLS) == 2:  # the first call judges the reference, before the first rollout
        os.kill(os.getpid(), signal.SIGTERM)
    return [float(len(text)) for text in completions]


def test_ppo_that_is_stopped_saves_the_policy_and_the_critic(
    base: Path, prompts: Path, tmp_path: Path, capsys: Capture
) -> None:
    CALLS.clear()
    more: Options = {"reward.callable": "tests.recipes.test_bad_input:stopping"}
    line = error_of(capsys, 75, "ppo", common(base, tmp_path / "run", prompts), SMALL_PPO, more)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert line == f"stopped after step 1 and saved {checkpoint}; run the same command to resume"
    loaded = load_base(str(base), dtype="float32")
    for role in ("policy", "critic"):
        load_role(loaded, role, tmp_path / "run" / "checkpoint-1" / role, kinds=(role,))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
def test_a_disk_that_fills_up_while_it_trains_is_exit_4(
    base: Path, answered: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "run" / "metrics.jsonl"
    language_step = sft.language_step

    def fill_up(*arguments: Any) -> dict[str, float]:
        metrics = language_step(*arguments)
        if record.read_text():  # in step 2
            record.unlink()
            record.symlink_to("/dev/full")
        return metrics

    monkeypatch.setattr(sft, "language_step", fill_up)
    line = error_of(capsys, 4, "sft", common(base, tmp_path / "run", answered), {"max_steps": 5})
    assert "no space left on the disk" in line or "the disk is full" in line
    # The step was done and its line was not: no checkpoint may know more than the record, but the role can be used.
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.jsonl", "failed-in-step-2"}
    load_role(load_base(str(base)), "policy", tmp_path / "run" / "failed-in-step-2" / "policy", kinds=("policy",))
