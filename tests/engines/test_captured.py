"""Decoding with buffers that never move: the states of the ordinary decoding, whoever comes and goes.

Recording a CUDA graph needs a GPU; what is recorded runs here step by step, and a stand-in for the graph replays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from onebase.engines import captured, packed
from onebase.engines.captured import RUNS_BEFORE_RECORDING, CapturedDecoding
from onebase.engines.decoder import Decoder
from onebase.engines.decoding import PackedDecoding
from onebase.models.base import OneBase
from onebase.sampling import running
from onebase.sampling.local import generate
from onebase.sampling.running import RunningBatch
from onebase.sampling.sampler import Sample, Sampling
from onebase.seeds import sample_seeds
from tests.tiny_models import EOS, add_adapter_role, random_ids, tiny_base

EXACT = 1e-5
PROMPTS = [random_ids(n, seed=n) for n in (9, 4, 30, 7, 12)]


def base_of(architecture: str = "llama") -> OneBase:
    base = tiny_base(architecture)
    add_adapter_role(base, "policy", seed=1)
    return base


def both(base: OneBase, *, max_slots: int = 40) -> tuple[PackedDecoding, CapturedDecoding]:
    with base.role("policy"):
        decoder = Decoder(base.model)
        layers = decoder.layers()
    return (
        PackedDecoding(decoder, layers, max_slots=max_slots),
        CapturedDecoding(decoder, layers, max_slots=max_slots, max_length=60),
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "qwen2"])
@torch.no_grad()
def test_rows_come_and_go_and_every_state_is_that_of_the_ordinary_decoding(architecture: str) -> None:
    expected, found = both(base_of(architecture))
    generator = torch.Generator().manual_seed(0)

    def same(ask: Any) -> None:
        torch.testing.assert_close(ask(found), ask(expected), rtol=0, atol=EXACT)

    def steps(count: int) -> None:
        for _ in range(count):
            ids = torch.randint(3, 259, (len(found.cache.counts),), generator=generator)
            same(lambda decoding, ids=ids: decoding.step(ids))

    same(lambda decoding: decoding.prefill(PROMPTS[:3], 3))
    steps(3)
    for decoding in (expected, found):
        decoding.keep([0, 2, 5, 8])
    steps(2)
    same(lambda decoding: decoding.prefill(PROMPTS[3:], 2))
    steps(4)
    for decoding in (expected, found):
        decoding.keep([7])
    steps(2)
    assert found.cache.counts == [len(PROMPTS[4]) + 6]


def test_shapes_are_rounded_up_so_that_few_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, decoding = both(base_of())
    sizes: list[tuple[int, int]] = []
    run = decoding._run
    monkeypatch.setattr(decoding, "_run", lambda *size: sizes.append(size) or run(*size))
    with torch.no_grad():
        decoding.prefill(PROMPTS[:3], 7)
        for kept in (21, 20, 17, 16, 9, 3, 1):
            decoding.keep(range(kept))
            decoding.step(torch.full((kept,), 5))
    assert sizes == [(32, 128)] * 3 + [(16, 128)] * 2 + [(8, 128)] * 2


class _Graph:
    """Runs again what a CUDA graph would have recorded, into the same memory."""

    recorded = 0
    replayed = 0

    def replay(self) -> None:
        type(self).replayed += 1
        self.result.copy_(self.run())


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[_Graph]:
    class Graph(_Graph):
        pass

    def record(self: CapturedDecoding, size: tuple[int, int]) -> None:
        graph: Any = Graph()
        graph.run = lambda: self._run(*size)
        graph.result = graph.run()
        Graph.recorded += 1
        self._graphs[size] = graph, graph.result

    monkeypatch.setattr(CapturedDecoding, "_record", record)
    monkeypatch.setattr(packed, "PackedDecoding", recording)
    return Graph


def recording(*args: Any, **options: Any) -> CapturedDecoding:
    decoding = CapturedDecoding(*args, max_length=60, **options)
    decoding._records = True
    return decoding


SAMPLING = Sampling(max_new_tokens=20, temperature=1.0, stop_ids=(EOS, *range(40, 50)))


def draw(base: OneBase, **options: Any) -> list[Sample]:
    seeds = sample_seeds(0, num_prompts=len(PROMPTS), samples_per_prompt=4, stream="test")
    return generate(base, PROMPTS, role="policy", sampling=SAMPLING, seeds=seeds, samples_per_prompt=4, **options)


@pytest.mark.parametrize("max_rows", [None, 8])
@pytest.mark.parametrize("at_once", [1, 3, 8, 100])
def test_samples_drawn_several_tokens_at_a_time_from_graphs_are_the_same(
    at_once: int, max_rows: int | None, graphs: type[_Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of()
    with monkeypatch.context() as patch:
        patch.setattr(packed, "PackedDecoding", PackedDecoding)
        expected = draw(base, max_rows=max_rows)
    assert {sample.ended for sample in expected} == {False, True}
    monkeypatch.setattr(running, "STEPS_AT_ONCE", {"cpu": at_once})
    found = draw(base, max_rows=max_rows)
    assert [(s.ids, s.ended, s.prompt) for s in found] == [(s.ids, s.ended, s.prompt) for s in expected]
    for sample, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(sample.logprobs), torch.tensor(other.logprobs), rtol=0, atol=1e-4)
    assert graphs.recorded >= 1 and graphs.replayed > graphs.recorded


@torch.no_grad()
def test_a_state_outlives_the_next_replay(graphs: type[_Graph]) -> None:
    _, decoding = both(base_of())
    decoding._records = True
    decoding.prefill(PROMPTS[:2], 4)
    ids = torch.full((8,), 9)
    states = [decoding.step(ids + step) for step in range(6)]
    assert graphs.recorded == 1 and graphs.replayed == 4
    assert len({float(state.sum()) for state in states}) == 6


def test_the_host_looks_at_several_tokens_at_once_unless_each_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    note = RunningBatch._note

    def noted(self: RunningBatch, rows: Any, drawn: Any) -> None:
        looks.append(len(drawn.ids))
        note(self, rows, drawn)

    monkeypatch.setattr(RunningBatch, "_note", noted)
    monkeypatch.setattr(running, "STEPS_AT_ONCE", {"cpu": 8})
    base = base_of()
    sampling = Sampling(max_new_tokens=20, temperature=1.0, stop_ids=())
    generate(base, PROMPTS[:1], role="policy", sampling=sampling, seeds=[1])
    assert looks == [1, 8, 8, 3]
    looks.clear()
    generate(base, PROMPTS[:1], role="policy", sampling=sampling, seeds=[1], on_token=lambda sample: None)
    assert looks == [1] * 20


def test_a_device_that_cannot_record_a_step_decodes_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def fails(graph: object, **pool: object) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    streams: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the usual one")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(CapturedDecoding, "can_record", True)
    monkeypatch.setattr(torch.cuda, "graph", fails)
    base = base_of()
    expected = draw(base)
    monkeypatch.setattr(packed, "PackedDecoding", recording)
    found = draw(base)
    assert [s.ids for s in found] == [s.ids for s in expected]
    assert [s.ids for s in draw(base)] == [s.ids for s in expected]
    # Said once in a process, and not tried again.
    assert capsys.readouterr().err.count("could not be recorded as a CUDA graph (operation not permitted") == 1
    assert streams == ["the usual one"] and not CapturedDecoding.can_record
    assert RUNS_BEFORE_RECORDING < SAMPLING.max_new_tokens and captured.COLUMNS == 128
