"""Gradient checkpointing: the same loss and gradients, bit for bit, and fewer bytes kept for the backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from onebase.config.language import SFTConfig
from onebase.data.tree import build_tree_batch
from onebase.engines.budget import saved_bytes_per_token
from onebase.engines.engine import packs
from onebase.engines.forward import logprobs_and_entropy, token_values
from onebase.engines.passes import lay_out
from onebase.errors import ModelError
from onebase.models.base import OneBase
from onebase.recipes import sft
from onebase.records import Example
from tests.recipes.conftest import answered_rows, common, load, make_base, write_rows
from tests.tiny_models import add_adapter_role, random_ids, tiny_base

EXAMPLES = [
    Example(random_ids(9, seed=e), [random_ids(5 + e, seed=8 + e), random_ids(3, seed=9 + e)]) for e in range(3)
]


def gradients(base: OneBase, *, recomputes: bool, dropout: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Of a policy and a critic together; the backward pass runs outside of both roles, as in training."""
    base.recomputes = recomputes
    batch = lay_out(base, EXAMPLES)
    parameters = [*base.parameters("policy"), *base.parameters("critic")]
    torch.manual_seed(3)
    with base.dropout() if dropout else torch.enable_grad():
        logprobs, entropy = logprobs_and_entropy(base, batch, role="policy")
        values = token_values(base, batch, role="critic")
        loss = logprobs.mean() + 0.1 * entropy.mean() + (values**2).mean()
        found = torch.autograd.grad(loss, parameters)
    assert all(bool(gradient.isfinite().all()) for gradient in found)
    return loss.detach(), list(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "dropout"),
    [
        ("llama", 0.0),
        ("qwen3", 0.0),
        ("llama through transformers", 0.0),
        ("gpt2", 0.0),
        ("gemma3", 0.0),
        ("bloom", 0.0),
        ("llama", 0.3),
        ("gpt2", 0.3),
    ],
)
def test_loss_and_gradients_are_the_same_bit_for_bit(architecture: str, dropout: float, dtype: torch.dtype) -> None:
    base = tiny_base(architecture)
    base.model.to(dtype)
    add_adapter_role(base, "policy", seed=1, dropout=dropout)
    add_adapter_role(base, "critic", seed=2, head=True, dropout=dropout, layers="upper-half")
    for role in base.roles:
        assert packs(base, role) == (architecture in ("llama", "qwen3") and not dropout)
    expected_loss, expected = gradients(base, recomputes=False, dropout=dropout > 0)
    loss, found = gradients(base, recomputes=True, dropout=dropout > 0)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert any(bool(gradient.any()) for gradient in found)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_fewer_bytes_are_kept_and_the_budget_knows(architecture: str) -> None:
    layers = {"num_hidden_layers": 8} if architecture == "llama" else {"n_layer": 8}
    base = tiny_base(architecture, **layers)
    add_adapter_role(base, "policy")
    without = saved_bytes_per_token(base, "policy")
    base.recomputes = True
    assert saved_bytes_per_token(base, "policy") < without / 2 and base.recomputes


def test_training_the_base_in_full_is_the_same() -> None:
    found = []
    for recomputes in (False, True):
        base = tiny_base("llama")
        base.add_role("policy")
        base.train_base("policy")
        base.recomputes = recomputes
        logprobs, _ = logprobs_and_entropy(base, build_tree_batch(EXAMPLES), role="policy", with_entropy=False)
        logprobs.mean().backward()
        found.append([parameter.grad for parameter in base.parameters("policy")])
        assert not any("forward" in vars(module) for module in base.model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    base_folder = make_base(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows(8))
    saved = []
    for recomputes in (False, True):
        run = tmp_path / f"run{recomputes}"
        more = {"max_steps": 3, "model.gradient_checkpointing": recomputes}
        sft.run(load(SFTConfig, common(base_folder, run, rows), more))
        saved.append((run / "policy" / "adapter_model.safetensors").read_bytes())
    assert saved[0] == saved[1]


def test_an_architecture_whose_layers_cannot_be_computed_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_folder = make_base(tmp_path / "base")
    monkeypatch.setattr(OneBase, "can_recompute", property(lambda base: False))
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows(8))
    with pytest.raises(ModelError, match="model.gradient_checkpointing: the layers of LlamaForCausalLM cannot be"):
        sft.run(load(SFTConfig, common(base_folder, tmp_path / "run", rows), {"model.gradient_checkpointing": True}))
