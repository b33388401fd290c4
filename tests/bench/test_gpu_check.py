"""`make gpu-check` where there is no GPU: it says so at once; its page, its models and both of its sides."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import ours
from bench.gpu.__main__ import DRIVERS, json_lines, run_tests, write
from bench.gpu.models import LOADS, SHAPES, random_model, random_pairs
from bench.gpu.page import merged, page, ratio, reached, table
from onebase.engines.engine import packs

ROOT = Path(__file__).parents[2]
no_gpu = pytest.mark.skipif(any(Path(d).exists() for d in DRIVERS), reason="there is a GPU here")


@no_gpu
def test_without_a_gpu_it_says_so_within_a_second_and_writes_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", "bench.gpu", "--into", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - started < 1.0
    assert done.returncode == 4 and done.stdout == ""
    assert done.stderr == "error: there is no NVIDIA GPU here (no driver); nothing was measured or written\n"
    assert not list(tmp_path.iterdir())


def test_the_page_in_docs_is_what_the_figures_say() -> None:
    results = ROOT / "bench" / "gpu.json"
    expected = page(json.loads(results.read_text()) if results.exists() else None)
    assert (ROOT / "docs" / "gpu.md").read_text() == expected


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_both_sides_run_every_stage_of_the_tiny_size(quantization: str) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    command = [sys.executable, "-W", "ignore", "-m", "bench.gpu.measure", "tiny", quantization, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = merged([json.loads(line) for line in done.stdout.splitlines()])
    for side in ("ours", "theirs"):
        assert list(found[side]) == ["sft", "reward", "dpo", "ppo", "decode"]
        assert all(stage["per_second"] > 0 and "error" not in stage for stage in found[side].values())
    assert {stage["engine"] for stage in found["ours"].values()} == {"PackedEngine"}


def test_both_sides_train_on_the_same_weights_and_leave_them_as_they_were() -> None:
    from bench.gpu.theirs import Theirs

    model = random_model("tiny", "none", torch.device("cpu"), torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = Theirs(model, "tiny")
    moved = [p for name, p in theirs.model.named_parameters() if "lora_B.policy" in name]
    theirs.sft()
    assert any(parameter.abs().max() > 0 for parameter in moved)
    base = ours.open_base(theirs.unload())
    assert packs(base, "policy")
    ours.stages(base, "tiny")["sft"]()
    after = base.model.state_dict()
    for name, tensor in before.items():
        key = name if name in after else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(after[key], tensor), name


def test_quantised_layers_hold_what_bitsandbytes_makes_of_the_weights() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    plain = random_model("tiny", "none", torch.device("cpu"), torch.bfloat16)
    model = random_model("tiny", "nf4", torch.device("cpu"), torch.bfloat16)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(layers) == 7 * SHAPES["tiny"]["num_hidden_layers"]
    for name, layer in layers.items():
        weight = plain.get_submodule(name).weight
        packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
        expected = bnb.functional.dequantize_4bit(packed, state)
        assert torch.equal(bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state), expected)


def test_rows_are_the_same_every_time_and_within_their_lengths() -> None:
    for size, load in LOADS.items():
        pairs = random_pairs(size)
        assert pairs == random_pairs(size) and len(pairs) == load.pairs
        assert max(len(pair.prompt) for pair in pairs) <= load.longest
        assert len({len(pair.prompt) for pair in pairs}) > 1
        ids = [token for pair in pairs for token in pair.prompt + pair.chosen + pair.rejected]
        assert min(ids) >= 3 and max(ids) < SHAPES[size]["vocab_size"]


def figures(per_second: float, memory: int, **more: Any) -> dict[str, Any]:
    return {"first_seconds": 9.5, "seconds": 1.0, "per_second": per_second, "memory_mb": memory, **more}


MEASURED = {
    "ours": {
        "sft": figures(30.0, 500, engine="PackedEngine, flex"),
        "ppo": figures(10.0, 1),
        "decode": figures(60.0, 1),
    },
    "theirs": {
        "sft": figures(10.0, 2000),
        "ppo": {"error": "OutOfMemoryError: no | memory"},
        "decode": figures(20.0, 1),
    },
}


def test_the_page_shows_both_sides_what_failed_and_which_targets_were_reached(tmp_path: Path) -> None:
    results = {
        "date": "2026-01-01",
        "device": "GPU",
        "torch": "2.13",
        "commit": "abc",
        "tests": "5 passed",
        "cases": {"1b, bf16": MEASURED, "8b, NF4": MEASURED},
        "not_reached": ["1b, NF4"],
    }
    write(results, tmp_path)
    text = (tmp_path / "docs" / "gpu.md").read_text()
    assert "| SFT | 30 | 10 | 3.00 | 500 | 2,000 | 0.25 | 9.5 | PackedEngine, flex |" in text
    assert "failed: OutOfMemoryError: no / memory" in text
    assert "on one GPU, torch 2.13" in text and "5 passed" in text and "1b, NF4" in text
    assert "Nothing has run" not in text
    assert json.loads((tmp_path / "bench" / "gpu.json").read_text()) == results
    assert reached({"1b, bf16": MEASURED, "8b, NF4": MEASURED}) == [
        "- 1b, bf16, SFT: 3.00 times in 0.25 of the memory, reached",
        "- 1b, bf16, decoding: 3.00 times, **not reached** (at least 5)",
        "- 8b, NF4, PPO rollout: 1.00 s, reached (at most 12 s)",
        "- 8b, NF4, decoding: 3.00 times, **not reached** (at least 5)",
    ]
    assert ratio(MEASURED, "ppo", "per_second") is None and len(table(MEASURED)) == 7


def test_a_line_that_was_cut_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert json_lines(['{"side": "ours"}', "warning", "3", '{"side": "o']) == [{"side": "ours"}]


def test_tests_that_do_not_end_in_time_did_not_pass() -> None:
    assert run_tests(0.0) == (False, "not finished after 0 s")
