from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch
from onebase.errors import ModelError
from onebase.models.adapters import lora_config
from onebase.models.forward import completion_scores, token_logprobs, token_values
from onebase.models.one_base import OneBase
from onebase.records import Example, TreeBatch
from tests.tiny_models import add_adapter_role, disturb, random_ids, tiny_base, tiny_model

FUNCTIONS = {"policy": token_logprobs, "reference": token_logprobs, "reward": completion_scores, "critic": token_values}


def some_batch(seed: int = 0) -> TreeBatch:
    completions = [random_ids(4, seed=seed + 1), random_ids(6, seed=seed + 2)]
    return build_tree_batch([Example(random_ids(7, seed=seed), completions)])


def four_roles(architecture: str = "llama", **options: Any) -> OneBase:
    """Policy, reference, reward and critic as PPO has them, none of them at its start."""
    one = tiny_base(architecture)
    add_adapter_role(one, "policy", seed=1, **options)
    one.add_role("reference", copy_of="policy")
    add_adapter_role(one, "reward", seed=2, head=True, trains=False, **options)
    one.add_role("critic", copy_of="reward", head=True, trains=True)
    return one


def base_weights(one: OneBase) -> dict[str, Tensor]:
    adapters = {id(p) for name in one.roles for p in one.parameters(name)}
    everything = [*one.model.named_parameters(), *one.model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in everything if id(tensor) not in adapters}


def role_weights(one: OneBase, name: str) -> dict[str, Tensor]:
    head = one.roles[name].head
    weights = {key: tensor.clone() for key, tensor in one.adapter_weights(name).items()}
    return weights | ({"head": head.weight.detach().clone()} if head is not None else {})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def train_one_step(one: OneBase, name: str) -> None:
    FUNCTIONS[name](one, some_batch(), role=name).square().sum().backward()
    torch.optim.SGD(one.parameters(name), lr=0.01).step()
    for parameter in one.parameters(name):
        parameter.grad = None


def trainable(one: OneBase) -> set[str]:
    names = {name for name, parameter in one.model.named_parameters() if parameter.requires_grad}
    heads = {f"head of {role.name}" for role in one.roles.values() if role.head and role.head.weight.requires_grad}
    return names | heads


# ------------------------------------------------------------------------------------------------------ isolation


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("trained", ["policy", "critic", "reward"])
def test_training_a_role_changes_no_byte_of_the_base_or_of_another_role(architecture: str, trained: str) -> None:
    one = four_roles(architecture)
    if trained == "reward":
        one.roles["reward"].trains = True
    base, roles = base_weights(one), {name: role_weights(one, name) for name in one.roles}
    assert len(base) > 10 and all(roles.values())
    for _ in range(2):
        train_one_step(one, trained)
    assert same(base_weights(one), base)
    for name in one.roles:
        assert same(role_weights(one, name), roles[name]) == (name != trained), name
    after = role_weights(one, trained)
    assert not any(torch.equal(after[key], roles[trained][key]) for key in after), "a parameter did not train"


def test_a_loss_of_one_role_leaves_no_gradient_on_anything_else() -> None:
    one = four_roles()
    token_logprobs(one, some_batch(), role="policy").sum().backward()
    own = {id(parameter) for parameter in one.parameters("policy")}
    heads = [role.head.weight for role in one.roles.values() if role.head]
    for parameter in [*one.model.parameters(), *heads]:
        assert (parameter.grad is not None) == (id(parameter) in own)


def test_each_role_owns_parameters_that_no_other_role_owns() -> None:
    one = four_roles()
    owners = [{id(parameter) for parameter in one.parameters(name)} for name in one.roles]
    assert all(owners)
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_the_roles_differ_in_what_they_compute() -> None:
    one = four_roles()
    disturb(one, "critic", seed=9)
    batch = some_batch()
    policy, reward = token_logprobs(one, batch, role="policy"), token_logprobs(one, batch, role="reward")
    assert (policy - reward).abs().max() > 0.01
    one.add_role("base")
    assert (policy - token_logprobs(one, batch, role="base")).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_role_with_adapters_off_is_the_bare_base_to_the_bit(architecture: str) -> None:
    ids = torch.tensor([random_ids(9, seed=4)])
    expected = tiny_model(architecture)(input_ids=ids).logits
    one = four_roles(architecture)
    one.add_role("base")
    with one.role("base"):
        assert torch.equal(one.model(input_ids=ids).logits, expected)
    train_one_step(one, "policy")
    with one.role("policy"), one.role("base"):
        assert torch.equal(one.model(input_ids=ids).logits, expected)
    assert torch.equal(one.model(input_ids=ids).logits, expected)  # outside any role: no adapter either


