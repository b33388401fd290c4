"""On a CUDA device: the same rollout as on the CPU, and a short run in every number format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onebase.recipes import ppo
from tests.recipes.conftest import Options, metric_rows, small_ppo
from tests.recipes.ppo_parts import Trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "nf4")])
def test_ppo_runs_on_a_gpu_and_leaves_the_base_as_it_was(
    dtype: str, quantization: str, base: Path, prompts: Path, tmp_path: Path
) -> None:
    more: Options = {"model.device": "cuda", "model.dtype": dtype, "model.quantization": quantization, "max_steps": 2}
    summary = ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    assert summary["rollouts"] == 2
    assert all(row["sampling/logp_difference"] < 0.1 for row in metric_rows(tmp_path / "run"))


def test_a_gpu_and_a_cpu_see_the_same_rollout(base: Path, prompts: Path, tmp_path: Path) -> None:
    rollouts = []
    for device in ("cpu", "cuda"):
        more: Options = {"model.device": device, "model.dtype": "float32"}
        trainer = Trained(small_ppo(base, tmp_path / device, prompts, more))
        rollouts.append(trainer.train_rollout(0))
    for name in ("objective/scores", "objective/entropy", "completions/mean_length", "loss/value"):
        assert rollouts[1][name] == pytest.approx(rollouts[0][name], abs=1e-3)
