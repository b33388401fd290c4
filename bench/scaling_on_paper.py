"""What PPO with adapters should cost on 8, 64 and 512 GPUs, by arithmetic alone: `python -m bench.scaling_on_paper`.

Nothing here was measured. Writes the tables of docs/scaling.md, between its two marks; a test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
MARKS = ("<!-- written by bench/scaling_on_paper.py -->\n", "<!-- end of what it wrote -->\n")
GPUS = (8, 64, 512)


@dataclass(frozen=True, slots=True)
class Model:
    """A base with the shape of an 8 B model of 2025, its adapters on all linear layers."""

    layers: int = 36
    hidden: int = 4096
    inner: int = 12288
    key_values: int = 1024
    """Width of the keys, and of the values, of all heads together."""
    vocabulary: int = 151_936
    rank: int = 16

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """In and out of the linear layers of one block."""
        h, i, kv = self.hidden, self.inner, self.key_values
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    @property
    def parameters(self) -> int:
        return self.layers * sum(a * b for a, b in self.shapes) + 2 * self.vocabulary * self.hidden

    @property
    def adapter(self) -> int:
        """Parameters of one adapter."""
        return self.layers * self.rank * sum(a + b for a, b in self.shapes)

    @property
    def cache_bytes(self) -> int:
        """Of keys and values, in bf16, per token."""
        return self.layers * 2 * self.key_values * 2


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs of 80 GB, eight to a machine, and what of their data sheet is taken to be reached."""

    flops: float = 989e12 * 0.35
    """bf16 operations a second, in training and scoring."""
    bytes_read: float = 3.35e12 * 0.6
    """Bytes a second from memory, in decoding."""
    memory: float = 80e9 * 0.8
    """Bytes left for weights, optimizer and activations."""
    inside: float = 300e9
    """Bytes a second that a GPU exchanges with its neighbours in one machine."""
    between: float = 25e9
    """Bytes a second that a GPU exchanges with other machines."""
    delay: float = 20e-6
    """Seconds for one message between two GPUs."""
    disk: float = 10e9
    """Bytes a second that the shared disk gives to all together."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout and the steps on it."""

    completions: int = 1024
    prompt: int = 512
    completion: int = 1024
    minibatches: int = 8
    by_the_first: float = 1e-3
    """Seconds that the first process alone spends on a completion: its text, a reward function, metrics."""
    load: float = 0.5
    """Seconds until a rollout server has loaded an adapter that it has read."""

    @property
    def tokens(self) -> int:
        """Of a prompt with its completion."""
        return self.prompt + self.completion


PASSES_SCORED = 4
"""Policy, reference, reward and critic, once each over what was sampled."""
ROLES_TRAINED = 2
"""Policy and critic."""
PARTS = ("generation", "scoring", "updates", "all-reduce", "publishing", "first process")


def seconds(gpus: int, rollout: Rollout, model: Model, machine: Machine) -> dict[str, float]:
    """The seconds of each part of one rollout. Every GPU holds the base and takes its share of the completions.

    generation    T steps, each reads the base and the cache of the GPU's completions once
    scoring       2 n operations a token and pass
    updates       6 n operations a token and role: forward, again for the backward pass, and the gradient of the inputs;
                  the base has no gradient of its own. A minibatch's completions are dealt whole
    all-reduce    2 (N - 1) / N x 4 bytes an adapter's parameter and minibatch, and 2 log2 N messages
    first process works on every completion, while the others wait
    publishing    the adapter in bf16, written once and read by every machine
    """
    share = math.ceil(rollout.completions / gpus)
    cached = share * (rollout.prompt + rollout.completion / 2) * model.cache_bytes
    one_pass = 2 * model.parameters * rollout.tokens / machine.flops
    in_minibatch = math.ceil(rollout.completions / rollout.minibatches / gpus)
    wire = machine.inside if gpus <= 8 else machine.between
    reduced = 2 * (gpus - 1) / gpus * 4 * model.adapter / wire + 2 * math.log2(gpus) * machine.delay
    machines = math.ceil(gpus / 8)
    return {
        "generation": rollout.completion * (2 * model.parameters + cached) / machine.bytes_read,
        "scoring": share * PASSES_SCORED * one_pass,
        "updates": rollout.minibatches * in_minibatch * ROLES_TRAINED * 3 * one_pass,
        "all-reduce": rollout.minibatches * ROLES_TRAINED * reduced,
        "publishing": (1 + machines) * 2 * model.adapter / machine.disk + rollout.load,
        "first process": rollout.completions * rollout.by_the_first,
    }


