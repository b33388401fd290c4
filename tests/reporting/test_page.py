from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from onebase.evaluation.answers import write_answers
from onebase.reporting.healthy import Band, healthy_bands
from onebase.reporting.page import HEIGHT, WIDTH, _range, _thinned, _ticks, write_report

SECTIONS = [
    "Checks",
    "Curves",
    "Samples before and after",
    "Result",
    "Data, tokens, memory",
    "Time",
    "Configuration: non-default values",
]
UNSAMPLED = [title for title in SECTIONS if title != "Samples before and after"]
"""Sections of a run that left no samples."""
CONFIG = "output_dir: runs/x\nseed: 3\nppo:\n  kl_budget: 2.0\n  max_kl: null\ndata:\n  train: [a.jsonl]\n"
DEFAULTS = {"seed": 0, "ppo.kl_budget": None, "ppo.max_kl": None}
SUMMARY = {
    "verb": "ppo",
    "rollouts": 40,
    "score_before": 0.1,
    "score_after": 0.6,
    "score_rise": [0.5, 0.25, 0.75],
    "kl": 1.5,
    "kl_budget": 2.0,
    "ended": 1.0,
    "data": {"train": 1200, "held_out": 54},
    "peak_memory_mb": 2048,
    "seconds": 100.0,
    "phase_seconds": {"set_up": 10.0, "steps": 80.0, "end": 10.0},
}
PPO_ROWS = [
    {
        "step": step,
        "objective/scores": step / 40,
        "objective/kl": min(step / 2, 1.0),
        "num_tokens": 100.0,
        "policy/clipfrac": min(step / 4, 0.5),
        "completions/num_tokens": 50.0,
        "val/explained_variance": -30.0 if step == 1 else 0.5,
        "perf/generate_seconds": 1.0,
        "perf/update_seconds": 0.5,
        "perf/step_seconds": 1.5,
    }
    for step in range(1, 41)
]


