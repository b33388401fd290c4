"""A linear layer with its adapter in one pass, against PyTorch's own layers and their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebase.engines.projection import Adapter, Projection, adapted, lay_together, project, projection_of
from tests.tiny_models import add_adapter_role, tiny_base

TOKENS, WIDTH, RANK, SCALING = 13, 20, 3, 1.7


class Part:
    """A frozen linear layer, and an adapter or none."""

    def __init__(self, out: int, *, bias: bool, adapter: bool, seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

        self.weight, self.bias = random(out, WIDTH).to(dtype), random(out).to(dtype) if bias else None
        self.a = nn.Parameter(random(RANK, WIDTH)) if adapter else None
        self.b = nn.Parameter(random(out, RANK)) if adapter else None

    @property
    def trained(self) -> list[Tensor]:
        return [tensor for tensor in (self.a, self.b) if tensor is not None]

    def literal(self, x: Tensor) -> Tensor:
        """In the number format of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out = nn.functional.linear(x, self.weight.to(x.dtype), bias)
        if self.a is None or self.b is None:
            return out
        return out + SCALING * (x @ self.a.to(x.dtype).t()) @ self.b.to(x.dtype).t()


def joined(parts: list[Part]) -> Projection:
    """The layers as one."""
    adapters, row, rank = [], 0, 0
    for part in parts:
        if part.a is not None and part.b is not None:
            out, ranks = slice(row, row + len(part.weight)), slice(rank, rank + RANK)
            adapters.append(Adapter(part.a, part.b, SCALING, out, ranks))
            rank += RANK
        row += len(part.weight)
    biases = [part.bias for part in parts if part.bias is not None]
    return adapted([part.weight for part in parts], torch.cat(biases) if biases else None, adapters)


def three_parts(adapters: tuple[bool, bool, bool], *, bias: bool, **options: Any) -> list[Part]:
    return [
        Part(out, bias=bias, adapter=adapter, seed=seed, **options)
        for seed, (out, adapter) in enumerate(zip((8, 5, 11), adapters, strict=True))
    ]


def some_input(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(9))
    return x.to(dtype).requires_grad_()


def weights_like(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(10)).to(out.dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "adapters", [(True, True, True), (True, False, True), (False, False, True), (False, False, False)]
)
def test_layers_side_by_side_are_those_one_by_one_in_both_directions(
    adapters: tuple[bool, bool, bool], bias: bool
) -> None:
    parts, x = three_parts(adapters, bias=bias), some_input()
    trained = [x, *(tensor for part in parts for tensor in part.trained)]
    expected = torch.cat([part.literal(x) for part in parts], dim=1)
    weights = weights_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), trained)
    found = project(x, joined(parts))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    for gradient, other in zip(torch.autograd.grad((found * weights).sum(), trained), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapters", [(True, False, True), (False, False, False)])
def test_without_gradients_the_results_are_the_same(adapters: tuple[bool, bool, bool]) -> None:
    projection = joined(three_parts(adapters, bias=True))
    with torch.no_grad():
        found = project(some_input(), projection)
    assert not found.requires_grad and torch.equal(found, project(some_input(), projection))


def test_an_input_that_needs_no_gradient_gives_the_adapters_theirs() -> None:
    parts, x = three_parts((True, False, True), bias=False), some_input()
    trained = [tensor for part in parts for tensor in part.trained]
    with_input = project(x, joined(parts))
    without = project(x.detach(), joined(parts))
    weights = weights_like(without)
    expected = torch.autograd.grad((with_input * weights).sum(), trained)
    found = torch.autograd.grad((without * weights).sum(), trained)
    assert all(torch.equal(gradient, other) for gradient, other in zip(found, expected, strict=True))


def test_an_adapter_that_does_not_train_passes_the_gradient_on_and_gets_none() -> None:
    parts, x = three_parts((True, True, False), bias=True), some_input()
    for tensor in parts[0].trained:
        tensor.requires_grad_(False)
    expected = torch.cat([part.literal(x) for part in parts], dim=1)
    weights = weights_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *parts[1].trained])
    found = project(x, joined(parts))
    (found * weights).sum().backward()
    gradients = [x.grad, *(tensor.grad for tensor in parts[1].trained)]
    for gradient, other in zip(gradients, wanted, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-5)
    assert all(tensor.grad is None for tensor in parts[0].trained)


def test_nothing_of_the_base_gets_a_gradient() -> None:
    parts, x = three_parts((True, True, True), bias=True), some_input()
    project(x, joined(parts)).sum().backward()
    assert all(part.weight.grad is None and part.bias is not None and part.bias.grad is None for part in parts)


