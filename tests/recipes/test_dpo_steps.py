"""Step-DPO: the next step is preferred, behind the correct beginning of an answer that both steps share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.main import main
from onebase.config.language import SFTConfig
from onebase.config.preferences import DPOConfig
from onebase.config.rollouts import BestOfConfig
from onebase.data.chat import chat_format
from onebase.models.loading import load_tokenizer
from onebase.reading.formats import read_rows
from onebase.recipes import best_of, dpo, sft
from tests.recipes.conftest import ANIMALS, Options, common, count_vowels, load, metric_rows, words, write_rows


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Rows with the keys of Math-Step-DPO; every fourth is a first step."""
    rows = [
        {
            "dataset": "animals",
            "prompt": f"Is the {animal} number {number}?",
            "initial_reason_steps": f"The {animal} is big.\n" if number else "",
            "chosen": f"I like the {animal}.",
            "rejected": f"The {animal} is bad.",
            "full_chosen": "",
            "answer": "yes",
        }
        for animal in ANIMALS
        for number in range(4)
    ]
    return write_rows(tmp_path / "steps.jsonl", rows)


def test_both_steps_stand_behind_one_beginning_and_end_nothing(base: Path, steps: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    chat = chat_format(tokenizer, "hh")
    examples, _ = dpo.read_examples(
        load(DPOConfig, common(base, tmp_path / "run", steps), {"data.eval_fraction": 0}), chat, 96
    )
    assert len(examples) == 48
    for example, row in zip(examples, read_rows(steps), strict=True):
        asked = f"\n\nHuman: {row.messages[0].content}\n\nAssistant:"
        begun = f" {row.prefix}" if row.prefix else ""
        assert chat.decode(example.prompt_ids) == asked + begun
        blank = "" if begun else " "
        assert [chat.decode(ids) for ids in example.completions] == [blank + answer for answer in row.answers]
        assert not any(tokenizer.eos_token_id in ids for ids in example.completions)


def test_dpo_learns_the_next_step(base: Path, sft_role: Path, steps: Path, tmp_path: Path) -> None:
    more: Options = {"start_from": str(sft_role), "optimizer.learning_rate": 5e-3, "max_steps": 12}
    assert main(["dpo", *words(common(base, tmp_path / "run", steps), more)]) == 0
    rows = metric_rows(tmp_path / "run")
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval_accuracy"] > 0.9
    assert (tmp_path / "run" / "policy" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("loss", ["kto", "ipo", "orpo"])
def test_other_losses_read_steps_too(loss: str, base: Path, steps: Path, tmp_path: Path) -> None:
    more: Options = {"loss": loss, "optimizer.learning_rate": 5e-3, "max_steps": 15}
    assert dpo.run(load(DPOConfig, common(base, tmp_path / "run", steps), more))["eval_accuracy"] > 0.8


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The prompt of a reward ends where the sampled text begins."""
    assert all(prompt.endswith(("big.\n", "Assistant:")) for prompt in prompts) and set(columns["answer"]) == {"yes"}
    return count_vowels(prompts, completions)


def test_samples_go_on_from_the_beginning_and_are_written_as_whole_answers(
    base: Path, steps: Path, tmp_path: Path
) -> None:
    options: Options = {
        **common(base, tmp_path / "samples", steps),
        "data.eval_fraction": None,
        "generation.max_new_tokens": 6,
        "generation.samples_per_prompt": 4,
        "reward.callable": "tests.recipes.test_dpo_steps:vowels",
    }
    best_of.run(load(BestOfConfig, options))
    asked = read_rows(steps)
    best = read_rows(tmp_path / "samples" / "best.jsonl")
    assert len(best) == 48
    for row, given in zip(best, asked, strict=True):
        assert row.messages == given.messages and row.prefix is None
        assert row.answers[0].startswith((given.prefix or "").strip())
    begun = {f"The {animal} is big.\n" for animal in ANIMALS}
    pairs = read_rows(tmp_path / "samples" / "pairs.jsonl")
    assert len(pairs) > 24 and all(row.prefix is None and row.grades == (1.0, 0.0) for row in pairs)
    prefixed = [row for row in pairs if all(any(text.startswith(b.strip()) for b in begun) for text in row.answers)]
    assert len(prefixed) > 12
    # sft takes the best of what is compared, steps or whole answers.
    for data in (steps, tmp_path / "samples" / "best.jsonl"):
        assert sft.run(load(SFTConfig, common(base, tmp_path / data.stem, data), {"max_steps": 2}))["steps"] == 2
