"""Measures a training pass over random tokens with a model made in memory: one point of a `bench.growth` curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.machine import DTYPES
from bench.point import Point
from onebase.data.batches import microbatch_indices
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import wrap_model
from onebase.engines.passes import lay_out
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.scratch import train_tokenizer
from onebase.planning.probe import fastest
from onebase.records import Example

MICROBATCH_TOKENS = 4096


def measure_pass(point: Point) -> dict[str, Any]:
    """Returns `seconds`, the fastest of three passes, and `peak_mb`, the peak in MiB above the start."""
    base, examples = make_model(point), make_examples(point)

    def training_pass() -> None:
        for indices in microbatch_indices(examples, MICROBATCH_TOKENS, layout=base.layout):
            batch = lay_out(base, [examples[i] for i in indices])
            token_logprobs(base, batch, role="policy").sum().backward()
        for parameter in base.parameters("policy"):
            parameter.grad = None

    peak = peak_above(training_pass)
    return {"seconds": round(fastest(training_pass, 0.0), 4), "peak_mb": round(peak, 1)}


def make_model(point: Point) -> OneBase:
    """Makes a Llama with random weights, and a policy with an adapter on all linear layers."""
    config = LlamaConfig(
        vocab_size=point.vocab,
        hidden_size=point.hidden,
        intermediate_size=point.hidden * 11 // 4,
        num_hidden_layers=point.num_layers,
        num_attention_heads=point.hidden // 64,
        num_key_value_heads=point.hidden // 64,
        max_position_embeddings=4096,
        dtype=DTYPES[point.precision],
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model = model.to(DTYPES[point.precision])
    base = wrap_model(model, train_tokenizer(["text"], vocab_size=300), layout=point.layout, fingerprint="random")
    base.add_role("policy", adapter=lora_config(model, r=point.rank, alpha=32), trains=True)
    return base


def make_examples(point: Point) -> list[Example]:
    """Makes examples of random tokens, all of one length."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, point.vocab, (count,), generator=generator).tolist()

    return [
        Example(ids(point.prompt), [ids(point.completion) for _ in range(point.completions)])
        for _ in range(point.examples)
    ]


def peak_above(function: Callable[[], None]) -> float:
    """Returns the process's peak MiB during the call, above what it held before; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_mb("VmRSS")
    function()
    return status_mb("VmHWM") - before


def status_mb(name: str) -> float:
    """Returns a line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
