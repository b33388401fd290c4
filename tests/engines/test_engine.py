"""Which engine runs a role: a choice of its own for each, and the same numbers whichever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onebase.data.batches import microbatch_indices
from onebase.data.tree import build_tree_batch
from onebase.engines.budget import TokenBudget
from onebase.engines.decoding import PackedDecoding
from onebase.engines.engine import any_pads, engine_of, packs
from onebase.engines.forward import completion_scores, logprobs_and_entropy, token_logprobs, token_values
from onebase.engines.opening import load_base
from onebase.engines.packed import PackedEngine
from onebase.engines.padded import PaddedDecoding, PaddedEngine, RereadDecoding
from onebase.engines.passes import lay_out, with_lower_states
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.role_files import load_role, save_role
from onebase.records import Example, TreeBatch
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from tests.tiny_models import add_adapter_role, disturb, random_ids, save_tiny, through_transformers, tiny_base

EXACT = 1e-5
EXAMPLES = [
    Example(random_ids(9 - e, seed=e), [random_ids(5 + e, seed=8 + e), random_ids(3, seed=9 + e)]) for e in range(3)
]


def some_batch() -> TreeBatch:
    return build_tree_batch(EXAMPLES)


def add_dora_role(base: OneBase, name: str, *, trains: bool) -> None:
    config = lora_config(base.model, r=4, alpha=8)
    config.use_dora = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        base.add_role(name, adapter=config, trains=trains)
    disturb(base, name, seed=7)


def three_roles() -> OneBase:
    """A policy that trains, a frozen DoRA reference, and a critic."""
    base = tiny_base("llama")
    add_adapter_role(base, "policy", seed=1)
    add_dora_role(base, "reference", trains=False)
    add_adapter_role(base, "critic", seed=2, head=True)
    return base


def engines(base: OneBase) -> dict[str, bool]:
    """Whether each role packs, agreed upon by all who ask."""
    found = {name: packs(base, name) for name in base.roles}
    for name, packed in found.items():
        assert isinstance(engine_of(base, name), PackedEngine if packed else PaddedEngine)
    assert any_pads(base) != all(found.values())
    return found


def runs_of_transformers(base: OneBase) -> list[str | None]:
    """Grows by the role in force whenever the whole model of transformers is run."""
    runs: list[str | None] = []
    base.model.base_model.register_forward_pre_hook(lambda *_: runs.append(base.active))
    return runs


def test_a_frozen_role_that_was_trained_with_dropout_packs(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "llama")
    base = load_base(str(folder), dtype="float32", device="cpu")
    add_adapter_role(base, "policy", dropout=0.05)
    save_role(base, "policy", tmp_path / "policy", kind="policy")

    base = load_base(str(folder), dtype="float32", device="cpu")
    add_adapter_role(base, "policy", seed=1)
    load_role(base, "reference", tmp_path / "policy", kinds=("policy",))
    assert base.adapter_config("reference").lora_dropout == 0.05  # type: ignore[union-attr]
    assert engines(base) == {"policy": True, "reference": True}
    runs = runs_of_transformers(base)
    found = {role: token_logprobs(base, some_batch(), role=role) for role in base.roles}
    assert runs == []
    with base.dropout():  # of a training pass of the policy: a frozen role drops nothing
        assert torch.equal(token_logprobs(base, some_batch(), role="reference"), found["reference"])
    through_transformers(base)
    for role, logprobs in found.items():
        expected = token_logprobs(base, some_batch(), role=role)
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=EXACT)


def test_the_same_role_goes_through_transformers_while_it_trains_with_dropout(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "llama")
    base = load_base(str(folder), dtype="float32", device="cpu")
    add_adapter_role(base, "policy", dropout=0.05)
    save_role(base, "policy", tmp_path / "policy", kind="policy")
    again = load_base(str(folder), dtype="float32", device="cpu")
    load_role(again, "policy", tmp_path / "policy", kinds=("policy",), trains=True)
    assert engines(base) == engines(again) == {"policy": False}


def test_a_role_that_trains_with_dropout_slows_no_other_down() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy", dropout=0.5)
    add_adapter_role(base, "reward", seed=1, head=True, trains=False, dropout=0.5)
    add_adapter_role(base, "critic", seed=2, head=True)
    base.add_role("reference")
    assert engines(base) == {"policy": False, "reward": True, "critic": True, "reference": True}
    runs, batch = runs_of_transformers(base), some_batch()
    completion_scores(base, batch, role="reward")
    token_values(base, batch, role="critic")
    token_logprobs(base, batch, role="reference")
    assert runs == []
    token_logprobs(base, batch, role="policy")
    assert runs == ["policy"]
    with base.dropout():
        assert not torch.equal(*(token_logprobs(base, batch, role="policy") for _ in range(2)))
        assert torch.equal(*(completion_scores(base, batch, role="reward") for _ in range(2)))
        assert torch.equal(*(token_values(base, batch, role="critic") for _ in range(2)))
    base.remove_role("policy")
    assert engines(base) == {"reward": True, "critic": True, "reference": True}


def test_a_head_on_the_adapter_of_a_policy_that_drops_is_run_as_that_adapter_is() -> None:
    """The critic trains its head alone, but the trunk below it is the policy's."""
    base = tiny_base("llama")
    add_adapter_role(base, "policy", dropout=0.5)
    base.share_adapter("critic", with_role="policy")
    assert engines(base) == {"policy": False, "critic": False}


