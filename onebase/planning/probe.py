"""Measures this machine within a minute: matrix products, memory, and our own passes on small models made in memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from onebase.engines.budget import TokenBudget
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import load_base, wrap_model
from onebase.engines.passes import per_token
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.loading import hardware_dtype
from onebase.models.scratch import train_tokenizer
from onebase.planning.architecture import from_config
from onebase.planning.calibration import Here
from onebase.planning.operations import Shape, tokens_of
from onebase.planning.rates import Rates, Timed, fit_rate
from onebase.planning.run import Adapter
from onebase.planning.weights import NUMBER_BYTES
from onebase.planning.work import (
    OPTIMIZER_BYTES,
    Kind,
    Work,
    decode_work,
    forward_work,
    train_work,
)
from onebase.records import Example
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from onebase.training.language import language_step
from onebase.training.threads import use_threads
from onebase.training.update import ParameterGroup, Update

PRODUCTS = ((512, 512, 1408), (2048, 512, 1408), (2048, 2048, 2048))
"""Rows, inputs and outputs of the matrix products; the first alone for a format that the processor only emulates."""
PRODUCT_SECONDS, READ_SECONDS = 0.4, 0.4
REPEATS = 3
SECONDS = 40.0
"""After so long nothing more is timed but the first pass of each kind, and starting a process, which comes last."""
VOCABULARY, CONTEXT, RANK = 4096, 1024, 16


@dataclass(frozen=True, slots=True)
class Size:
    """A small model."""

    hidden: int
    layers: int

    def config(self) -> LlamaConfig:
        """Its configuration: Llama, four query heads for a key head, output layer tied."""
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            intermediate_size=-(-self.hidden * 8 // 3 // 16) * 16,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden // 64),
            num_key_value_heads=max(1, self.hidden // 64),
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )


SIZES = {
    "cpu": (Size(256, 4), Size(64, 8), Size(512, 4), Size(64, 2)),
    "cuda": (Size(1024, 8), Size(256, 16), Size(2048, 8), Size(256, 4)),
}
"""The first model's passes are always timed."""
BATCHES = {"cpu": ((2, 48), (8, 128)), "cuda": ((4, 128), (64, 512))}
"""Examples and tokens of each, of a microbatch."""
DECODED = {"cpu": ((4, 32, 12), (32, 96, 12)), "cuda": ((8, 128, 32), (128, 256, 32))}
"""Rows, prompt tokens and new tokens."""


def probe(here: Here, device: torch.device, say: Callable[[str], None]) -> Rates:
    """This machine's rates, from timed passes of every kind.

    Args:
        say: told what is being measured, a line each.
    """
    dtype = hardware_dtype(device)
    name, until = str(dtype).removeprefix("torch."), time.monotonic() + SECONDS
    use_threads(None)  # as a run does: on a busy machine threads that spin would measure one another
    say(f"matrix products and memory on {here.key}")
    products = {
        str(kind).removeprefix("torch."): max(
            product_rate(*shape, kind, PRODUCT_SECONDS, device)
            for shape in (PRODUCTS if kind == dtype or device.type == "cuda" else PRODUCTS[:1])
        )
        for kind in (torch.float32, torch.bfloat16)
    }
    bandwidth = read_rate(512 << 20, READ_SECONDS, device)
    timed: dict[Kind, list[Timed]] = {
        kind: [] for kind in ("train", "train in full", "forward", "forward in full", "decode")
    }
    for number, size in enumerate(SIZES[device.type]):
        if number and time.monotonic() > until:
            say("a minute is nearly over: the larger models are left out")
            break
        say(f"passes and decoding of {size.layers} layers of {size.hidden}, {name}")
        for in_full in (False, True):
            _time_size(size, device, dtype, timed, in_full=in_full, until=until)
    say("starting a process and loading a base")
    start, opening, of_byte = _loading(device, bandwidth)
    fitted = {kind: fit_rate(passes, products[name]) for kind, passes in timed.items()}
    when = time.strftime("%Y-%m-%d %H:%M")
    return Rates(
        here.key,
        here.machine.watts if here.machine else 0.0,
        {kind: rate for kind, (rate, _) in fitted.items()},
        start_seconds=start,
        open_seconds=opening,
        of_loaded_byte=of_byte,
        source=f"measured {when}",
        dtype=name,
        products=products,
        bandwidth=bandwidth,
        spread={kind: spread for kind, (_, spread) in fitted.items()},
    )