def test_a_copy_is_identical_and_stays_as_it_is_while_its_source_trains() -> None:
    one = four_roles()
    batch = some_batch()
    before = token_logprobs(one, batch, role="policy")
    assert torch.equal(token_logprobs(one, batch, role="reference"), before)
    assert torch.equal(token_values(one, batch, role="critic"), token_values(one, batch, role="reward"))
    train_one_step(one, "policy")
    train_one_step(one, "critic")
    assert torch.equal(token_logprobs(one, batch, role="reference"), before)
    assert not torch.equal(token_logprobs(one, batch, role="policy"), before)
    assert not torch.equal(token_values(one, batch, role="critic"), token_values(one, batch, role="reward"))


def test_a_copy_of_a_role_without_adapter_has_none() -> None:
    one = tiny_base("llama")
    one.add_role("policy")
    assert one.add_role("reference", copy_of="policy").adapter is None
    assert one.parameters("reference") == [] and one.adapter_weights("reference") == {}


def test_a_head_starts_at_zero_or_at_the_copied_one() -> None:
    one = four_roles()
    reward, critic = one.roles["reward"].head, one.roles["critic"].head
    assert reward is not None and critic is not None
    assert torch.equal(reward.weight, critic.weight) and reward.weight.any()
    fresh = one.add_role("fresh", copy_of="policy", head=True).head
    assert fresh is not None and not fresh.weight.any()


# --------------------------------------------------------------------------------------------------- switching


def test_what_trains_is_the_same_before_within_and_after_a_role() -> None:
    one = four_roles()
    expected = trainable(one)
    assert {name.split(".")[-2] for name in expected if name.startswith("model")} == {"policy", "critic"}
    assert {name for name in expected if name.startswith("head")} == {"head of critic"}
    for name in one.roles:
        with one.role(name):
            assert trainable(one) == expected
            with one.role("reward"), one.role("policy"):
                assert trainable(one) == expected
        assert trainable(one) == expected


@pytest.mark.parametrize("name", ["policy", "reference", "reward", "critic"])
def test_an_exception_inside_a_role_restores_what_was_in_force(name: str) -> None:
    one = four_roles()
    batch, expected = some_batch(), trainable(one)
    before = token_logprobs(one, batch, role="reference")
    with one.role("policy"):
        within = one.model(batch.input_ids).logits
        with pytest.raises(KeyboardInterrupt), one.role(name):
            raise KeyboardInterrupt
        assert one.active == "policy" and trainable(one) == expected
        assert torch.equal(one.model(batch.input_ids).logits, within)
    assert one.active is None and trainable(one) == expected
    assert torch.equal(token_logprobs(one, batch, role="reference"), before)


def test_nested_roles_are_each_in_force_in_their_turn() -> None:
    one = four_roles()
    ids = some_batch().input_ids

    def logits_as(name: str) -> Tensor:
        with one.role(name):
            return one.model(ids).logits

    expected = {name: logits_as(name) for name in ("policy", "reward")}
    with one.role("policy") as outer:
        with one.role("reward") as inner:
            assert (outer.name, inner.name, one.active) == ("policy", "reward", "reward")
            assert torch.equal(one.model(ids).logits, expected["reward"])
            with one.role("policy"):
                assert torch.equal(one.model(ids).logits, expected["policy"])
            assert torch.equal(one.model(ids).logits, expected["reward"])
        assert one.active == "policy"
        assert torch.equal(one.model(ids).logits, expected["policy"])


def test_adding_a_role_inside_another_changes_neither() -> None:
    one = four_roles()
    ids = some_batch().input_ids
    with one.role("policy"):
        expected, trains = one.model(ids).logits, trainable(one)
        add_adapter_role(one, "late", trains=False)
        assert one.active == "policy" and torch.equal(one.model(ids).logits, expected) and trainable(one) == trains


def test_an_unknown_role_is_named_with_those_there_are() -> None:
    one = four_roles()
    with pytest.raises(ModelError, match="no role 'judge' on this base; roles here: policy, reference, reward, critic"):
        with one.role("judge"):
            pass
    with pytest.raises(ModelError, match="roles here: none"):
        with tiny_base("llama").role("policy"):
            pass


def test_a_name_is_taken_once() -> None:
    one = four_roles()
    before = role_weights(one, "critic")
    with pytest.raises(ModelError, match="role 'critic' exists already; roles here: policy, reference, reward, critic"):
        one.add_role("critic")
    with pytest.raises(ModelError, match="role 'critic' exists already"):
        one.share_adapter("critic", with_role="policy")
    assert same(role_weights(one, "critic"), before)


