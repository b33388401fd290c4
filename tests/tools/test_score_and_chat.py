"""`onebase score` and `onebase chat`: scores as JSON lines, answers in the terminal."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from onebase.cli.main import main
from onebase.config.language import SFTConfig
from onebase.config.preferences import RewardConfig
from onebase.data.chat import chat_format
from onebase.engines.opening import load_base
from onebase.models.base import OneBase
from onebase.models.loading import load_tokenizer
from onebase.recipes import reward, sft
from onebase.records import Message, Row
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sample, Sampling
from onebase.shown import shown
from onebase.tools.chat import Stream, show_columns
from onebase.tools.score import agreement
from tests.recipes.conftest import CONTEXT, answered_rows, common, load, make_base, pair_rows, write_rows


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    found = main(words)
    printed = capsys.readouterr()
    assert found == code, printed.err
    return printed.out, printed.err


def one_error(err: str) -> str:
    """Returns the only error line, without its prefix."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    return errors[0].removeprefix("error: ")


# ------------------------------------------------------------------------------------------------- score


def test_score_prints_what_transformers_and_peft_would(
    base: Path,
    reward_role: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onebase.engines.opening.hardware_dtype", lambda device: torch.float32)
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(5))
    out, err = said(capsys, "score", str(reward_role), str(rows))
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["row"] for line in lines] == [f"{rows}:{i}" for i in range(1, 6)]
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = PeftModel.from_pretrained(classifier, reward_role).eval()
    chat = chat_format(load_tokenizer(str(base)), "hh")
    for line, row in zip(lines, pair_rows(5), strict=True):
        example = chat.encode_example(Row((Message("user", row["prompt"]),), (row["chosen"], row["rejected"])))
        for score, completion in zip(line["scores"], example.completions, strict=True):
            with torch.no_grad():
                expected = model(torch.tensor([[*example.prompt_ids, *completion]])).logits[0, 0]
            assert score == pytest.approx(float(expected), abs=1e-4)
    assert "10 answers, mean" in err


OWN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def readme_scores(role: str, base: str, dtype: str, messages: list[dict[str, str]], answers: list[str]) -> list[float]:
    """Runs the README's code that scores without onebase, unchanged."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "PeftModel" in code]
    scores = []
    for answer in answers:
        names: dict[str, Any] = {
            "ROLE": role,
            "BASE": base,
            "DTYPE": dtype,
            "messages": messages,
            "answer": answer,
        }
        with torch.no_grad():
            exec(lines, names)
        scores.append(float(names["score"]))
    return scores


@pytest.mark.parametrize(
    ("template", "dtype", "pad_is_end"),
    [
        ("plain", "float32", False),
        ("hh", "float32", False),
        ("hh", "float32", True),
        ("hh", "bfloat16", False),
        ("chatml", "float32", False),
        ("chatml", "bfloat16", False),
        (None, "float32", False),
    ],
)
def test_the_lines_in_readme_give_the_scores_of_the_command(
    template: str | None, dtype: str, pad_is_end: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base", pad_is_end=pad_is_end)
    if template is None:
        tokenizer = load_tokenizer(str(base))
        tokenizer.chat_template = OWN_TEMPLATE
        tokenizer.save_pretrained(base)
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(8))
    more = {"max_steps": 3, "optimizer.learning_rate": 2e-2, "model.chat_template": template, "model.dtype": dtype}
    reward.run(load(RewardConfig, common(base, tmp_path / "run", rows), more))
    role = str(tmp_path / "run" / "reward")
    out, _ = said(capsys, "score", role, str(rows))
    lines = [json.loads(line) for line in out.splitlines()]
    spread = [score for line in lines for score in line["scores"]]
    assert max(spread) - min(spread) > 0.1
    for line, row in zip(lines[:3], pair_rows(3), strict=True):
        turns = [{"role": "user", "content": row["prompt"]}]
        found = readme_scores(role, str(base), dtype, turns, [row["chosen"], row["rejected"]])
        assert found == pytest.approx(line["scores"], abs=1e-4 if dtype == "float32" else 0.03)


def test_a_role_folder_has_the_tokenizer_and_template_inside(base: Path, sft_role: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sft_role)
    chat = chat_format(load_tokenizer(str(base)), "hh")
    asked = [{"role": "user", "content": "Is the cat good?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == chat.encode_prompt([Message("user", "Is the cat good?")])
    assert tokenizer.eos_token_id == chat.end_token_id
    own = chat_format(load_tokenizer(str(base)), str(sft_role / "chat_template.jinja"))
    assert own.fingerprint == chat.fingerprint  # so that no warning about another template is printed


def test_a_wrong_path_is_answered_before_torch_is_imported(base: Path, tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", answered_rows(2)))
    run = [f"output_dir={tmp_path / 'run'}", f"data.train={rows}", f"model.model_name_or_path={base}"]
    commands = [
        ["chat", "/nowhere"],
        ["chat", "--compare", "/nowhere", "/no"],
        ["score", "/nowhere", rows],
        ["sft", *run, "start_from=/nowhere"],
        ["reward", *run, "start_from=/nowhere", "--dry-run"],
        ["dpo", *run, "reference_role=/nowhere"],
        ["ppo", *run, "reward.callable=a:b", "start_from=/nowhere"],
        ["ppo", *run, "reward.role=/nowhere"],
        ["ppo", *run, "reward.model=/nowhere"],
        ["sft", *run[:2], "model.model_name_or_path=/nowhere", "--dry-run"],
        ["chat", str(tmp_path), "--model", "/nowhere"],
    ]
    code = f"""
