from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from onebase.evaluation.held_out import HeldOut, improvement
from onebase.evaluation.tables import NUM_SAMPLES, figures_table, print_comparison, rise_line, write_samples
from onebase.reporting.intervals import Interval


def held_out(role: str, *, shift: float = 0.0, num_prompts: int = 8, **overrides: object) -> HeldOut:
    fields: dict[str, object] = {
        "role": role,
        "prompts": [f"prompt number {p}" for p in range(num_prompts)],
        "completions": [f"{role} says {p}" for p in range(num_prompts)],
        "scores": [p / 10 + shift for p in range(num_prompts)],
        "first_scores": [p / 10 + shift + 0.001 for p in range(num_prompts)],
        "kl": [shift * p for p in range(num_prompts)],
        "entropy": [1.25 + p / 100 for p in range(num_prompts)],
        "length": [20.0 + p for p in range(num_prompts)],
        "judged": {"gold": [0.5 + shift + p / 1000 for p in range(num_prompts)]},
        "ended": 0.875,
    }
    return HeldOut(**(fields | overrides))  # type: ignore[arg-type]


def text_of(thing: object) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(thing, markup=False)
    return console.export_text()


def test_the_table_holds_every_figure_of_every_role() -> None:
    roles = [held_out("reference"), held_out("policy", shift=1.5, ended=1.0)]
    text = text_of(figures_table(roles, names=["before", "after"]))
    assert "8 held-out prompts" in text and "95 % intervals" in text
    for title in ("gold", "score", "KL (nats/completion)", "entropy (nats/token)", "length (tokens)", "ended"):
        assert title in text
    for role, name in zip(roles, ("before", "after"), strict=True):
        assert name in text and f"{role.ended:.0%}" in text
        for interval in role.row().values():
            assert f"{interval.mean:.2f}" in text and f"[{interval.low:.2f}, {interval.high:.2f}]" in text


def test_a_comparison_goes_to_stdout_with_the_rise_and_the_samples(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = held_out("reference"), held_out("policy", shift=1.5)
    print_comparison([before, after], names=["before", "after"])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "score, after minus before on the same prompts: 1.500 [1.500, 1.500]" in captured.out
    for p in range(NUM_SAMPLES):
        assert f"prompt number {p}" in captured.out and f"policy says {p}" in captured.out
        assert f"({before.first_scores[p]:.3f})" in captured.out and f"({after.first_scores[p]:.3f})" in captured.out
    assert f"prompt number {NUM_SAMPLES}" not in captured.out
    assert max(map(len, captured.out.splitlines())) <= 120


def test_what_a_model_wrote_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    strange = "[bold]x[/bold] [/red] [link=a] \\[y] :smile: 😀 漢字"
    role = held_out("policy", completions=[strange] * 8, prompts=["[red]ask[/]"] * 8)
    print_comparison([role, role], names=["before", "after"])
    out = capsys.readouterr().out
    assert "[red]ask[/]" in out
    for part in ("[bold]x[/bold]", "[/red]", "[link=a]", "\\[y]", ":smile:", "😀", "漢字"):
        assert part in out, part


def test_figures_that_are_not_finite_are_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    role = held_out("policy", kl=[float("nan")] * 8, scores=[float("nan")] * 8)
    print_comparison([role, role], names=["before", "after"])
    out = capsys.readouterr().out
    assert out.count("[nan, nan]") == 5  # score and KL of two roles, and the rise


def test_a_long_prompt_is_shown_by_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    role = held_out("policy", prompts=["start " + "x" * 300 + " the question?"] * 8)
    print_comparison([role, role], names=["before", "after"])
    out = "".join(capsys.readouterr().out.split())
    assert "start" not in out and "…" in out and "question?" in out


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(1.0, 0.5, 1.5), "above 0"),
        (Interval(-1.0, -1.5, -0.5), "below 0"),
        (Interval(0.1, -0.5, 0.7), "includes 0"),
        (Interval(0.0, 0.0, 0.0), "includes 0"),
    ],
)
def test_the_rise_is_said_with_what_it_shows(interval: Interval, verdict: str) -> None:
    line = rise_line("gold", interval, "SFT", "PPO")
    assert line.startswith(f"gold, PPO minus SFT on the same prompts: {interval} (95 %")
    assert line.endswith(f"{verdict})")


def test_samples_are_a_json_line_per_prompt_with_every_role(tmp_path: Path) -> None:
    before, after = held_out("reference"), held_out("policy", shift=1.5, completions=["漢\n字\u2028"] * 8)
    path = tmp_path / "run" / "samples.jsonl"
    write_samples(path, [before, after], names=[before.role, after.role])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(rows) == 8
    assert rows[3] == {
        "prompt": "prompt number 3",
        "reference": {"completion": "reference says 3", "score": pytest.approx(0.301)},
        "policy": {"completion": "漢\n字\u2028", "score": pytest.approx(1.801)},
    }
    assert [p.name for p in path.parent.iterdir()] == ["samples.jsonl"]


def test_fewer_prompts_than_samples_are_all_shown(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = held_out("reference", num_prompts=2), held_out("policy", num_prompts=2, shift=-1.0)
    print_comparison([before, after], names=["before", "after"])
    out = capsys.readouterr().out
    assert "prompt number 1" in out and "below 0" in out
    assert improvement(before, after).mean == pytest.approx(-1.0)
