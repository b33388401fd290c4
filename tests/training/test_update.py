from __future__ import annotations

import copy
import gc
import json
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebase.data.tree import build_tree_batch
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import token_logprobs, token_values
from onebase.engines.passes import num_counted
from onebase.errors import DoesNotFitError, NonFiniteError
from onebase.models.base import OneBase
from onebase.records import Example, Row, TreeBatch
from onebase.training.averages import Averages
from onebase.training.update import MAX_REFUSED_IN_A_ROW, LossFunction, ParameterGroup, Part, Update
from tests.tiny_models import add_adapter_role, random_ids, tiny_base


def some_examples(count: int = 6, *, seed: int = 0) -> list[Example]:
    """Of different lengths, one to three completions each."""
    return [
        Example(
            random_ids(4 + 3 * (e % 4), seed=seed + e),
            [random_ids(2 + (e + k) % 5, seed=seed + 100 * e + k + 50) for k in range(1 + e % 3)],
        )
        for e in range(count)
    ]


def base_with_policy(**options: Any) -> OneBase:
    base = tiny_base("llama", **options)
    add_adapter_role(base, "policy")
    return base


def new_update(base: OneBase, **overrides: Any) -> Update:
    options: dict[str, Any] = {
        "weight_decay": 0.01,
        "schedule": "constant",
        "warmup_steps": 0,
        "total_steps": 10,
        "max_grad_norm": 1.0,
        "budget": TokenBudget(4096),
    }
    roles = overrides.pop("roles", ("policy",))
    groups = [ParameterGroup(base.parameters(name), overrides.pop("learning_rate", 1e-3)) for name in roles]
    return Update(base, groups, **(options | overrides))


def policy_loss(base: OneBase, total: int) -> LossFunction:
    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        logprobs = token_logprobs(base, batch, role="policy")
        metrics.add("loss/policy", -logprobs)
        metrics.add("of even ids", -logprobs, batch.targets % 2 == 0)
        return -logprobs.sum() / total

    return loss


def scaled(loss: LossFunction, factor: float) -> LossFunction:
    return lambda batch, indices, metrics: factor * loss(batch, indices, metrics)


def weights(base: OneBase, role: str = "policy") -> list[Tensor]:
    return [parameter.detach().clone() for parameter in base.parameters(role)]


def optimizer_tensors(update: Update) -> list[Tensor]:
    states = update.optimizer.state_dict()["state"]
    return [state[name].clone() for _, state in sorted(states.items()) for name in sorted(state)]


