"""FlexAttention against the CPU's tree attention and against dense masks: the same numbers and gradients.

The kernel is compiled on GPUs; here its uncompiled form runs, which computes the same formula with all scores, and in
one slow test the forward kernel compiled for the CPU.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onebase.data.tree import build_tree_batch
from onebase.engines import exactness, flex
from onebase.engines.budget import TokenBudget, mask_bytes_per_pair
from onebase.engines.decoder import Decoder
from onebase.engines.engine import any_pads, engine_of
from onebase.engines.exactness import why_no_flex
from onebase.engines.flat import FlatEngine, flat_trunk
from onebase.engines.flex import BLOCK, attending_with_flex, block_mask, flex_trees, why_no_kernel
from onebase.engines.forward import token_logprobs, token_values
from onebase.engines.packed import PackedEngine
from onebase.engines.padded import PaddedEngine
from onebase.engines.tree_attention import group_trees
from onebase.models.base import OneBase
from onebase.records import Example, TreeBatch
from tests.tiny_models import WINDOW, add_adapter_role, random_ids, tiny_base, tiny_model

EXACT = 1e-5
SOFT_CAP = 1.0
"""Small, so that it changes the scores of a tiny model."""


@pytest.fixture(autouse=True)
def gradients_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch has the backward pass of the uncompiled form for CPUs too, but refuses to run it."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    torch._dynamo.reset()  # each of this file's many shapes and kinds is compiled, and their number is limited
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def examples(sizes: list[tuple[int, list[int]]]) -> list[Example]:
    """Examples of these lengths: a prompt's, and its completions'."""
    return [
        Example(random_ids(prompt, seed=i), [random_ids(n, seed=100 * i + k) for k, n in enumerate(completions)])
        for i, (prompt, completions) in enumerate(sizes)
    ]


SHORT = examples([(9, [5, 3]), (4, [12]), (7, [2, 8, 6])])
LONG = examples([(150, [200, 90]), (300, [20]), (1, [128, 127, 1]), (128, [128, 256]), (40, [300, 20, 10])])


def dense(batch: TreeBatch, window: int | None = None) -> Tensor:
    """`[T, T]` bool from the definition in `data/tree.py`."""
    order = torch.arange(len(batch.tree))
    allowed = (order[:, None] >= order) & (batch.tree[:, None] == batch.tree)
    allowed &= (batch.branch == 0) | (batch.branch[:, None] == batch.branch)
    return allowed if window is None else allowed & (batch.position_ids[:, None] - batch.position_ids < window)


def listed(counts: Tensor, indices: Tensor) -> Tensor:
    """A block mask's table as `[blocks, blocks]` bool."""
    found = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for query, count in enumerate(counts[0, 0].tolist()):
        found[query, indices[0, 0, query, :count].long()] = True
    return found


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("chosen", [SHORT, LONG, LONG[:1], LONG[3:]], ids=["short", "long", "one", "two"])
def test_the_blocks_hold_every_allowed_pair_and_no_block_is_computed_in_vain(
    chosen: list[Example], window: int | None
) -> None:
    batch = build_tree_batch(chosen)
    mask = block_mask(batch.tree, batch.branch, position=batch.position_ids, window=window)
    length = len(batch.tree)
    num_blocks = -(-length // BLOCK)
    allowed = torch.zeros(num_blocks * BLOCK, num_blocks * BLOCK, dtype=torch.bool)
    allowed[:length, :length] = dense(batch, window)
    blocks = allowed.view(num_blocks, BLOCK, num_blocks, BLOCK).transpose(1, 2).flatten(2)
    partial = listed(mask.kv_num_blocks, mask.kv_indices)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (partial & whole).any()
    assert blocks.all(-1)[whole].all()
    if window is None:
        assert torch.equal(partial | whole, blocks.any(-1))
        assert whole.any() == (chosen is not SHORT)
    else:
        assert (partial | whole)[blocks.any(-1)].all()
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    nothing = torch.zeros((), dtype=torch.long)
    assert torch.equal(mask.mask_mod(nothing, nothing, query, key), allowed[:length, :length])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("padding", [0, 13])
@pytest.mark.parametrize("chosen", [SHORT, LONG], ids=["short", "long"])
def test_flex_attention_reads_what_the_tree_attention_of_the_cpu_reads(
    chosen: list[Example], padding: int, heads: tuple[int, int]
) -> None:
    batch = build_tree_batch(chosen)
    length = len(batch.tree)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(length + padding, heads[0] + 2 * heads[1], 16, generator=generator)
    gradient = torch.randn(length, heads[0], 16, generator=generator)
    found = []
    for trees in (flex_trees(batch.tree, batch.branch, length=length + padding), group_trees(batch, torch.float32)):
        leaf = inputs.clone().requires_grad_()
        read = trees.attend(leaf, 0.3, num_heads=heads[0])
        assert torch.isfinite(read).all()
        read[:length].backward(gradient)
        assert leaf.grad is not None
        found.append((read[:length].detach(), leaf.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=EXACT, rtol=0)
    assert torch.allclose(found[0][1], found[1][1], atol=EXACT, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler (apt install g++)")
@torch.no_grad()
def test_the_compiled_kernel_gives_the_same_and_a_few_compilations_do_for_all_lengths() -> None:
    counted = CompileCounterWithBackend("inductor")
    compiled = torch.compile(flex._attend_side_by_side, fullgraph=True, backend=counted)
    for length in (0, 17, 60, 400, 33, 250, 401):
        batch = build_tree_batch(examples([(150, [200 + length, 90]), (40, [300])]))
        num_tokens = len(batch.tree)
        inputs = torch.randn(num_tokens + 13, 8, 32, generator=torch.Generator().manual_seed(2))
        mask = block_mask(batch.tree, batch.branch, length=num_tokens + 13)
        read = compiled(inputs, mask, 0.3, 4)
        expected = group_trees(batch, torch.float32).attend(inputs, 0.3, num_heads=4)
        assert torch.allclose(read[:num_tokens], expected[:num_tokens], atol=EXACT, rtol=0)
    assert counted.frame_count <= 3


def with_roles(architecture: str, **options: Any) -> OneBase:
    base = tiny_base(architecture, **options)
    add_adapter_role(base, "policy", seed=1)
    add_adapter_role(base, "critic", seed=2, head=True)
    return base


def numbers(base: OneBase, batch: TreeBatch) -> tuple[Tensor, Tensor]:
    """Log-probs and values end to end, and the gradients of both roles."""
    logprobs, values = token_logprobs(base, batch, role="policy"), token_values(base, batch, role="critic")
    parameters = [*base.parameters("policy"), *base.parameters("critic")]
    weights = torch.linspace(-1, 1, len(logprobs))
    gradients = torch.autograd.grad((weights * (logprobs + values)).sum(), parameters)
    return torch.cat([logprobs, values]).detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(
    ("architecture", "engine"),
    [
        ("llama", PackedEngine),
        ("qwen3", PackedEngine),
        ("llama through transformers", FlatEngine),
        ("gemma2", FlatEngine),
        ("gemma3", FlatEngine),
        ("mistral", FlatEngine),
        ("neox", FlatEngine),
    ],
)
def test_a_model_under_flex_attention_gives_the_same_log_probs_values_and_gradients(
    architecture: str, engine: type, recomputes: bool
) -> None:
    base = with_roles(architecture, **({"attn_logit_softcapping": SOFT_CAP} if architecture == "gemma2" else {}))
    base.recomputes = recomputes
    batch = build_tree_batch([*SHORT, *examples([(30, [40, 25])])])
    assert type(engine_of(base, "policy")) is (PackedEngine if engine is PackedEngine else PaddedEngine)
    expected, expected_gradients = numbers(base, batch)
    base.flex = True
    soft_capped = recomputes and architecture == "gemma2"
    assert type(engine_of(base, "policy")) is (PaddedEngine if soft_capped else engine)
    assert any_pads(base) == soft_capped
    found, gradients = numbers(base, batch)
    assert (found - expected).abs().max() <= EXACT
    assert (gradients - expected_gradients).abs().max() <= EXACT * max(1.0, float(expected_gradients.abs().max()))
    assert base.model.config.get_text_config()._attn_implementation != flex.NAME


def test_soft_cap_and_window_of_gemma_2_both_matter() -> None:
    """Without either, the numbers would differ: the test above compares something."""
    batch = build_tree_batch(examples([(30, [40, 25])]))
    options: dict[str, Any] = {"attn_logit_softcapping": SOFT_CAP}
    expected, _ = numbers(with_roles("gemma2", **options), batch)
    for change in ({"attn_logit_softcapping": None}, {"sliding_window": 2 * WINDOW}):
        base = with_roles("gemma2", **(options | change))
        base.flex = True
        assert (numbers(base, batch)[0] - expected).abs().max() > 100 * EXACT


def test_a_packed_prefill_and_step_under_flex_attention_give_the_same_states() -> None:
    model = tiny_model("llama")
    prompts = [random_ids(n, seed=n) for n in (140, 9, 51)]
    with torch.no_grad():
        (expected, kept), (found, kept_by_flex) = (Decoder(model, flex=on).prefill(prompts) for on in (False, True))
    assert torch.allclose(found, expected, atol=EXACT)
    for (keys, values), (others, other_values) in zip(kept, kept_by_flex, strict=True):
        assert torch.allclose(keys, others, atol=EXACT) and torch.allclose(values, other_values, atol=EXACT)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor made."""

    numel = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return made


def test_a_block_mask_takes_memory_for_its_tokens_not_for_their_pairs() -> None:
    batch = build_tree_batch(examples([(1000, [3000] * 4)] * 2))
    with _Largest() as made:
        block_mask(batch.tree, batch.branch)
    length = len(batch.tree)
    assert length == 26000 and made.numel <= 2 * length


def test_microbatches_under_flex_attention_count_tokens_alone_and_no_mask() -> None:
    base = with_roles("gemma2")
    chosen = examples([(10, [50]), (10, [5]), (10, [5]), (10, [5])])
    assert any_pads(base) and mask_bytes_per_pair(base, "policy") > 0
    padded = TokenBudget(110).split(base, chosen)
    base.flex = True
    assert not any_pads(base) and mask_bytes_per_pair(base, "policy") == 0
    assert len(TokenBudget(110).split(base, chosen)) == 1 < len(padded)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_kernel_is_used_only_if_it_gives_what_plain_products_give(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, attend = tiny_model(architecture), flex.attend
    assert why_no_kernel(model) == ""
    for scaling in (1.1, 0.9):
        monkeypatch.setattr(
            flex, "attend", lambda *a, scaling, more=scaling, **k: attend(*a, scaling=scaling * more, **k)
        )
        assert why_no_kernel(model).startswith("its result is off by ")

    def fails(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(flex, "attend", fails)
    assert why_no_kernel(model) == "no kernel for this device"

    def no_memory(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(flex, "attend", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        why_no_kernel(model)


@pytest.mark.parametrize("heads", [(32, 8, 128), (32, 8, 64), (14, 2, 64), (28, 4, 128)])
def test_rounding_alone_keeps_no_real_shape_from_the_kernel(heads: tuple[int, int, int]) -> None:
    options = dict(zip(("num_attention_heads", "num_key_value_heads", "head_dim"), heads, strict=True))
    assert why_no_kernel(tiny_model("qwen3", **options).to(torch.bfloat16)) == ""


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "neox"])
def test_a_model_is_run_end_to_end_only_if_that_gives_the_same_log_probs(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture).to(torch.bfloat16)
    assert why_no_flex(model) == "it is for GPUs"
    monkeypatch.setattr(exactness, "_on_a_gpu", lambda model: True)
    assert why_no_flex(model) == ""
    monkeypatch.setattr(exactness, "flat_trunk", lambda model, batch, **name: flat_trunk(model, leaking(batch), **name))
    assert why_no_flex(model).startswith("under a block mask the model is off by ")


def test_a_model_that_takes_no_block_mask_stays_in_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "_on_a_gpu", lambda model: True)
    assert why_no_flex(tiny_model("gpt2")) == "this architecture takes no block mask"


def leaking(batch: TreeBatch) -> TreeBatch:
    """The batch as if all completions were one."""
    return TreeBatch(**{name: getattr(batch, name) for name in batch.__slots__} | {"branch": batch.branch.clamp(max=1)})


def test_only_the_models_own_attention_is_left_behind() -> None:
    model = tiny_model("gemma2")
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError), attending_with_flex(model):
        assert model.config._attn_implementation == flex.NAME
        raise RuntimeError
    assert model.config._attn_implementation == before