import sys
from onebase.cli.main import main
assert [main(words) for words in {commands!r}] == [2] * {len(commands)}
assert not {{"torch", "transformers"}} & set(sys.modules), "imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stderr.splitlines()
    assert len(lines) == len(commands) - 1
    assert all(line.startswith("error: /nowhere: no such folder; ") for line in lines)
    assert last == f"error: {tmp_path}: no role.json; it is not a role saved by onebase"


def test_rank_lists_the_answers_best_first(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"instruction": "Say.", "output": ["The cat is bad.", "The cat is good.", "猫"]}
    out, _ = said(capsys, "score", str(reward_role), str(write_rows(tmp_path / "l.jsonl", [row])), "--rank")
    (line,) = map(json.loads, out.splitlines())
    ranking = line["ranking"]
    assert [place["score"] for place in ranking] == sorted(line["scores"], reverse=True)
    assert [place["text"] for place in ranking] == [row["output"][place["answer"]] for place in ranking]


def test_one_answer_has_one_score_and_the_budget_changes_nothing(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "a.jsonl", answered_rows(6))
    outs = [said(capsys, "score", str(reward_role), str(rows), f"--microbatch-tokens={n}")[0] for n in (30, 4000)]
    few, many = ([json.loads(line)["score"] for line in out.splitlines()] for out in outs)
    assert few == pytest.approx(many, abs=1e-5)


def test_score_says_how_often_the_better_answer_scores_higher(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(5))
    out, err = said(capsys, "score", str(reward_role), str(rows))
    right = sum(scores[0] > scores[1] for line in out.splitlines() if (scores := json.loads(line)["scores"]))
    assert f"accuracy {right / 5:.3f}: the better answer scores higher (5 comparisons, 5 rows)\n" in err
    assert "accuracy" not in said(capsys, "score", str(reward_role), str(write_rows(rows, answered_rows(2))))[1]


def test_a_role_that_lacks_a_moment_is_scored_without_a_word_about_them(
    base: Path, reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    role = shutil.copytree(reward_role, tmp_path / "reward")
    card = json.loads((role / "role.json").read_text(encoding="utf-8"))
    (role / "role.json").write_text(json.dumps({k: v for k, v in card.items() if k != "score_std"}))
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows())
    out, err = said(capsys, "score", str(role), str(rows))
    assert out == said(capsys, "score", str(reward_role), str(rows))[0] and "deviation" not in err