def same_bytes(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def gradient_norms(update: Update) -> list[float]:
    """Filled with the norm of the gradient that each optimizer step really uses."""
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

    update.optimizer.register_step_pre_hook(note)
    return norms


# ------------------------------------------------------------------------------------------------- microbatches


@pytest.mark.parametrize("layout", ["tree", "separate"])
def test_the_split_into_microbatches_never_changes_parameters_or_metrics(layout: str) -> None:
    results = []
    for token_budget in (1, 64, 4096):
        base = base_with_policy(layout=layout)
        update = new_update(base, budget=TokenBudget(token_budget), learning_rate=1e-4)
        examples, rows = some_examples(), []
        microbatches: list[list[int]] = []
        whole = policy_loss(base, num_counted(examples))

        def loss(
            batch: TreeBatch,
            indices: list[int],
            metrics: Averages,
            whole: LossFunction = whole,
            microbatches: list[list[int]] = microbatches,
        ) -> Tensor:
            microbatches.append(indices)
            return whole(batch, indices, metrics)

        for _ in range(3):
            rows.append(update.step((examples, loss)))
        results.append((len(microbatches) // 3, weights(base), rows))
    assert results[0][0] == 6 and 1 < results[1][0] < 6 and results[2][0] == 1
    _, expected, expected_rows = results[-1]
    assert expected_rows[0]["loss"] == pytest.approx(expected_rows[0]["loss/policy"], rel=1e-5)
    for _, found, found_rows in results[:-1]:
        for parameter, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-6)
        for row, wanted_row in zip(found_rows, expected_rows, strict=True):
            assert row == pytest.approx(wanted_row, rel=1e-5)


def test_the_gradient_is_that_of_one_mean_over_the_whole_minibatch() -> None:
    base, examples = base_with_policy(), some_examples()
    singles = [token_logprobs(base, build_tree_batch([example]), role="policy") for example in examples]
    mean = -torch.cat(singles).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(mean, base.parameters("policy"))])
    update = new_update(base, budget=TokenBudget(1), max_grad_norm=1e9)
    norms = gradient_norms(update)
    metrics = update.step((examples, policy_loss(base, num_counted(examples))))
    assert metrics["loss"] == pytest.approx(float(mean), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert norms == pytest.approx([float(expected.norm())], rel=1e-4)


def test_two_parts_and_two_losses_of_a_part_add_up() -> None:
    examples, others = some_examples(3), some_examples(4, seed=9)
    base = base_with_policy()
    first, second = policy_loss(base, num_counted(examples)), scaled(policy_loss(base, num_counted(others)), 0.3)
    logprobs = [
        torch.cat([token_logprobs(base, build_tree_batch([e]), role="policy") for e in part])
        for part in (examples, others)
    ]
    mean = -logprobs[0].mean() - 0.3 * logprobs[1].mean()
    expected = torch.autograd.grad(mean, base.parameters("policy"))
    update = new_update(base, budget=TokenBudget(30), max_grad_norm=1e9)
    metrics = update.step((examples, first), (others, second))
    assert metrics["loss"] == pytest.approx(float(mean), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in expected]).norm()), rel=1e-4)

    def both(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        return first(batch, indices, metrics) + scaled(first, 0.5)(batch, indices, metrics)

    base = base_with_policy()
    first = policy_loss(base, num_counted(examples))
    assert new_update(base).step((examples, both))["loss"] == pytest.approx(-1.5 * float(logprobs[0].mean()), rel=1e-5)


def test_one_step_trains_only_the_roles_it_was_given() -> None:
    base = base_with_policy()
    add_adapter_role(base, "critic", head=True, seed=3)
    before, critic = weights(base), weights(base, "critic")
    examples = some_examples()

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        return token_values(base, batch, role="critic").square().sum() / num_counted(examples)

    new_update(base, roles=("policy", "critic"), weight_decay=0.0).step((examples, loss))
    assert same_bytes(weights(base), before) and not same_bytes(weights(base, "critic"), critic)


# ------------------------------------------------------------------------------------------------- clipping, decay


def test_the_gradient_is_clipped_at_every_step_and_reported_as_it_was() -> None:
    base, examples = base_with_policy(), some_examples()
    update = new_update(base, max_grad_norm=0.05)
    norms = gradient_norms(update)
    reported = [update.step((examples, policy_loss(base, num_counted(examples))))["grad_norm"] for _ in range(4)]
    assert min(reported) > 0.1
    assert len(norms) == 4 and norms == pytest.approx([0.05] * 4, rel=1e-4)


def test_every_role_is_clipped_by_itself_and_told_apart() -> None:
    base, examples = base_with_policy(), some_examples()
    add_adapter_role(base, "critic", head=True, seed=3)
    critic_scale = [1.0]

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        policy = -token_logprobs(base, batch, role="policy").sum() / num_counted(examples)
        return policy + critic_scale[0] * token_values(base, batch, role="critic").square().sum() / num_counted(
            examples
        )

    def gradients_of_the_policy(scale: float, **roles: str) -> tuple[list[Tensor], dict[str, float]]:
        critic_scale[0] = scale
        groups = [ParameterGroup(base.parameters(name), 0.0, role) for name, role in roles.items()]
        update = Update(
            base,
            groups,
            weight_decay=0.0,
            schedule="constant",
            warmup_steps=0,
            total_steps=9,
            max_grad_norm=0.05,
            budget=TokenBudget(4096),
        )
        seen: list[Tensor] = []
        update.optimizer.register_step_pre_hook(
            lambda *_: seen.extend(p.grad.clone() for p in base.parameters("policy") if p.grad is not None)
        )
        return seen, update.step((examples, loss))

    small, told = gradients_of_the_policy(1.0, policy="policy", critic="critic")
    large, told_large = gradients_of_the_policy(1000.0, policy="policy", critic="critic")
    assert same_bytes(small, large), "the critic's scale changed the policy's step"
    assert told_large["critic/grad_norm"] == pytest.approx(1000 * told["critic/grad_norm"], rel=1e-4)
    assert told["policy/grad_norm"] == told_large["policy/grad_norm"] > 0.05
    assert told["grad_norm"] == pytest.approx(math.hypot(told["policy/grad_norm"], told["critic/grad_norm"]))
    together, told = gradients_of_the_policy(1000.0, policy="policy", critic="policy")
    assert not same_bytes(together, large) and "policy/grad_norm" not in told


def test_a_gradient_under_the_limit_is_left_as_it_is() -> None:
    base, examples = base_with_policy(), some_examples()
    update = new_update(base, max_grad_norm=1e6)
    norms = gradient_norms(update)
    reported = update.step((examples, policy_loss(base, num_counted(examples))))["grad_norm"]
    assert norms == pytest.approx([reported], rel=1e-5)


def test_weights_decay_only_where_they_are_matrices() -> None:
    base = base_with_policy()
    matrix, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    update = Update(
        base,
        [ParameterGroup([matrix, vector], 0.1)],
        weight_decay=0.5,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
        max_grad_norm=1.0,
        budget=TokenBudget(64),
    )
    update.step((some_examples(1), lambda batch, indices, metrics: 0.0 * (matrix.sum() + vector.sum())))
    torch.testing.assert_close(matrix.detach(), torch.full((2, 3), 1 - 0.1 * 0.5))
    assert torch.equal(vector.detach(), torch.ones(3))


def test_groups_keep_their_own_learning_rates() -> None:
    base = base_with_policy()
    fast, slow = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    update = Update(
        base,
        [ParameterGroup([fast], 0.1), ParameterGroup([slow], 0.001)],
        weight_decay=0.0,
        schedule="linear",
        warmup_steps=0,
        total_steps=4,
        max_grad_norm=1e9,
        budget=TokenBudget(64),
    )
    rates = [
        update.step((some_examples(1), lambda batch, indices, metrics: fast.sum() + slow.sum()))["learning_rate"]
        for _ in range(2)
    ]
    assert rates == pytest.approx([0.1, 0.075])
    # With a gradient that stays the same AdamW moves by the learning rate.
    torch.testing.assert_close(fast.detach(), torch.full((2, 2), -0.175), rtol=1e-5, atol=0)
    torch.testing.assert_close(slow.detach(), torch.full((2, 2), -0.00175), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 3, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0]),
        ("linear", 2, [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4, 0]),
        ("cosine", 0, [1, (1 + math.cos(math.pi / 6)) / 2, 0.75, 0.5, 0.25, (1 - math.cos(math.pi / 6)) / 2, 0, 0]),
        ("cosine", 2, [1 / 2, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        ("linear", 6, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
    ],
)
def test_the_schedule_has_the_values_computed_by_hand(schedule: str, warmup_steps: int, expected: list[float]) -> None:
    base, parameter = base_with_policy(), nn.Parameter(torch.zeros(1, 1))
    update = Update(
        base,
        [ParameterGroup([parameter], 2.0)],
        weight_decay=0.0,
        schedule=schedule,
        warmup_steps=warmup_steps,
        total_steps=6,
        max_grad_norm=1e9,
        budget=TokenBudget(64),
    )
    used: list[float] = []
    update.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    reported = [
        update.step((some_examples(1), lambda batch, indices, metrics: parameter.sum()))["learning_rate"]
        for _ in expected
    ]
    assert reported == used == pytest.approx([2.0 * share for share in expected], abs=1e-12)


# ------------------------------------------------------------------------------------------------- not finite


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.full_like(gradients[0], torch.inf)


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda loss: loss * torch.nan,
    "infinite gradient": lambda loss: InfiniteGradient.apply(loss),
    "infinite loss": lambda loss: loss + torch.inf,
}


