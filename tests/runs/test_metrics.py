from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from onebase.runs.metrics import MetricsFile
from onebase.runs.record import read_metrics
from onebase.training.averages import Averages


def strictly(text: str) -> dict[str, float | None]:
    """Reads it like a program that does not accept NaN."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_means_are_over_all_values_however_they_came() -> None:
    values = torch.arange(10.0)
    whole, split = Averages(), Averages()
    whole.add("x", values)
    for part in values.split([1, 6, 3]):
        split.add("x", part)
    assert whole.means() == split.means() == {"x": 4.5}


def test_only_masked_values_count_and_none_give_no_mean() -> None:
    averages = Averages()
    averages.add("x", torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    averages.add("x", torch.tensor([torch.nan]), torch.tensor([False]))
    averages.add("nothing", torch.zeros(0))
    averages.add("flags", torch.tensor([True, False, True, True]))
    averages.add("grid", torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True))
    assert averages.means() == {"x": 1.5, "flags": 0.75, "grid": 3.0}


def test_a_long_sum_in_half_precision_keeps_its_digits() -> None:
    averages = Averages()
    for _ in range(100):
        averages.add("x", torch.ones(999, dtype=torch.bfloat16))  # their sum in bfloat16 is 1000
    assert averages.means() == {"x": 1.0}


def test_every_line_is_json_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    values = {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "score": 0.25, "tensor": torch.tensor(1.5)}
    file.write(1, values)  # type: ignore[arg-type]
    file.write(2, {"num_tokens": 7, "learning_rate": 1e-3})
    rows = [strictly(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"step": 1, "loss": None, "grad_norm": None, "low": None, "score": 0.25, "tensor": 1.5}
    assert rows[1] == {"step": 2, "num_tokens": 7, "learning_rate": 0.001}
    assert read_metrics(path) == rows


@pytest.mark.parametrize("value", [1.2345678e-9, 5e-7, 1 / 3, 123456.78, 1e30])
def test_small_and_large_values_keep_their_digits(tmp_path: Path, value: float) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(1, {"learning_rate": value})
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["learning_rate"] == pytest.approx(value, rel=1e-7)


def test_a_row_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (1, 2, 3):
        file.write(step, {"loss": 1.0})
        assert [row["step"] for row in read_metrics(path)] == list(range(1, step + 1))


@pytest.mark.parametrize("kept", [1, 5, 14, 20])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n' + '{"step": 2, "loss": 1.0}\n'[:kept])
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_a_new_file_has_nothing_of_an_older_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).write(1, {"loss": 1.0})
    MetricsFile(path)
    assert read_metrics(path) == []
