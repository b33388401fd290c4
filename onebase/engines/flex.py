"""Attention inside prompt trees laid end to end, as one kernel that skips what no token may see (FlexAttention).

For GPUs. No mask of `T x T` numbers exists: the kernel knows for each block of 128 x 128 scores whether to skip it, to
compute it whole, or to ask `allowed` pair by pair, so memory grows with the number of tokens (Dong et al. 2024, Flex
Attention, section 4). The tables of blocks are computed on the device from where trees and branches begin, and nothing
waits for them.

PyTorch compiles the kernel for a GPU; without compiling, the same function computes all scores, which the tests use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel

from onebase.models.base_config import attention_heads
from onebase.shown import shown

BLOCK = 128
"""Queries and keys per block, the kernel's own size."""
NAME, PLAIN = "onebase_flex", "onebase_flex_plain"
"""What transformers calls this attention, and the same with all scores at once."""
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the kernel, relative to the norm: several times what rounding alone makes."""
MOST_COMPILED = 64
"""Kernels compiled for one process: one each for with and without gradient, number format, soft cap, kind of mask."""


@dataclass(frozen=True, slots=True)
class FlexTrees:
    """The trees of a batch as the kernel reads them."""

    mask: BlockMask

    def attend(self, query_key_value: Tensor, scaling: float, *, num_heads: int) -> Tensor:
        """What each token reads from the tokens it may see: `[T, heads, d]`.

        Args:
            query_key_value: `[T, heads + 2 kv heads, d]`; each kv head is read by `heads / kv heads` query heads.
        """
        run: Any = _compiled(_attend_side_by_side) if query_key_value.is_cuda else _attend_side_by_side
        return run(query_key_value, self.mask, scaling, num_heads)


def _attend_side_by_side(query_key_value: Tensor, mask: BlockMask, scaling: float, num_heads: int) -> Tensor:
    # Compiled with its views: given as slices, their strides would count as unknown once the length varies, and the
    # kernel would read them number by number.
    rest = (query_key_value.shape[1] - num_heads) // 2
    query, key, value = query_key_value.transpose(0, 1)[None].split([num_heads, rest, rest], dim=1)
    read = flex_attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=rest != num_heads)
    return read[0].transpose(0, 1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, scaling: float, softcap: float | None = None
) -> Tensor:
    """Attention over `[1, heads, T, d]` under a block mask; keys and values may have fewer heads.

    Args:
        softcap: bounds the scores to +-softcap (Gemma Team 2024, Gemma 2, section 2).
    """
    run: Any = _compiled(flex_attention) if query.is_cuda else flex_attention
    return run(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, scaling: float, softcap: float | None = None
) -> Tensor:
    """The same with all scores at once, to compare with."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    order, nothing = torch.arange(query.shape[2], device=query.device), torch.zeros((), device=query.device)
    seen = mask.mask_mod(nothing, nothing, order[:, None], order[None, :])
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(value.dtype) @ value


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Past the limit PyTorch would silently compute all T x T scores; fullgraph makes that an error.
    torch._dynamo.config.recompile_limit = max(MOST_COMPILED, torch._dynamo.config.recompile_limit)
    return torch.compile(function, fullgraph=True)


def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def flex_trees(tree: Tensor, branch: Tensor, *, length: int | None = None) -> FlexTrees:
    """The trees of a batch for the packed engine; see `block_mask`."""
    return FlexTrees(block_mask(tree, branch, length=length))


