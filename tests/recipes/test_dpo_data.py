"""What `dpo` reads: answers cut to the same tokens, answers given twice, lists for kto, and the real files."""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from onebase.config.preferences import DPOConfig
from onebase.data.chat import ChatFormat, chat_format
from onebase.errors import DataError
from onebase.models.loading import load_tokenizer
from onebase.recipes import dpo
from onebase.records import Example
from tests.recipes.conftest import Options, common, load, write_rows

Capture = pytest.CaptureFixture[str]


def read(base: Path, data: Path, more: Options) -> tuple[list[Example], list[Example]]:
    options = {"data.eval_fraction": 0, **more}
    chat = chat_format(load_tokenizer(str(base)), "hh")
    return dpo.read_examples(load(DPOConfig, common(base, data.parent / "run", data), options), chat, 96)


def texts(base: Path, example: Example) -> list[str]:
    chat = chat_format(load_tokenizer(str(base)), "hh")
    return [chat.decode(ids).strip() for ids in example.completions]


def ranked(prompt: str, *answers: str, **more: Any) -> dict[str, Any]:
    return {"instruction": prompt, "output": answers, **more}


# ------------------------------------------------------------------------------------------------- equal answers


def test_answers_cut_to_the_same_tokens_are_left_out_up_to_a_share_of_each_side(
    base: Path, tmp_path: Path, capsys: Capture
) -> None:
    same = {"prompt": "Which?", "chosen": "The cat is good.", "rejected": "The cat is bad."}
    good = [{"prompt": f"Number {number}?", "chosen": "good", "rejected": "bad"} for number in range(8)]
    data = write_rows(tmp_path / "pairs.jsonl", [same, *good])
    held = write_rows(tmp_path / "held.jsonl", [*good[:4], same])
    cut: Options = {"data.max_completion_tokens": 2, "data.eval": [str(held)]}
    sides = read(base, data, cut | {"data.max_dropped_share": 0.25})
    assert [len(side) for side in sides] == [8, 4]
    said = capsys.readouterr().err
    for file, place in ((data, 1), (held, 5)):
        assert f"left out: 1 with answers cut to the same tokens ({file}:{place})" in said
    for loss in ("sigmoid", "kto", "plackett_luce"):
        # 1 of 9 would do; 1 of the 5 held out is too many.
        with pytest.raises(DataError) as caught:
            read(base, data, cut | {"data.max_dropped_share": 0.15, "loss": loss})
        assert str(caught.value) == (
            "the answers of 1 of 5 rows were cut to the same tokens, more than the allowed share of 0.15 "
            f"(first {held}:5)"
        )
    assert [len(side) for side in read(base, data, {"data.eval": [str(held)]})] == [9, 5]


