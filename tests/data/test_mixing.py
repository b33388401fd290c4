"""Mixtures of sources: shares, order, replay and what was drawn from where."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from onebase.data.batches import minibatch_indices
from onebase.data.mixing import Order, Source, read_sources
from onebase.data.prepare import read_split
from onebase.errors import DataError


def source(name: str = "a", *, weight: float | None = None, **more: object) -> Source:
    return Source((name,), weight, **more)  # type: ignore[arg-type]


def drawn(order: Order, counts: list[int], *, steps: int, size: int, first: int = 0) -> Counter[int]:
    """How many examples of each source so many minibatches hold."""
    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    examples = [i for step in range(first, first + steps) for i in order.minibatch(step, size)]
    return Counter(next(n for n, end in enumerate(ends) if i < end) for i in examples)


def epoch(order: Order, number: int, size: int = 7) -> list[int]:
    steps = -(-order.size // size)
    return [i for step in range(number * steps, (number + 1) * steps) for i in order.minibatch(step, size)]


@pytest.mark.parametrize("sources", [[source()], [source(), source("b")], [source("b", limit=3), source()]])
def test_without_weights_the_order_is_that_of_plain_minibatches(sources: list[Source]) -> None:
    counts = [10, 13][: len(sources)]
    order = Order(sources, counts, seed=3)
    assert order.size == sum(counts) and not order.mixes
    for step in range(9):
        assert order.minibatch(step, 4) == minibatch_indices(step, num_examples=sum(counts), size=4, seed=3)


def test_weights_are_kept_and_an_epoch_ends_with_the_first_source_read_once() -> None:
    counts = [1000, 70]
    order = Order([source("general", weight=0.3), source("domain", weight=0.7)], counts, seed=0)
    assert order.size == 100 and drawn(order, counts, steps=100, size=1) == {0: 30, 1: 70}
    first, second = epoch(order, 0), epoch(order, 1)
    assert len(set(first)) == 100  # nothing twice in an epoch
    assert sorted(i for i in first if i >= 1000) == list(range(1000, 1070))
    assert not {i for i in first if i < 1000} & {i for i in second if i < 1000}  # goes on where it stopped
    assert [i for i in first if i >= 1000] != [i for i in second if i >= 1000]


def test_which_rows_of_a_larger_source_come_depends_on_the_seed_and_on_how_often_it_was_read() -> None:
    sources, counts = [source("general", weight=0.6), source("domain", weight=0.4)], [100, 40]
    drawn_in = {(seed, n): {i for i in epoch(Order(sources, counts, seed=seed), n) if i < 100}
                for seed in (0, 1) for n in (0, 5)}  # fmt: skip
    assert {len(rows) for rows in drawn_in.values()} == {60}
    assert drawn_in[0, 0] != drawn_in[1, 0]
    assert drawn_in[0, 0] != drawn_in[0, 5]  # both begin a new reading of the source


def test_rounding_costs_the_source_that_is_read_once_no_row() -> None:
    for count in range(1, 200):
        for weight in (0.1, 0.15, 0.3, 0.35, 0.55, 0.7):
            order = Order([source("a", weight=weight), source("b", weight=1 - weight)], [count, 10**6], seed=0)
            assert drawn_of(order)[0] == count


def drawn_of(order: Order) -> list[object]:
    return [part["drawn"] for part in order.drawn(order.size, 1)]


def test_weights_count_whatever_their_scale() -> None:
    orders = [Order([source("a", weight=w), source("b", weight=3 * w)], [50, 60], seed=1) for w in (0.25, 1, 40)]
    assert {tuple(epoch(order, 2)) for order in orders} == {tuple(epoch(orders[0], 2))}
    assert drawn(orders[0], [50, 60], steps=80, size=1) == {0: 20, 1: 60}


@pytest.mark.parametrize(("share", "replayed"), [(0.1, 10), (0.3, 39), (0.5, 90)])
def test_replay_is_a_share_of_all_examples(share: float, replayed: int) -> None:
    sources = [source("domain"), source("general", replayed=True, share=share)]
    order = Order(sources, [90, 20], seed=0)
    found = drawn(order, [90, 20], steps=order.size, size=1)
    assert found == {0: 90, 1: replayed}
    assert abs(replayed / order.size - share) < 0.01
    often = Counter(i for i in epoch(order, 0) if i >= 90)
    assert max(often.values()) - min([*often.values(), *[0] * (20 - len(often))]) <= 1  # evenly, however often


def test_an_example_depends_on_the_seed_and_its_place_alone() -> None:
    sources = [source("a", weight=1.0), source("b", weight=2.0), source("c", replayed=True, share=0.2)]
    counts = [33, 44, 5]
    steps = range(60)
    straight = [Order(sources, counts, seed=9).minibatch(step, 8) for step in steps]
    resumed = {step: Order(sources, counts, seed=9).minibatch(step, 8) for step in (59, 3, 41, 0)}
    assert all(straight[step] == found for step, found in resumed.items())
    assert straight != [Order(sources, counts, seed=8).minibatch(step, 8) for step in steps]


def test_what_was_drawn_is_told_by_source() -> None:
    sources = [source("a", weight=1.0), source("b", weight=1.0), source("c", replayed=True, share=0.5)]
    order = Order(sources, [10, 30, 4], seed=0)
    assert order.drawn(2 * 8, 5) == [
        {"source": "a", "rows": 10, "drawn": 20},
        {"source": "b", "rows": 30, "drawn": 20},
        {"source": "c", "rows": 4, "drawn": 40},
    ]
    assert order.lines() == [
        "source      a: 10 of 10 examples (25.0% of an epoch)",
        "source      b: 10 of 30 examples (25.0% of an epoch)",
        "source      c: 20 of 4 examples, each 5 times (50.0% of an epoch, replayed)",
    ]
    assert Order([source()], [4], seed=0).lines() == []


@pytest.mark.parametrize("sources", [[source(weight=1.0)], [source("b"), source(replayed=True, share=0.1)]])
def test_a_source_with_a_share_needs_rows(sources: list[Source]) -> None:
    with pytest.raises(DataError, match="a: no rows are left of this source, which has a share"):
        Order(sources, [0] if len(sources) == 1 else [3, 0], seed=0)


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answered(name: str, count: int) -> list[dict[str, object]]:
    return [{"prompt": f"{name} {i}", "completion": "x"} for i in range(count)]


def test_rows_know_their_source_and_limits_are_kept(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / f"{name}.jsonl", answered(name, 6)) for name in "abc")
    sources = [source(a), source(b, limit=2), source(c, replayed=True, share=0.5, limit=5)]
    rows = read_sources(sources)
    assert Counter(row.source for row in rows) == {0: 6, 1: 2, 2: 5}
    assert [row.messages[0].content[0] for row in rows] == ["a"] * 6 + ["b"] * 2 + ["c"] * 5
    assert Counter(row.source for row in read_sources(sources, limit=7)) == {0: 6, 1: 1, 2: 5}
    assert Counter(row.source for row in read_sources(sources, limit=6)) == {0: 6, 2: 5}


def test_a_file_may_be_in_one_source_only(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", answered("a", 3))
    with pytest.raises(DataError, match="are the same file"):
        read_sources([source(a), source(str(tmp_path / "." / "a.jsonl"), replayed=True, share=0.1)])


def test_held_out_rows_come_from_what_is_learned_and_their_prompts_are_not_replayed(tmp_path: Path) -> None:
    domain = write(tmp_path / "domain.jsonl", answered("p", 40))
    general = write(tmp_path / "general.jsonl", [*answered("p", 40), *answered("q", 40)])
    sources = [source(domain), source(general, replayed=True, share=0.5)]
    train, held_out, dropped = read_split(sources, [], eval_fraction=0.25, limit=None, seed=0, max_dropped_share=0.05)
    assert len(held_out) == 10 and {row.source for row in held_out} == {0}
    asked = {row.messages for row in held_out}
    assert not asked & {row.messages for row in train}
    assert Counter(row.source for row in train) == {0: 30, 1: 70}
    assert len(dropped["the prompt of a held-out row"]) == 10
