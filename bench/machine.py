"""Describes the machine and its limits: its fastest matrix product and its memory read rate.

usage: python -m bench.machine fp32|bf16 [quick]      prints one JSON line; quick: only the matrix product, one shape
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from onebase.planning.probe import product_rate, read_rate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = [
    (256, 512, 512),
    (1024, 512, 1408),
    (2048, 512, 512),
    (2048, 1408, 512),
    (4096, 512, 8192),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 1024, 4096),
    (4096, 4096, 4096),
]
"""Rows, inputs and outputs: the shapes of the benchmark's models, and squares that suit a processor."""
QUICK_PRODUCT = (2048, 512, 1408)
SECONDS_EACH = 0.3


def main() -> None:
    if sys.argv[2:] == ["quick"]:
        rate = product_rate(*QUICK_PRODUCT, DTYPES[sys.argv[1]], SECONDS_EACH)
        print(json.dumps({"gflops": round(rate / 1e9, 1)}))
    else:
        print(json.dumps(speed(sys.argv[1])))


def speed(precision: str, *, seconds_each: float = SECONDS_EACH) -> dict[str, Any]:
    """Returns the best product's GFLOP/s in this precision and its shape, and the GB/s read."""
    rate, product = max((product_rate(*shape, DTYPES[precision], seconds_each), shape) for shape in PRODUCTS)
    return {
        "gflops": round(rate / 1e9, 1),
        "product": "x".join(map(str, product)),
        "cached_gb_per_second": round(read_rate(64 << 20) / 1e9, 1),
        "memory_gb_per_second": round(read_rate(2 << 30) / 1e9, 1),
        "threads": torch.get_num_threads(),
    }


def default_precision() -> str:
    """Returns bf16 if the hardware computes in it, else fp32."""
    from onebase.models.loading import hardware_dtype

    return "bf16" if hardware_dtype(torch.device("cpu")) == torch.bfloat16 else "fp32"


def precisions() -> tuple[str, ...]:
    """Returns the precisions worth measuring here; emulated bf16 says nothing."""
    return ("bf16", "fp32") if default_precision() == "bf16" else ("fp32",)


def num_threads() -> int:
    """Returns `OMP_NUM_THREADS` if set, else the number of physical cores, torch's default."""
    return int(os.environ.get("OMP_NUM_THREADS") or psutil.cpu_count(logical=False) or 1)


def describe() -> dict[str, Any]:
    """Returns the machine and versions that a figure depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "threads": num_threads(),
    }


if __name__ == "__main__":
    main()