def damaged(loss: LossFunction, kind: str) -> LossFunction:
    """The loss with the last microbatch's damaged: by then there is a good gradient to spoil."""

    def spoilt(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        share = loss(batch, indices, metrics)
        return DAMAGES[kind](share) if 0 in indices else share

    return spoilt


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_step_that_is_not_finite_leaves_every_byte_as_it_was(kind: str) -> None:
    base, examples = base_with_policy(), some_examples()
    update = new_update(base, budget=TokenBudget(20))
    good = policy_loss(base, num_counted(examples))
    assert "train/refused_steps" not in update.step((examples, good))
    before, state = weights(base), optimizer_tensors(update)
    assert len(state) == 3 * len(before)
    metrics = update.step((examples, damaged(good, kind)))
    assert metrics["train/refused_steps"] == 1.0
    assert not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]))
    assert same_bytes(weights(base), before) and same_bytes(optimizer_tensors(update), state)
    assert all(p.grad is None for p in base.parameters("policy"))  # nothing is left over for the next step
    after = update.step((examples, good))
    assert "train/refused_steps" not in after and math.isfinite(after["grad_norm"])
    assert not same_bytes(weights(base), before) and all(p.isfinite().all() for p in weights(base))
    steps = {int(entry["step"]) for entry in update.optimizer.state_dict()["state"].values()}
    assert steps == {2}