class Page(HTMLParser):
    """A page's elements with their attributes, and its text by the heading above it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {"": ""}
        self._heading, self._open = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open == "h2" and data.strip():
            self._heading, self._open = data, ""
            self.texts[data] = ""
        elif self._open != "style":
            self.texts[self._heading] += data + " "

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_run(
    folder: Path, rows: list[dict[str, Any]], summary: dict[str, Any] | None = None, samples: list[Any] | None = None
) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if samples is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
        (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    return folder


def page_of(folder: Path, **options: Any) -> Page:
    path = write_report(folder, DEFAULTS, **options)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def sample(prompt: str, before: str, after: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "reference": {"completion": before, "score": -0.25},
        "policy": {"completion": after, "score": 1.5},
    }


def test_the_file_needs_nothing_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", PPO_ROWS, SUMMARY, [sample("a", "b", "c")])
    page = page_of(folder)
    assert not page.of("script") and not page.of("link") and not page.of("img") and not page.of("iframe")
    assert not [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset") or "://" in str(value)
    ]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_every_section_says_what_is_known(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", PPO_ROWS, SUMMARY, [sample("a", "b", "c")]), price_per_hour=3.6)
    assert [heading for heading in page.texts if heading] == SECTIONS
    assert "ppo · finished · 40 rollouts · 1" in page.texts[""] and "+0.500 [0.250, 0.750]" in page.texts[""]
    assert "rise in score, with its 95 % interval +0.500" in page.texts["Result"]
    told = page.texts["Data, tokens, memory"]
    assert "1,200 train, 54 held out" in told and "2,048 MB" in told
    assert "tokens trained on 4,000 (40 a second)" in told and "tokens generated 2,000 (20 a second)" in told
    # 100 seconds at 3.6 an hour cost 0.1; with 4,000 tokens, a thousand cost 0.025.
    assert "cost 0.1 (at 3.6 an hour)" in told
    assert "trained on 0.025" in told and "generated 0.05" in told
    times = page.texts["Time"].split()
    assert " ".join(times[-5:]) == "everything else 20 s 20%" and "sampling 40 s 40%" in page.texts["Time"]
    config = page.texts["Configuration: non-default values"]
    assert "seed 3 0" in config and "ppo.kl_budget 2 –" in config and "data.train a.jsonl –" in config
    assert "max_kl" not in config


def test_a_last_rollout_without_an_update_hides_no_time(tmp_path: Path) -> None:
    rows = [*PPO_ROWS, {"step": 41, "perf/generate_seconds": 1.0}]
    times = page_of(make_run(tmp_path / "run", rows, {**SUMMARY, "loss": {"sigmoid": 1.0}})).texts["Time"]
    assert "sampling 41 s" in times and "updates 20 s" in times


def test_without_a_price_there_is_no_cost(tmp_path: Path) -> None:
    assert "cost" not in page_of(make_run(tmp_path / "run", PPO_ROWS, SUMMARY)).texts["Data, tokens, memory"]


def test_the_checks_tell_what_is_where_it_should_be(tmp_path: Path) -> None:
    checks = page_of(make_run(tmp_path / "run", PPO_ROWS, SUMMARY)).texts["Checks"]
    assert "KL to the reference (nats per completion) 1 0 to 2 inside" in checks  # the budget of this run
    assert "clip fraction 0.5 0 to 0.3 outside : above 0.3" in checks
    assert "explained variance of the critic 0.5 0 to 1 inside" in checks  # the last tenth, not the first step


def test_every_curve_stays_in_its_picture_and_bands_are_drawn(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", PPO_ROWS, SUMMARY))
    assert len(page.of("figure")) == len(page.of("svg")) == 4
    assert len(page.of("rect")) == 3  # KL, clip fraction, explained variance
    for line in page.of("polyline"):
        points = [tuple(map(float, point.split(","))) for point in str(line["points"]).split()]
        assert len(points) == 40 and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    for rect in page.of("rect"):
        assert float(str(rect["height"])) > 0 and 0 <= float(str(rect["y"])) <= HEIGHT
    assert "policy/clipfrac 0.5 · shaded: healthy, 0 to 0.3" in page.texts["Curves"]


def test_what_never_changes_is_a_line_and_no_chart(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1 / step, "objective/kl_coef": 0.05} for step in range(1, 4)]
    page = page_of(make_run(tmp_path / "run", rows), verb="sft")
    assert len(page.of("svg")) == 1 and "The same in every step: objective/kl_coef 0.05." in page.texts["Curves"]
    page = page_of(make_run(tmp_path / "still", rows[:1]), verb="sft")
    assert len(page.of("svg")) == 2, "a single step cannot show that a metric is constant"


def test_a_step_is_not_told_beside_its_own_parts(tmp_path: Path) -> None:
    times = page_of(make_run(tmp_path / "run", PPO_ROWS, SUMMARY)).texts["Time"]
    assert "step" not in times and times.count("%") == 5
    rows = [{"step": step, "perf/step_seconds": 1.0} for step in range(1, 4)]
    assert "steps 80 s 80%" in page_of(make_run(tmp_path / "sft", rows, SUMMARY)).texts["Time"]


def test_a_damaged_record_is_told_on_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", PPO_ROWS[:3], SUMMARY)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": "<b>"}\n{"step": 2, "loss": 1.0}\n')
    page = page_of(folder)
    assert "metrics.jsonl: line 1 is damaged and skipped" in page.texts[""] and not page.of("b")[1:]


def test_a_lone_spike_presses_nothing_flat_and_is_told(tmp_path: Path) -> None:
    rows = [{"step": s, "grad_norm": 900.0 if s == 60 else 1 + s % 3} for s in range(1, 201)]
    text = page_of(make_run(tmp_path / "run", rows)).texts["Curves"]
    assert "↑ 900" in text
    assert _range([1.0] * 99 + [3.0] * 100 + [900.0], None) == pytest.approx((0.92, 3.08))
    assert _range([1.0, 2.0, 3.0, 900.0], None)[1] > 900, "few values are never treated as outliers"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 2.5}],
        [{"step": 1, "loss": None, "grad_norm": None}, {"step": 2, "loss": None, "grad_norm": 1.0}],
        [{"step": 1, "loss": None}] * 3,
        [{"step": s, "loss": None if s % 2 else 1e-30, "objective/kl": 1e30} for s in range(1, 60)],
    ],
    ids=["no step", "one step", "null at times", "null always", "tiny and huge"],
)
@pytest.mark.parametrize("summary", [None, {"verb": "sft", "eval_loss_before": None, "eval_loss_after": None}])
def test_whatever_is_missing_the_page_is_whole(
    tmp_path: Path, rows: list[dict[str, Any]], summary: dict[str, Any] | None
) -> None:
    page = page_of(make_run(tmp_path / "run", rows, summary), verb="sft")
    sections = [heading for heading in page.texts if heading]
    assert sections == [title for title in SECTIONS if title in sections] and SECTIONS[-1] in sections
    assert all(page.texts[title].strip() for title in sections), "an empty section is skipped"
    assert "nan" not in " ".join(page.texts.values()).split()
    assert not [line for line in page.of("polyline") if "nan" in str(line)]
    if summary is None:
        assert "stopped without a checkpoint" in page.texts[""] and "Result" not in page.texts


def test_a_single_step_is_a_point(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", [{"step": 1, "loss": 2.5}]), verb="sft")
    assert len(page.of("circle")) == 1 and "sft · stopped without a checkpoint · 1 step · " in page.texts[""]


def test_a_run_that_just_began_has_no_metrics_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").unlink()
    assert "no step recorded yet" in page_of(folder, verb="sft").texts[""]


def test_what_people_and_models_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script><b onclick=x>&amp;"
    samples = [sample(evil, evil, "漢\u2028字 " + evil)]
    folder = make_run(tmp_path / "<i>run", PPO_ROWS, {**SUMMARY, evil: evil}, samples)
    (folder / "config.yaml").write_text(CONFIG + f"note: {json.dumps(evil)}\n")
    page = page_of(folder)
    assert not page.of("script") and not page.of("i") and not [a for _, a in page.elements if "onclick" in a]
    shown = page.texts["Samples before and after"]
    assert shown.count(evil) == 3 and "漢\u2028字" in shown
    assert evil in page.texts["Result"] and evil in page.texts[SECTIONS[-1]]


def test_many_samples_are_folded_and_a_long_prompt_shows_its_end(tmp_path: Path) -> None:
    samples = [sample("start " + "x" * 900 + f" question {i}?", f"before {i}", f"after {i}") for i in range(100)]
    page = page_of(make_run(tmp_path / "run", PPO_ROWS, SUMMARY, samples))
    text = page.texts["Samples before and after"]
    assert "of 100 held-out prompts" in text and "50 more" in text and len(page.of("details")) == 1
    assert "question 55?" in text and "question 56?" not in text and "start" not in text
    assert "before: score -0.25" in text and "after: score 1.5" in text


def test_answers_without_a_score_are_shown_without_one(tmp_path: Path) -> None:
    write_answers(tmp_path / "samples.jsonl", [("a cat?", "no")], [("a cat?", "yes")])
    (row,) = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    text = page_of(make_run(tmp_path / "run", PPO_ROWS, SUMMARY, [row])).texts["Samples before and after"]
    assert "a cat?" in text and "before" in text and "after" in text and "score" not in text and "Greedy" in text


def test_damaged_samples_are_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", PPO_ROWS, SUMMARY)
    (folder / "samples.jsonl").write_text('{"prompt": "cut')
    assert "samples.jsonl cannot be read" in page_of(folder).texts["Samples before and after"]


@pytest.mark.parametrize(("language", "told"), [("en", "<b>KL</b> is negative"), ("zh", "KL 为负")])
def test_what_the_flight_recorder_said_stands_above_the_checks(tmp_path: Path, language: str, told: str) -> None:
    folder = make_run(tmp_path / "run", PPO_ROWS, SUMMARY)
    (folder / "config.yaml").write_text(CONFIG + f"lang: {language}\n")
    finding = {"step": 7, "rule": "negative-kl", "en": "<b>KL</b> is negative", "zh": "KL 为负"}
    (folder / "findings.jsonl").write_text(json.dumps(finding, ensure_ascii=False) + "\n", encoding="utf-8")
    page = page_of(folder)
    assert [heading for heading in page.texts if heading] == ["Findings", *UNSAMPLED]
    assert page.texts["Findings"].split("rollout")[1].split() == ["7", *told.split()]


@pytest.mark.parametrize(("text", "sections"), [("", UNSAMPLED), ('{"step": 7', ["Findings", *UNSAMPLED])])
def test_without_findings_there_is_no_section_and_damaged_ones_are_told(
    tmp_path: Path, text: str, sections: list[str]
) -> None:
    folder = make_run(tmp_path / "run", PPO_ROWS, SUMMARY)
    (folder / "findings.jsonl").write_text(text)
    page = page_of(folder)
    assert [heading for heading in page.texts if heading] == sections
    assert ("findings.jsonl cannot be read" in page.texts.get("Findings", "")) == bool(text)


def test_the_judge_has_a_curve(tmp_path: Path) -> None:
    rows = [{"step": step, "eval/judge": step / 10} for step in (10, 20)]
    page = page_of(make_run(tmp_path / "run", rows), verb="ppo")
    assert "score by the judge" in page.texts["Curves"] and "eval/judge 2" in page.texts["Curves"]


def test_a_long_run_keeps_its_extremes_in_few_points(tmp_path: Path) -> None:
    points = [(float(s), math.sin(s)) for s in range(100_000)]
    points[77_777] = (77_777.0, 50.0)
    thinned = _thinned(points)
    assert len(thinned) <= 600 and (77_777.0, 50.0) in thinned and thinned == sorted(thinned)
    rows = [{"step": s, "loss": 1.0 / s} for s in range(1, 20_001)]
    folder = make_run(tmp_path / "run", rows)
    page_of(folder)
    assert (folder / "report.html").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (-1.2, 0.9, [-1, 0]), (1.0, 40.0, [10, 20, 30, 40]), (0.1, 0.1001, None)],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float] | None) -> None:
    found = _ticks(low, high)
    assert all(low <= tick <= high for tick in found) and 2 <= len(found) <= 6
    assert ticks is None or found == pytest.approx(ticks)


def test_the_limits_of_the_run_are_its_bands() -> None:
    assert "objective/kl" not in healthy_bands({"ppo.kl_target": None, "ppo.kl_budget": None})
    assert healthy_bands({"ppo.kl_target": 4.0})["objective/kl"].high == 4.0
    assert healthy_bands({"ppo.kl_target": 4.0, "ppo.kl_budget": 9.0})["objective/kl"].high == 9.0
    assert healthy_bands({"ppo.max_kl": 0.01})["policy/approxkl"].high == 0.01
    band = Band(0, None, "")
    assert 0.0 in band and 1e9 in band and -0.1 not in band and str(band) == "above 0"


def test_the_first_steps_stand_beside_their_plan(tmp_path: Path) -> None:
    planned = {
        "perf/planned/step_seconds": 3.0,
        "perf/planned/step_seconds_measured": 4.0,
        "perf/planned/memory_mb": 550.0,
        "perf/planned/memory_mb_measured": 500.0,
        "perf/planned/update_seconds": 1.0,
    }
    rows = [{**row, **(planned if row["step"] == 3 else {})} for row in PPO_ROWS]
    told = page_of(make_run(tmp_path / "run", rows, SUMMARY)).texts["First steps and their plan"]
    assert told.split() == ("planned measured error peak memory 550 MB 500 MB +10% a step 3 s 4 s -25%".split())
    assert "planned" not in page_of(make_run(tmp_path / "unplanned", PPO_ROWS, SUMMARY)).texts["Time"]
