"""No text of a row is lost in silence: it is in the messages, answers or columns, or a line names it as left out.

The files are read here by other means (`json` alone), and every text in them is looked for in what the reader gave.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onebase.data.remarks import remarks
from onebase.errors import DataError
from onebase.reading.formats import iter_rows, read_rows
from onebase.records import Row

ROLES = {"role", "from", "speaker", "type"}
"""Keys whose values say who speaks."""
FOR_VERIFIERS = {"gold", "answer", "label", "tests", "setup", "test_list", "orders"}


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a value with the keys above it; a text that is a JSON list or object is looked into."""
    if isinstance(value, str):
        if value[:1] in ("[", "{"):
            try:
                yield from leaves(json.loads(value), path)
                return
            except ValueError:
                pass
        if value.strip() and not (path and path[-1] in ROLES):
            yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)


def squeezed(text: str) -> str:
    return "".join(text.split())


def said_by(row: Row) -> str:
    """All that a model could learn from the row, without blanks, also as an hh transcript."""
    names = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
    prompt = "".join(f"\n\n{names[message.role]}: {message.content}" for message in row.messages)
    answers = [row.answer(k).text for k in range(len(row.answers))]
    plain = "\n".join([*(message.text for message in row.messages), row.prefix or "", *answers, *row.tools])
    return squeezed("\n".join([plain, *(f"{prompt}\n\nAssistant: {answer}" for answer in row.answers)]))


def lost(raw: dict[str, Any], row: Row, lines: str) -> list[str]:
    """The texts of a raw object that are neither in its row nor named in the lines printed about the file."""
    said = said_by(row)
    kept = squeezed("\n".join(text for key in FOR_VERIFIERS for _, text in leaves(row.columns.get(key))))
    gone = []
    for path, text in leaves(raw):
        inside = json.dumps(text, ensure_ascii=False)[1:-1]
        if squeezed(text) in said or squeezed(inside) in said or squeezed(text) in kept:
            continue
        in_columns = any(key in row.columns and re.search(rf"[:,] {re.escape(key)} \(", lines) for key in path)
        named = any(
            re.search(rf"left out: .*'([^']*[.\]])?{re.escape(key)}'[^']* \(\d+ rows?\)", lines) for key in path
        )
        if not in_columns and not named:
            gone.append(f"{row.place}: {'.'.join(path)}: {text[:60]}")
    return gone