def test_a_frozen_dora_role_is_run_by_transformers_and_the_others_are_packed() -> None:
    base, plain = three_roles(), through_transformers(three_roles())
    assert engines(base) == {"policy": True, "reference": False, "critic": True}
    assert engines(plain) == dict.fromkeys(base.roles, False)
    batch, runs = some_batch(), runs_of_transformers(base)
    for role in base.roles:
        with torch.no_grad():
            found, expected = (logprobs_and_entropy(each, batch, role=role) for each in (base, plain))
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    values, wanted = (token_values(each, batch, role="critic") for each in (base, plain))
    torch.testing.assert_close(values, wanted, rtol=0, atol=EXACT)
    assert runs == ["reference"]
    # And the gradients of the role that trains, with the roles switched in between.
    gradients = []
    for each in (base, plain):
        difference = token_logprobs(each, batch, role="policy") - token_logprobs(each, batch, role="reference")
        gradients.append(torch.autograd.grad(difference.square().sum(), each.parameters("policy")))
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 0.05
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=EXACT * float(other.abs().max().clamp(min=1)))


def test_a_dora_role_that_trains_leaves_the_others_packed() -> None:
    base = tiny_base("llama")
    add_dora_role(base, "policy", trains=True)
    base.add_role("reference")
    assert engines(base) == {"policy": False, "reference": True}


def test_samples_are_the_same_whichever_engine_draws_them() -> None:
    base, plain = three_roles(), through_transformers(three_roles())
    prompts, sampling = [random_ids(length, seed=length) for length in (5, 9, 2)], Sampling(max_new_tokens=8)
    for role, decoding in (("policy", PackedDecoding), ("reference", PaddedDecoding)):
        assert isinstance(engine_of(base, role).decode(max_slots=3, max_length=20), decoding)
        assert isinstance(engine_of(plain, role).decode(max_slots=3, max_length=20), PaddedDecoding)
        found, expected = (
            generate(each, prompts, role=role, sampling=sampling, seeds=[1, 2, 3]) for each in (base, plain)
        )
        assert [sample.ids for sample in found] == [sample.ids for sample in expected]
        for sample, other in zip(found, expected, strict=True):
            assert sample.logprobs == pytest.approx(other.logprobs, abs=EXACT)


def test_a_model_without_trees_rereads_its_rows() -> None:
    base = tiny_base("llama", layout="separate")
    add_adapter_role(base, "policy")
    engine = engine_of(base, "policy")
    assert (
        isinstance(engine.decode(max_slots=3, max_length=20), RereadDecoding)
        and engine.slot_bytes(15, 5, copies=3) == 0
    )
    packed, padded = tiny_base("llama"), through_transformers(tiny_base("llama"))
    token = 2 * 2 * 2 * 8 * 4  # k and v, layers, heads, size, bytes
    for each, tokens in ((packed, 5 + 32), (padded, 20)):  # a share of the prompt, and the first columns; all tokens
        add_adapter_role(each, "policy")
        assert engine_of(each, "policy").slot_bytes(15, 5, copies=3) == tokens * token


def test_microbatches_count_padding_as_soon_as_one_role_is_padded() -> None:
    examples = EXAMPLES * 4
    base = tiny_base("llama")
    assert not any_pads(base)  # without roles it is a fact of the base alone
    add_adapter_role(base, "policy")
    assert TokenBudget(50).split(base, examples) == microbatch_indices(examples, 50, layout="packed")
    add_dora_role(base, "reference", trains=False)
    assert TokenBudget(50).split(base, examples) == microbatch_indices(examples, 50, layout="tree")
    base.remove_role("reference")
    assert TokenBudget(50).split(base, examples) == microbatch_indices(examples, 50, layout="packed")


def test_lower_states_of_a_packed_role_change_nothing_for_a_padded_one() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy", layers="upper-half")
    add_dora_role(base, "reference", trains=False)
    lowered = with_lower_states(base, EXAMPLES, role="policy", budget=TokenBudget(50))
    batch = lay_out(base, lowered)
    assert batch.lower is not None
    for role in base.roles:
        found, expected = (token_logprobs(base, each, role=role) for each in (batch, some_batch()))
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_no_role_packs_on_a_base_that_trains_in_full() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    assert engines(base) == {"policy": True}
    base.train_base("policy")
    assert engines(base) == {"policy": False}
