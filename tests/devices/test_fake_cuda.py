"""Every recipe's step on a GPU that computes nothing: all tensors on one device, and the host waits where it must.

Nothing here needs a GPU. What runs on one is in `tests/recipes/test_gpu.py` and `make gpu-check`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.devices.passes import PAIRS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("c++") is None, reason="needs a C++ compiler (apt install g++) to stand in for a GPU's driver"
    ),
]

STEPS = 3
"""Times the host waits in an optimizer step, however many microbatches it has: the gradient norms, which decide whether
the step is taken, then the metrics, then the loss. All come after the last backward pass."""
PASS, DRAW, KL = "engines/passes.py: _over", "sampling/running.py: _note", "recipes/dpo.py: kto_step"
ON_HOST = "training/averages.py: on_host"


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every pass found, all in one process: importing and compiling take longer than most of them."""
    command = [sys.executable, "-m", "tests.devices.passes", str(tmp_path_factory.mktemp("guard"))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def waits_allowed(name: str) -> dict[str, int]:
    """How often each place may make the host wait.

    Passes without gradient bring their numbers back once each; drawn tokens come back eight at a time.
    """
    step = {f"{ON_HOST} copies back": STEPS}
    if name in ("sft", "pretrain"):
        return {f"{ON_HOST} copies back": STEPS - 1}  # no metric but the loss
    if name.startswith("ppo"):
        # Log-probs with entropy, the reference's, the values, the scores; two minibatches in two epochs.
        drawn = 2 * (1 + 2)  # ids and log-probs: at prefill, then 11 tokens in two looks
        return {f"{PASS} copies back": 5, f"{DRAW} copies back": drawn, f"{ON_HOST} copies back": 4 * STEPS}
    if name == "best-of":
        return {f"{PASS} copies back": 1, f"{DRAW} copies back": 6}
    if name == "decode step":
        return {}
    if name == "dpo kto":
        return {f"{PASS} copies back": 3, f"{KL} reads a number": 1, **step}
    if name in ("dpo sigmoid", "dpo ipo", "dpo plackett_luce"):
        return {f"{PASS} copies back": 1, **step}
    return step


def test_a_recipes_step_stays_on_the_gpu_and_waits_only_where_it_must(passes: list[dict[str, Any]]) -> None:
    rows = [row for row in passes if not row["fault"]]
    assert [(row["base"], row["pass"]) for row in rows] == PAIRS
    assert [row for row in rows if row["error"]] == []
    waits = {(row["base"], row["pass"]): row["waits"] for row in rows}
    assert waits == {(base, name): waits_allowed(name) for base, name in waits}


def test_a_state_left_on_the_cpu_fails_and_one_sent_through_it_is_noted(passes: list[dict[str, Any]]) -> None:
    left, sent = (row for row in passes if row["fault"])
    assert "cpu" in left["error"] and "cuda" in left["error"]
    assert sent["error"] == ""
    assert any("copies back" in place and ON_HOST not in place for place in sent["waits"])
    assert any("sends without pinning" in place for place in sent["waits"])
