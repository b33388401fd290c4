"""What hardware can do at most, in round figures as makers publish them; none was measured here."""

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


MACHINES = {
    machine.name.lower(): machine
    for machine in (
        Machine("T4", 16, 320, 65, 70),
        Machine("L4", 24, 300, 121, 72),
        Machine("A10G", 24, 600, 70, 300),
        Machine("3090", 24, 936, 71, 350),
        Machine("4090", 24, 1008, 165, 450),
        Machine("A100", 80, 2039, 312, 400),
        Machine("H100", 80, 3350, 989, 700),
        Machine("H200", 141, 4800, 989, 700),
        Machine("B200", 180, 7700, 2250, 1000),
    )
}
UTILISATION = 0.4
"""The share of the peak that well-run training of a large model reaches: 0.46 in PaLM (Chowdhery et al. 2022, table 3),
0.38 to 0.43 in Llama 3 (Grattafiori et al. 2024, table 4)."""