def raw_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A JSON or JSON lines file, read without onebase."""
    packed = path.read_bytes()
    text = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8-sig")
    if ".jsonl" in path.name:
        yield from ((n, json.loads(line)) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
        return
    whole = json.loads(text)
    if isinstance(whole, list):
        yield from enumerate(whole, start=1)
        return
    number = 0
    for article in whole["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                number += 1
                yield number, {"title": article["title"], "context": paragraph["context"], **question}


FILES = [
    "cmrc2018/cmrc2018_trial.json.gz",
    "fastchat/dummy_conversation.json.gz",
    "fine_grained_rlhf/dev_feedback.json.gz",
    "gsm8k/test.jsonl.gz",
    "gsm8k/train.jsonl.gz",
    "hh_rlhf/harmless-base-test.jsonl.gz",
    "llamafactory_demo/dpo_en_demo.json.gz",
    "llamafactory_demo/dpo_zh_demo.json.gz",
    "llamafactory_demo/glaive_toolcall_en_demo.json.gz",
    "llamafactory_demo/identity.json",
    "llamafactory_demo/kto_en_demo.json.gz",
    "mbpp/mbpp.jsonl.gz",
    "oasst1_zh/oaast_rm_zh.json.gz",
    "oasst1_zh/oaast_sft_zh.json.gz",
    "pandalm/testset-v1.json.gz",
    "sentiment/sentence_polarity.jsonl.gz",
    *(f"taskmaster_reward/tm4_reward_0{n}.json.gz" for n in range(7)),
    "taskmaster_sft/tm4_data_07.json.gz",
    "text_zh/song_ci_300.json.gz",
    "text_zh/tang_poems_300.json.gz",
    "xquad/xquad.en.json.gz",
]


@pytest.mark.parametrize("name", FILES)
def test_every_text_of_a_real_file_is_read_or_named(shared: Path, name: str) -> None:
    path = shared / "data" / name
    rows = read_rows(path)
    lines = "\n".join(remarks(rows, []))
    raw = dict(raw_rows(path))
    assert len(raw) == len(rows)
    gone = [text for row in rows for text in lost(raw[int(row.place.rpartition(":")[2])], row, lines)]
    assert gone == []


@pytest.mark.parametrize("name", ["text_en/tinyshakespeare.txt.gz", "text_zh/xiyouji.txt.gz"])
def test_every_word_of_a_real_text_is_read(shared: Path, name: str) -> None:
    path = shared / "data" / name
    read = "".join(squeezed(row.answers[0]) for row in iter_rows(path))
    assert read == squeezed(gzip.decompress(path.read_bytes()).decode("utf-8-sig"))


SHAPES: list[dict[str, Any]] = [
    {"prompt": "T", "completion": "T"},
    {"prompt": "T", "response": "T", "id": "T"},
    {"question": "T", "answer": "T", "meta": {"title": "T", "tags": ["T", "T"]}},
    {"question": "T", "context": "T", "answer": "T"},
    {"input": "T", "output": "T", "system": "T"},
    {"instruction": "T", "input": "T", "output": "T", "history": [["T", "T"]], "system": "T"},
    {"instruction": "T", "output": ["T", "T", "T"]},
    {"instruction": "T", "output": {"chosen": "T", "rejected": "T", "why": "T"}},
    {"messages": [{"role": "user", "content": "T", "name": "T"}, {"role": "assistant", "content": "T"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "T"}]}, {"role": "assistant", "content": "T"}]},
    {"conversations": [{"from": "human", "value": "T"}, {"from": "gpt", "value": "T"}], "source": "T"},
    {"prompt": "T", "chosen": "T", "rejected": "T", "critique": "T"},
    {"chosen": [{"role": "user", "content": "same"}, {"role": "assistant", "content": "T"}],
     "rejected": [{"role": "user", "content": "same"}, {"role": "assistant", "content": "T"}]},
    {"question": "T", "response_j": "T", "response_k": "T", "metadata": ["T"]},
    {"instruction": "T", "response1": "T", "response2": "T", "annotator1": 1, "cmp_key": "T"},
    {"instruction": "T", "completions": [{"response": "T", "overall_score": 3, "critique": "T", "model": "T"},
                                         {"response": "T", "overall_score": 4, "critique": "T", "model": "T"}]},
    {"question": "T", "answers": [{"text": "T", "pm_score": 1, "author": "T"}, {"text": "T", "pm_score": 0}]},
    {"prompt": "T", "responses": ["T", "T"], "scores": [1, 2], "note": "T"},
    {"prompt": "T", "responses": ["T", "T"], "ranks": [[1, 2], [2, 1]]},
    {"data": {"prompt": "T", "items": [{"id": "x", "title": "T", "body": "T"}, {"id": "y", "body": "T"}], "k": "T"},
     "annotations": [{"result": [{"type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}], "note": "T"}]},
    {"fields": {"prompt": "T", "response-1": "T", "response-2": "T"}, "metadata": {"source": "T"}, "responses": {
        "best": [{"value": [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}], "by": "T"}]}},
    {"input": {"messages": [{"role": "user", "content": "T"}], "more": "T"},
     "preferred_output": [{"role": "assistant", "content": "T"}],
     "non_preferred_output": [{"role": "assistant", "content": "T"}]},
    {"question": "T", "A": "T", "B": "T", "C": "T", "answer": "B", "subject": "T"},
    {"question": "T", "choices": {"text": ["T", "T"], "label": ["A", "B"]}, "answerKey": "A"},
    {"context": "T", "question": "T", "answers": {"text": ["T"], "answer_start": [0]}, "title": "T"},
    {"utterances": [{"speaker": "user", "text": "T"}, {"speaker": "assistant", "text": "T", "notes": ["T"]}]},
    {"context": [{"role": "user", "text": "T"}], "generation": {"role": "agent", "api": {"f": {"x": "T"}}},
     "reward": 1.0, "by": "T"},
    {"data": ["T", "T", "T", "T"], "id": "T"},
    {"title": "T", "author": "T", "paragraphs": ["T", "T"], "tags": ["T"]},
    {"text": "T", "url": "https://a.b/c"},
    {"Body": "T", "Question": "T", "Answer": 4, "Type": "T"},
    {"problem": "T", "solution": "T", "level": "T"},
    # What could be read in two ways, or would leave a part of the prompt out, may be refused, but not pass in silence.
    {"prompt": "T", "completion": "T", "response": "T"},
    {"prompt": "T", "completion": "T", "messages": [{"role": "user", "content": "T"}]},
    {"prompt": "T", "question": "T", "completion": "T"},
    {"question": "T", "option1": "T", "option2": "T", "completion": "T"},
    {"question": "T", "passage": "T", "completion": "T"},
    {"question": "T", "response": "T", "answer": "T"},
    {"instruction": "T", "output": "T", "chosen": "T", "rejected": "T"},
    {"text": "T", "summary": "T"},
    {"conversations": [{"from": "human", "value": "T"}], "messages": [{"role": "user", "content": "T"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "T"}]}]},
]  # fmt: skip


def filled(shape: Any, draw: random.Random) -> Any:
    """The shape with a text of its own in place of every T; some have blanks, line ends and quotes in them."""
    if shape == "T":
        words = [f"{draw.choice(['word', '词', 'naïve'])}{draw.randrange(10**9)}" for _ in range(draw.randrange(1, 4))]
        return draw.choice([" ", "\n", '"', ", "]).join(words)
    if isinstance(shape, dict):
        return {key: filled(value, draw) for key, value in shape.items()}
    return [filled(value, draw) for value in shape] if isinstance(shape, list) else shape


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_every_text_of_a_generated_row_is_read_or_named_or_the_row_refused(tmp_path: Path, number: int) -> None:
    draw = random.Random(number)
    raw = [filled(SHAPES[number], draw) for _ in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in raw), encoding="utf-8")
    first_refused = next(n for n, shape in enumerate(SHAPES) if shape.keys() == {"prompt", "completion", "response"})
    try:
        rows = read_rows(path)
    except DataError as error:
        assert number >= first_refused, error
        assert re.match(rf"{re.escape(str(path))}:1: .*'\w+", str(error))
        return
    lines = "\n".join(remarks(rows, []))
    assert [text for row, one in zip(rows, raw, strict=True) for text in lost(one, row, lines)] == []


def test_the_check_itself_finds_a_text_that_is_lost() -> None:
    row = Row((), ("kept",), place="f:1")
    assert lost({"text": "kept", "more": {"deep": ["gone"]}}, row, "") == ["f:1: more.deep: gone"]
