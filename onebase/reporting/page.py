"""Writes `report.html`: one run on one page, in one file without scripts or network access."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from onebase.files import write_atomically
from onebase.reporting.healthy import Band, healthy_bands
from onebase.reporting.panels import PANELS, running_mean
from onebase.runs.finished import RunRecord, duration, flattened, interval, read_run, shown
from onebase.shown import number_of
from onebase.shown import shown as text_shown

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 46, 10, 8, 20
"""Size of a chart, and the margins around its curves."""
FEW = 30
"""Curves with fewer points show each one; longer curves get a moving average."""
MOST_POINTS = 600
"""Points of a line; more could not be told apart at its size."""
SAMPLES, MORE_SAMPLES = 6, 50
"""Samples visible at once, and further samples behind a fold."""
MOST_OF_PROMPT = 400
"""Characters shown of a prompt; a longer one keeps its end, where the question is."""
FIGURES = {
    "optimizer_steps": "optimizer steps",
    "refused_steps": "refused steps",
    "eval_loss_before": "held-out loss before (nats per token)",
    "eval_loss_after": "held-out loss after (nats per token)",
    "eval_accuracy": "held-out accuracy",
    "eval_accuracy_interval": "its 95 % interval",
    "eval_margin": "held-out margin",
    "eval_score_mean": "mean of the held-out scores",
    "eval_score_std": "standard deviation of the held-out scores",
    "eval_length_correlation": "correlation of score and length",
    "score_before": "held-out score before",
    "score_after": "held-out score after",
    "score_rise": "rise in score, with its 95 % interval",
    "judge_before": "score by the judge before",
    "judge_after": "score by the judge after",
    "kl": "held-out KL to the reference (nats per completion)",
    "kl_budget": "KL budget (nats per completion)",
    "ended": "share of held-out completions that ended",
    "mean_scores": "mean score of the samples, by round",
}
"""The summary's results in words; other keys keep their name."""
PHASES = {"generate": "sampling", "score": "scoring", "logprobs": "log-probs and values", "update": "updates"}
"""Phases of a rollout, by the name in `perf/<name>_seconds`."""
PLANNED = (
    ("memory_mb", "peak memory", "MB"),
    ("step_seconds", "a step", "s"),
    ("generate_seconds", "of it sampling", "s"),
    ("score_seconds", "of it scoring, log-probs and values", "s"),
    ("update_seconds", "of it updates", "s"),
)
"""Figures of the first steps that are planned before a run, in `perf/planned/...`."""
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a damaged file may raise."""
ELSEWHERE = {"verb", "seconds", "phase_seconds", "data", "peak_memory_mb"}
"""Keys of the summary that other sections show."""


def write_report(
    folder: Path, defaults: Mapping[str, Any], *, verb: str = "", price_per_hour: float | None = None
) -> Path:
    """Writes `report.html` in a run's folder, for an unfinished run with what there is so far.

    Args:
        defaults: the configuration's defaults, by dotted name.
        verb: the run's verb, if it is unfinished.
        price_per_hour: price of the machine, in any currency; None omits the cost.
    """
    run = read_run(folder, verb)
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    steps = number_of(run.steps, run.step_name)
    written = time.strftime("%Y-%m-%d %H:%M")
    bands = healthy_bands(flattened(run.config))
    told = flattened({key: value for key, value in run.summary.items() if key not in ELSEWHERE and value is not None})
    results = {
        FIGURES.get(key, key): interval(value, "+") if key == "score_rise" else value for key, value in told.items()
    }
    changes = [(key, shown(value), shown(default)) for key, (value, default) in run.changed(defaults).items()]
    facts = [
        ("Result", _table(results.items())),
        ("Data, tokens, memory", _table(_amounts(run, price_per_hour))),
        ("Time", _times(run)),
        ("First steps and their plan", _planned(run)),
    ]
    sections = [
        f"<h1>{escape(text_shown(run.folder.resolve().name))}</h1>",
        f"<p class=soft>{escape(shown(run.verb))} · {escape(run.state)} · {steps} · {duration(run.seconds)} · "
        f"report of {written}</p>",
        f"<p class=result>{escape(run.result) or 'no step recorded yet'}</p>",
        *(f"<p class=out>damaged: {escape(shown(problem))}</p>" for problem in run.problems),
        _section("Findings", _found(run)),
        _section("Checks", _checks(run, bands)),
        _section("Curves", _curves(run, bands)),
        _section("Samples before and after", _samples(run.folder / "samples.jsonl")),
        "<div class=columns>",
        *(f"<section>{_section(title, body)}</section>" for title, body in facts if body),
        "</div>",
        "<div class=config>",
        _section("Configuration: non-default values", _table(changes, ("key", "value", "default"))),
        "</div>",
    ]
    page = (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(text_shown(run.folder.resolve().name))}</title><style>\n{css}</style></head><body>\n"
    )
    path = folder / "report.html"
    write_atomically(path, page + "\n".join(sections) + "\n</body></html>\n")
    return path


def _section(title: str, body: str) -> str:
    """A heading and its body; "" if the body is empty."""
    return f"<h2>{title}</h2>\n{body}" if body else ""


def _note(why: str) -> str:
    return f"<p class=soft>{why}</p>"


def _table(rows: Iterable[tuple[Any, ...]], head: Sequence[str] = ()) -> str:
    """A table of plain values; an `_Html` is inserted as it is."""
    lines = [
        "<tr>" + "".join(f"<td>{c}" if isinstance(c, _Html) else f"<td>{escape(shown(c))}" for c in row) for row in rows
    ]
    titles = f"<thead><tr>{''.join(f'<th>{t}' for t in head)}</thead>" if head else ""
    return f"<table>{titles}{''.join(lines)}</table>" if lines else ""


class _Html(str):
    """Text that is HTML already, and is not escaped."""


def _points(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """Steps and values of a metric, without missing and non-finite ones."""
    pairs = [(row.get("step"), row.get(metric)) for row in rows]
    return [(x, y) for x, y in pairs if isinstance(x, int) and isinstance(y, int | float) and math.isfinite(y)]


def _found(run: RunRecord) -> str:
    """The flight recorder's findings."""
    path, language = run.folder / "findings.jsonl", "zh" if run.config.get("lang") == "zh" else "en"
    try:
        return _table([(finding["step"], finding[language]) for finding in _lines(path)], ("rollout", ""))
    except UNREADABLE:
        return _note(f"{path.name} cannot be read: it is damaged.")


