"""The reward recipe: what each kind of data gives for a loss, and that others can read what it saves."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from onebase.config.preferences import RewardConfig
from onebase.data.batches import minibatch_indices
from onebase.data.chat import chat_format
from onebase.engines.budget import TokenBudget
from onebase.errors import ConfigError, DataError
from onebase.models.loading import load_tokenizer
from onebase.models.role_card import read_card
from onebase.processes import ALONE
from onebase.recipes import reward
from onebase.recipes.setup.shared import open_base
from onebase.records import Example
from onebase.training.comparisons import draw_comparisons
from tests.recipes.conftest import Options, common, file_bytes, load, make_base, metric_rows, pair_rows, write_rows

LISTS: list[Options] = [
    {
        "instruction": f"Say something of animal number {i}.",
        "input": "",
        "output": ["It is good.", "It is big.", "It is bad.", "bad bad"],
        "grades": grades,
    }
    for i, grades in enumerate([[3, 2, 1, 0], [1, 1, 0, 0], [2, 0, 2, 1], [0, 1, 2, 3]] * 3)
]
MARGINS: list[Options] = [row | {"margin": 0.5 * i} for i, row in enumerate(pair_rows(6))]
TIES: list[Options] = [row | {"tie": i % 2 == 0} for i, row in enumerate(pair_rows(6))]


def classifier_scores(base: Path, role: Path, examples: list[Example]) -> list[list[float]]:
    """Every completion scored by transformers and PEFT alone, from the role's folder."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    return scores_of(PeftModel.from_pretrained(model, role), examples)


@torch.no_grad()
def scores_of(model: Any, examples: list[Example]) -> list[list[float]]:
    model.eval()
    return [
        [float(model(torch.tensor([[*e.prompt_ids, *completion]])).logits[0, 0]) for completion in e.completions]
        for e in examples
    ]


def examples_of(config: RewardConfig, base: Path) -> tuple[list[Example], list[Example]]:
    return reward.read_examples(config, chat_format(load_tokenizer(str(base)), "hh"), 96)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def literal_loss(examples: list[Example], scores: list[list[float]]) -> float:
    """Ouyang et al. 2022, eq. 1, with margins, and ties as half a preference each way."""
    total = 0.0
    for example, listed in zip(examples, scores, strict=True):
        assert example.grades is not None
        pairs = []
        for i in range(len(listed)):
            for j in range(i + 1, len(listed)):
                d = listed[i] - listed[j]
                if example.grades[i] == example.grades[j]:
                    pairs.append(-(log_sigmoid(d) + log_sigmoid(-d)) / 2)
                else:
                    sign = 1 if example.grades[i] > example.grades[j] else -1
                    pairs.append(-log_sigmoid(sign * d - (example.margin or 0.0)))
        total += sum(pairs) / len(pairs)
    return total / len(examples)


def test_pairs_are_learned_and_the_role_knows_its_held_out_scores(base: Path, sft_role: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows())
    more: Options = {"optimizer.learning_rate": 5e-3, "max_steps": 15, "start_from": str(sft_role)}
    config = load(RewardConfig, common(base, tmp_path / "run", rows), more)
    summary = reward.run(config)
    assert summary["eval_accuracy"] == 1.0
    folder = tmp_path / "run" / "reward"
    _, held_out = examples_of(config, base)
    scores = classifier_scores(base, folder, held_out)
    flat = torch.tensor([score for listed in scores for score in listed])
    card = read_card(folder)
    assert card.kind == "reward" and card.chat_template == "hh"
    assert card.score_mean == pytest.approx(float(flat.mean()), abs=1e-4)
    assert card.score_std == pytest.approx(float(flat.std(unbiased=False)), abs=1e-4)
    assert all(better > worse for better, worse in scores)


