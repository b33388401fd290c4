"""`onebase data show`: the terminal, the page, and what they say about a row that is cut or left out."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from onebase.cli.main import main
from tests.recipes.conftest import CONTEXT, write_rows


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Is {n} good?", "chosen": "It is\ngood.", "rejected": "No."} for n in range(3)]
    return write_rows(tmp_path / "pairs.jsonl", rows)


def shown(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    found = main(["data", "show", *words])
    printed = capsys.readouterr()
    assert found == code, printed.err
    return printed.out, printed.err


def test_a_pair_is_shown_as_a_prompt_and_two_branches(
    base: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = shown(capsys, str(pairs), "--model", str(base), "--chat-template", "hh", "--row", "2")
    lines = out.splitlines()
    assert lines[0] == f"row       {pairs}:2, read as pair: 1 turn, 2 answers"
    assert lines[1] == f"model     {base}, {CONTEXT} positions"
    assert lines[2:4] == ["template  hh", "train on  completion"]
    assert lines[4].startswith("tokens: prompt ") and lines[4].endswith("end token <|eos|> learned in 2 of 2")
    assert "Human: Is 1 good?↵" in out and "⟦ It is↵\ngood.<|eos|>⟧" in out and "⟦ No.<|eos|>⟧" in out
    assert re.search(r"answer 1 of 2, grade 1, \d+ tokens, \d+ learned, ends", out)
    assert "\x1b" not in out and err == ""  # no colours where nobody sees them


def test_a_terminal_that_knows_only_ascii_gets_other_marks(base: Path, pairs: Path) -> None:
    words = ["data", "show", str(pairs), "--model", str(base), "--chat-template", "hh"]
    done = subprocess.run(
        [sys.executable, "-m", "onebase", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and "[[ It is\\n\ngood.<|eos|>]]" in done.stdout and "\\u" not in done.stdout


def test_the_page_is_one_file_with_every_token_and_nothing_from_outside(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "row.html"
    rows = [{"prompt": "<script>x</script> & </div>", "chosen": "<b>", "rejected": "\x1b[2J"}]
    file = write_rows(tmp_path / "sharp.jsonl", rows)
    out, _ = shown(capsys, str(file), "--model", str(base), "--chat-template", "hh", "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert out == f"{page}\n" and "<script" not in text and "http" not in text and "\x1b" not in text
    tokens = re.findall(r'<span class="(t[^"]*)" title="([\d, ]+)">(.*?)</span>(?!\n)', text, re.DOTALL)
    spelled = unescape(re.sub("<[^>]+>", "", "".join(token for _, _, token in tokens)))
    assert "<script>x</script> & </div>" in spelled and "<b>" in spelled and "\\x1b[2J" in spelled
    assert sum("ends" in kinds for kinds, _, _ in tokens) == 2
    assert all("learned" in kinds for kinds, _, token in tokens if token == "&lt;b" or "ends" in kinds)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_what_is_cut_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n} of these"} for n in range(6)]
    file = write_rows(tmp_path / "long.jsonl", [{"messages": turns}])
    options = (str(file), "--model", str(base), "--chat-template", "hh", "--max-prompt-tokens")
    out, _ = shown(capsys, *options, "40")
    assert "note: the prompt is cut, its oldest turns are left out: prompts are limited to 40 tokens\n" in out
    assert "turn 0" not in out and "turn 4" in out and re.search(r"note: \d+ of the row's \d+ tokens are cut", out)
    out, _ = shown(capsys, *options, "28")
    assert "the beginning of its last user turn is left out: prompts are limited to 28 tokens" in out
    _, err = shown(capsys, *options, "10", "--truncate-prompt", "drop", code=3)
    assert re.search(r"long.jsonl:1: the prompt has \d+ tokens, so training leaves this row out: prompts are", err)
    _, err = shown(capsys, *options, "10", "--truncate-prompt", "error", code=3)
    assert "only 10 fit: prompts are limited to 10 tokens" in err
    out, _ = shown(capsys, *options, "40", "--max-completion-tokens", "3")
    assert "answers are cut at the end, before their end token" in out and "learned in 0 of 1" in out
    assert "does not end" in out


def test_options_change_what_is_learned(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"t{n}"} for n in range(4)]
    file = write_rows(tmp_path / "turns.jsonl", [{"messages": turns}, {"prompt": "q"}][:1])
    options = (str(file), "--model", str(base), "--chat-template", "hh")
    assert "⟦ t1⟧↵" in shown(capsys, *options, "--train-on", "assistant")[0]
    assert "⟦ t1⟧" not in shown(capsys, *options)[0]
    out, _ = shown(capsys, *options, "--system-prompt", "Be brief.")
    assert "System: Be brief.↵" in out and "4 turns, 1 answer" in out


def test_a_row_that_training_leaves_out_says_so(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": " "}, {"prompt": "q"}])
    options = (str(file), "--model", str(base), "--chat-template", "hh")
    assert "note: training leaves this row out: empty answer" in shown(capsys, *options)[0]
    out, _ = shown(capsys, *options, "--row", "2")
    assert "note: the row has no answer: it can be sampled from" in out and "no answer" in out


def test_a_role_is_shown_with_the_template_it_was_trained_with(
    sft_role: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = shown(capsys, str(pairs), "--model", str(sft_role))
    assert "Human: Is 0 good?" in out and f"model     {sft_role}, {CONTEXT} positions" in out


def test_a_folder_with_a_tokenizer_alone_is_enough(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 77}))
    out, _ = shown(capsys, str(pairs), "--model", str(folder), "--chat-template", "hh")
    assert f"model     {folder}, 77 positions" in out and "learned in 2 of 2" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--row", "4"], 2, "--row is 4, and .*pairs.jsonl has 3 rows$"),
        (["--row", "0"], 2, "--row is 0; it should be at least 1$"),
        (["--row", "1.5"], 2, "1.5 is not a whole number"),
        (["--max-prompt-tokens", "0"], 2, "--max-prompt-tokens is 0; it should be at least 1$"),
        (["--system-prompt", " "], 2, "--system-prompt is blank; leave it out for none$"),
        (["--chat-template", "qwenn"], 2, "the chat template 'qwenn' is not known; did you mean qwen"),
        (["--html", "."], 2, r"\. is a folder; name a file with --html$"),
        (["--model", "./nothing"], 2, "./nothing: no such folder; --model takes a folder or a hub name$"),
    ],
)
def test_mistakes_are_one_line(
    base: Path, pairs: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    model = [] if "--model" in words else ["--model", str(base)]
    template = [] if "--chat-template" in words else ["--chat-template", "hh"]
    _, err = shown(capsys, str(pairs), *model, *template, *words, code=code)
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert re.search(message, line), line


def test_tools_that_a_template_does_not_know_are_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Rain?", "completion": "No.", "tools": [{"name": "weather"}]}
    file = write_rows(tmp_path / "tools.jsonl", [row])
    _, err = shown(capsys, str(file), "--model", str(base), "--chat-template", "hh", code=3)
    assert err == (
        f"error: {file}:1: the chat template hh does not write 'weather' of the row's tools, calls and results; set "
        "model.chat_template to one that writes tools (qwen, llama-3, or the tokenizer's own), or drop these rows\n"
    )


def test_a_reward_role_reads_a_score_and_learns_no_token(
    base: Path, reward_role: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored, _ = shown(capsys, str(pairs), "--model", str(base), "--chat-template", "hh", "--train-on", "score")
    by_role, _ = shown(capsys, str(pairs), "--model", str(reward_role))
    for out in (scored, by_role):
        assert "train on  score" in out and "learned" not in out and "⟦" not in out
        assert "end token <|eos|> at the end of 2 of 2; each has one score, read at its last token\n" in out
        assert re.search(r"answer 2 of 2, grade 0, \d+ tokens, ends", out)
    as_policy, _ = shown(capsys, str(pairs), "--model", str(reward_role), "--train-on", "completion")
    assert "train on  completion" in as_policy and "learned in 2 of 2" in as_policy
    card = json.loads((reward_role / "role.json").read_text())
    role = tmp_path / "mean"
    shutil.copytree(reward_role, role)
    (role / "role.json").write_text(json.dumps(card | {"pooling": "mean"}))
    assert "each has one score, the mean of its tokens' scores" in shown(capsys, str(pairs), "--model", str(role))[0]
    page = tmp_path / "row.html"
    shown(capsys, str(pairs), "--model", str(reward_role), "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert "counts in the loss" not in text and "its end token is scored" in text and "learned</span>" not in text


def test_a_packed_tokenizer_is_named(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer.json.gz").write_bytes(gzip.compress((base / "tokenizer.json").read_bytes()))
    _, err = shown(capsys, str(pairs), "--model", str(folder), "--chat-template", "hh", code=2)
    assert err == (
        f"error: {folder}: no tokenizer could be loaded: tokenizer.json.gz is packed, and has to be unpacked (gunzip, "
        "in a copy of the folder if it should stay as it is)\n"
    )


def test_a_tokenizer_without_its_vocabulary_is_refused(
    shared: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("qwen2.5_config_only", "qwen3_config_only"):
        folder = shared / "data/tokenizers" / name
        _, err = shown(capsys, str(pairs), "--model", str(folder), code=2)
        assert f"error: {folder}: no tokenizer could be loaded: it knows special tokens alone; add its" in err