def block_mask(
    tree: Tensor,
    branch: Tensor,
    *,
    position: Tensor | None = None,
    window: int | None = None,
    length: int | None = None,
) -> BlockMask:
    """Which tokens each token may see, for trees laid end to end.

    Args:
        tree, branch: `[T]`, as in `TreeBatch`.
        position: `[T]`, needed with `window`.
        window: how far back in positions a sliding-window layer sees; None: all the way.
        length: tokens including padding at the end, which sees other padding; None: T.
    """
    num_tokens, length = len(tree), length or len(tree)
    num_blocks = -(-length // BLOCK)
    padding = (0, num_blocks * BLOCK - num_tokens)
    tree, branch = pad(tree, padding, value=-1), pad(branch, padding)
    if window is not None:
        assert position is not None, "a window counts positions"
        position = pad(position, padding)

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (tree[query] == tree[key]) & ((branch[key] == 0) | (branch[key] == branch[query]))
        seen = (key <= query) & same
        if window is None or position is None:
            return seen
        return seen & (position[query] - position[key] < window)

    some, whole = _blocks(tree, branch, num_blocks)
    if window is not None:
        whole = torch.zeros_like(whole)
    partial = some & ~whole
    return BlockMask.from_kv_blocks(
        *_table(partial), *_table(whole), BLOCK_SIZE=BLOCK, mask_mod=allowed, seq_lengths=(length, length)
    )


def _blocks(tree: Tensor, branch: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Blocks with some, and with only allowed pairs: two `[blocks, blocks]` bool, queries by keys.

    Trees and their branches come in order, so it is enough to know where each block's first and last token are.
    """
    begins = torch.ones_like(tree, dtype=torch.bool)
    begins[1:] = (tree[1:] != tree[:-1]) | (branch[1:] != branch[:-1])
    part = begins.cumsum(0)  # numbers prompts and completions in the order they come
    # Padding, at the end, is one more tree.
    tree = torch.where(tree < 0, len(tree), tree)
    parts, trees, prompts = (x.view(num_blocks, BLOCK) for x in (part, tree, branch == 0))
    last_prompt = torch.where(prompts, trees, -1).amax(1)  # the last tree of which the block holds prompt tokens
    order = torch.arange(num_blocks, device=tree.device)
    query, key = (slice(None), None), (None, slice(None))
    earlier = order[query] > order[key]
    reaches = (parts[:, -1][key] >= parts[:, 0][query]) | (last_prompt[key] >= trees[:, 0][query])
    some = (order[query] == order[key]) | (earlier & reaches)
    one_tree = (trees[:, 0][query] == trees[:, -1][query]) & (trees[:, 0][key] == trees[:, -1][key])
    one_tree &= trees[:, 0][query] == trees[:, 0][key]
    one_part = (parts[:, 0][query] == parts[:, -1][query]) & (parts[:, 0][key] == parts[:, -1][key])
    one_part &= parts[:, 0][query] == parts[:, 0][key]
    whole = earlier & one_tree & (one_part | prompts.all(1)[key])
    return some, whole


def _table(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block reads `[1, 1, blocks]`, and which `[1, 1, blocks, blocks]`, these first."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


# ------------------------------------------------------------------------------------------------- through transformers


def _for_transformers(run: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """transformers' interface of an attention function; `[1, heads, T, d]` in, `[1, T, heads, d]` out."""

    def forward(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: BlockMask,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        if not isinstance(attention_mask, BlockMask) or s_aux is not None:
            raise ValueError("this attention takes block masks and no sinks")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        read = run(query, key, value, attention_mask, scaling=scaling, softcap=softcap)
        return read.transpose(1, 2).contiguous(), None

    return forward


AttentionInterface.register(NAME, _for_transformers(attend))
AttentionInterface.register(PLAIN, _for_transformers(attend_plainly))


@contextmanager
def attending_with_flex(model: PreTrainedModel, *, name: str = NAME) -> Iterator[None]:
    """Makes a model run by transformers attend with this file's kernel."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def why_no_kernel(model: PreTrainedModel) -> str:
    """Why the kernel cannot be used on this device; empty if it compiles and gives what plain products give.

    Tried forward and backward with the model's heads, soft cap and number format on one tree of three blocks, both as
    the packed engine and as transformers call it, against float32.

    Raises:
        OutOfMemoryError: the device has no memory for the trial.
    """
    num_heads, rest, size = attention_heads(model.config)
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    branch = torch.tensor([0] * 250 + [1] * 70 + [2] * 64, device=model.device)
    mask, scaling = block_mask(torch.zeros_like(branch), branch), size**-0.5
    numbers = torch.randn(len(branch), num_heads + 2 * rest, size, generator=torch.Generator().manual_seed(0))
    given = numbers.to(model.device, model.dtype)

    def by_head(run: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def read(leaf: Tensor) -> Tensor:
            parts = leaf.transpose(0, 1)[None].split([num_heads, rest, rest], dim=1)
            return run(*parts, mask, scaling=scaling, softcap=softcap)[0].transpose(0, 1)

        return read

    kernels = [by_head(attend)]
    if softcap is None:
        kernels.append(lambda leaf: FlexTrees(mask).attend(leaf, scaling, num_heads=num_heads))
    try:
        expected = _read_and_gradient(by_head(attend_plainly), given.float())
        for kernel in kernels:
            for name, found, wanted in zip(
                ("result", "gradient"), _read_and_gradient(kernel, given), expected, strict=True
            ):
                error = float((found.float() - wanted).norm() / wanted.norm())
                if not error <= LARGEST_ERROR[model.dtype]:
                    return f"its {name} is off by {error:.1e}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler says where it does not support the device or a shape
        return shown(error, 200) or type(error).__name__
    return ""


def _read_and_gradient(run: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = given.clone().requires_grad_()
        read = run(leaf)
        return read.detach(), torch.autograd.grad(read.square().sum(), leaf)[0]
