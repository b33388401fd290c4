"""Checks that run in every process of a group and leave what they found in files (`ranks.py` starts them)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

import onebase
from onebase.cli.main import main
from onebase.distributed import preflight
from onebase.distributed.sharding import held_bytes
from onebase.engines.budget import TokenBudget, saved_bytes_per_token
from onebase.engines.forward import completion_scores, token_logprobs
from onebase.engines.opening import load_base
from onebase.models.adapters import lora_config
from onebase.processes import launched
from onebase.records import Example, TreeBatch
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from onebase.training.averages import Averages
from onebase.training.update import ParameterGroup, Update


def gradients(log: Path, folder: str, shard: str) -> None:
    """One optimizer step on five trees, for a policy and a reward role; the first process keeps the gradients.

    Also every process's held bytes, what autograd keeps per token, and samples of three prompts.
    """
    group = launched()
    base = load_base(folder, dtype="float32", device="cpu", group=group, shard=shard == "shard")
    held = group.gather(held_bytes(base.model))  # without adapters, which are whole everywhere
    torch.manual_seed(0)
    for name in ("policy", "reward"):
        base.add_role(name, adapter=lora_config(base.model, r=4, alpha=8), head=name == "reward", trains=True)
    for parameter in [*base.parameters("policy"), *base.parameters("reward")]:
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape) * 0.05)  # else half of the gradients are zero
    examples = [Example([5 + i, 9, 30], [[40 + i] * (2 + i), [50, 51 + i]]) for i in range(5)]
    total = sum(example.num_counted for example in examples)

    def policy_loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> torch.Tensor:
        return -token_logprobs(base, batch, role="policy").sum() / total

    def reward_loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> torch.Tensor:
        return completion_scores(base, batch, role="reward").tanh().sum() / 10

    update = Update(
        base,
        [ParameterGroup(base.parameters(name), 1e-2, role=name) for name in ("policy", "reward")],
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
        max_grad_norm=1e9,
        budget=TokenBudget(24),
    )
    found: list[torch.Tensor] = []
    step = update.optimizer.step
    update.optimizer.step = lambda *a, **k: (  # type: ignore[method-assign]
        found.extend(p.grad.clone() for name in ("policy", "reward") for p in base.parameters(name)),
        step(*a, **k),
    )
    metrics = update.step((examples, policy_loss), (examples[:1], reward_loss))
    drawn = generate(base, [[5, 6], [7], [8, 9, 10]], role="policy", sampling=Sampling(6), seeds=[1, 2, 3])
    said = {
        "held": held,
        "output": base.model.get_output_embeddings().weight.nbytes,
        "loss": metrics["loss"],
        "samples": [sample.ids for sample in drawn],
        "saved": saved_bytes_per_token(base, "policy"),
        "packs": base.packs,
    }
    if group.is_main:
        torch.save(found, log / "gradients.pt")
        (log / "found.json").write_text(json.dumps(said))


def doctor(log: Path, fault: str, *words: str) -> int:
    """`onebase doctor --distributed` with something wrong in one process, or in what it works on."""
    rank = int(os.environ["RANK"])
    if fault == "other version" and rank == 1:
        onebase.__version__ = "0.0.9"
    if fault == "other machine":  # where the same relative paths are other files
        (log / f"machine {rank}").mkdir()
        os.chdir(log / f"machine {rank}")
        Path("config.yaml").write_text(f"seed: {rank}\n")
    if fault == "half-written" and rank == 0:
        preflight._replace = _written_in_place
    if fault == "no locks" and rank == 1:  # as on a file system where flock is every machine's own
        preflight._locked = lambda descriptor: True
    if fault == "one missing":
        preflight.SECONDS_TO_MEET = 1.0
        if rank == 1:
            return 0
    if fault == "no meeting":
        preflight.SECONDS_TO_MEET = 1.0
        if rank == 0:
            return 0
    if fault == "closed ports" and rank == 1:
        preflight._own_address = lambda: "127.0.0.1:closed"
    return main(["doctor", "--distributed", *words])


def _written_in_place(path: Path, number: int) -> None:
    with path.open("w") as file:
        file.write(f"{number}\n" * 1000)
        file.flush()
        time.sleep(0.01)
        file.write(f"{number}\n" * 1000)