def test_a_refused_step_takes_its_place_in_the_schedule() -> None:
    base, parameter = base_with_policy(), nn.Parameter(torch.zeros(1, 1))
    update = Update(
        base,
        [ParameterGroup([parameter], 1.0)],
        weight_decay=0.0,
        schedule="linear",
        warmup_steps=2,
        total_steps=6,
        max_grad_norm=1e9,
        budget=TokenBudget(64),
    )
    good: Part = (some_examples(1), lambda batch, indices, metrics: parameter.sum())
    bad: Part = (some_examples(1), lambda batch, indices, metrics: parameter.sum() * torch.nan)
    rates = [update.step(part)["learning_rate"] for part in (good, bad, good, bad, good)]
    assert rates == pytest.approx([0.5, 1, 1, 0.75, 0.5])


def test_the_fifth_refused_step_in_a_row_ends_the_run_in_one_line() -> None:
    base, examples = base_with_policy(), some_examples(2)
    update = new_update(base)
    good = policy_loss(base, num_counted(examples))
    bad = damaged(good, "nan")
    for _ in range(MAX_REFUSED_IN_A_ROW - 1):
        update.step((examples, bad))
    update.step((examples, good))  # and the count begins anew
    before, state = weights(base), optimizer_tensors(update)
    for _ in range(MAX_REFUSED_IN_A_ROW - 1):
        assert update.step((examples, bad))["train/refused_steps"] == 1.0
    with pytest.raises(NonFiniteError) as caught:
        update.step((examples, bad))
    message = str(caught.value)
    assert MAX_REFUSED_IN_A_ROW == 5 and message.startswith("5 optimizer steps in a row")
    assert "loss nan, gradient norm nan" in message and "\n" not in message
    assert caught.value.exit_code == 1 and caught.value.remedy == "not-finite"
    assert same_bytes(weights(base), before) and same_bytes(optimizer_tensors(update), state)


def test_a_refused_step_counts_in_the_schedule() -> None:
    base, examples = base_with_policy(), some_examples(2)
    good = policy_loss(base, num_counted(examples))
    update = new_update(base, schedule="linear", total_steps=4, learning_rate=1e-2)
    losses = [good, damaged(good, "nan"), damaged(good, "nan"), good]
    rates = [update.step((examples, loss))["learning_rate"] for loss in losses]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert update.steps_done == 4 and update.steps_refused == 2
    update.require_a_step()