def test_agreement_counts_every_comparison_of_a_list_and_a_tie_as_half() -> None:
    told = agreement([((2.0, 1.0, 0.0), (3.0, 1.0, 1.0)), ((1.0, 1.0), (0.0, 5.0)), (None, (1.0,))])
    assert told == f"accuracy {2.5 / 3:.3f}: the better answer scores higher (3 comparisons, 1 row)"
    assert agreement([(None, (1.0,))]) == agreement([]) == ""


def test_score_loads_the_base_as_it_is_told(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    def watched(name: str, **how: str) -> OneBase:
        seen.append(how)
        return load_base(name, **how)

    monkeypatch.setattr("onebase.recipes.setup.saved.load_base", watched)
    rows = write_rows(tmp_path / "a.jsonl", answered_rows(2))
    said(capsys, "score", str(reward_role), str(rows), "--dtype", "bfloat16", "--device=cpu")
    said(capsys, "score", str(reward_role), str(rows))
    card = json.loads((reward_role / "role.json").read_text())
    assert seen == [
        {"dtype": "bfloat16", "quantization": "none", "device": "cpu"},
        {"dtype": card["dtype"], "quantization": "none", "device": "auto"},
    ]


@pytest.mark.parametrize("command", ["score", "chat"])
def test_a_model_is_no_reward_role(
    command: str, base: Path, sft_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(8))
    more = {"lora.r": 0, "max_steps": 1}
    reward.run(load(RewardConfig, common(base, tmp_path / "run", rows), more))
    model = str(tmp_path / "run" / "model")
    words = ["score", model, str(rows)] if command == "score" else ["chat", str(base), "--once", "a", "--reward", model]
    _, err = said(capsys, *words, code=2)
    assert "reward.model" in one_error(err)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda role: shutil.rmtree(role), "no such folder; a role is the folder"),
        (lambda role: (role / "role.json").unlink(), "no role.json; it is not a role saved by onebase"),
        (lambda role: (role / "role.json").write_text("{"), "role.json: cannot be read"),
        (lambda role: (role / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: missing"),
        (lambda role: (role / "adapter_model.safetensors").write_bytes(b"x" * 40), "the adapter cannot be read"),
        (lambda role: drop_head(role), "a reward role without its head"),
        (lambda role: change_card(role, base="/gone/away"), "/gone/away: the base of .* is no longer there; .*--model"),
        (lambda role: change_card(role, kind="policy"), "this is a policy role, and a reward role is needed here"),
    ],
)
def test_a_role_that_cannot_score_is_one_line_and_exit_2(
    prepare: Any, message: str, reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    role = Path(shutil.copytree(reward_role, tmp_path / "role"))
    prepare(role)
    rows = write_rows(tmp_path / "a.jsonl", answered_rows(2))
    out, err = said(capsys, "score", str(role), str(rows), code=2)
    assert out == "" and re.search(message, one_error(err)), err


def drop_head(role: Path) -> None:
    path = role / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "score" not in name}, path)


def change_card(role: Path, **changes: str) -> None:
    card = json.loads((role / "role.json").read_text())
    (role / "role.json").write_text(json.dumps(card | changes))


