"""What is kept of a machine, and the corrections that come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from onebase.errors import ConfigError
from onebase.planning.calibration import (
    MEMORY,
    MOST_OBSERVED,
    Here,
    Observation,
    corrections,
    here,
    keep_rates,
    kept_in,
    observe,
    rates_here,
    read_kept,
)
from onebase.planning.machines import MACHINES
from onebase.planning.rates import Rate, Rates, Spread, stated_rates
from onebase.planning.work import KINDS

MEASURED = Rates(
    "a machine",
    20.0,
    dict.fromkeys(KINDS, Rate(1e-3, 1e-4, 1e-11, 1e-10)),
    start_seconds=5.0,
    source="measured today",
    dtype="float32",
    products={"float32": 1e11},
    bandwidth=1e10,
    spread=dict.fromkeys(KINDS, Spread(0.1, 0.2)),
)
SEEN = Observation("ppo", "update", "float32", 2.0, 3.0, "measured today")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))
    return tmp_path


def test_measured_rates_come_back_as_they_were_kept(folder: Path) -> None:
    where = Here("a-machine", MACHINES["t4"])
    assert rates_here(where, "float32") == stated_rates(MACHINES["t4"], "float32")
    assert keep_rates("a-machine", MEASURED) == folder / "machines" / "a-machine.json"
    assert rates_here(where, "float32") == MEASURED
    assert rates_here(Here("another", MACHINES["t4"]), "float32").source == "data sheet"


def test_a_damaged_file_counts_as_none(folder: Path) -> None:
    path = keep_rates("a-machine", MEASURED)
    assert path is not None
    for damage in ("{", "[]", json.dumps({"rates": {"name": "x"}}), json.dumps({"rates": 3, "observed": [{"a": 1}]})):
        path.write_text(damage)
        assert rates_here(Here("a-machine", MACHINES["t4"]), "float32").source == "data sheet"
        assert corrections("a-machine", MEASURED, "float32", {"update": 2.0}) == {}


def test_nothing_is_kept_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", "")
    assert kept_in("a-machine") is None and keep_rates("a-machine", MEASURED) is None
    assert observe("a-machine", [SEEN]) is None and read_kept("a-machine") == {}


def test_a_gpu_that_nobody_knows_has_to_be_measured_or_named() -> None:
    with pytest.raises(ConfigError, match="the GPU a-gpu is not in the table of hardware and was not measured") as said:
        rates_here(Here("a-gpu", None), "bfloat16")
    assert said.value.remedy == "unmeasured-machine"
    keep_rates("a-gpu", MEASURED)
    assert rates_here(Here("a-gpu", None), "bfloat16") == MEASURED


def test_the_processor_and_its_threads_name_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert here("cpu", 1).key.endswith("-1-threads") and here("cpu", 3).key.endswith("-3-threads")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert here("cpu").key.endswith("-7-threads")
    machine = here("cpu").machine
    assert machine is not None and machine.memory_gb > 0 and not machine.is_gpu


def test_a_correction_is_the_median_of_the_latest_runs() -> None:
    observe("a", [replace(SEEN, measured=2.0 * factor) for factor in (9.0, 1.0, 1.2, 1.5, 1.4, 3.0)])
    assert corrections("a", MEASURED, "float32", {"update": 2.0, "score": 1.0}) == {"update": pytest.approx(1.4)}
    observe("a", [replace(SEEN, measured=2.0)])
    # Of 1.2, 1.5, 1.4, 3.0 and 1.0.
    assert corrections("a", MEASURED, "float32", {"update": 2.0}) == {"update": pytest.approx(1.4)}


@pytest.mark.parametrize(
    "other",
    [
        replace(SEEN, phase="score"),
        replace(SEEN, dtype="bfloat16"),
        replace(SEEN, source="measured yesterday"),
        replace(SEEN, planned=0.2, measured=0.3),
        replace(SEEN, planned=20.0, measured=30.0),
        replace(SEEN, measured=30.0),
    ],
    ids=["another phase", "another format", "other rates", "far shorter", "far longer", "out of all reason"],
)
def test_what_is_not_alike_corrects_nothing(other: Observation) -> None:
    observe("a", [other])
    assert corrections("a", MEASURED, "float32", {"update": 2.0}) == {}
    observe("a", [SEEN])
    assert corrections("a", MEASURED, "float32", {"update": 2.0}) == {"update": 1.5}


def test_the_oldest_observations_go_and_a_calibration_forgets_all() -> None:
    for _ in range(3):
        observe("a", [SEEN] * 30)
    assert len(read_kept("a")["observed"]) == MOST_OBSERVED
    keep_rates("a", MEASURED)
    assert read_kept("a")["observed"] == []
    assert observe("a", []) is None


def test_memory_is_corrected_whatever_the_rates_were() -> None:
    observe("a", [Observation("ppo", MEMORY, "float32", 500.0, 550.0, MEMORY)])
    assert corrections("a", MEASURED, "float32", {MEMORY: 600.0}) == {MEMORY: pytest.approx(1.1)}
    assert corrections("a", replace(MEASURED, source="another"), "float32", {MEMORY: 600.0}) != {}