def test_in_bfloat16_it_is_as_near_to_float64_as_linear_layers_are() -> None:
    parts, x = three_parts((True, True, True), bias=True, dtype=torch.bfloat16), some_input(torch.bfloat16)
    trained = [x, *(tensor for part in parts for tensor in part.trained)]

    def measured(out: Tensor) -> list[Tensor]:
        assert not out.isnan().any()
        gradients = torch.autograd.grad((out * weights_like(out)).sum(), trained)
        return [out, *gradients]

    exact_input = x.detach().double().requires_grad_()
    exact = torch.cat([part.literal(exact_input) for part in parts], dim=1)
    weights = weights_like(exact.bfloat16()).double()
    true = [exact, *torch.autograd.grad((exact * weights).sum(), [exact_input, *trained[1:]])]
    plain = measured(torch.cat([part.literal(x) for part in parts], dim=1))
    found = measured(project(x, joined(parts)))
    assert [tensor.dtype for tensor in found] == [x.dtype, x.dtype, *(tensor.dtype for tensor in trained[1:])]
    errors = [
        [(a.double() - t.double()).norm().item() for a, t in zip(side, true, strict=True)] for side in (found, plain)
    ]
    assert all(ours <= 1.5 * theirs for ours, theirs in zip(*errors, strict=True)), errors


# ---------------------------------------------------------------------------------------------------- PEFT's layers


def test_a_layer_is_read_with_the_adapter_that_is_in_force() -> None:
    base = tiny_base("llama", attention_bias=True)
    add_adapter_role(base, "policy", target_modules=["q_proj"])
    add_adapter_role(base, "other", seed=1, r=2, target_modules=["q_proj", "v_proj"])
    base.add_role("reference")
    layer: Any = base.model.base_model.layers[0].self_attn  # type: ignore[operator, union-attr, index]
    x = some_input_of(base.hidden_size)
    for role, ranks in (("policy", (4, 0, 0)), ("other", (2, 0, 2)), ("reference", (0, 0, 0))):
        with base.role(role):
            modules = [layer.q_proj, layer.k_proj, layer.v_proj]
            read = projection_of(*modules)
            sizes = [len(module.weight) for module in modules]
            found = {adapter.out.start: len(adapter.a) for adapter in read.adapters}
            assert found == {sum(sizes[:i]): rank for i, rank in enumerate(ranks) if rank}
            torch.testing.assert_close(
                project(x, read), torch.cat([module(x) for module in modules], dim=1), rtol=0, atol=5e-6
            )
            if role != "reference":
                first = read.adapters[0]
                assert first.a is layer.q_proj.lora_A[role].weight and first.b is layer.q_proj.lora_B[role].weight


def test_a_layer_without_any_adapter_is_read_as_it_is() -> None:
    layer = nn.Linear(6, 4)
    x = some_input_of(6)
    torch.testing.assert_close(project(x, projection_of(layer)), layer(x), rtol=0, atol=1e-6)


def test_what_is_read_again_after_an_optimizer_step_is_new() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    layer: Any = base.model.base_model.layers[0].mlp  # type: ignore[operator, union-attr, index]
    x = some_input_of(base.hidden_size)
    with base.role("policy"), torch.no_grad():
        before = project(x, projection_of(layer.up_proj))
        for parameter in base.parameters("policy"):
            parameter.add_(0.1)
        after = project(x, projection_of(layer.up_proj))
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, layer.up_proj(x), rtol=0, atol=5e-6)


def test_weights_laid_together_are_the_same_layers_and_one_product() -> None:
    layers = [nn.Linear(WIDTH, out, bias=False) for out in (8, 5, 11)]
    before = [layer.weight.detach().clone() for layer in layers]
    x = some_input_of(WIDTH)
    expected = project(x, projection_of(*layers))
    lay_together(*layers)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    (weight,) = projection_of(*layers).weights
    assert torch.equal(weight, torch.cat(before))
    torch.testing.assert_close(project(x, projection_of(*layers)), expected, rtol=0, atol=1e-6)
    assert len(projection_of(layers[0], layers[2]).weights) == 2  # something lies between them
    assert len(projection_of(layers[1], layers[0]).weights) == 2
    layers[1].weight.data = before[1]
    assert len(projection_of(*layers).weights) == 3


def test_weights_side_by_side_in_two_tensors_are_not_taken_for_one() -> None:
    both = torch.randn(4, WIDTH)
    buffer = both.numpy()
    layers = [nn.Linear(WIDTH, 2, bias=False) for _ in range(2)]
    for layer, rows in zip(layers, (buffer[:2], buffer[2:]), strict=True):
        layer.weight.data = torch.from_numpy(rows)  # as a loader hands out parts of a file
    assert layers[1].weight.data_ptr() == layers[0].weight.data_ptr() + layers[0].weight.nbytes
    x = some_input_of(WIDTH)
    assert len(projection_of(*layers).weights) == 2
    torch.testing.assert_close(project(x, projection_of(*layers)), x @ both.t(), rtol=0, atol=1e-5)


def some_input_of(width: int) -> Tensor:
    return torch.randn(7, width, generator=torch.Generator().manual_seed(5))


def test_the_weights_stay_where_they_are() -> None:
    layers = [nn.Linear(6, 4), nn.Linear(6, 3, bias=False)]
    read = projection_of(*layers)
    assert [weight.data_ptr() for weight in read.weights] == [layer.weight.data_ptr() for layer in layers]
    x = some_input_of(6)
    torch.testing.assert_close(project(x, read), torch.cat([layer(x) for layer in layers], 1), rtol=0, atol=1e-6)