@pytest.mark.parametrize("centering", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["pairs", "lists", "margins", "ties"])
def test_the_first_loss_is_the_papers(
    kind: str, centering: float, base: Path, reward_role: Path, tmp_path: Path
) -> None:
    rows = write_rows(
        tmp_path / "a.jsonl", {"pairs": pair_rows(6), "lists": LISTS, "margins": MARGINS, "ties": TIES}[kind]
    )
    more: Options = {
        "start_from": str(reward_role),
        "max_steps": 1,
        "ranking.centering_coefficient": centering,
        "batch.minibatch": 4,
    }
    config = load(RewardConfig, common(base, tmp_path / "run", rows), more)
    train, _ = examples_of(config, base)
    chosen = [train[i] for i in minibatch_indices(0, num_examples=len(train), size=4, seed=0)]
    scores = classifier_scores(base, reward_role, chosen)
    flat = [score for listed in scores for score in listed]
    reward.run(config)
    (row,) = metric_rows(tmp_path / "run")
    expected = literal_loss(chosen, scores) + centering * sum(score**2 for score in flat) / len(flat)
    assert row["loss"] == pytest.approx(expected, abs=1e-5)
    assert row["mean_reward"] == pytest.approx(sum(flat) / len(flat), abs=1e-5)


def test_the_split_into_microbatches_changes_nothing(base: Path, reward_role: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "lists.jsonl", LISTS)
    rows = []
    for tokens in (64, 4096):
        more: Options = {
            "start_from": str(reward_role),
            "max_steps": 2,
            "ranking.centering_coefficient": 0.1,
            "batch.microbatch_tokens": tokens,
        }
        reward.run(load(RewardConfig, common(base, tmp_path / str(tokens), data), more))
        rows.append(metric_rows(tmp_path / str(tokens)))
    for small, large in zip(*rows, strict=True):
        assert small["loss"] == pytest.approx(large["loss"], abs=1e-5)
        assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-3)


def test_an_epoch_reads_every_row_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    step = reward.train_step

    def watched(loaded: Any, examples: Any, *rest: Any) -> dict[str, float]:
        read.extend(example.row.place for example in examples)
        return step(loaded, examples, *rest)

    monkeypatch.setattr(reward, "train_step", watched)
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows())
    reward.run(load(RewardConfig, common(base, tmp_path / "run", data), {"max_steps": 3, "batch.minibatch": 8}))
    assert len(read) == len(set(read)) == 24


def test_a_role_that_cannot_tell_answers_apart_is_right_about_none(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(6))
    config = load(RewardConfig, common(base, tmp_path / "run", rows))
    loaded = open_base(config.model, ALONE)
    reward.add_reward(loaded, config)  # with a head of zeros
    train, _ = examples_of(config, base)
    assert reward.evaluate(loaded, train, TokenBudget(2048))["accuracy"] == 0


