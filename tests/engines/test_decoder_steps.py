"""The steps of a decoder layer against the formulas as they stand in the papers, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebase.engines.decoder_steps import gated_silu, rms_norm, rotate_

TOKENS, HEADS, TURNED, SIZE = 9, 7, 5, 8
"""Of the heads, the first five are turned: queries and keys."""


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def literal_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight * x / torch.sqrt((x**2).mean(-1, keepdim=True) + epsilon)


def literal_rotation(x: Tensor, angles: Tensor, turned: int) -> Tensor:
    """Each pair (i, i + d / 2) of a head as a complex number, turned by its angle."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    both = torch.cat([pairs.real, pairs.imag], dim=-1)
    return torch.cat([both[:, :turned], x[:, turned:]], dim=1)


def literal_gated_silu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up


def angles_of(dtype: torch.dtype) -> Tensor:
    return (random(TOKENS, SIZE // 2, seed=3, scale=2.0)).to(dtype)


def cosine_and_sine(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`[T, d]`, their halves alike, as the models' own modules give them."""
    angles = torch.cat([angles_of(torch.float64)] * 2, dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(x: Tensor) -> Tensor:
    # In place, so on a copy; the copy is what attention's projections are in a layer.
    return rotate_(x * 1, *cosine_and_sine(x.dtype), num_heads=TURNED)


WEIGHT = 1 + random(16, seed=4, scale=0.3)
STEPS: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rms_norm": (
        random(TOKENS, 16, scale=3.0),
        lambda x: rms_norm(x, WEIGHT.to(x.dtype), 1e-5),
        lambda x: literal_norm(x, WEIGHT.to(x.dtype), 1e-5),
    ),
    "rms_norm of heads": (
        random(TOKENS, 3, 16, scale=0.2),
        lambda x: rms_norm(x, WEIGHT.to(x.dtype), 1e-2),
        lambda x: literal_norm(x, WEIGHT.to(x.dtype), 1e-2),
    ),
    "rotate_": (
        random(TOKENS, HEADS, SIZE),
        rotated,
        lambda x: literal_rotation(x, angles_of(x.dtype), TURNED),
    ),
    "gated_silu": (random(TOKENS, 2 * 10, scale=3.0), gated_silu, literal_gated_silu),
}


def both_directions(step: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = step(x)
    weights = random(*out.shape, seed=6).to(out.dtype)
    return out.detach(), torch.autograd.grad((out * weights).sum(), x)[0]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_and_its_gradient_are_the_papers_formula(name: str) -> None:
    x, step, literal = STEPS[name]
    expected = both_directions(literal, x.double())
    for found, wanted in zip(both_directions(step, x), expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["rotate_", "gated_silu"])
def test_the_gradient_is_the_slope_between_neighbouring_inputs(name: str) -> None:
    x, step, _ = STEPS[name]
    assert torch.autograd.gradcheck(step, x.double().requires_grad_())


@pytest.mark.parametrize("name", STEPS)
def test_without_gradients_the_result_is_the_same_bit_for_bit(name: str) -> None:
    x, step, _ = STEPS[name]
    for dtype in (torch.float32, torch.bfloat16):
        expected = step(x.to(dtype).requires_grad_())
        assert expected.requires_grad and expected.dtype == dtype
        with torch.no_grad():
            assert torch.equal(step(x.to(dtype)), expected)
        assert torch.equal(step(x.to(dtype)), expected)  # and of an input that needs none


@pytest.mark.parametrize("name", STEPS)
def test_in_bfloat16_it_is_no_further_from_the_formula_than_plain_pytorch(name: str) -> None:
    x, step, literal = STEPS[name]
    if name == "rotate_":
        cosine, sine = cosine_and_sine(torch.bfloat16)

        def plain(x: Tensor) -> Tensor:  # as transformers writes it
            first, second = x.chunk(2, dim=-1)
            both = x * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]
            return torch.cat([both[:, :TURNED], x[:, TURNED:]], dim=1)

        def exact(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            both = x * cosine[:, None].double() + torch.cat([-second, first], dim=-1) * sine[:, None].double()
            return torch.cat([both[:, :TURNED], x[:, TURNED:]], dim=1)
    else:
        plain = exact = literal
    rounded = x.bfloat16()
    if "norm" in name:
        weight, epsilon = WEIGHT.bfloat16(), 1e-2 if "heads" in name else 1e-5

        def plain(x: Tensor) -> Tensor:  # as transformers writes it
            wide = x.float()
            return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)

        def exact(x: Tensor) -> Tensor:
            return literal_norm(x, weight.double(), epsilon)

    true = both_directions(exact, rounded.double())
    for found, other, wanted in zip(both_directions(step, rounded), both_directions(plain, rounded), true, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - wanted).norm() <= 1.05 * (other - wanted).norm()


def test_the_norm_of_zeros_and_its_gradient_are_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        out, gradient = both_directions(
            lambda x: rms_norm(x, WEIGHT.to(x.dtype), 1e-6), torch.zeros(3, 16, dtype=dtype)
        )
        assert not out.any() and gradient.isfinite().all()


def test_the_silu_of_large_numbers_and_its_gradient_are_finite() -> None:
    gate_up = torch.tensor([[-1e4, 1e4, -90.0, 90.0, 2.0, 3.0, 4.0, 5.0]])
    out, gradient = both_directions(gated_silu, gate_up)
    assert torch.equal(out, torch.tensor([[0.0, 3e4, 0.0, 450.0]])) and gradient.isfinite().all()


def test_rotation_happens_in_place_and_leaves_the_values_alone() -> None:
    x = random(TOKENS, HEADS, SIZE)
    given = x.clone()
    out = rotate_(given, *cosine_and_sine(torch.float32), num_heads=TURNED)
    assert out.data_ptr() == given.data_ptr()
    assert torch.equal(out[:, TURNED:], x[:, TURNED:]) and not torch.equal(out[:, :TURNED], x[:, :TURNED])


def test_rotation_of_a_view_sends_its_gradient_to_what_it_is_a_view_of() -> None:
    # In a layer, queries, keys and values are a view of what the projection gave.
    flat = random(TOKENS, HEADS * SIZE).requires_grad_()
    weights = random(TOKENS, HEADS, SIZE, seed=8)
    view = (flat * 2).unflatten(-1, (HEADS, SIZE))
    out = rotate_(view, *cosine_and_sine(torch.float32), num_heads=TURNED)
    (found,) = torch.autograd.grad((out * weights).sum(), flat)
    literal = literal_rotation((flat * 2).unflatten(-1, (HEADS, SIZE)), angles_of(torch.float32), TURNED)
    (expected,) = torch.autograd.grad((literal * weights).sum(), flat)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def test_the_gradient_that_rotation_is_given_may_be_read_twice() -> None:
    x = random(TOKENS, HEADS, SIZE).requires_grad_()
    out = rotated(x)
    first = torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out.square().sum(), x)[0], first)
