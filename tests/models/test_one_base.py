from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch
from onebase.engines.forward import completion_scores, token_logprobs, token_values
from onebase.errors import ModelError
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.roles import ScalarRole
from onebase.records import Example, TreeBatch
from tests.tiny_models import add_adapter_role, disturb, random_ids, tiny_base, tiny_model

FUNCTIONS = {"policy": token_logprobs, "reference": token_logprobs, "reward": completion_scores, "critic": token_values}


def some_batch(seed: int = 0) -> TreeBatch:
    completions = [random_ids(4, seed=seed + 1), random_ids(6, seed=seed + 2)]
    return build_tree_batch([Example(random_ids(7, seed=seed), completions)])


def four_roles(architecture: str = "llama", **options: Any) -> OneBase:
    """Policy, reference, reward and critic as PPO has them, none of them at its start."""
    base = tiny_base(architecture)
    add_adapter_role(base, "policy", seed=1, **options)
    base.add_role("reference", copy_of="policy")
    add_adapter_role(base, "reward", seed=2, head=True, trains=False, **options)
    base.add_role("critic", copy_of="reward", head=True, trains=True)
    return base


def base_weights(base: OneBase) -> dict[str, Tensor]:
    adapters = {id(p) for name in base.roles for p in base.parameters(name)}
    everything = [*base.model.named_parameters(), *base.model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in everything if id(tensor) not in adapters}


def role_weights(base: OneBase, name: str) -> dict[str, Tensor]:
    role = base.roles[name]
    weights = {key: tensor.clone() for key, tensor in base.adapter_weights(name).items()}
    return weights | ({"head": role.head.weight.detach().clone()} if isinstance(role, ScalarRole) else {})


def scalar_roles(base: OneBase) -> list[ScalarRole]:
    return [role for role in base.roles.values() if isinstance(role, ScalarRole)]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def train_one_step(base: OneBase, name: str) -> None:
    FUNCTIONS[name](base, some_batch(), role=name).square().sum().backward()
    torch.optim.SGD(base.parameters(name), lr=0.01).step()
    for parameter in base.parameters(name):
        parameter.grad = None


def trainable(base: OneBase) -> set[str]:
    names = {name for name, parameter in base.model.named_parameters() if parameter.requires_grad}
    heads = {f"head of {role.name}" for role in scalar_roles(base) if role.head.weight.requires_grad}
    return names | heads


# ------------------------------------------------------------------------------------------------------ isolation


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("trained", ["policy", "critic", "reward"])
def test_training_a_role_changes_no_byte_of_the_base_or_of_another_role(architecture: str, trained: str) -> None:
    base = four_roles(architecture)
    if trained == "reward":
        base.roles["reward"].trains = True
    weights, roles = base_weights(base), {name: role_weights(base, name) for name in base.roles}
    assert len(weights) > 10 and all(roles.values())
    for _ in range(2):
        train_one_step(base, trained)
    assert same(base_weights(base), weights)
    for name in base.roles:
        assert same(role_weights(base, name), roles[name]) == (name != trained), name
    after = role_weights(base, trained)
    assert not any(torch.equal(after[key], roles[trained][key]) for key in after), "a parameter did not train"


def test_a_loss_of_one_role_leaves_no_gradient_on_anything_else() -> None:
    base = four_roles()
    token_logprobs(base, some_batch(), role="policy").sum().backward()
    own = {id(parameter) for parameter in base.parameters("policy")}
    heads = [role.head.weight for role in scalar_roles(base)]
    for parameter in [*base.model.parameters(), *heads]:
        assert (parameter.grad is not None) == (id(parameter) in own)


def test_each_role_owns_parameters_that_no_other_role_owns() -> None:
    base = four_roles()
    owners = [{id(parameter) for parameter in base.parameters(name)} for name in base.roles]
    assert all(owners)
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_the_roles_differ_in_what_they_compute() -> None:
    base = four_roles()
    disturb(base, "critic", seed=9)
    batch = some_batch()
    policy, reward = token_logprobs(base, batch, role="policy"), token_logprobs(base, batch, role="reward")
    assert (policy - reward).abs().max() > 0.01
    base.add_role("base")
    assert (policy - token_logprobs(base, batch, role="base")).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_role_with_adapters_off_is_the_bare_base_to_the_bit(architecture: str) -> None:
    ids = torch.tensor([random_ids(9, seed=4)])
    expected = tiny_model(architecture)(input_ids=ids).logits
    base = four_roles(architecture)
    base.add_role("base")
    with base.role("base"):
        assert torch.equal(base.model(input_ids=ids).logits, expected)
    train_one_step(base, "policy")
    with base.role("policy"), base.role("base"):
        assert torch.equal(base.model(input_ids=ids).logits, expected)
    assert torch.equal(base.model(input_ids=ids).logits, expected)  # outside any role: no adapter either