def test_the_base_may_have_moved(
    base: Path, reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    role = Path(shutil.copytree(reward_role, tmp_path / "role"))
    change_card(role, base="/gone/away")
    rows = write_rows(tmp_path / "a.jsonl", answered_rows(2))
    out, _ = said(capsys, "score", str(role), str(rows), "--model", str(base))
    assert len(out.splitlines()) == 2


def test_a_row_without_answer_cannot_be_scored(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c"}])
    _, err = said(capsys, "score", str(reward_role), str(rows), code=3)
    assert one_error(err).startswith(f"{rows}:2: the row has no answer to score")


# ------------------------------------------------------------------------------------------------- chat


def test_once_answers_on_stdout_alone(
    base: Path, sft_role: Path, reward_role: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--once", "Is the cat good?", "--max-new-tokens", "5", "--seed", "1"]
    first, _ = said(capsys, "chat", str(sft_role), *words)
    assert first == said(capsys, "chat", str(sft_role), *words)[0]
    scored, _ = said(capsys, "chat", str(sft_role), *words, "--reward", str(reward_role))
    assert "(reward " in scored and scored.startswith(first.rstrip("\n"))
    said(capsys, "chat", str(base), *words, "--temperature", "0")


def test_compare_shows_two_roles_of_one_base(
    base: Path, sft_role: Path, reward_role: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--once", "Is the cat good?", "--max-new-tokens", "5", "--reward", str(reward_role)]
    out, _ = said(capsys, "chat", "--compare", str(base), str(sft_role), *words)
    assert "A: " in out and "B: " in out and out.count("(reward ") == 2


def test_markup_in_an_answer_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_columns({"A": ("[/red] [bold]a", 1.0), "B": ("[link=x]b", None)}, {"A": "[x]", "B": "y"})
    out = capsys.readouterr().out
    assert "[/red] [bold]a" in out and "[link=x]b" in out and "A: [x]" in out


def test_a_terminal_escape_in_an_answer_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    show_columns({"A": ("\x1b[2Ja", None), "B": ("b", None)}, {"A": "\x1b", "B": "y"})
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["  a cat, été 你好 😀 and no more \n", "\x1b[2Ja\nb\u202e", "\ufffd", ""])
def test_an_answer_is_printed_as_it_is_written(text: str, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(str(base))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream, printed = Stream(chat_format(tokenizer)), ""
    for count in range(1, len(ids) + 1):
        stream.write(Sample(0, ids[:count]))
        printed += capsys.readouterr().out
        whole = shown(tokenizer.decode(ids[:count]).strip(), lines=True)
        assert whole.startswith(printed) and len(whole) - len(printed) < 4 and "\ufffd" not in printed
    stream.end(text.strip(), "(reward 1.000)")
    assert printed + capsys.readouterr().out == shown(text.strip(), lines=True) + "\n(reward 1.000)\n"


def test_an_answer_whose_last_token_changes_earlier_ones_is_printed_again(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(str(base))
    stream = Stream(chat_format(tokenizer))
    stream.write(Sample(0, tokenizer("abc", add_special_tokens=False)["input_ids"]))
    stream.end("xyz", "")
    assert capsys.readouterr().out == "abc\nxyz\n"


def test_a_system_prompt_stands_before_the_conversation_and_stays(
    sft_role: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[Message]] = []

    def watched(base: Any, chat: Any, folders: Any, sampling: Any, messages: list[Message], *_: Any, **__: Any) -> Any:
        seen.append(list(messages))
        return {"A": ("yes", None)}

    monkeypatch.setattr("onebase.tools.chat.answer", watched)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n/new\nthree\n"))
    said(capsys, "chat", str(sft_role), "--system", "Be kind.")
    said(capsys, "chat", str(sft_role), "--system", "Be kind.", "--once", "a")
    assert [len(messages) for messages in seen] == [2, 4, 2, 2]
    assert all(messages[0] == Message("system", "Be kind.") for messages in seen)


def test_bytes_that_are_no_text_end_a_conversation_in_one_line(
    sft_role: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hi \xff\n"), encoding="utf-8"))
    _, err = said(capsys, "chat", str(sft_role), code=2)
    assert one_error(err) == "the message is not UTF-8 text: byte 3 is 0xff"


def test_two_models_cannot_be_compared(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_base(tmp_path / "other", seed=5)
    _, err = said(capsys, "chat", "--compare", str(base), str(other), "--once", "a", code=2)
    assert "are two models" in one_error(err)


def test_a_role_of_another_base_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sft_role: Path
) -> None:
    other = make_base(tmp_path / "other", seed=5)
    _, err = said(capsys, "chat", "--compare", str(other), str(sft_role), "--once", "a", code=2)
    assert "made on another base" in one_error(err)


def test_a_conversation_goes_on_until_an_empty_line(
    sft_role: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Is the cat good?\n/new\nIs it bad?\nAnd now?\n\nnever read\n"))
    out, _ = said(capsys, "chat", str(sft_role), "--max-new-tokens", "3")
    assert len(out.splitlines()) >= 3


def test_of_a_conversation_over_the_context_the_oldest_turns_are_left_out(
    sft_role: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def watched(loaded: OneBase, prompts: list[list[int]], *, sampling: Sampling, **named: Any) -> list[Sample]:
        asked.append(len(prompts[0]))
        assert len(prompts[0]) + sampling.max_new_tokens <= CONTEXT and 1 <= sampling.max_new_tokens <= 8
        return generate(loaded, prompts, sampling=sampling, **named)

    monkeypatch.setattr("onebase.tools.chat.generate", watched)
    monkeypatch.setattr("sys.stdin", io.StringIO("Is the cat number 3 good?\n" * 12))
    said(capsys, "chat", str(sft_role), "--max-new-tokens", "8")
    assert len(asked) == 12 and asked[1] > asked[0] and any(after < before for before, after in pairwise(asked))


def test_an_answer_ends_where_the_context_does(
    sft_role: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    most: list[int] = []

    def watched(loaded: OneBase, prompts: list[list[int]], *, sampling: Sampling, **named: Any) -> list[Sample]:
        most.append(len(prompts[0]) + sampling.max_new_tokens)
        return generate(loaded, prompts, sampling=sampling, **named)

    monkeypatch.setattr("onebase.tools.chat.generate", watched)
    said(capsys, "chat", str(sft_role), "--once", "Is the cat good?", "--max-new-tokens", "5000")
    assert most == [CONTEXT]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-new-tokens", "0", "--max-new-tokens is 0; it should be at least 1"),
        ("--max-new-tokens", "-3", "--max-new-tokens is -3; it should be at least 1"),
        ("--temperature", "-0.5", "--temperature is -0.5; it should be 0 or more, and finite"),
        ("--temperature", "1e400", "--temperature is inf; it should be 0 or more, and finite"),
        *(
            (option, value, f"Invalid value for {option}: {value} is not {what} See 'onebase chat --help'.")
            for option, value, what in [
                ("--temperature", "nan", "a number"),
                ("--temperature", "1_0", "a number"),
                ("--top-p", "x", "a number"),
                ("--max-new-tokens", "1.5", "a whole number"),
                ("--seed", "0x10", "a whole number"),
                ("--seed", "1_0", "a whole number"),
                ("--seed", "9" * 30, "a whole number"),
            ]
        ),
        ("--system", "  ", "--system is empty; write what it should say, or leave it out"),
        ("--model", "", "--model is empty; name the folder of the base model, or leave it out"),
        ("--model", "x" * 300, f"{'x' * 197}...: File name too long; name another file or folder"),
    ],
)
def test_lengths_and_temperatures_that_cannot_be_are_refused(
    option: str, value: str, message: str, sft_role: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = said(capsys, "chat", str(sft_role), "--once", "a", f"{option}={value}", code=2)
    assert out == "" and one_error(err) == message


def test_a_message_over_the_context_is_one_line(sft_role: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "chat", str(sft_role), "--once", "Is the cat good? " * 30, code=3)
    assert "context" in one_error(err)


def test_a_base_without_template_goes_on_from_the_text(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, "chat", str(base), "--once", "The cat is", "--max-new-tokens", "4", "--temperature", "0")
    assert out.endswith("\n")


def test_what_full_training_left_chats_with_its_template(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full-parameter model answers a question in the template it was trained with."""
    rows = write_rows(tmp_path / "sft.jsonl", answered_rows())
    more = {"lora.r": 0, "max_steps": 60, "optimizer.learning_rate": 1e-2}
    sft.run(load(SFTConfig, common(base, tmp_path / "run", rows), more))
    words = ["--once", "Is the cat number 0?", "--max-new-tokens", "20", "--temperature", "0"]
    out, _ = said(capsys, "chat", str(tmp_path / "run" / "model"), *words)
    assert out.strip().endswith("is good.") and "Human" not in out
