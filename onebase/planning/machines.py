"""What hardware can do at most, in round figures as makers publish them; none was measured here.

One place for all that is said of machines before any measurement: sizes, peaks, and the shares of the peaks that a run
is expected to reach. A calibrated machine needs none of it (`planning/calibration.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """One device."""

    name: str
    memory_gb: float
    """10^9 bytes."""
    bandwidth_gb: float
    """10^9 bytes a second between memory and cores."""
    teraflops: float
    """Peak of dense matrix products, in bf16, or fp16 where there is no bf16; accumulated in fp32."""
    watts: float
    """What the whole device may draw."""
    float32_teraflops: float
    """Peak in fp32 proper; torch does not use TF32 unless asked to."""
    source: str
    """Who says so."""
    is_gpu: bool = True


MACHINES = {
    machine.name.lower(): machine
    for machine in (
        Machine("T4", 16, 320, 65, 70, 8.1, "NVIDIA T4 data sheet; fp16, as it has no bf16"),
        Machine("L4", 24, 300, 121, 72, 30.3, "NVIDIA L4 data sheet, without sparsity"),
        Machine("A10G", 24, 600, 70, 300, 35, "NVIDIA A10G data sheet, made for AWS"),
        Machine("3090", 24, 936, 71, 350, 35.6, "NVIDIA GA102 white paper"),
        Machine("4090", 24, 1008, 165, 450, 82.6, "NVIDIA Ada white paper"),
        Machine("A100", 80, 2039, 312, 400, 19.5, "NVIDIA A100 data sheet, SXM, 80 GB"),
        Machine("A100-40GB", 40, 1555, 312, 400, 19.5, "NVIDIA A100 data sheet, SXM, 40 GB"),
        Machine("H100", 80, 3350, 989, 700, 67, "NVIDIA H100 data sheet, SXM"),
        Machine("H200", 141, 4800, 989, 700, 67, "NVIDIA H200 data sheet, SXM"),
        Machine("B200", 180, 7700, 2250, 1000, 75, "NVIDIA HGX B200 data sheet"),
        # The watts of a whole Mac at the wall. Its GPU computes 16 and 32 bits at the same rate.
        Machine("M1-Max", 64, 400, 10.4, 115, 10.4, "Apple's announcement; Apple support 102027 for the watts"),
        Machine("M1-Ultra", 128, 800, 20.8, 215, 20.8, "Apple's announcement; Apple support 102027 for the watts"),
        Machine("M2-Max", 96, 400, 13.6, 145, 13.6, "Apple's announcement; Apple support 102027 for the watts"),
        Machine("M2-Ultra", 192, 800, 27.2, 295, 27.2, "Apple's announcement; Apple support 102027 for the watts"),
    )
}
UTILISATION = 0.4
"""The share of the peak that well-run training of a large model reaches: 0.46 in PaLM (Chowdhery et al. 2022, table 3),
0.38 to 0.43 in Llama 3 (Grattafiori et al. 2024, table 4)."""

EFFICIENCY = {"update": UTILISATION, "score": 0.5, "decode": 0.6}
"""Stated shares, not measured ones: of the peak in training (`UTILISATION`) and in passes without gradient, which have
the same products and keep nothing for a backward pass; in decoding of the bandwidth."""
SECONDS_PER_LAYER = {
    "gpu": {"update": 1e-3, "score": 3e-4, "decode": 3e-4},
    "cpu": {"update": 4e-3, "score": 1.5e-3, "decode": 8e-4},
}
"""What a layer takes however few tokens it sees. On a GPU stated too: some thirty kernels of ten microseconds forward
and twice as many backward. On a CPU as calibrated on two cores of a Xeon at 2.8 GHz, rounded: 3 to 5 ms in an update, 1
to 2 ms without gradient, 0.8 ms in decoding."""
CPU_OPERATIONS_PER_CYCLE = (("amx_bf16", 1024.0), ("avx512_bf16", 128.0))
"""Of one core in bf16, by the instructions it has; without them bf16 runs at half the rate of fp32, through which it is
computed."""
CPU_FLOAT32_PER_CYCLE = (("avx512f", 64.0), ("avx2", 32.0), ("asimd", 16.0))
"""Of one core in fp32: two products with their sums, 16, 8 or 4 numbers wide."""
CPU_GB_PER_CORE, CPU_WATTS_PER_CORE = 10.0, 10.0
"""Round guesses for a core's share of the bandwidth and of the power."""


def this_cpu(*, cores: int, gigahertz: float, instructions: frozenset[str], memory_gb: float, name: str) -> Machine:
    """A CPU by its cores, its clock and its instructions.

    peak = cores x cycles a second x operations a cycle
    """
    per_cycle = next((rate for flag, rate in CPU_FLOAT32_PER_CYCLE if flag in instructions), 8.0)
    in_bf16 = next((rate for flag, rate in CPU_OPERATIONS_PER_CYCLE if flag in instructions), per_cycle / 2)
    each = cores * gigahertz / 1000
    return Machine(
        name,
        memory_gb,
        CPU_GB_PER_CORE * cores,
        each * in_bf16,
        CPU_WATTS_PER_CORE * cores,
        each * per_cycle,
        f"counted from {cores} cores, {gigahertz:.1f} GHz and their instructions, not measured",
        is_gpu=False,
    )
