"""Best of K: what is written, by which score, and that sft and dpo learn from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from onebase.cli.main import main
from onebase.config.language import SFTConfig
from onebase.config.preferences import DPOConfig
from onebase.config.rollouts import BestOfConfig
from onebase.data.chat import chat_format
from onebase.errors import ConfigError, DataError, PromptTooLongError
from onebase.reading.formats import read_rows
from onebase.recipes import best_of, dpo, sft
from onebase.records import Message, Prompt, Row
from onebase.rollouts import sampled_rows
from onebase.sampling import local
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sample
from tests.data.test_chat import byte_level
from tests.data.test_tools import ASKED, CALL, TOOLS
from tests.recipes.conftest import Options, common, load, words, write_rows


def few_letters(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    assert len(columns["gold"]) == len(prompts)
    return [-float(len(text)) if text.strip() else -100.0 for text in completions]


def best_of_config(base: Path, run: Path, data: Path, more: Options) -> BestOfConfig:
    options = {
        "output_dir": str(run),
        "model.model_name_or_path": str(base),
        "model.dtype": "float32",
        "model.chat_template": "hh",
        "data.train": str(data),
        "reward.callable": "tests.recipes.test_best_of:few_letters",
        "generation.max_new_tokens": 6,
        "generation.samples_per_prompt": 5,
    }
    return load(BestOfConfig, options, more)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "asked.jsonl", [{"prompt": f"Is {n} good?", "gold": str(n)} for n in range(40)])


def test_the_best_and_the_worst_by_score_are_written(base: Path, asked: Path, tmp_path: Path) -> None:
    summary = best_of.run(best_of_config(base, tmp_path / "run", asked, {}))
    best = [json.loads(line) for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in best] == [f"Is {n} good?" for n in range(40)]
    assert all(row["score"] == max(row["scores"]) and len(row["scores"]) == 5 for row in best)
    assert all(row["gold"] == str(n) for n, row in enumerate(best))
    assert all(row["chosen_score"] > row["rejected_score"] for row in pairs) and summary["pairs"] == len(pairs) > 30
    assert summary["rise"][1] > 0
    assert len(read_rows(tmp_path / "run" / "best.jsonl")) == 40
    assert all(row.grades == (1.0, 0.0) for row in read_rows(tmp_path / "run" / "pairs.jsonl"))


def test_no_end_token_is_read_back_where_none_was_sampled(
    base: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Sample] = []
    monkeypatch.setattr(local, "generate", lambda *a, **k: drawn.extend(found := generate(*a, **k)) or found)
    best_of.run(best_of_config(base, tmp_path / "run", asked, {"generation.max_new_tokens": 5}))
    chat = chat_format(AutoTokenizer.from_pretrained(base), "hh")
    assert 0 < sum(sample.ended for sample in drawn) < len(drawn)
    rows = read_rows(tmp_path / "run" / "pairs.jsonl") + read_rows(tmp_path / "run" / "best.jsonl")
    kinds = set()
    for row in rows:
        first = 5 * int(row.columns["gold"])
        for ids, answer in zip(chat.encode_example(row).completions, row.answers, strict=True):
            own = {s.ended for s in drawn[first : first + 5] if chat.decode(s.ids).strip() == answer.strip()}
            assert (ids[-1] == chat.end_token_id) in own
            kinds |= own
    assert kinds == {True, False}


SAMPLED = [
    " The cat is good.",
    "The cat",
    " a big",
    "\n\nNo.",
    " two\n",
    " blank ",
    "  ",
    " like the",
    "\n",
    " cat.\n\nHuman: Is",
]


@pytest.mark.parametrize("template", ["hh", "plain", "chatml"])
@pytest.mark.parametrize("prefix", [None, "I like"])
def test_what_is_written_is_read_back_as_the_sampled_tokens(
    base: Path, tmp_path: Path, template: str, prefix: str | None
) -> None:
    chat = chat_format(AutoTokenizer.from_pretrained(base), template)
    question = Row((Message("user", "Is the cat good?"),), prefix=prefix, place="f:1")
    prompt = Prompt(chat.encode_prompt(question.messages, prefix=prefix), question)
    before = chat.render_prompt(question.messages) + (prefix or "")
    for text in SAMPLED:
        if template == "hh" and prefix is None and not text.startswith(" "):
            continue  # the template writes a blank before every answer
        ids = chat._continue(before, chat._ids(before), text)
        for sample in (Sample(0, ids, [], False), Sample(0, [*ids, chat.end_token_id], [], True)):
            answer = sampled_rows.own_answer(chat, prompt, sample, set())
            assert answer.ended == sample.ended
            if not answer.text.strip():
                continue
            line = sampled_rows.best_row(prompt, sampled_rows.asked_of(chat, prompt), [answer], [1.0])
            (row,) = read_rows(write_rows(tmp_path / "best.jsonl", line))
            assert chat.encode_example(row).tokens(0) == [*prompt.ids, *sample.ids], (text, answer)


def test_columns_that_would_change_how_a_row_is_read_are_not_written(base: Path, tmp_path: Path) -> None:
    chat = chat_format(AutoTokenizer.from_pretrained(base), "plain")
    columns = {
        "messages": [{"role": "user", "content": "x"}],
        "response": "y",
        "instruction": "z",
        "gold": "g",
        "id": 1,
    }
    prompt = Prompt([1, 2], Row((Message("user", "q"),), columns=columns, place="f:1"))
    answers = [sampled_rows.Answer("a", True), sampled_rows.Answer("b", True)]
    asked = sampled_rows.asked_of(chat, prompt)
    for number, lines in enumerate(
        (
            sampled_rows.best_row(prompt, asked, answers, [1.0, 0.0]),
            sampled_rows.best_and_worst(prompt, asked, answers, [1.0, 0.0]),
        )
    ):
        (row,) = read_rows(write_rows(tmp_path / f"{number}.jsonl", lines))
        assert row.messages == (Message("user", "q"),) and row.answers[0] == "a"
        assert row.columns["gold"] == "g" and row.columns["id"] == 1


def test_spin_keeps_where_its_own_answers_and_the_datas_ended(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n} good?", "completion": f"The cat is {n}", "ended": n % 2 == 0} for n in range(6)]
    data = write_rows(tmp_path / "asked.jsonl", rows)
    more: Options = {"chosen": "data", "generation.max_new_tokens": 3, "reward.callable": None}
    best_of.run(best_of_config(base, tmp_path / "run", data, more))
    read = read_rows(tmp_path / "run" / "pairs.jsonl")
    assert len(read) > 20
    ends = {(row.answers[0], row.ended[0] if row.ended else True) for row in read}
    assert ends == {(f"The cat is {n}", n % 2 == 0) for n in range(6)}
    assert any(row.ended and not row.ended[1] for row in read)


def test_a_stop_string_is_text_and_no_end_token(base: Path) -> None:
    chat = chat_format(AutoTokenizer.from_pretrained(base), "hh")
    question = Row((Message("user", "Is the cat good?"),), place="f:1")
    prompt = Prompt(chat.encode_prompt(question.messages), question)
    (stop,) = chat.single_tokens(["\n"])
    sample = Sample(0, [*chat._ids(" good"), stop], [], True)
    assert sampled_rows.own_answer(chat, prompt, sample, {stop}) == sampled_rows.Answer("good\n", False)
    assert sampled_rows.own_answer(chat, prompt, Sample(0, [*sample.ids, 2], [], True), {stop}).ended


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(base: Path, asked: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        best_of.run(best_of_config(base, tmp_path / name, asked, {"seed": seed}))
    a, b, c = ((tmp_path / name / "best.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_every_prompt_draws_its_own_numbers_also_beyond_the_first_sampled_together(base: Path, tmp_path: Path) -> None:
    same = write_rows(tmp_path / "same.jsonl", [{"prompt": "Is it good?", "gold": "1"}] * 40)
    best_of.run(best_of_config(base, tmp_path / "run", same, {}))
    scores = [json.loads(line)["scores"] for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    together = best_of.PROMPTS_AT_A_TIME
    assert len(scores) == 40 > together and scores[together:] != scores[: 40 - together]


def test_the_datas_own_answer_is_never_its_own_rejected_one() -> None:
    prompt = Prompt([1], Row((Message("user", "Well?"),), ("yes",)))
    answers = [sampled_rows.Answer(text, True) for text in ("yes", "no", "", "no")]
    pairs = sampled_rows.pairs_with_data(prompt, {"prompt": "Well?"}, answers)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("yes", "no")]


def test_tools_and_calls_of_a_prompt_are_written_with_its_answers(tmp_path: Path) -> None:
    form = chat_format(byte_level(bos=False), "qwen")
    asked = Row(ASKED, ("It rains.",), tools=TOOLS, place="f:1")
    answers = [sampled_rows.Answer("It is dry.", True), sampled_rows.Answer("It pours.", True)]
    prompt = Prompt(form.encode_prompt(asked.messages, tools=asked.tools), asked)
    (pair, *_) = sampled_rows.pairs_with_data(prompt, sampled_rows.asked_of(form, prompt), answers)
    (best,) = sampled_rows.best_row(prompt, sampled_rows.asked_of(form, prompt), answers, [1.0, 0.0])
    for line, given in ((pair, ("It rains.", "It is dry.")), (best, ("It is dry.",))):
        (read,) = read_rows(write_rows(tmp_path / "rows.jsonl", [line]))
        assert read.messages == ASKED and read.tools == TOOLS and read.answers == given
        assert form.encode_example(read).prompt_ids == prompt.ids
    # The data's answer may be a call.
    called = Prompt(prompt.ids, Row(ASKED[:1], ("",), tools=TOOLS, calls=((CALL,),)))
    pairs = sampled_rows.pairs_with_data(called, sampled_rows.asked_of(form, called), answers)
    (read,) = read_rows(write_rows(tmp_path / "rows.jsonl", pairs[:1]))
    assert read.calls == ((CALL,), ()) and read.answers == ("", "It is dry.") and read.tools == TOOLS


def test_sft_on_the_best_and_dpo_on_the_pairs_shorten_the_answers(base: Path, asked: Path, tmp_path: Path) -> None:
    """RAFT, and one round of online DPO, by configuration alone."""
    start = best_of.run(best_of_config(base, tmp_path / "run", asked, {"generation.samples_per_prompt": 8}))
    more: Options = {"optimizer.learning_rate": 1e-2, "max_steps": 60, "model.chat_template": "hh"}
    sft.run(load(SFTConfig, common(base, tmp_path / "raft", tmp_path / "run" / "best.jsonl"), more))
    dpo.run(load(DPOConfig, common(base, tmp_path / "dpo", tmp_path / "run" / "pairs.jsonl"), more))
    for name in ("raft", "dpo"):
        policy = {"start_from": str(tmp_path / name / "policy"), "seed": 7}
        after = best_of.run(best_of_config(base, tmp_path / f"after-{name}", asked, policy))
        assert after["mean_score"] > start["mean_score"]


def test_plain_text_is_continued_and_stays_text(base: Path, tmp_path: Path) -> None:
    texts = [{"text": f"The cat is {word}. I like the cat.", "gold": word} for word in ("good", "bad", "big")]
    data = write_rows(tmp_path / "texts.jsonl", texts)
    best_of.run(best_of_config(base, tmp_path / "run", data, {"data.opening_tokens": 3}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    assert all(row["text"].startswith("The") for row in rows)


def test_one_sample_leaves_nothing_to_choose(base: Path, asked: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to choose from"):
        best_of_config(base, tmp_path / "run", asked, {"generation.samples_per_prompt": 1})


def test_the_plan_says_what_would_be_written(base: Path, asked: Path, tmp_path: Path) -> None:
    assert "40 prompts x 5 answers" in best_of.plan(best_of_config(base, tmp_path / "run", asked, {}))
    assert not (tmp_path / "run").exists()


def empty_is_best(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [1.0 if not text.strip() else -float(len(text)) for text in completions]


def test_an_empty_answer_is_counted_and_never_written(base: Path, asked: Path, tmp_path: Path) -> None:
    more: Options = {
        "reward.callable": "tests.recipes.test_best_of:empty_is_best",
        "generation.max_new_tokens": 1,
        "generation.samples_per_prompt": 16,
    }
    summary = best_of.run(best_of_config(base, tmp_path / "run", asked, more))
    assert summary["empty"] > 0
    best = [json.loads(line) for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    assert best and all(row["completion"].strip() and row["score"] < 0 for row in best)
    assert any(max(row["scores"]) == 1.0 for row in best)
    assert pairs and all(pair["chosen"].strip() and pair["rejected"].strip() for pair in pairs)


def test_empty_prompts_are_left_out_and_counted(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Is {n} good?", "gold": str(n)} for n in range(38)]
    data = write_rows(tmp_path / "asked.jsonl", [{"prompt": "", "gold": ""}, *rows, {"prompt": " \n", "gold": ""}])
    summary = best_of.run(best_of_config(base, tmp_path / "run", data, {"generation.samples_per_prompt": 2}))
    assert summary["prompts"] == 38
    assert f"left out: 2 with empty prompt ({data}:1, {data}:40)" in capsys.readouterr().err
    write_rows(data, [{"prompt": " ", "gold": ""}, *rows[:3]])
    with pytest.raises(
        DataError, match="1 of 4 rows cannot be used, more than the allowed share of 0.05: empty prompt"
    ):
        best_of.plan(best_of_config(base, tmp_path / "other", data, {}))


def test_prompts_longer_than_the_context_are_cut_and_counted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(
        tmp_path / "asked.jsonl", [{"prompt": f"Is {'so ' * 90 * n}{n} good?", "gold": "x"} for n in (0, 1)]
    )
    best_of.plan(best_of_config(base, tmp_path / "run", data, {}))
    assert "of 2 rows, 1 prompt lost the beginning of its last user turn" in capsys.readouterr().err
    with pytest.raises(PromptTooLongError, match="fit: new tokens take 6 of the model's 96 positions"):
        best_of.plan(best_of_config(base, tmp_path / "run", data, {"data.truncate_prompt": "error"}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["best-of", "--actors", "2"], "--actors is 2; it should be at least 1, and 1 without --ray"),
        (
            ["best-of", "--ray", "local", "--processes", "2"],
            "--ray and --processes both deal out the work; leave one out",
        ),
        (
            ["best-of", "--ray", "local", "--generation.engine", "vllm", "--generation.url", "http://h:1"],
            "--ray: generation.engine is a server, which draws for all; leave --ray out",
        ),
        (
            ["sft", "--ray", "local"],
            "--ray: sft learns, and no actors share that; onebase submit --to ray sft runs it on Ray",
        ),
    ],
)
def test_what_actors_cannot_share_is_one_line(
    line: list[str], message: str, base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = common(base, tmp_path / "run", prompts)
    if line[0] == "best-of":
        asked |= {"reward.callable": "tests.recipes.conftest:count_vowels", "data.eval_fraction": None}
    assert main([line[0], *words(asked), *line[1:]]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