def efficiency(gpus: int, rollout: Rollout, grown: Rollout, model: Model, machine: Machine) -> float:
    """Completions a second and GPU, as a share of those on 8 GPUs.

    Args:
        rollout: on 8 GPUs; `grown`: on `gpus`.
    """
    before = rollout.completions / sum(seconds(8, rollout, model, machine).values()) / 8
    return grown.completions / sum(seconds(gpus, grown, model, machine).values()) / gpus / before


def most_gpus(share: float, model: Model, machine: Machine) -> int:
    """The most GPUs, a power of two, on which one rollout of 1,024 completions keeps this efficiency."""
    found = 8
    while efficiency(2 * found, Rollout(), Rollout(), model, machine) >= share:
        found *= 2
    return found


def rollouts_table(rollouts: Sequence[Rollout], model: Model, machine: Machine) -> list[str]:
    """A column for each number of GPUs."""
    found = [seconds(gpus, rollout, model, machine) for gpus, rollout in zip(GPUS, rollouts, strict=True)]
    lines = [
        "| seconds of one rollout | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |",
        "| --- |" + " ---: |" * len(GPUS),
        "| completions | " + " | ".join(f"{rollout.completions:,}" for rollout in rollouts) + " |",
    ]
    for part in PARTS:
        lines.append(f"| {part} | " + " | ".join(f"{column[part]:.2f}" for column in found) + " |")
    lines.append("| **together** | " + " | ".join(f"**{sum(column.values()):.1f}**" for column in found) + " |")
    shares = [efficiency(n, rollouts[0], rollout, model, machine) for n, rollout in zip(GPUS, rollouts, strict=True)]
    lines.append("| completions per GPU, against 8 | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return lines


TRAINED_IN_FULL = 16
"""Bytes a parameter: weight and gradient in bf16, weight and two moments of AdamW in float32."""
PPO_IN_FULL = 2 * TRAINED_IN_FULL + 2 * 2
"""Policy and critic trained in full, reference and reward model in bf16."""


def memory_table(machine: Machine) -> list[str]:
    """Bytes of weights and optimizers, and the GPUs that hold them without a byte of activations."""
    ways = (
        ("PPO, adapters, 4 bits", 0.55),
        ("PPO, adapters, bf16", 2.0),
        ("SFT or DPO in full", TRAINED_IN_FULL),
        ("PPO in full", PPO_IN_FULL),
    )
    sizes = (1.7, 4, 8, 14, 32, 70, 235)
    lines = [
        "| billions of parameters | " + " | ".join(name for name, _ in ways) + " |",
        "| ---: |" + " ---: |" * len(ways),
    ]
    for size in sizes:
        held = [(size * per, math.ceil(size * 1e9 * per / machine.memory)) for _, per in ways]
        cells = [f"{held:,.0f} GB, {count} GPU{'s'[: count > 1]}" for held, count in held]
        lines.append(f"| {size:g} | " + " | ".join(cells) + " |")
    return lines


def text() -> str:
    """Everything between the marks."""
    model, machine, rollout = Model(), Machine(), Rollout()
    same = [rollout] * len(GPUS)
    grown = [Rollout(completions=rollout.completions * gpus // 8) for gpus in GPUS]
    start = [2 * model.parameters * math.ceil(gpus / 8) / machine.disk for gpus in GPUS]
    return "\n".join(
        [
            "### Memory",
            "",
            *memory_table(machine),
            "",
            "### The same rollout on more GPUs",
            "",
            *rollouts_table(same, model, machine),
            "",
            f"Half of the efficiency on 8 GPUs is kept up to {most_gpus(0.5, model, machine)} GPUs.",
            "",
            "### A rollout that grows with the GPUs",
            "",
            *rollouts_table(grown, model, machine),
            "",
            "### Once",
            "",
            f"The base has {model.parameters / 1e9:.1f} billion parameters, an adapter",
            f"{model.adapter / 1e6:.1f} million: {4 * model.adapter / 1e6:.0f} MB of gradients,",
            f"{2 * model.adapter / 1e6:.0f} MB to publish. Reading the base from the shared disk, once a machine,",
            f"takes {start[0]:.0f}, {start[1]:.0f} and {start[2]:.0f} seconds on 8, 64 and 512 GPUs.",
            "",
        ]
    )


def main() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{text()}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