def _time_size(
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    timed: dict[Kind, list[Timed]],
    *,
    in_full: bool,
    until: float,
) -> None:
    """Times every kind of pass of one model, trained by an adapter or in full; after `until` only a kind's first."""
    train: Kind = "train in full" if in_full else "train"
    forward: Kind = "forward in full" if in_full else "forward"
    if timed[train] and time.monotonic() > until:
        return
    number = NUMBER_BYTES[str(dtype).removeprefix("torch.")]
    config, base = size.config(), _base(size, device, torch.float32 if in_full else dtype)
    if in_full:
        number = NUMBER_BYTES["float32"]
        base.add_role("policy")
        base.train_base("policy")
    else:
        base.add_role("policy", adapter=lora_config(base.model, r=RANK, alpha=2 * RANK), trains=True)
    sizes = from_config(config.to_dict(), "a small model")
    adapter = None if in_full else Adapter(RANK, tuple(range(size.layers)))
    shape = Shape(sizes, adapter, in_full)
    budget = TokenBudget(1 << 30)
    update = Update(
        base,
        [ParameterGroup(base.parameters("policy"), 1e-5)],
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        total_steps=1000,
        max_grad_norm=1.0,
        budget=budget,
    )
    trained = sizes.parameters if in_full else shape.lora_parameters
    for count, length in BATCHES[device.type]:
        examples = _examples(count, length)
        tokens = tokens_of(length // 2, [length - length // 2]) * count
        common: dict[str, Any] = {"passes": 1, "number_bytes": number, "weight_bytes": number, "output_layer": True}
        work = train_work(shape, tokens, **common) + Work(moved=float(trained * OPTIMIZER_BYTES))
        if not timed[train] or time.monotonic() < until:
            seconds = _repeated(partial(language_step, base, examples, update), device, until)
            timed[train].append(Timed(work, seconds))
        if not timed[forward] or time.monotonic() < until:
            seconds = _repeated(partial(_score, base, examples, budget), device, until)
            timed[forward].append(Timed(forward_work(shape, tokens, **common), seconds))
    if in_full:
        return
    for rows, prompt, new in DECODED[device.type]:
        if timed["decode"] and time.monotonic() > until:
            return
        work = decode_work(
            shape,
            rows=rows,
            at_once=rows,
            prompt=prompt,
            new_tokens=new,
            longest=new,
            number_bytes=number,
            weight_bytes=number,
        )
        timed["decode"].append(Timed(work, _decoding(base, rows, prompt, new, device, until)))


def _base(size: Size, device: torch.device, dtype: torch.dtype) -> OneBase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(size.config())
        torch.nn.Module.to(model, device, dtype)  # in place
    return wrap_model(model, train_tokenizer([], vocab_size=300), layout="auto", name_or_path="a small model")


def _examples(count: int, length: int) -> list[Example]:
    """Examples of one length, half of it counted."""
    half = length // 2
    return [Example([3 + (i + j) % 200 for j in range(half)], [[5] * (length - half)]) for i in range(count)]


def _score(base: OneBase, examples: Sequence[Example], budget: TokenBudget) -> None:
    per_token(base, examples, lambda batch: {"logprobs": token_logprobs(base, batch, role="policy")}, budget=budget)


def _decoding(base: OneBase, rows: int, prompt: int, new: int, device: torch.device, until: float) -> tuple[float, ...]:
    """Seconds of decoding alone: with all new tokens, minus with the first only, which the prompts' pass gives.

    On a machine that is busy elsewhere the first may seem to take as long as all: a tenth is always left.
    """
    prompts = [[3 + (i + j) % 200 for j in range(prompt)] for i in range(rows)]
    seeds = sample_seeds(0, num_prompts=rows, samples_per_prompt=1)

    def draw(count: int) -> None:
        generate(base, prompts, role="policy", sampling=Sampling(count), seeds=seeds)

    first = min(_repeated(partial(draw, 1), device, until))
    return tuple(max(each - first, each / 10) for each in _repeated(partial(draw, new), device, until))


def _repeated(function: Callable[[], Any], device: torch.device, until: float) -> tuple[float, ...]:
    """Seconds of up to three calls after an untimed one, of one only once `until` has passed."""
    function()
    found = [_seconds(function, device)]
    while len(found) < REPEATS and time.monotonic() < until:
        found.append(_seconds(function, device))
    return tuple(found)


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    _finish(device)
    started = time.perf_counter()
    function()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _loading(device: torch.device, bandwidth: float) -> tuple[float, float, float]:
    """Seconds of starting a process, of opening a base beside its weights, and for each byte of these: not less than
    reading it from memory takes.
    """
    code = "import onebase.recipes.ppo, onebase.reporting.plots"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    start = time.perf_counter() - started
    found = []
    logging.disable_progress_bar()  # transformers' own, for weights that are written in a moment
    with TemporaryDirectory() as folder:
        for size in (SIZES["cpu"][0], Size(1024, 4)):
            place = Path(folder, str(size.hidden))
            model = LlamaForCausalLM(size.config())
            model.save_pretrained(place)
            train_tokenizer([], vocab_size=300).save_pretrained(place)
            stored = 4 * sum(parameter.numel() for parameter in model.parameters())
            found.append((stored, min(_seconds(partial(load_base, str(place)), device) for _ in range(2))))
    (small, first), (large, second) = found
    of_byte = max((second - first) / (large - small), 1 / bandwidth)
    return start, max(0.0, first - small * of_byte), of_byte


def product_rate(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, seconds: float, device: torch.device | None = None
) -> float:
    """Returns operations per second of `x [rows, inputs] @ W [outputs, inputs]^T`, the fastest of many."""
    where = device or torch.device("cpu")
    x, weight = (torch.randn(shape).to(where, dtype) for shape in ((rows, inputs), (outputs, inputs)))
    with torch.no_grad():
        return 2 * rows * inputs * outputs / fastest(lambda: torch.nn.functional.linear(x, weight), seconds, where)


def read_rate(num_bytes: int, seconds: float = 0.5, device: torch.device | None = None) -> float:
    """Returns bytes per second when reading this many repeatedly; what fits the cache is read from there."""
    where = device or torch.device("cpu")
    numbers = torch.ones(num_bytes // 4, device=where)  # zeros would all share one unwritten page
    vector = torch.ones(1024, device=where)
    by_sum = fastest(lambda: numbers.sum(), seconds, where)
    by_product = fastest(lambda: numbers.view(-1, 1024) @ vector, seconds, where)
    return num_bytes / min(by_sum, by_product)


def fastest(function: Callable[[], Any], seconds: float, device: torch.device | None = None) -> float:
    """Returns the fastest call's seconds among the calls that fit in `seconds`, at least three after an untimed one."""
    where = device or torch.device("cpu")
    function()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        times.append(_seconds(function, where))
    return min(times)
