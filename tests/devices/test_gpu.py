"""On a CUDA device: the kernels tried at loading, decoding from graphs, and running out of memory for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch, laid
from onebase.engines.budget import TokenBudget, find_token_budget
from onebase.engines.captured import CapturedDecoding
from onebase.engines.engine import engine_of
from onebase.engines.flat import FlatEngine
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import load_base
from onebase.engines.packed import PackedEngine
from onebase.models.base import OneBase
from onebase.records import Example
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sample, Sampling
from onebase.seeds import sample_seeds
from onebase.training.language import language_step
from onebase.training.update import ParameterGroup, Update
from tests.tiny_models import add_adapter_role, random_ids, save_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 300}
"""Heads of 32 numbers, which the kernel takes."""
EXAMPLES = [
    Example(random_ids(200 - 20 * e, seed=e), [random_ids(90 + 7 * k, seed=10 * e + k) for k in range(3)])
    for e in range(4)
]


def opened(folder: Path, architecture: str, device: str, **options: Any) -> OneBase:
    wide = WIDE | ({"head_dim": 32} if architecture in ("qwen3", "gemma2") else {}) | {"max_position_embeddings": 1024}
    path = folder / architecture
    if not path.exists():
        save_tiny(path, architecture, **wide)
    base = load_base(str(path), dtype=options.pop("dtype", "float32"), device=device, **options)
    add_adapter_role(base, "policy", seed=1)
    return base


def numbers(base: OneBase) -> tuple[Tensor, Tensor]:
    batch = build_tree_batch(EXAMPLES).to(base.device)
    logprobs = token_logprobs(base, batch, role="policy")
    gradients = torch.autograd.grad(logprobs.sum() / 100, base.parameters("policy"))
    return logprobs.detach().cpu(), torch.cat([gradient.flatten() for gradient in gradients]).cpu()


@pytest.mark.parametrize(
    ("architecture", "engine"), [("llama", PackedEngine), ("qwen3", PackedEngine), ("gemma2", FlatEngine)]
)
def test_the_compiled_kernel_gives_what_the_cpu_gives(architecture: str, engine: type, tmp_path: Path) -> None:
    here, there = (opened(tmp_path, architecture, device) for device in ("cpu", "cuda"))
    assert there.flex and type(engine_of(there, "policy")) is engine
    (found, gradients), (expected, expected_gradients) = numbers(there), numbers(here)
    assert (found - expected).abs().max() < 1e-3
    assert (gradients - expected_gradients).abs().max() < 1e-3 * max(1.0, float(expected_gradients.abs().max()))


def test_a_4_bit_base_packs_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = opened(tmp_path, "llama", "cuda", quantization="nf4", dtype="bfloat16")
    assert type(engine_of(base, "policy")) is PackedEngine
    found, gradients = numbers(base)
    base.packs = False
    expected, expected_gradients = numbers(base)
    assert (found - expected).abs().max() < 0.2
    assert torch.nn.functional.cosine_similarity(gradients, expected_gradients, dim=0) > 0.99


def draw(base: OneBase, prompts: list[list[int]], stream: str = "gpu", **options: Any) -> list[Sample]:
    seeds = sample_seeds(0, num_prompts=len(prompts), samples_per_prompt=4, stream=stream)
    sampling = Sampling(max_new_tokens=40, temperature=1.0, stop_ids=tuple(range(3, 8)))
    return generate(base, prompts, role="policy", sampling=sampling, seeds=seeds, samples_per_prompt=4, **options)


def test_steps_are_recorded_and_draw_the_samples_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, int]] = []
    record = CapturedDecoding._record

    def noted(self: CapturedDecoding, size: tuple[int, int]) -> None:
        record(self, size)
        recorded.extend([size] if size in self._graphs else [])

    monkeypatch.setattr(CapturedDecoding, "_record", noted)
    prompts = [random_ids(n, seed=n) for n in (9, 40, 150, 7)]
    here, there = (opened(tmp_path, "llama", device) for device in ("cpu", "cuda"))
    expected, found = draw(here, prompts), draw(there, prompts)
    assert recorded
    same = sum(a.ids == b.ids for a, b in zip(found, expected, strict=True))
    assert same >= len(expected) - 1  # a random number may fall on the border between two tokens
    assert [s.ids for s in draw(there, prompts, max_rows=4)] == [s.ids for s in found]


def test_out_of_memory_halves_the_microbatch_and_gives_the_same_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = laid([*EXAMPLES] * 40)
    results = []
    for full in (False, True):
        base = opened(tmp_path, "llama", "cuda")
        longest = max(example.num_tokens for example in examples)
        assert find_token_budget(base, "policy", longest=longest) >= longest
        update = Update(
            base,
            [ParameterGroup(base.parameters("policy"), 1e-3)],
            weight_decay=0.0,
            schedule="constant",
            warmup_steps=0,
            total_steps=1,
            max_grad_norm=1.0,
            budget=TokenBudget(longest * len(examples)),
        )
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(
            1.0 if not full else (torch.cuda.memory_reserved() + 200 * 2**20) / total
        )
        try:
            language_step(base, examples, update)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert (update.budget.tokens < longest * len(examples)) == full
        results.append(torch.cat([parameter.detach().flatten().cpu() for parameter in base.parameters("policy")]))
    assert "out of memory: microbatches of" in capsys.readouterr().err
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-4)
