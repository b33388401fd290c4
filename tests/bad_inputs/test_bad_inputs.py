"""Every bad input ends as its table says; hundreds of short runs, left out unless asked for: `pytest -m long`."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.bad_inputs.case import Case
from tests.bad_inputs.cases import ALL
from tests.bad_inputs.ending import clear, ending_of, warm_up
from tests.bad_inputs.prepared import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The base, models, roles and runs that cases start from, made once for all test processes."""
    warm_up()
    here = tmp_path_factory.getbasetemp()
    folder = (here if worker_id == "master" else here.parent) / "fix"
    with (folder.parent / "fix.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            prepare(folder)
    return folder


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """Of pytest-xdist, which may not be there."""
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


@pytest.mark.long
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_bad_input_is_refused_in_one_line(case: Case, prepared: Path, tmp_path: Path) -> None:
    ending = ending_of(case, tmp_path / "case", prepared)
    clear(tmp_path / "case")
    told = "\n".join(ending.ended.err.splitlines()[-5:])
    assert ending.kind == "ok", f"{case.name}: {ending.kind}: {ending.why}\nonebase {case.command}\n{told}"


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in ALL}) == len(ALL)