def test_a_run_whose_every_step_was_refused_has_trained_nothing() -> None:
    base, examples = base_with_policy(), some_examples(2)
    update, bad = new_update(base), damaged(policy_loss(base, num_counted(examples)), "nan")
    update.require_a_step()  # there was none
    for _ in range(MAX_REFUSED_IN_A_ROW - 1):
        update.step((examples, bad))
    with pytest.raises(NonFiniteError) as caught:
        update.require_a_step()
    assert str(caught.value) == ("nothing was trained: all 4 optimizer steps had a loss or gradient that is not finite")
    assert caught.value.remedy == "never-finite"
    with pytest.raises(NonFiniteError, match="5 optimizer steps in a row ") as caught:
        update.step((examples, bad))
    assert caught.value.remedy == "never-finite"


def test_a_refused_step_keeps_its_examples_and_one_that_is_taken_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, examples = base_with_policy(), some_examples(2)
    examples[1] = replace(examples[1], row=Row((), place="a.jsonl:7"))
    update = new_update(base, repro_folder=tmp_path / "refused", budget=TokenBudget(20))
    good, ptx = policy_loss(base, num_counted(examples)), some_examples(1, seed=5)
    update.step((examples, good))
    assert not (tmp_path / "refused").exists()
    update.step((examples, damaged(good, "nan")), (ptx, good))
    (path,) = (tmp_path / "refused").iterdir()
    assert path.name == "step-2.json"
    kept = json.loads(path.read_text())
    assert kept["optimizer_step"] == 2 and kept["seed"] == 0 and kept["token_budget"] == 20
    assert kept["loss"] == kept["grad_norm"] == "nan"
    assert kept["examples"] == [
        {"place": place, "prompt_ids": example.prompt_ids, "completions": example.completions}
        for place, example in zip(["", "a.jsonl:7", ""], [*examples, *ptx], strict=True)
    ]
    said = capsys.readouterr().err
    assert said == f"warning: optimizer step 2 refused: loss nan, gradient norm nan; its examples are in {path}\n"


def test_an_update_goes_on_from_its_state_with_every_byte() -> None:
    examples = some_examples()
    options: dict[str, Any] = {
        "schedule": "cosine",
        "warmup_steps": 2,
        "total_steps": 8,
        "weight_decay": 0.1,
        "learning_rate": 1e-2,
    }
    base = base_with_policy()
    update, good = new_update(base, **options), policy_loss(base, num_counted(examples))
    losses = [good, good, damaged(good, "nan"), good, good]
    for loss in losses[:3]:
        update.step((examples, loss))
    state, kept = copy.deepcopy(update.state_dict()), weights(base)
    expected = [update.step((examples, loss)) for loss in losses[3:]]

    other = base_with_policy()
    again, good = new_update(other, **options), policy_loss(other, num_counted(examples))
    with torch.no_grad():
        for parameter, weight in zip(other.parameters("policy"), kept, strict=True):
            parameter.copy_(weight)
    again.load_state_dict(state)
    assert again.steps_done == 3
    assert [again.step((examples, good)) for _ in losses[3:]] == expected
    assert expected[0]["learning_rate"] != expected[1]["learning_rate"]
    assert same_bytes(weights(other), weights(base)) and same_bytes(optimizer_tensors(again), optimizer_tensors(update))


def test_refused_steps_in_a_row_are_counted_on() -> None:
    base, examples = base_with_policy(), some_examples(2)
    bad, update = damaged(policy_loss(base, num_counted(examples)), "nan"), new_update(base)
    for _ in range(MAX_REFUSED_IN_A_ROW - 1):
        update.step((examples, bad))
    again = new_update(base)
    again.load_state_dict(update.state_dict())
    with pytest.raises(NonFiniteError):
        again.step((examples, bad))


# ------------------------------------------------------------------------------------------------- out of memory


