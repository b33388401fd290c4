"""Four questions about size and data, each answered by the published laws with the range they span."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onebase.planning.laws import (
    DEFAULT,
    FLOP_PER_PARAMETER_TOKEN,
    KAPLAN,
    RANGE,
    Parametric,
    best_split_with_answers,
    span,
)
from onebase.planning.machines import Machine


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's answer: one figure with its range, and what else there is to say."""

    question: str
    figure: float
    low: float
    high: float
    unit: str
    more: tuple[str, ...] = ()


def data_for(parameters: float) -> Answer:
    """The tokens with which a model of this size is the best use of its compute."""
    middle, low, high = span(lambda law: law.best_tokens(parameters))
    return Answer(
        f"how much data for a model of {count(parameters)} parameters",
        middle,
        low,
        high,
        "tokens",
        (
            f"{middle / parameters:.0f} tokens a parameter, {flop(6 * parameters * middle)} of training",
            f"Kaplan 2020 would stop at {count(KAPLAN.best_tokens(parameters))}: its models were trained too short",
        ),
    )


def size_for(tokens: float) -> Answer:
    """The parameters with which this much data is the best use of the compute."""
    middle, low, high = span(lambda law: law.best_parameters(tokens))
    return Answer(
        f"how large a model for {count(tokens)} tokens",
        middle,
        low,
        high,
        "parameters",
        (f"{flop(6 * middle * tokens)} of training",),
    )


def train_in(days: float, machine: Machine, number: int, utilisation: float) -> Answer:
    """The best model for some days on some machines."""
    budget = days * 86400 * number * machine.teraflops * 1e12 * utilisation
    middle, low, high = span(lambda law: law.best_split(budget)[0])
    _, tokens = DEFAULT.best_split(budget)
    least, most = (end(law.best_split(budget)[1] for law in RANGE) for end in (min, max))
    return Answer(
        f"what to train in {days:g} days on {number} {machine.name}",
        middle,
        low,
        high,
        "parameters",
        (
            f"on {count(tokens)} tokens [{count(least)}, {count(most)}]",
            f"{flop(budget)}: {utilisation:.0%} of {number} x {machine.teraflops:g} TFLOP/s",
            f"{days * 24 * number * machine.watts / 1000:,.0f} kWh, if every device draws its {machine.watts:g} W",
        ),
    )


def grow(small: float, large: float) -> Answer:
    """What the larger of two models brings, each with the data that suits it; in nats a token."""

    def brings(law: Parametric) -> float:
        return law.loss(small, law.best_tokens(small)) - law.loss(large, law.best_tokens(large))

    found = [brings(law) for law in RANGE if isinstance(law, Parametric)]
    middle, tokens = brings(DEFAULT), DEFAULT.best_tokens(small)
    same = DEFAULT.loss(small, tokens) - DEFAULT.loss(large, tokens)
    left = DEFAULT.loss(large, DEFAULT.best_tokens(large)) - DEFAULT.e
    times = large * DEFAULT.best_tokens(large) / (small * tokens)
    return Answer(
        f"what going from {count(small)} to {count(large)} parameters brings",
        middle,
        min(found),
        max(found),
        "nats a token less",
        (
            f"perplexity times {math.exp(-middle):.3f}, for {times:,.0f} times the compute",
            f"{same:.3f} nats of it with no more data than the smaller one had ({count(tokens)} tokens)",
            f"{left:.3f} nats above the law's limit remain",
        ),
    )


def with_answers(parameters: float, tokens_answered: float, law: Parametric = DEFAULT) -> Answer:
    """The model as good as one of this size at the least compute over training and use together."""
    tokens = law.best_tokens(parameters)
    smaller, longer = best_split_with_answers(law, law.loss(parameters, tokens), tokens_answered)

    def life(n: float, d: float) -> float:
        return n * (FLOP_PER_PARAMETER_TOKEN * d + 2 * tokens_answered)

    saved = 1 - life(smaller, longer) / life(parameters, tokens)
    return Answer(
        f"as good as {count(parameters)} parameters, and to answer with {count(tokens_answered)} tokens in its life",
        smaller,
        smaller,
        smaller,
        "parameters",
        (f"on {count(longer)} tokens; saves {saved:.0%} of the compute of training and use (Sardana 2024)",),
    )


def count(number: float) -> str:
    """A number with the letter people use for it: 10 B, 1.4 T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g} {letter}" if number < 1000 * size else f"{number / size:,.0f} {letter}"
    return f"{number:.3g}"


def flop(number: float) -> str:
    """Operations, for people."""
    return f"{number:.2e} FLOP"
