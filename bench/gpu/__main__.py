"""Checks this version on the machine's GPU and writes docs/gpu.md and bench/gpu.json.

usage: python -m bench.gpu [--minutes 8] [--into FOLDER]

Exit codes: 0; 4 if there is no GPU; 5 if a test marked `gpu` or a stage failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.page import FORMATS, merged, page

ROOT = Path(__file__).resolve().parents[2]
NO_GPU, FAILED = 4, 5
DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Where the NVIDIA driver is, on Linux and under Windows. Looking there takes no time; importing torch does."""
CASES = (("1b", "none"), ("8b", "none"), ("8b", "nf4"), ("1b", "nf4"))
SECONDS_FOR_TESTS = 240


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=8.0, help="what is not measured by then is left out")
    parser.add_argument("--into", type=Path, default=ROOT, help="where docs/gpu.md and bench/gpu.json go")
    options = parser.parse_args()
    if not any(Path(driver).exists() for driver in DRIVERS):
        print("error: there is no NVIDIA GPU here (no driver); nothing was measured or written", file=sys.stderr)
        return NO_GPU
    import torch  # only where there may be a GPU

    if not torch.cuda.is_available():
        print(
            f"error: PyTorch {torch.__version__} sees no GPU; install a build for CUDA (https://pytorch.org). Nothing "
            "was measured or written",
            file=sys.stderr,
        )
        return NO_GPU
    deadline = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "commit": commit(),
        "tests": "not run",
        "cases": {},
        "not_reached": [],
    }
    crashes: list[str] = []
    passed, results["tests"] = run_tests(min(SECONDS_FOR_TESTS, deadline - time.monotonic()))
    for size, quantization in CASES:
        case = f"{size}, {FORMATS[quantization]}"
        print(f"gpu-check: {case}", flush=True)
        lines, in_time, crash = run_case(size, quantization, deadline - time.monotonic())
        results["cases"][case] = merged(lines)
        results["not_reached"] += [] if in_time else [case]
        crashes += [f"{case}: {crash}"] if crash else []
        write(results, options.into)  # after every case, so that nothing is lost if the machine goes away
    failed = crashes + [
        f"{case}: {side} {stage}: {found['error']}"
        for case, sides in results["cases"].items()
        for side, stages in sides.items()
        for stage, found in stages.items()
        if "error" in found
    ]
    failed += [
        f"{case}: ours ran without FlexAttention ({found['engine']})"
        for case, sides in results["cases"].items()
        for found in list(sides["ours"].values())[:1]
        if "flex" not in found["engine"]
    ]
    print("\n".join(failed))
    print(f"gpu-check: tests: {results['tests']}; wrote {options.into / 'docs' / 'gpu.md'}")
    return 0 if passed and all(" theirs " in line for line in failed) else FAILED


def run_tests(seconds: float) -> tuple[bool, str]:
    """Runs the tests marked `gpu`; whether they passed, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return False, f"not finished after {seconds:.0f} s"
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))))
    last = next((line for line in reversed(lines) if "passed" in line or "failed" in line), lines[-1])
    return done.returncode == 0, last.strip("= ")


def run_case(size: str, quantization: str, seconds: float) -> tuple[list[dict[str, Any]], bool, str]:
    """Measures one case: what it printed until the time was over, whether it ended by then, and how it crashed."""
    if seconds <= 0:
        return [], False, ""
    command = [sys.executable, "-W", "ignore", "-m", "bench.gpu.measure", size, quantization]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds)
        output, in_time = done.stdout, True
        crash = f"exit code {done.returncode}; its error is above" if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, in_time, crash = _text(error.stdout), False, ""
    return json_lines(output.splitlines()), in_time, crash


def json_lines(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The lines that are JSON objects; the last may have been cut."""
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
            print(f"  {line}", flush=True)
    return found


def write(results: dict[str, Any], folder: Path) -> None:
    """Writes the page and the figures."""
    for path, text in (("docs/gpu.md", page(results)), ("bench/gpu.json", json.dumps(results, indent=1) + "\n")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _text(output: str | bytes | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


if __name__ == "__main__":
    sys.exit(main())