def test_weights_that_do_not_fit_are_refused_and_leave_nothing_behind() -> None:
    one = tiny_base("llama")
    add_adapter_role(one, "policy")
    before, trains = set(dict(one.model.named_parameters())), trainable(one)
    lora = lora_config(one.model, r=4, alpha=8)
    good = one.adapter_weights("policy")
    first = sorted(good)[0]
    wrong = {
        "missing": {key: value for key, value in good.items() if key != first},
        "unexpected": good | {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)},
        "another rank": {key: value.repeat_interleave(2, dim=0) for key, value in good.items()},
    }
    for weights in wrong.values():
        with pytest.raises(ModelError, match="the adapter of role 'other' does not fit this base") as caught:
            one.add_role("other", lora=lora, weights=weights)
        assert "\n" not in str(caught.value)
        assert list(one.roles) == ["policy"] and trainable(one) == trains
        assert set(dict(one.model.named_parameters())) == before
    one.add_role("other", lora=lora, weights=good)  # the name is still free
    other, policy = (token_logprobs(one, some_batch(), role=name) for name in ("other", "policy"))
    assert torch.equal(other, policy)


def test_a_removed_role_is_gone_and_the_others_are_as_they_were() -> None:
    one = four_roles()
    names, batch = set(dict(one.model.named_parameters())), some_batch()
    expected = token_logprobs(one, batch, role="policy")
    add_adapter_role(one, "late")
    one.remove_role("late")
    assert set(dict(one.model.named_parameters())) == names and "late" not in one.roles
    assert torch.equal(token_logprobs(one, batch, role="policy"), expected)
    add_adapter_role(one, "late")  # the name is free again


def test_a_role_that_others_or_the_base_depend_on_cannot_be_removed() -> None:
    one = tiny_base("llama")
    add_adapter_role(one, "policy")
    one.share_adapter("critic", with_role="policy")
    with pytest.raises(ModelError, match="role 'policy' cannot go: critic stands on its adapter"):
        one.remove_role("policy")
    one.remove_role("critic")
    one.remove_role("policy")
    one.add_role("policy")
    one.train_base("policy")
    with pytest.raises(ModelError, match="role 'policy' has trained the base in full and cannot be taken off it"):
        one.remove_role("policy")
    assert list(one.roles) == ["policy"]


# ---------------------------------------------------------------------------------------- a head on another's trunk


def test_a_critic_on_the_policys_trunk_owns_only_its_head() -> None:
    one = tiny_base("llama")
    add_adapter_role(one, "policy")
    critic = one.share_adapter("critic", with_role="policy")
    assert critic.adapter == "policy" and critic.head is not None
    assert [id(parameter) for parameter in one.parameters("critic")] == [id(critic.head.weight)]
    assert not token_values(one, some_batch(), role="critic").any()  # a head starts at zero
    disturb(one, "critic")
    policy, expected = role_weights(one, "policy"), token_logprobs(one, some_batch(), role="policy")
    train_one_step(one, "critic")
    assert all(torch.equal(policy[key], value) for key, value in role_weights(one, "policy").items())
    assert torch.equal(token_logprobs(one, some_batch(), role="policy"), expected)


def test_a_critic_on_the_trunk_of_a_policy_that_does_not_train_leaves_it_frozen() -> None:
    one = tiny_base("llama")
    add_adapter_role(one, "policy", trains=False)
    one.share_adapter("critic", with_role="policy")
    assert trainable(one) == {"head of critic"}


# -------------------------------------------------------------------------------------------- full-parameter training


def test_training_in_full_trains_the_base_itself() -> None:
    one = tiny_base("llama")
    one.add_role("policy")
    assert trainable(one) == set()
    one.train_base("policy")
    assert trainable(one) == set(dict(one.model.named_parameters()))
    assert {id(p) for p in one.parameters("policy")} == {id(p) for p in one.model.parameters()}
    before = {name: parameter.detach().clone() for name, parameter in one.model.named_parameters()}
    logprobs = token_logprobs(one, some_batch(), role="policy")
    train_one_step(one, "policy")
    assert not any(torch.equal(before[name], value) for name, value in one.model.named_parameters())
    assert not torch.equal(token_logprobs(one, some_batch(), role="policy"), logprobs)
    with pytest.raises(ZeroDivisionError), one.role("policy"):
        raise ZeroDivisionError
    assert trainable(one) == set(dict(one.model.named_parameters()))


def test_training_in_full_is_refused_while_other_roles_stand_on_the_base() -> None:
    one = tiny_base("llama")
    one.add_role("policy")
    one.add_role("reference", copy_of="policy")
    with pytest.raises(ModelError, match="training the base in full would change the roles on it: reference"):
        one.train_base("policy")
    assert trainable(one) == set() and not one.roles["policy"].trains


def test_no_role_can_be_added_to_a_base_that_trains_in_full() -> None:
    one = tiny_base("llama")
    one.add_role("policy")
    one.train_base("policy")
    with pytest.raises(ModelError, match="'reference'.*'policy' trains the base in full"):
        one.add_role("reference", copy_of="policy")  # it would be the policy, whatever that becomes
    assert list(one.roles) == ["policy"]


def test_a_quantised_base_cannot_train_in_full() -> None:
    one = tiny_base("llama")
    one.add_role("policy")
    one.model.is_quantized = True  # type: ignore[assignment]
    with pytest.raises(ModelError, match="a quantised base cannot be trained in full; set model.quantization: none"):
        one.train_base("policy")