def test_no_more_than_max_pairs_of_a_list_are_compared(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "lists.jsonl", LISTS)
    config = load(RewardConfig, common(base, tmp_path / "run", rows), {"ranking.max_pairs": 3, "max_steps": 3})
    train, _ = examples_of(config, base)
    drawn = [
        [draw_comparisons(train[0], max_pairs=3, seed=config.seed, visit=(n, 0)) for n in range(6)] for _ in range(2)
    ]
    assert drawn[0] == drawn[1] and all(len(pairs) == 3 for pairs in drawn[0])
    assert len({str(pairs) for pairs in drawn[0]}) > 1, "every visit draws the same comparisons"
    reward.run(config)
    # The head starts at zero, where every comparison costs log 2 whatever its number.
    assert metric_rows(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_only_ties_have_no_accuracy(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "ties.jsonl", [row | {"tie": True} for row in pair_rows(8)])
    summary = reward.run(load(RewardConfig, common(base, tmp_path / "run", rows), {"max_steps": 2}))
    assert "accuracy" not in metric_rows(tmp_path / "run")[0]
    assert math.isnan(summary["eval_accuracy"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval_accuracy"] is None


def test_mean_pooling_scores_the_mean_of_the_answers_states(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows())
    more: Options = {"ranking.pooling": "mean", "max_steps": 5, "optimizer.learning_rate": 5e-3}
    config = load(RewardConfig, common(base, tmp_path / "run", rows), more)
    summary = reward.run(config)
    folder = tmp_path / "run" / "reward"
    assert read_card(folder).pooling == "mean"
    _, held_out = examples_of(config, base)
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model: Any = PeftModel.from_pretrained(classifier, folder).eval()
    scores = []
    for example in held_out:
        for completion in example.completions:
            ids = torch.tensor([[*example.prompt_ids, *completion]])
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states[-1][0, len(example.prompt_ids) :]
                scores.append(float(model.base_model.model.score(states).mean()))
    assert summary["eval_score_mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)


@pytest.mark.parametrize("pad_is_end", [False, True])
def test_full_parameters_leave_a_classifier_with_the_same_scores(pad_is_end: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", pad_is_end=pad_is_end)
    before = file_bytes(base)
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows())
    more: Options = {"lora.r": 0, "max_steps": 6, "optimizer.learning_rate": 2e-3}
    config = load(RewardConfig, common(base, tmp_path / "run", rows), more)
    summary = reward.run(config)
    assert file_bytes(base) == before and not (tmp_path / "run" / "reward").exists()
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert classifier.config.num_labels == 1
    assert classifier.config.pad_token_id not in (None, load_tokenizer(str(base)).eos_token_id)
    _, held_out = examples_of(config, base)
    scores = torch.tensor(scores_of(classifier, held_out)).flatten()
    assert float(scores.std()) > 0.01
    assert summary["eval_score_mean"] == pytest.approx(float(scores.mean()), abs=1e-4)
    assert summary["eval_score_std"] == pytest.approx(float(scores.std(unbiased=False)), abs=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora.r": 0, "ranking.pooling": "mean"}, "'ranking.pooling' = mean .*'lora.r' = 0"),
        ({"lora.r": 0, "start_from": "a"}, "'lora.r' = 0 .*'start_from'"),
    ],
)
def test_settings_that_would_save_something_else_are_refused(more: Options, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(RewardConfig, common(tmp_path, tmp_path / "run", tmp_path / "a.jsonl"), more)


def test_nothing_held_out_is_fine(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(4))
    reward.run(load(RewardConfig, common(base, tmp_path / "run", rows), {"data.eval_fraction": 0, "max_steps": 1}))
    card = read_card(tmp_path / "run" / "reward")
    assert (card.score_mean, card.score_std) == (None, None)


@pytest.mark.parametrize("with_beginning", [True, False])
def test_labelled_texts_are_paired(with_beginning: bool, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    tokenizer = load_tokenizer(str(folder))
    if not with_beginning:
        tokenizer.bos_token = None
        tokenizer.save_pretrained(folder)
        assert load_tokenizer(str(folder)).bos_token_id is None
    texts = [{"text": f"The {'good' if i % 2 else 'bad'} cat {i}.", "label": i % 2} for i in range(24)]
    rows = write_rows(tmp_path / "labels.jsonl", texts)
    more: Options = {"max_steps": 8, "optimizer.learning_rate": 1e-2, "data.eval_fraction": 0.25}
    config = load(RewardConfig, common(folder, tmp_path / "run", rows), more)
    train, _ = examples_of(config, folder)
    first = tokenizer.bos_token_id if with_beginning else tokenizer.eos_token_id
    assert all(list(example.prompt_ids) == [first] and len(example.completions) == 2 for example in train)
    assert reward.run(config)["eval_accuracy"] > 0.8


def test_lists_that_were_cut_to_equal_answers_are_left_out(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"prompt": "Which?", "chosen": "The cat is good.", "rejected": "The cat is bad."}
    rows = write_rows(
        tmp_path / "pairs.jsonl",
        [same, *({"prompt": f"Number {i}?", "chosen": "good", "rejected": "bad"} for i in range(7))],
    )
    more: Options = {"data.max_completion_tokens": 2, "data.eval_fraction": 0, "data.max_dropped_share": 0.2}
    config = load(RewardConfig, common(base, tmp_path / "run", rows), more)
    train, _ = examples_of(config, base)
    assert len(train) == 7
    assert f"left out: 1 with answers cut to the same tokens ({rows}:1)" in capsys.readouterr().err
    write_rows(rows, [same, same | {"prompt": "Which one?"}])
    with pytest.raises(DataError, match=f"the answers of 2 of 2 rows .* share of 0.2 .first {rows}:1, {rows}:2"):
        examples_of(config, base)


def test_a_row_that_compares_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": "c"} for i in range(4)])
    with pytest.raises(DataError, match=r"a.jsonl:\d: nothing is compared in this row"):
        reward.run(load(RewardConfig, common(base, tmp_path / "run", rows)))


def test_the_plan_counts_the_comparisons(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "lists.jsonl", LISTS)
    more: Options = {"ranking.max_pairs": 2, "data.eval_fraction": 0}
    text = reward.plan(load(RewardConfig, common(base, tmp_path / "run", rows), more))
    assert f"comparisons {2 * len(LISTS)} an epoch, at most 2 of a list" in text