def test_a_copy_is_identical_and_stays_as_it_is_while_its_source_trains() -> None:
    base = four_roles()
    batch = some_batch()
    before = token_logprobs(base, batch, role="policy")
    assert torch.equal(token_logprobs(base, batch, role="reference"), before)
    assert torch.equal(token_values(base, batch, role="critic"), token_values(base, batch, role="reward"))
    train_one_step(base, "policy")
    train_one_step(base, "critic")
    assert torch.equal(token_logprobs(base, batch, role="reference"), before)
    assert not torch.equal(token_logprobs(base, batch, role="policy"), before)
    assert not torch.equal(token_values(base, batch, role="critic"), token_values(base, batch, role="reward"))


def test_a_copy_of_a_role_without_adapter_has_none() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    assert base.add_role("reference", copy_of="policy").adapter is None
    assert base.parameters("reference") == [] and base.adapter_weights("reference") == {}


def test_a_head_starts_at_zero_or_at_the_copied_one() -> None:
    base = four_roles()
    reward, critic = base.scalar_role("reward").head, base.scalar_role("critic").head
    assert torch.equal(reward.weight, critic.weight) and reward.weight.any() and reward is not critic
    fresh = base.add_role("fresh", copy_of="policy", head=True)
    assert isinstance(fresh, ScalarRole) and not fresh.head.weight.any()


def test_a_role_without_a_head_gives_no_scores_and_says_so() -> None:
    base = four_roles()
    assert base.scalar_role("reward") is base.roles["reward"]
    for name, function in (("policy", completion_scores), ("reference", token_values)):
        with pytest.raises(ModelError, match=f"role '{name}' gives no scores or values: it has no scalar head"):
            function(base, some_batch(), role=name)


# --------------------------------------------------------------------------------------------------- switching


def test_what_trains_is_the_same_before_within_and_after_a_role() -> None:
    base = four_roles()
    expected = trainable(base)
    assert {name.split(".")[-2] for name in expected if name.startswith("model")} == {"policy", "critic"}
    assert {name for name in expected if name.startswith("head")} == {"head of critic"}
    for name in base.roles:
        with base.role(name):
            assert trainable(base) == expected
            with base.role("reward"), base.role("policy"):
                assert trainable(base) == expected
        assert trainable(base) == expected


@pytest.mark.parametrize("name", ["policy", "reference", "reward", "critic"])
def test_an_exception_inside_a_role_restores_what_was_in_force(name: str) -> None:
    base = four_roles()
    batch, expected = some_batch(), trainable(base)
    before = token_logprobs(base, batch, role="reference")
    with base.role("policy"):
        within = base.model(batch.input_ids[None]).logits
        with pytest.raises(KeyboardInterrupt), base.role(name):
            raise KeyboardInterrupt
        assert base.active == "policy" and trainable(base) == expected
        assert torch.equal(base.model(batch.input_ids[None]).logits, within)
    assert base.active is None and trainable(base) == expected
    assert torch.equal(token_logprobs(base, batch, role="reference"), before)


def test_nested_roles_are_each_in_force_in_their_turn() -> None:
    base = four_roles()
    ids = some_batch().input_ids[None]

    def logits_as(name: str) -> Tensor:
        with base.role(name):
            return base.model(ids).logits

    expected = {name: logits_as(name) for name in ("policy", "reward")}
    with base.role("policy") as outer:
        with base.role("reward") as inner:
            assert (outer.name, inner.name, base.active) == ("policy", "reward", "reward")
            assert torch.equal(base.model(ids).logits, expected["reward"])
            with base.role("policy"):
                assert torch.equal(base.model(ids).logits, expected["policy"])
            assert torch.equal(base.model(ids).logits, expected["reward"])
        assert base.active == "policy"
        assert torch.equal(base.model(ids).logits, expected["policy"])


def test_adding_a_role_inside_another_changes_neither() -> None:
    base = four_roles()
    ids = some_batch().input_ids[None]
    with base.role("policy"):
        expected, trains = base.model(ids).logits, trainable(base)
        add_adapter_role(base, "late", trains=False)
        assert base.active == "policy" and torch.equal(base.model(ids).logits, expected) and trainable(base) == trains


def test_an_unknown_role_is_named_with_those_there_are() -> None:
    base = four_roles()
    with pytest.raises(ModelError, match="no role 'judge' on this base; roles here: policy, reference, reward, critic"):
        with base.role("judge"):
            pass
    with pytest.raises(ModelError, match="roles here: none"):
        with tiny_base("llama").role("policy"):
            pass


def test_a_name_is_taken_once() -> None:
    base = four_roles()
    before = role_weights(base, "critic")
    with pytest.raises(ModelError, match="role 'critic' exists already; roles here: policy, reference, reward, critic"):
        base.add_role("critic")
    with pytest.raises(ModelError, match="role 'critic' exists already"):
        base.share_adapter("critic", with_role="policy")
    assert same(role_weights(base, "critic"), before)


