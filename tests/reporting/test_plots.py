from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
from matplotlib import pyplot as plt
from matplotlib.image import imread

from onebase.reporting import plots
from onebase.reporting.intervals import Interval, bootstrap_mean
from onebase.reporting.panels import running_mean
from onebase.reporting.plots import plot_metrics, plot_run, plot_stages, plot_together
from onebase.runs.metrics import MetricsFile


def assert_picture(path: Path, *, wider_than: int = 200) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)
    assert pixels.shape[1] > wider_than and pixels.std() > 0.01  # something is drawn


def run_folder(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir()
    file = MetricsFile(folder / "metrics.jsonl")
    for step, row in enumerate(rows, start=1):
        file.write(step, row)
    return folder


@pytest.mark.parametrize("num_steps", [2, 60])
def test_a_run_is_drawn_from_its_record(tmp_path: Path, num_steps: int) -> None:
    rows = [
        {"loss": 3 / (s + 1), "objective/kl": s / 10, "policy/clipfrac": 0.1, "val/clipfrac": 0.2, "grad_norm": 1.0}
        | ({"eval/loss": 2.0} if s % 10 == 9 else {})
        for s in range(num_steps)
    ]
    folder = run_folder(tmp_path / "run", rows)
    path = plot_run(folder)
    assert path == folder / "plots" / "metrics.png"
    assert_picture(path)
    assert not plt.get_fignums()  # no figure stays in memory


def test_refused_steps_leave_gaps(tmp_path: Path) -> None:
    rows = [{"loss": math.nan if s % 3 else 1.0, "grad_norm": math.nan, "objective/kl": 0.1} for s in range(40)]
    path = plot_run(run_folder(tmp_path / "run", rows))
    assert path is not None
    assert_picture(path)


@pytest.mark.parametrize(
    "rows",
    [[], [{"loss": 1.0}], [{"other": 1.0}] * 5, [{"loss": math.nan, "grad_norm": math.inf}] * 3],
    ids=["no step", "one step", "no known metric", "nothing finite"],
)
def test_where_there_is_nothing_to_draw_there_is_no_picture(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    folder = run_folder(tmp_path / "run", rows)
    assert plot_run(folder) is None
    assert not (folder / "plots").exists()


def test_a_cut_last_line_does_not_spoil_the_picture(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [{"loss": 2.0}, {"loss": 1.0}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    path = plot_run(folder)
    assert path is not None
    assert_picture(path)


def test_panels_are_there_for_the_metrics_that_have_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, list[list[object]]]] = []

    def note(figure: plt.Figure) -> None:
        for axis in figure.axes:
            if axis.get_visible():
                drawn.append((axis.get_title(), [numpy.asarray(line.get_xdata()).tolist() for line in axis.lines]))

    monkeypatch.setattr(plots.plt, "close", note)
    rows = [{"step": s, "loss": 1.0, "margin": 0.1, "eval/accuracy": 0.5 if s > 2 else None} for s in (1, 2, 3, 4)]
    plot_metrics(rows, tmp_path / "metrics.png", title="[a $title")  # type: ignore[arg-type]
    assert drawn == [("loss", [[1, 2, 3, 4]]), ("accuracy", [[3, 4]]), ("margin", [[1, 2, 3, 4]])]
    monkeypatch.undo()
    plt.close("all")


def test_the_running_mean_starts_at_the_first_value_and_follows() -> None:
    means = running_mean([4.0] * 50 + [0.0] * 50)
    assert means[0] == pytest.approx(4.0) and means[49] == pytest.approx(4.0) and 0 < means[-1] < 0.1
    assert all(later <= earlier + 1e-9 for earlier, later in zip(means, means[1:], strict=False))


def test_runs_are_drawn_together_in_a_colour_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[plt.Figure] = []
    monkeypatch.setattr(plots.plt, "close", kept.append)
    long = [{"step": s, "loss": 1.0, "loss/policy": 0.1, "loss/value": 0.2} for s in range(1, 41)]
    path = plot_together({"a": long, "b": [{"step": 1, "loss": 2.0}]}, tmp_path / "plots" / "a-b.png", title="both")
    assert_picture(path)
    (figure,) = kept
    drawn = {
        axis.get_title(): [(line.get_color(), line.get_linestyle(), len(line.get_xdata())) for line in axis.lines]
        for axis in figure.axes
        if axis.get_visible()
    }
    assert drawn["loss"] == [("C0", "-", 40), ("C0", "-", 40), ("C1", "-", 1)]
    both = [("C0", style, 40) for style in ("-", "-", "--", "--")]
    assert [line for line in drawn["policy and value loss"] if line[2]] == both
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize("num_stages", [1, 3, 5])
def test_stages_are_drawn_with_their_intervals(tmp_path: Path, num_stages: int) -> None:
    stages = {
        f"stage {s}": {"gold": Interval(s / 4, s / 4 - 0.1, s / 4 + 0.1), "kl": bootstrap_mean([0.1 * s] * 3)}
        for s in range(num_stages)
    }
    path = plot_stages(stages, tmp_path / "plots" / "stages.png")
    assert path == tmp_path / "plots" / "stages.png"
    assert_picture(path)
    assert not plt.get_fignums()
