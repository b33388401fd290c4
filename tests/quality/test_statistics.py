"""The figures of a file, on rows whose figures are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onebase.quality.pictures import draw
from onebase.quality.statistics import Statistics, Tokens, kind_of, overlaps, quantiles, statistics
from onebase.records import Message, Row


def row(prompt: str, *answers: str, **more: Any) -> Row:
    return Row((Message("user", prompt),), answers, **more)


def of(*rows: Row, tokens: Tokens | None = None, **values: Any) -> Statistics:
    return statistics("some/file.jsonl", [(own, {"prompt": "?", **values}, tokens) for own in rows])


def test_rows_kinds_turns_and_answers_are_counted() -> None:
    system = Row((Message("system", "Be kind."), Message("user", "Hi")), ("Hello",))
    long = Row(tuple(Message(role, "Hi") for role in ("user", "assistant", "user")), ("Hello",))
    found = of(system, long, row("Q", "a", "b", grades=(1.0, 0.0)), row("Q"))
    assert found.rows == 4 and dict(found.kinds) == {"prompt and answer": 2, "pair": 1, "prompt": 1}
    assert dict(found.turns) == {1: 3, 3: 1} and dict(found.answers) == {1: 2, 2: 1, 0: 1}


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        (Row((), ("text",)), "plain text"),
        (Row((), ("text",), grades=(1.0,)), "labelled text"),
        (row("Q", "a", columns={"label": True}), "prompt, answer and label"),
        (row("Q", "a", "b", "c", grades=(2.0, 1.0, 0.0)), "ranked list"),
    ],
)
def test_kinds_have_names(own: Row, kind: str) -> None:
    assert kind_of(own) == kind


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles(list(range(1, 101))) == {0: 1, 5: 5, 25: 25, 50: 50, 75: 75, 95: 95, 99: 99, 100: 100}
    assert quantiles([7, 9]) == {0: 7, 5: 7, 25: 7, 50: 7, 75: 9, 95: 9, 99: 9, 100: 9}
    assert of(row("123", "12345")).quantiles["answer characters"][50] == 5


def test_tokens_say_how_many_rows_fit() -> None:
    rows = [(row("Q", "a"), {}, Tokens(200, (n,))) for n in (56, 57, 312, 313)]
    found = statistics("f", rows)
    assert found.fits[256] == 0.25 and found.fits[512] == 0.75 and found.fits[1024] == 1
    assert found.quantiles["row tokens"][100] == 513 and not of(row("Q", "a")).fits


def test_duplicates_near_duplicates_and_prompts_in_several_rows_are_counted() -> None:
    text = "The old red house by the river has a small tree and a cat that likes the dog."
    found = of(
        row(text, "yes"), row(text, "yes"), row(text + "!", "yes"), row("Who?", "I"), row("who? ", "I, of course")
    )
    assert found.duplicates == 1 and found.near_duplicates == 1 and len(found.prompts) == 3
    assert found.same_prompt["prompts"] == 2 and found.same_prompt["rows"] == 4
    assert found.same_prompt["similarity"] == pytest.approx((1 + 0) / 2)


def test_length_bias_counts_a_row_once_by_its_best_and_worst_answer() -> None:
    rows = [
        row("Q", "longer", "short", grades=(1.0, 0.0)),
        row("Q", "a", "middle", "the longest", grades=(0.0, 1.0, 2.0)),
        row("Q", "same", "size", grades=(1.0, 0.0)),
        row("Q", "tie", "no bias", grades=(0.0, 0.0)),
    ]
    found = of(*rows)
    assert found.differences == [1, 10, 0] and found.bias is not None
    assert found.bias.rows == 3 and found.bias.longer.mean == pytest.approx(2.5 / 3)
    assert found.bias.characters.mean == pytest.approx(11 / 3) and found.compared == 6 and found.ties == 1


def test_labels_scripts_and_agreement_are_counted() -> None:
    found = of(
        row("你好", "好的", columns={"label": True}),
        row("Hi", "no", columns={"label": False}),
        annotator1=1,
        annotator2=1,
    )
    assert dict(found.labels) == {1.0: 1, 0.0: 1} and dict(found.scripts) == {"Han": 1, "Latin": 1}
    assert found.agreement["pairwise_agreement"].mean == 1


def test_files_share_prompts_whatever_their_case() -> None:
    a, b, c = (statistics(name, [(row(q, "a"), {}, None) for q in qs]) for name, qs in
               {"a": ("Who?", "What?"), "b": ("who? ", "Where?"), "c": ("When?",)}.items())  # fmt: skip
    assert overlaps([a, b, c]) == {("a", "b"): 1, ("a", "c"): 0, ("b", "c"): 0}


def test_a_picture_is_drawn_of_any_kind_of_rows(tmp_path: Path) -> None:
    kinds = {
        "texts": [Row((), ("a text",)), Row((), ("another" * 50,))],
        "prompts": [row("Who?"), row("What?")],
        "lists": [row("Q", "a", "bb", grades=(1.0, 0.0)), row("你好", "a", "b", "c", grades=(2.0, 1.0, 0.0))],
    }
    for name, rows in kinds.items():
        path = draw(of(*rows, tokens=Tokens(3, (2,)) if name == "lists" else None), tmp_path / "plots" / f"{name}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