def test_weights_that_do_not_fit_are_refused_and_leave_nothing_behind() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    before, trains = set(dict(base.model.named_parameters())), trainable(base)
    lora = lora_config(base.model, r=4, alpha=8)
    good = base.adapter_weights("policy")
    first = sorted(good)[0]
    wrong = {
        "missing": {key: value for key, value in good.items() if key != first},
        "unexpected": good | {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)},
        "another rank": {key: value.repeat_interleave(2, dim=0) for key, value in good.items()},
    }
    for weights in wrong.values():
        with pytest.raises(ModelError, match="the adapter of role 'other' does not fit this base") as caught:
            base.add_role("other", adapter=lora, weights=weights)
        assert "\n" not in str(caught.value)
        assert list(base.roles) == ["policy"] and trainable(base) == trains
        assert set(dict(base.model.named_parameters())) == before
    base.add_role("other", adapter=lora, weights=good)  # the name is still free
    other, policy = (token_logprobs(base, some_batch(), role=name) for name in ("other", "policy"))
    assert torch.equal(other, policy)


def test_a_removed_role_is_gone_and_the_others_are_as_they_were() -> None:
    base = four_roles()
    names, batch = set(dict(base.model.named_parameters())), some_batch()
    expected = token_logprobs(base, batch, role="policy")
    add_adapter_role(base, "late")
    base.remove_role("late")
    assert set(dict(base.model.named_parameters())) == names and "late" not in base.roles
    assert torch.equal(token_logprobs(base, batch, role="policy"), expected)
    add_adapter_role(base, "late")  # the name is free again


def test_a_role_that_others_or_the_base_depend_on_cannot_be_removed() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    base.share_adapter("critic", with_role="policy")
    with pytest.raises(ModelError, match="role 'policy' cannot go: critic stands on its adapter"):
        base.remove_role("policy")
    base.remove_role("critic")
    base.remove_role("policy")
    base.add_role("policy")
    base.train_base("policy")
    with pytest.raises(ModelError, match="role 'policy' has trained the base in full and cannot be taken off it"):
        base.remove_role("policy")
    assert list(base.roles) == ["policy"]


# ---------------------------------------------------------------------------------------- a head on another's trunk


def test_a_critic_on_the_policys_trunk_owns_only_its_head() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    critic = base.share_adapter("critic", with_role="policy")
    assert critic.adapter == "policy" and isinstance(critic, ScalarRole)
    assert [id(parameter) for parameter in base.parameters("critic")] == [id(critic.head.weight)]
    assert not token_values(base, some_batch(), role="critic").any()  # a head starts at zero
    disturb(base, "critic")
    policy, expected = role_weights(base, "policy"), token_logprobs(base, some_batch(), role="policy")
    train_one_step(base, "critic")
    assert all(torch.equal(policy[key], value) for key, value in role_weights(base, "policy").items())
    assert torch.equal(token_logprobs(base, some_batch(), role="policy"), expected)


def test_a_critic_on_the_trunk_of_a_policy_that_does_not_train_leaves_it_frozen() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy", trains=False)
    base.share_adapter("critic", with_role="policy")
    assert trainable(base) == {"head of critic"}


# -------------------------------------------------------------------------------------------- full-parameter training


def test_training_in_full_trains_the_base_itself() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    assert trainable(base) == set()
    base.train_base("policy")
    assert trainable(base) == set(dict(base.model.named_parameters()))
    assert {id(p) for p in base.parameters("policy")} == {id(p) for p in base.model.parameters()}
    before = {name: parameter.detach().clone() for name, parameter in base.model.named_parameters()}
    logprobs = token_logprobs(base, some_batch(), role="policy")
    train_one_step(base, "policy")
    assert not any(torch.equal(before[name], value) for name, value in base.model.named_parameters())
    assert not torch.equal(token_logprobs(base, some_batch(), role="policy"), logprobs)
    with pytest.raises(ZeroDivisionError), base.role("policy"):
        raise ZeroDivisionError
    assert trainable(base) == set(dict(base.model.named_parameters()))


def test_training_in_full_is_refused_while_other_roles_stand_on_the_base() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    base.add_role("reference", copy_of="policy")
    with pytest.raises(ModelError, match="training the base in full would change the roles on it: reference"):
        base.train_base("policy")
    assert trainable(base) == set() and not base.roles["policy"].trains


def test_no_role_can_be_added_to_a_base_that_trains_in_full() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    base.train_base("policy")
    with pytest.raises(ModelError, match="'reference'.*'policy' trains the base in full"):
        base.add_role("reference", copy_of="policy")  # it would be the policy, whatever that becomes
    assert list(base.roles) == ["policy"]


def test_a_quantised_base_cannot_train_in_full() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    base.model.is_quantized = True  # type: ignore[assignment]
    with pytest.raises(ModelError, match="^a quantised base cannot be trained in full$") as caught:
        base.train_base("policy")
    assert caught.value.remedy == "quantised-in-full"
