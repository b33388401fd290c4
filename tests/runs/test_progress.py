from __future__ import annotations

import io
import sys

import pytest

from onebase.runs import progress
from onebase.runs.progress import StepProgress, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_goes_to_stderr_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[red]a[/red] [0.1, 0.2] 'x' :smile: " + 60 * "long " + "😀"
    say(text)
    captured = capsys.readouterr()
    assert captured.err == text + "\n" and captured.out == ""


def test_without_a_terminal_plain_lines_come_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with StepProgress("sft", 10) as bar:
        for step in range(1, 11):
            now[0] += 4.0
            bar.advance({"objective/kl": step / 3, "loss": float("nan")})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "sft  1/10  kl 0.333  loss nan",
        "sft  4/10  kl 1.33  loss nan  24 s left",
        "sft  7/10  kl 2.33  loss nan  12 s left",
        "sft  10/10  kl 3.33  loss nan",
    ]


def test_the_last_step_has_its_line_however_fast_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with StepProgress("reward", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert capsys.readouterr().err.splitlines()[-1].startswith("reward  3/3")


def test_on_a_terminal_a_bar_counts_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with StepProgress("ppo", 4) as bar:
        bar.advance({"loss": 0.5}, steps=3)
        bar.advance({"loss": 0.25})
    shown = terminal.getvalue()
    assert "ppo" in shown and "4/4" in shown and "loss 0.25" in shown


def test_an_error_inside_is_not_swallowed_and_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match="the step failed"), StepProgress("ppo", 4):
        raise ValueError("the step failed")
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")  # the cursor shows again
