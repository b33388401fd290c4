"""Bytes of a planned run's weights, by number format."""

from __future__ import annotations

from onebase.planning.architecture import Architecture
from onebase.training.plan import NF4_BYTES_PER_WEIGHT

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_BYTES = 4
"""Adapters and heads are float32 whatever the base is."""


def weight_bytes(base: Architecture, dtype: str, quantization: str) -> float:
    """Bytes of a base's weights: P e; in NF4 0.5625 for each of the linear layers' and e for the others
    (Dettmers et al. 2023, section 3, without double quantisation).
    """
    e = NUMBER_BYTES[dtype]
    if quantization == "nf4":
        return NF4_BYTES_PER_WEIGHT * base.linear_parameters + e * (base.parameters - base.linear_parameters)
    return float(e * base.parameters)