def out_of_memory_once(loss: LossFunction, *, after: int) -> LossFunction:
    """Fails at the microbatch number `after`, when others have left their gradients."""
    calls = []

    def failing(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        calls.append(indices)
        if len(calls) == after:
            metrics.add("loss/policy", torch.full((1000,), 1e6))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(batch, indices, metrics)

    return failing


def test_out_of_memory_halves_the_microbatch_and_changes_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for fails in (False, True):
        base, examples = base_with_policy(), some_examples()
        loss = policy_loss(base, num_counted(examples))
        update = new_update(base, budget=TokenBudget(60), learning_rate=1e-4)
        first = update.step((examples, out_of_memory_once(loss, after=2) if fails else loss))
        rows = [first, update.step((examples, loss))]
        results.append((update.budget.tokens, weights(base), rows))
    (whole, expected, expected_rows), (half, found, found_rows) = results
    assert (whole, half) == (60, 30)
    for parameter, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-6)
    for row, wanted_row in zip(found_rows, expected_rows, strict=True):
        assert row == pytest.approx(wanted_row, rel=1e-5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "out of memory: microbatches of 30 tokens from here on; the result is the same\n"


def test_the_budget_never_falls_below_the_longest_example_and_then_gives_up() -> None:
    base, examples = base_with_policy(), some_examples()
    longest = max(example.num_tokens for example in examples)
    update = new_update(base, budget=TokenBudget(longest + 5))
    budgets = []

    def never(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        budgets.append(update.budget.tokens)
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = weights(base)
    with pytest.raises(DoesNotFitError) as caught:
        update.step((examples, never))
    message = str(caught.value)
    assert budgets == [longest + 5, longest]
    assert message.startswith(f"an example of {longest} tokens alone does not fit") and "\n" not in message
    assert caught.value.remedy == "example-out-of-memory" and caught.value.exit_code == 4
    assert same_bytes(weights(base), before)


class OutOfMemoryInBackward(torch.autograd.Function):
    failures: list[int] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        if not OutOfMemoryInBackward.failures:
            OutOfMemoryInBackward.failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients[0]


def test_what_ran_out_of_memory_is_let_go_before_the_smaller_microbatch_runs() -> None:
    base, examples = base_with_policy(), some_examples()
    OutOfMemoryInBackward.failures.clear()
    losses: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        gc.collect()
        alive.append(sum(reference() is not None for reference in losses))
        held = OutOfMemoryInBackward.apply(policy_loss(base, num_counted(examples))(batch, indices, metrics))
        losses.append(weakref.ref(held))
        return held

    update = new_update(base)
    update.step((examples, loss))
    assert len(OutOfMemoryInBackward.failures) == 1 and len(alive) >= 2
    assert alive[1] == 0


# --------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_on_in_the_passes_that_train_and_nowhere_else(dropout: bool) -> None:
    base, examples, seen = tiny_base("llama"), some_examples(), []
    add_adapter_role(base, "policy", dropout=0.5)
    layers = [m for m in base.model.modules() if isinstance(m, nn.Dropout) and m.p == 0.5]
    loss = policy_loss(base, num_counted(examples))
    batch = build_tree_batch(examples)

    def watched(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        seen.append({layer.training for layer in layers})
        return loss(batch, indices, metrics)

    def measured() -> Tensor:
        with torch.no_grad():
            return token_logprobs(base, batch, role="policy")

    update = new_update(base, dropout=dropout)
    assert layers and torch.equal(measured(), measured())
    update.step((examples, watched))
    assert seen == [{dropout}] and not any(layer.training for layer in layers)
    assert torch.equal(measured(), measured())
    with base.dropout():
        assert not torch.equal(measured(), measured())


def test_dropout_goes_off_where_a_step_fails() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy", dropout=0.5)
    add_adapter_role(base, "critic", dropout=0.5)
    with pytest.raises(ValueError, match="no"), base.dropout():
        raise ValueError("no")
    assert not any(module.training for module in base.model.modules() if isinstance(module, nn.Dropout))
