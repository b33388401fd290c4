"""`onebase doctor`: reports what this machine has and what works on it, by trying rather than looking it up."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from onebase import __version__
from onebase.errors import OnebaseError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZE = 256
"""Side of the test matrices; small enough for a check in milliseconds."""


def run(*, output_dir: Path = Path("runs"), as_json: bool = False) -> None:
    """Prints what `examine` finds.

    Raises:
        OnebaseError: something that every stage needs does not work; raised after printing.
    """
    findings = examine(output_dir)
    print(json.dumps(findings, indent=2) if as_json else _as_text(findings))
    if findings["problems"]:
        raise OnebaseError("\n".join(findings["problems"]))


def examine(output_dir: Path) -> dict[str, Any]:
    """Returns the state of the machine as plain JSON values; memory and disk are in bytes."""
    devices = [_device(torch.device(name)) for name in _device_names()]
    disk = _disk(output_dir)
    problems = [f"{d['device']} cannot multiply float32 matrices: {d['float32']}" for d in devices if not _ok(d)]
    if disk["write"] != "ok":
        problems.append(f"cannot write to '{disk['folder']}': {disk['write']}; choose another output_dir")
    return {
        "onebase": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "devices": devices,
        "disk": disk,
        "problems": problems,
    }


def _ok(device: dict[str, Any]) -> bool:
    return bool(device["float32"] == "ok")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    """Memory this process may use: the machine's, or the container's limit if that is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _device_names() -> list[str]:
    names = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def _device(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"device": str(device), "name": platform.machine(), "memory_bytes": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "memory_bytes": properties.total_memory}
    for dtype in DTYPES:
        found[str(dtype).removeprefix("torch.")] = _try_matmul(dtype, device)
    found["bfloat16_speed"] = _bfloat16_speed(device) if found["bfloat16"] == "ok" else None
    found["nf4"] = _try_nf4(device)
    return found


def _try_matmul(dtype: torch.dtype, device: torch.device) -> str:
    """`ok`, or why a matrix product fails; it is compared with float64 on the CPU."""
    try:
        a, b = _matrices(device, dtype)
        error = ((a @ b).double().cpu() - a.double().cpu() @ b.double().cpu()).abs().max().item()
    except Exception as problem:  # whatever the driver or kernel raises is the finding
        return _one_line(problem)
    return "ok" if error < 0.1 else f"wrong result, off by {error:.3g}"


def _matrices(device: torch.device, dtype: torch.dtype, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Two `[size, size]` matrices whose product has entries of about 1."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    return a.to(device, dtype), (b / size**0.5).to(device, dtype)


def _bfloat16_speed(device: torch.device) -> float:
    """Speed of bfloat16 products relative to float32; below 1, bfloat16 only saves memory."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = _matrices(device, dtype, size=1024)
        times = []
        for _ in range(5):
            _synchronize(device)
            start = time.perf_counter()
            a @ b
            _synchronize(device)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)  # the first warms up; other programs can only add time
    return round(seconds[torch.float32] / seconds[torch.bfloat16], 2)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _try_nf4(device: torch.device) -> str:
    """`ok`, or why a 4-bit linear layer fails or differs from the full one."""
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        return "bitsandbytes is not installed; pip install 'onebase[quant]'"
    try:
        full = torch.nn.Linear(SIZE, SIZE, bias=False)
        with torch.no_grad():
            full.weight.copy_(_matrices(torch.device("cpu"), torch.float32)[1])
        small = Linear4bit(SIZE, SIZE, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        small.load_state_dict(full.state_dict())
        small = small.to(device)  # quantises
        x = _matrices(torch.device("cpu"), torch.float32)[0]
        with torch.no_grad():
            expected = full(x)
            relative = ((small(x.to(device)).cpu() - expected).norm() / expected.norm()).item()
    except Exception as problem:  # whatever the library raises is the finding
        return _one_line(problem)
    # Rounding normal weights to 16 levels leaves about 9 %.
    return "ok" if relative < 0.2 else f"wrong result, off by {relative:.0%}"


def _disk(output_dir: Path) -> dict[str, Any]:
    """Free space and write access where runs would go, tried in the nearest folder that exists."""
    folder = output_dir.absolute()
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        if not os.path.lexists(output_dir):
            try:
                os.stat(output_dir)  # raises for a name that no folder may have
            except FileNotFoundError:
                pass
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"onebase")
            file.flush()
            os.fsync(file.fileno())
        write = "ok"
    except OSError as problem:
        write = problem.strerror or _one_line(problem)
    return {"folder": str(folder), "free_bytes": shutil.disk_usage(folder).free, "write": write}


def _one_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:160]


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _as_text(findings: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {found or 'not installed'}" for name, found in findings["packages"].items())
    lines = [
        f"onebase   {findings['onebase']}, Python {findings['python']}, {findings['platform']}",
        f"packages  {packages}",
        f"machine   {findings['cores']} cores, {findings['threads']} threads, {_gib(findings['memory_bytes'])} memory",
        f"disk      {_gib(findings['disk']['free_bytes'])} free in {findings['disk']['folder']}, "
        f"writing: {findings['disk']['write']}",
    ]
    for device in findings["devices"]:
        memory = f", {_gib(device['memory_bytes'])}" if device["memory_bytes"] else ""
        lines.append(f"device    {device['device']} ({device['name']}{memory})")
        for kind in ("float32", "bfloat16", "float16", "nf4"):
            speed = f", {device['bfloat16_speed']}x the speed of float32" if kind == "bfloat16" else ""
            lines.append(f"          {kind:9}{device[kind]}{speed if device[kind] == 'ok' else ''}")
    return "\n".join(lines)