@pytest.mark.parametrize("loss", ["sigmoid", "plackett_luce", "rrhf", "simpo"])
def test_an_answer_given_twice_is_compared_once_by_its_better_grade(
    loss: str, base: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = write_rows(
        tmp_path / "lists.jsonl",
        [
            ranked("Which?", "good", "bad", "good"),
            ranked("Which one?", "The cat is good.", "The cat is bad.", "big", grades=[0, 2, 1]),
            ranked("Who?", "good", "bad"),
        ],
    )
    examples, _ = read(base, data, {"loss": loss, "data.max_completion_tokens": 3})
    assert [texts(base, example) for example in examples] == [["good", "bad"], ["The cat", "big"], ["good", "bad"]]
    assert [list(example.grades or ()) for example in examples] == [[2.0, 1.0], [2.0, 1.0], [1.0, 0.0]]
    message = f"left out: 2 with the tokens of a better answer to the same prompt ({data}:1, {data}:2)"
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- kto


def test_kto_takes_the_best_and_the_worst_of_a_list(base: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_rows(
        tmp_path / "lists.jsonl",
        [
            ranked("Which?", "fine", "good", "bad", "big", grades=[1, 2, -1, 0], source="x"),
            ranked("Who?", "good", "bad", "good"),  # the same answer is not good and bad
            ranked("Why?", "good", "bad", grades=[1, 1]),
        ],
    )
    examples, _ = read(base, data, {"loss": "kto"})
    assert [texts(base, example) for example in examples] == [["good"], ["bad"], ["good"], ["bad"]]
    assert [example.row and example.row.columns["label"] for example in examples] == [True, False, True, False]
    assert all(example.grades is None and example.row for example in examples)
    assert examples[0].row and examples[0].row.answers == ("good",) and examples[0].row.columns["source"] == "x"
    said = capsys.readouterr().err
    assert f"1 with the tokens of a better answer to the same prompt ({data}:2); 1 with" in said


def test_kto_trains_on_lists(base: Path, tmp_path: Path) -> None:
    rows = [ranked(f"Is {number} good?", "good", "fine", "bad") for number in range(24)]
    data = write_rows(tmp_path / "lists.jsonl", rows)
    more: Options = {"loss": "kto", "optimizer.learning_rate": 5e-3, "max_steps": 12}
    assert dpo.run(load(DPOConfig, common(base, tmp_path / "run", data), more))["eval_accuracy"] > 0.8


@pytest.mark.parametrize("loss", ["kto", "sigmoid", "plackett_luce", "nll"])
def test_ties_are_left_out_as_no_loss_learns_from_them(loss: str, base: Path, tmp_path: Path, capsys: Capture) -> None:
    tied = [ranked("Which?", "good", "bad", grades=[1, 1]), ranked("Who?", "a", "b", "c", grades=[0, 0, 0])]
    data = write_rows(tmp_path / "lists.jsonl", [*tied, ranked("Why?", "good", "fine", "bad", grades=[1, 1, 0])])
    examples, _ = read(base, data, {"loss": loss})
    assert [texts(base, example) for example in examples] == (
        [["good"], ["bad"]] if loss == "kto" else [["good", "fine", "bad"]]
    )
    assert f"left out: 2 with answers that are all tied ({data}:1, {data}:2)" in capsys.readouterr().err
    write_rows(data, tied)
    with pytest.raises(DataError, match="no rows are left to train on"):
        read(base, data, {"loss": loss})


@pytest.mark.parametrize("label", [None, "absent"])
def test_kto_needs_a_label_or_a_comparison(label: str | None, base: Path, tmp_path: Path) -> None:
    row = {"prompt": "Which?", "completion": "good"} | ({"label": None} if label is None else {})
    data = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError, match=r"a.jsonl:1: kto learns from one answer with 'label' true or false, or from"):
        read(base, data, {"loss": "kto"})


@pytest.mark.parametrize("label", [True, False])
def test_kto_needs_good_answers_and_bad_ones(label: bool, base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Which {n}?", "completion": "good", "label": label} for n in range(6)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=rf"all \d have the label {label}; add rows with 'label' {not label}".lower()):
        read(base, data, {"loss": "kto"})


# ------------------------------------------------------------------------------------------------- real files


@pytest.fixture
def minimind(shared: Path, tmp_path: Path) -> ChatFormat:
    files, folder = shared / "data" / "tokenizers" / "minimind", tmp_path / "minimind"
    folder.mkdir()
    shutil.copy(files / "tokenizer_config.json", folder)
    (folder / "tokenizer.json").write_bytes(gzip.decompress((files / "tokenizer.json.gz").read_bytes()))
    return chat_format(AutoTokenizer.from_pretrained(folder))


REAL = [
    # file, loss, examples, how many of them have how many completions
    ("hh_rlhf/harmless-base-test.jsonl.gz", "sigmoid", 2308, {2: 2308}),
    ("llamafactory_demo/dpo_en_demo.json.gz", "sigmoid", 300, {2: 300}),
    ("llamafactory_demo/dpo_zh_demo.json.gz", "ipo", 300, {2: 300}),
    ("llamafactory_demo/kto_en_demo.json.gz", "kto", 300, {1: 300}),
    ("oasst1_zh/oaast_rm_zh.json.gz", "plackett_luce", 772, {2: 433, 3: 261, 4: 64, 5: 11, 6: 1, 8: 1, 10: 1}),
    ("oasst1_zh/oaast_rm_zh.json.gz", "kto", 1544, {1: 1544}),
    ("fine_grained_rlhf/dev_feedback.json.gz", "sigmoid", 488, {4: 488}),
    ("fine_grained_rlhf/dev_feedback.json.gz", "kto", 976, {1: 976}),
]


@pytest.mark.parametrize(("name", "loss", "count", "sizes"), REAL)
def test_real_files_become_examples(
    name: str,
    loss: str,
    count: int,
    sizes: dict[int, int],
    shared: Path,
    minimind: ChatFormat,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    file = shared / "data" / name
    config = load(DPOConfig, common(tmp_path, tmp_path / "run", file), {"loss": loss, "model.chat_template": None})
    train, held_out = dpo.read_examples(config, minimind, 8192)
    examples = [*train, *held_out]
    assert len(examples) == count and abs(len(held_out) - 0.2 * count) < 0.05 * count
    assert Counter(len(example.completions) for example in examples) == sizes
    assert all(len({tuple(ids) for ids in example.completions}) == len(example.completions) for example in examples)
    prompts = [{tuple(example.prompt_ids) for example in side} for side in (train, held_out)]
    assert not prompts[0] & prompts[1]
    if loss == "kto":
        labels = Counter(example.row.columns["label"] for example in examples if example.row)
        assert labels == {True: count // 2, False: count // 2}
    else:
        assert all(len(example.grades or ()) == len(example.completions) for example in examples)
    said = capsys.readouterr().err
    if name.startswith("oasst"):
        # Of the 6 lists with an answer given twice, 3 are pairs.
        assert "3 with equal answers (" in said
    if name.startswith("fine_grained"):
        assert "with answers that are all tied (" in said