def _lines(path: Path) -> list[Any]:
    """The values in a file of JSON lines; [] if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []


def _checks(run: RunRecord, bands: Mapping[str, Band]) -> str:
    """The final level of each metric that has a healthy range."""
    lines = []
    for title, metrics in PANELS:
        metric, points = next(((m, found) for m in metrics if (found := _points(run.rows, m))), ("", []))
        if metric not in bands:
            continue
        last, band = [y for _, y in points[-max(1, len(points) // 10) :]], bands[metric]
        mean = sum(last) / len(last)
        verdict = "inside" if mean in band else f"<span class=out>outside</span>: {escape(band.outside)}"
        lines.append((title, mean, str(band), _Html(verdict)))
    table = _table(lines, ("", "mean of the last tenth", "healthy", ""))
    return f"<div class=checks>{table}</div>" if table else ""


def _curves(run: RunRecord, bands: Mapping[str, Band]) -> str:
    step, figures, still = run.step_name, [], []
    for title, metrics in PANELS:
        lines = {metric: points for metric in metrics if (points := _points(run.rows, metric))}
        if not lines:
            continue
        if all(len(points) > 1 and len({y for _, y in points}) == 1 for points in lines.values()):
            still += [f"{metric} {shown(points[0][1])}" for metric, points in lines.items()]
            continue
        band = bands.get(next(iter(lines)))
        keys = [
            f"<span class=k{m}>{'━━' if m == 0 else '╍╍'}</span> {escape(metric)} {shown(points[-1][1])}"
            for m, (metric, points) in enumerate(lines.items())
        ]
        healthy = f" · shaded: healthy, {band}" if band else ""
        picture = _svg(list(lines.values()), band, f"{title} by {step}")
        caption = f"<figcaption>{' · '.join(keys)}{healthy}</figcaption>"
        figures.append(f"<figure><b>{escape(title)}</b>{picture}{caption}</figure>")
    same = _note(f"The same in every {step}: {', '.join(still)}.") if still else ""
    note = (
        f"x-axis: {step}. Light line: raw values; dark line: moving average. The number is the latest value; an "
        "arrow marks an outlier off the chart."
    )
    return f"{_note(note)}<div class=curves>{''.join(figures)}</div>{same}" if figures else same


def _svg(lines: Sequence[Sequence[tuple[float, float]]], band: Band | None, label: str) -> str:
    """A chart: curves, ticks, and the healthy range behind them."""
    xs, ys = ([point[i] for points in lines for point in points] for i in (0, 1))
    (x0, x1), (y0, y1) = _range(xs, None, room=0), _range(ys, band)

    def place(x: float, y: float) -> tuple[float, float]:
        right, down = (x - x0) / (x1 - x0), (y1 - min(max(y, y0), y1)) / (y1 - y0)  # an outlier is drawn at the edge
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    def polyline(points: Iterable[tuple[float, float]], kind: str) -> str:
        placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        return f'<polyline class="{kind}" points="{placed}"/>'

    drawn = []
    if band is not None:
        (_, top), (_, bottom) = (
            place(x0, edge) for edge in (y1 if band.high is None else band.high, y0 if band.low is None else band.low)
        )
        drawn.append(f"<rect class=band x={LEFT} width={WIDTH - LEFT - RIGHT} y={top:.1f} height={bottom - top:.1f} />")
    for tick in _ticks(y0, y1):
        y = place(x0, tick)[1]
        drawn.append(
            f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y:.1f} y2={y:.1f} />"
            f"<text x={LEFT - 5} y={y + 4:.1f} text-anchor=end>{tick:g}</text>"
        )
    for tick in _ticks(x0, x1):
        if tick == int(tick):
            drawn.append(f"<text x={place(tick, y0)[0]:.1f} y={HEIGHT - 5} text-anchor=middle>{tick:g}</text>")
    for m, points in enumerate(lines):
        if len(points) < FEW:
            drawn.append(polyline(points, f"line m{m}"))
            drawn += [f"<circle class=d{m} cx={x:.1f} cy={y:.1f} r=2.2 />" for x, y in (place(*p) for p in points)]
            continue
        means = zip([x for x, _ in points], running_mean([y for _, y in points]), strict=True)
        drawn += [polyline(_thinned(points), f"line pale m{m}"), polyline(_thinned(list(means)), f"line m{m}")]
    for beyond, arrow, y in ((max(ys), "↑", TOP + 10), (min(ys), "↓", HEIGHT - BOTTOM - 4)):
        if not y0 <= beyond <= y1:
            drawn.append(f"<text class=far x={WIDTH - RIGHT - 4} y={y}>{arrow} {shown(float(beyond))}</text>")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def _range(values: Sequence[float], band: Band | None, *, room: float = 0.04) -> tuple[float, float]:
    """The range of an axis: all values but a few outliers that would flatten the rest, and the band if it is near."""
    ordered = sorted(values)
    few = len(ordered) // 100
    low, high = ordered[few], ordered[-1 - few]
    if ordered[-1] - ordered[0] <= 4 * (high - low):
        low, high = ordered[0], ordered[-1]
    span = high - low or abs(high)
    for edge in () if band is None else (band.low, band.high):
        if edge is not None and max(high, edge) - min(low, edge) <= 3 * span:
            low, high = min(low, edge), max(high, edge)
    around = room * (high - low) if high > low else abs(high) / 10 or 0.5
    return low - around, high + around


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers between `low` and `high`."""
    raw = (high - low) / 4
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= raw * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lowest and the highest point of each stretch, so that no spike is lost."""
    size = -(-2 * len(points) // MOST_POINTS)
    if size <= 2:
        return list(points)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [p for near in stretches for p in sorted((min(near, key=lambda p: p[1]), max(near, key=lambda p: p[1])))]


def _samples(path: Path) -> str:
    """The same prompts answered before and after training, as `write_samples` left them."""
    try:
        rows = _lines(path)
        cards = [_sample(row) for row in rows[: SAMPLES + MORE_SAMPLES]]
    except UNREADABLE:
        return _note(f"{path.name} cannot be read: it is damaged.")
    if not cards:
        return ""
    rest = "".join(cards[SAMPLES:])
    note = (
        f"First completion for each of {number_of(len(rows), 'held-out prompt')}, with its score; the rest are in "
        f"{path.name}."
    )
    if "before" in rows[0]:
        note = "Greedy answers to the first held-out prompts."
    more = f"<details><summary>{len(cards) - SAMPLES} more</summary>{rest}</details>" if rest else ""
    return f"<p class=soft>{note}</p>{''.join(cards[:SAMPLES])}{more}"


def _sample(row: Mapping[str, Any]) -> str:
    names = {"reference": "before", "policy": "after"}
    answers = [
        f"<div><p class=score>{escape(names.get(role, role))}{_score(answer)}</p>"
        f"<div class=said dir=auto>{escape(str(answer['completion']).strip())}</div></div>"
        for role, answer in row.items()
        if role != "prompt"
    ]
    prompt = str(row["prompt"]).strip()
    shortened = prompt if len(prompt) <= MOST_OF_PROMPT else "… " + prompt[-MOST_OF_PROMPT:]
    asked = f"<div class=asked dir=auto>{escape(shortened)}</div>"
    return f"<div class=sample>{asked}<div class=columns>{''.join(answers)}</div></div>"


def _score(answer: Mapping[str, Any]) -> str:
    return f": score {escape(shown(answer['score']))}" if "score" in answer else ""


def _amounts(run: RunRecord, price_per_hour: float | None) -> list[tuple[str, str]]:
    """Data, tokens, memory and cost."""
    counts = {"held_out": "held out"}
    data = ", ".join(f"{n:,} {counts.get(name, name)}" for name, n in (run.summary.get("data") or {}).items())
    sums = {
        name: sum(y for _, y in _points(run.rows, metric))
        for name, metric in (("trained on", "num_tokens"), ("generated", "completions/num_tokens"))
    }
    tokens = {name: total for name, total in sums.items() if total}
    memory = run.summary.get("peak_memory_mb")
    missing = "not recorded" if run.summary else "known when the run is finished"
    lines = [("data (examples)", data or missing)]
    for name, total in tokens.items():
        lines.append((f"tokens {name}", f"{total:,.0f} ({total / max(run.seconds, 1e-9):,.0f} a second)"))
    lines += [] if tokens else [("tokens", "not recorded")]
    lines.append(("peak memory", f"{memory:,} MB" if memory else missing))
    if price_per_hour is not None:
        cost = price_per_hour * run.seconds / 3600
        lines.append(("cost", f"{cost:.4g} (at {price_per_hour:g} an hour)"))
        for name, total in tokens.items():
            lines.append((f"cost per thousand tokens {name}", f"{1000 * cost / total:.8f}".rstrip("0")))
    return lines


def _times(run: RunRecord) -> str:
    """Where the time went: before the first step, after the last, and in the phases of PPO's rollouts."""
    phases = run.summary.get("phase_seconds") or {}
    names = dict.fromkeys(name for row in run.rows for name in row)
    measured = [match for name in names if (match := re.fullmatch(r"perf/(?!step_)(\w+)_seconds", name))]
    inside = {PHASES.get(match[1], match[1]): sum(y for _, y in _points(run.rows, match[0])) for match in measured}
    spent = {
        "set-up and first evaluation": phases.get("set_up", 0.0),
        **inside,
        "last evaluation and saving": phases.get("end", 0.0),
    }
    spent["everything else" if inside else "steps"] = run.seconds - sum(spent.values())
    whole = max(run.seconds, 1e-9)
    return _table([(name, duration(each), f"{each / whole:.0%}") for name, each in spent.items() if each > 0])


def _planned(run: RunRecord) -> str:
    """What the first steps were planned to take beside what they took; "" if nobody planned them."""
    row = next((row for row in run.rows if "perf/planned/step_seconds" in row), {})
    lines = []
    for name, title, unit in PLANNED:
        planned, measured = row.get(f"perf/planned/{name}"), row.get(f"perf/planned/{name}_measured")
        if isinstance(planned, int | float) and isinstance(measured, int | float) and measured > 0:
            lines.append((title, f"{planned:.4g} {unit}", f"{measured:.4g} {unit}", f"{planned / measured - 1:+.0%}"))
    return _table(lines, ("", "planned", "measured", "error"))
