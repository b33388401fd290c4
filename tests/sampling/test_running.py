"""A running batch: whoever joins or leaves, and however its neighbours are drawn, a row's sample is its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onebase.models.base import OneBase
from onebase.sampling.drawing import random_numbers
from onebase.sampling.local import generate
from onebase.sampling.running import Entrant, Row, RunningBatch
from onebase.sampling.sampler import Sample, Sampling
from tests.tiny_models import EOS, add_adapter_role, random_ids, tiny_base

SAMPLINGS = [
    Sampling(12, temperature=0, stop_ids=(EOS,)),
    Sampling(5, temperature=1.0),
    Sampling(20, temperature=0.7, top_k=20, stop_ids=tuple(range(3, 259, 9))),
    Sampling(9, temperature=1.3, top_p=0.8),
]
PROMPTS = [random_ids(length, seed=length) for length in (5, 11, 1, 8)]


def base_of(architecture: str) -> OneBase:
    base = tiny_base(architecture)
    add_adapter_role(base, "policy")
    return base


def entrant(i: int, *, samples: int = 2, tops: int | None = None) -> Entrant:
    seeds = [10 * i + k for k in range(samples)]
    numbers = random_numbers(seeds, SAMPLINGS[i].max_new_tokens)
    return Entrant(PROMPTS[i], [Sample(prompt=i) for _ in seeds], numbers, SAMPLINGS[i], tops)


def alone(base: OneBase, i: int, samples: int = 2) -> list[Sample]:
    seeds = [10 * i + k for k in range(samples)]
    options: dict[str, Any] = {"sampling": SAMPLINGS[i], "seeds": seeds, "samples_per_prompt": samples}
    return generate(base, [PROMPTS[i]], role="policy", **options)


@pytest.mark.parametrize("architecture", ["llama", "llama through transformers", "gpt2", "bloom"])
@pytest.mark.parametrize("at_once", [1, 3])
@torch.no_grad()
def test_rows_that_join_and_leave_at_any_time_draw_what_they_draw_alone(architecture: str, at_once: int) -> None:
    base = base_of(architecture)
    expected = [alone(base, i, samples=1 + i % 3) for i in range(4)]
    entrants = [entrant(i, samples=1 + i % 3) for i in range(4)]
    with base.role("policy"):
        batch = RunningBatch(base, "policy", max_rows=12, max_length=64)
        for i in range(4):
            batch.admit([entrants[i]])
            batch.step(at_once)
        while batch.rows:
            batch.step(at_once)
        # Emptied, it takes more.
        again = entrant(1)
        rows = batch.admit([again])
        while batch.rows:
            assert batch.step(at_once) == rows
    found = [list(entrant.samples) for entrant in entrants]
    assert [[s.ids for s in of_one] for of_one in found] == [[s.ids for s in of_one] for of_one in expected]
    assert [[s.ended for s in of_one] for of_one in found] == [[s.ended for s in of_one] for of_one in expected]
    assert [s.ids for s in again.samples] == [s.ids for s in alone(base, 1)]


@torch.no_grad()
def test_a_dropped_row_draws_no_further_and_the_others_do_not_notice() -> None:
    base = base_of("llama")
    entrants = [entrant(i) for i in (0, 3)]
    with base.role("policy"):
        batch = RunningBatch(base, "policy", max_rows=8, max_length=64)
        rows = batch.admit(entrants)
        batch.step()
        batch.drop(rows[1:2])
        batch.drop(rows[1:2])  # has left already
        drew = batch.step()
        assert [len(row.sample.ids) for row in rows] == [3, 2, 3, 3] and drew == [rows[0], *rows[2:]]
        while batch.rows:
            batch.step()
    for i, one in zip((0, 3), entrants, strict=True):
        expected = alone(base, i)
        assert one.samples[0].ids == expected[0].ids
        assert one.samples[1].ids == expected[1].ids[: 2 if i == 0 else None]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_the_likeliest_tokens_are_those_of_the_model_at_temperature_one(architecture: str) -> None:
    base = base_of(architecture)
    entrants = [entrant(2, tops=3), entrant(1), entrant(3, tops=0)]
    with base.role("policy"):
        batch = RunningBatch(base, "policy", max_rows=8, max_length=64)
        rows: list[Row] = []
        for one in entrants:
            rows += batch.admit([one])
        while batch.rows:
            batch.step(2)
        for row in rows:
            if row.tops is None:
                assert not row.plain_logprobs and not row.likeliest
                continue
            ids = torch.tensor([[*PROMPTS[row.sample.prompt], *row.sample.ids]])
            logits = base.model(input_ids=ids, use_cache=False).logits[0, -1 - len(row.sample.ids) : -1]
            expected = logits.log_softmax(-1)
            chosen = expected.gather(-1, torch.tensor(row.sample.ids)[:, None]).squeeze(-1)
            assert row.plain_logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
            best = expected.topk(3)
            for place, tops in enumerate(row.likeliest):
                assert [token for token, _ in tops] == best.indices[place].tolist()[: row.tops]
                assert [p for _, p in tops] == pytest.approx(best.values[place].tolist()[: row.tops], abs=1e-4)
            assert len(row.likeliest) == len(row.sample.ids)
