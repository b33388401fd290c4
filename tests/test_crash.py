"""A run that is killed and restarted ends like an undisturbed one: the short form of `make crash-test`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.crash_test import FAULTS, crash, deal, differences, make_stages
from onebase.errors import Stopped
from onebase.training.loop import Loop
from onebase.training.run import Run


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault"), [("sft", "in a write"), ("ppo", "SIGKILL")])
def test_a_run_that_is_killed_ends_as_one_left_alone(name: str, fault: str, tmp_path: Path) -> None:
    stage = next(stage for stage in make_stages(tmp_path, length=0.3) if stage.name == name)
    outcome = crash(stage, [fault], random.Random(0))
    assert not outcome.problems and outcome.faults == {fault: 1}


def test_what_differs_is_found(tmp_path: Path) -> None:
    """The comparison itself can fail."""
    for run, loss, weight, time in (("one", 1.0, b"a", 1.0), ("same", 1.0, b"a", 2.0), ("other", 2.0, b"b", 1.0)):
        (tmp_path / run / "policy").mkdir(parents=True)
        (tmp_path / run / "policy" / "adapter_model.safetensors").write_bytes(weight)
        rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": loss, "perf/seconds": time}]
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / run / "summary.json").write_text(json.dumps({"after": loss, "seconds": time}))
    assert not list(differences(tmp_path / "one", tmp_path / "same"))
    (tmp_path / "other" / ".policy.1.tmp").touch()
    found = list(differences(tmp_path / "one", tmp_path / "other"))
    assert found[0] == ".policy.1.tmp is only in the killed run"
    assert found[1:3] == [
        "metrics.jsonl: step 2 differs in loss",
        "policy/adapter_model.safetensors has different bytes",
    ]
    assert len(found) == 4 and found[3].startswith("summary.json")
    (tmp_path / "same" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    assert list(differences(tmp_path / "one", tmp_path / "same")) == ["metrics.jsonl: 1 rows instead of 2"]


def test_faults_are_dealt_evenly_and_of_all_kinds() -> None:
    shares = deal(100, 10)
    assert [len(share) for share in shares] == [10] * 10
    assert all(set(share) == set(FAULTS) for share in shares)
    assert sum(map(len, deal(7, 3))) == 7


STOPPED_WHILE = """
import os, signal, sys
from types import SimpleNamespace
from onebase.cli import modules, preflight
from onebase.cli.main import main

def stop_in_the_midst(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        print("went on")
    except Exception:
        print("swallowed")
    return SimpleNamespace(run=stop_in_the_midst)

setattr(modules, sys.argv[1], stop_in_the_midst)
preflight.check = preflight.check_models = lambda config: None  # there is nothing to read
sys.exit(main(["sft", "output_dir=run", "model.model_name_or_path=none", "data.train=none"]))
"""


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("import_module", "went on\n"),  # a library that is half imported is broken: the signal waits
        ("load", ""),  # a library that tries one thing and then another does not catch it
    ],
)
def test_sigterm_before_the_steps_is_not_lost(part: str, said: str) -> None:
    ended = subprocess.run([sys.executable, "-c", STOPPED_WHILE, part], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (75, said)
    assert ended.stderr == (
        "sft: starting; the run goes to run\n"
        "error: stopped; run the same command to start again, or to resume from the last checkpoint\n"
    )


@pytest.fixture
def handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_behind_the_last_step_is_not_lost(tmp_path: Path, handlers: None) -> None:
    """SIGTERM comes in a final evaluation, after which `iterate` would begin the next round."""
    run = Run(tmp_path / "run", seed=0, config_text="seed: 0\n")
    with pytest.raises(Stopped, match="stopped after step 1 and saved .*checkpoint-1$"):
        with Loop(run, "test", 1, save=lambda folder: None) as loop:
            for _ in loop:
                loop.end_step({"loss": 1.0})
            os.kill(os.getpid(), signal.SIGTERM)
    again = Run(tmp_path / "run", seed=0, config_text="seed: 0\n")
    with Loop(again, "test", 1, save=lambda folder: None) as loop:
        assert not list(loop)
