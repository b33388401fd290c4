"""DPO and its family: every loss in a short run, against literal formulas, and on data whose best answer is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.config.losses import LOSSES, readers_of
from onebase.config.preferences import DPOConfig
from onebase.data.chat import chat_format
from onebase.engines.budget import TokenBudget
from onebase.engines.passes import lay_out
from onebase.errors import ConfigError, DataError
from onebase.objectives.reward import ranking_pairs
from onebase.processes import ALONE
from onebase.recipes import dpo
from onebase.recipes.setup.shared import open_base
from onebase.records import Example
from onebase.training.comparisons import PairTensors, draw_comparisons
from onebase.training.lists import Lists, completion_logprobs, lay_lists
from tests.recipes.conftest import ANIMALS, Options, common, file_bytes, load, metric_rows, pair_rows, write_rows
from tests.tiny_models import add_adapter_role, tiny_base

PAIRED = sorted(set(LOSSES) - {"kto"})


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", pair_rows())


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"Is the {animal} good?", "input": "", "output": ["good", "fine", "bad"], "grades": [2, 1, 0]}
        for animal in ANIMALS
    ]
    return write_rows(tmp_path / "ranked.jsonl", rows)


def small_dpo(base: Path, run: Path, data: Path, more: Options) -> DPOConfig:
    return load(DPOConfig, common(base, run, data), {"optimizer.learning_rate": 5e-3, "max_steps": 6, **more})


@pytest.mark.parametrize("loss", PAIRED)
def test_every_loss_over_pairs_learns_the_order(
    loss: str, base: Path, sft_role: Path, pairs: Path, tmp_path: Path
) -> None:
    before = file_bytes(base)
    more: Options = {"loss": loss, "start_from": str(sft_role), "max_steps": 12}
    if loss in readers_of("label_smoothing"):
        more["preference.label_smoothing"] = 0.1
    summary = dpo.run(small_dpo(base, tmp_path / "run", pairs, more))
    assert summary["steps"] == 12 and file_bytes(base) == before
    rows = metric_rows(tmp_path / "run")
    assert all(row["loss"] is not None and "train/refused_steps" not in row for row in rows)
    if loss != "nll":
        assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
        assert summary["eval_accuracy"] > 0.9


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "rrhf", "plackett_luce", "simpo", "orpo"])
def test_ranked_lists_go_through_one_tree_each(loss: str, base: Path, ranked: Path, tmp_path: Path) -> None:
    summary = dpo.run(small_dpo(base, tmp_path / "run", ranked, {"loss": loss, "max_steps": 12}))
    assert summary["eval_accuracy"] > 0.6


def test_kto_reads_labels_and_pairs(base: Path, pairs: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is the {animal} good?", "completion": word, "label": word == "good"}
        for animal in ANIMALS
        for word in ("good", "bad")
    ]
    single = write_rows(tmp_path / "single.jsonl", rows)
    for name, data in (("pairs", pairs), ("single", single)):
        summary = dpo.run(small_dpo(base, tmp_path / name, data, {"loss": "kto", "max_steps": 15}))
        assert summary["eval_accuracy"] > 0.8
        assert all(row["kl"] >= 0 for row in metric_rows(tmp_path / name))


@pytest.mark.parametrize("reference", ["live", "cached"])
def test_the_first_step_is_the_paper_s_loss_on_separate_rows(
    reference: str, base: Path, sft_role: Path, pairs: Path, tmp_path: Path
) -> None:
    """Eq. 7 of Rafailov et al., the policy a little away from its reference, log-probs from the model's own logits."""
    more: Options = {
        "start_from": str(sft_role),
        "preference.reference": reference,
        "batch.minibatch": 64,
        "preference.beta": 0.3,
        "max_steps": 2,
    }
    config = small_dpo(base, tmp_path / "run", pairs, more)
    dpo.run(config)
    losses = [row["loss"] for row in metric_rows(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5), "policy and reference start alike"

    loaded = open_base(config.model, ALONE)
    chat = chat_format(loaded.tokenizer, config.model.chat_template)
    train, _ = dpo.read_examples(config, chat, loaded.context_length)
    # The policy after the first step: one step again, from the same seed.
    again = small_dpo(base, tmp_path / "again", pairs, {**more, "max_steps": 1})
    dpo.run(again)
    dpo.add_policy_and_reference(loaded, config)
    from safetensors.torch import load_file

    loaded.set_adapter_weights("policy", load_file(tmp_path / "again" / "policy" / "adapter_model.safetensors"))

    def summed(role: str, prompt: list[int], completion: list[int]) -> Tensor:
        with loaded.role(role), torch.no_grad():
            logits = loaded.model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        return torch.stack([logits[i, token] for i, token in zip(places, completion, strict=True)]).sum()

    expected = []
    for example in train:
        margin = torch.zeros(())
        for sign, ids in zip((1, -1), example.completions, strict=True):
            difference = summed("policy", list(example.prompt_ids), list(ids))
            margin += sign * (difference - summed("reference", list(example.prompt_ids), list(ids)))
        expected.append(float(-torch.nn.functional.logsigmoid(0.3 * margin)))
    assert losses[1] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_a_mixture_is_the_weighted_sum(base: Path, pairs: Path, tmp_path: Path) -> None:
    first = {}
    for loss in ("sigmoid", "nll", "sigmoid + 0.1 nll"):
        dpo.run(small_dpo(base, tmp_path / loss.replace(" ", ""), pairs, {"loss": loss, "max_steps": 1}))
        first[loss] = metric_rows(tmp_path / loss.replace(" ", ""))[0]["loss"]
    assert first["sigmoid + 0.1 nll"] == pytest.approx(first["sigmoid"] + 0.1 * first["nll"], rel=1e-5)


def test_tree_and_separate_layouts_give_the_same_step(base: Path, ranked: Path, tmp_path: Path) -> None:
    losses = []
    for layout in ("tree", "separate"):
        more: Options = {"loss": "plackett_luce + sigmoid + nll", "model.layout": layout, "max_steps": 3}
        dpo.run(small_dpo(base, tmp_path / layout, ranked, more))
        losses.append([row["loss"] for row in metric_rows(tmp_path / layout)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid + nll", "plackett_luce", "kto"])
def test_the_split_into_microbatches_changes_nothing(loss: str, base: Path, ranked: Path, tmp_path: Path) -> None:
    rows = []
    for tokens in (64, 4096):
        more: Options = {"loss": loss, "batch.microbatch_tokens": tokens, "max_steps": 2}
        dpo.run(small_dpo(base, tmp_path / str(tokens), ranked, more))
        rows.append(metric_rows(tmp_path / str(tokens)))
    for small, large in zip(*rows, strict=True):
        assert small["loss"] == pytest.approx(large["loss"], abs=1e-5)
        assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-3)


def test_every_list_weighs_the_same_and_a_tie_nothing() -> None:
    grades = [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0]]
    examples = [Example([1], [[2]] * len(listed), grades=listed) for listed in grades]
    comparisons = [ranking_pairs(listed, None, torch.Generator()) for listed in grades]
    logprobs = torch.tensor([-1.0, -3.0, -2.0, -5.0, -4.0, -1.5, -2.5, -0.5])
    nothing = torch.zeros(8)
    lists = Lists(
        logprobs,
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        PairTensors.of(examples, comparisons, torch.device("cpu")),
    )

    def of_pair(better: float, worse: float) -> float:
        return math.log1p(math.exp(-0.3 * (better - worse)))

    first = (of_pair(-1, -3) + of_pair(-1, -2) + of_pair(-3, -2)) / 3
    second = (of_pair(-5, -1.5) + of_pair(-4, -1.5)) / 3  # of three comparisons one is a tie
    options: Options = {"output_dir": "unused", "model.model_name_or_path": "unused", "data.train": "unused"}
    config = load(DPOConfig, options, {"preference.beta": 0.3})
    found = float(dpo.list_loss("sigmoid", lists, config.preference))
    assert found == pytest.approx(first + second + of_pair(-0.5, -2.5), abs=1e-5)


def test_an_epoch_reads_every_row_once(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    step = dpo.preference_step

    def watched(loaded: Any, examples: Any, *rest: Any, **named: Any) -> dict[str, float]:
        read.extend(example.row.place for example in examples)
        return step(loaded, examples, *rest, **named)

    monkeypatch.setattr(dpo, "preference_step", watched)
    dpo.run(small_dpo(base, tmp_path / "run", pairs, {"max_steps": 3, "batch.minibatch": 8}))
    assert len(read) == len(set(read)) == 24


@pytest.mark.parametrize(
    ("loss", "message"),
    [("sigmod", "did you mean sigmoid"), ("sigmoid + kto", "cannot be mixed"), ("sigmoid + x nll", "'loss' = x nll")],
)
def test_a_loss_that_is_not_there_is_one_line(loss: str, message: str, base: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        small_dpo(base, tmp_path / "run", pairs, {"loss": loss})


def test_rows_that_compare_nothing_are_named(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Is the {animal} good?", "completion": "good"} for animal in ANIMALS]
    data = write_rows(tmp_path / "answers.jsonl", rows)
    with pytest.raises(DataError, match="nothing is compared"):
        dpo.run(small_dpo(base, tmp_path / "run", data, {}))
    with pytest.raises(DataError, match="kto learns from one answer"):
        dpo.run(small_dpo(base, tmp_path / "kto", data, {"loss": "kto"}))


def test_the_plan_names_the_mixture(base: Path, pairs: Path, tmp_path: Path) -> None:
    assert "1 nll + 0.1 orpo" in dpo.plan(small_dpo(base, tmp_path / "run", pairs, {"loss": "orpo"}))
    assert not (tmp_path / "run").exists()


def test_the_summary_is_json(base: Path, pairs: Path, tmp_path: Path) -> None:
    dpo.run(small_dpo(base, tmp_path / "run", pairs, {"max_steps": 1}))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["loss"] == {"sigmoid": 1.0}


def test_the_references_log_probs_are_kept_and_read_again_where_nothing_changed(
    base: Path, sft_role: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = completion_logprobs

    def counting(loaded: Any, examples: Any, *, role: str, budget: TokenBudget) -> list[Tensor]:
        computed.append(len(examples))
        return compute(loaded, examples, role=role, budget=budget)

    monkeypatch.setattr(dpo, "completion_logprobs", counting)
    more: Options = {"start_from": str(sft_role), "data.eval_fraction": 0}

    def run(name: str, **other: Any) -> bytes:
        computed.clear()
        dpo.run(small_dpo(base, tmp_path / "runs" / name, pairs, {**more, **other}))
        return (tmp_path / "runs" / name / "policy" / "adapter_model.safetensors").read_bytes()

    first = run("first")
    assert computed == [30]
    assert run("again") == first and computed == [], "nothing changed"
    assert run("live", **{"preference.reference": "live"}) == first
    run("other-loss", loss="ipo")
    assert computed == [], "another loss asks the same of the reference"
    run("other-data", **{"data.limit": 20})
    assert computed == [20]
    run("other-reference", reference_role="base")
    assert computed == [30]
    run("third-reference", reference_role=str(tmp_path / "runs" / "first" / "policy"))
    assert computed == [30], "the same shapes, and other weights"
    kept = sorted((tmp_path / "runs").glob("*/reference-logprobs/*.safetensors"))
    assert [path.parts[-3] for path in kept] == ["first", "other-data", "other-reference", "third-reference"]
    assert not (tmp_path / "runs" / "reference-logprobs").exists(), "a run writes to its own folder alone"
    for path in kept:
        path.write_bytes(b"cut off")
    assert run("after-damage") == first and computed == [30]


def test_a_reference_of_its_own_is_what_the_margins_are_measured_from(
    base: Path, sft_role: Path, pairs: Path, tmp_path: Path
) -> None:
    more: Options = {"start_from": str(sft_role), "batch.minibatch": 64, "max_steps": 1}
    firsts = []
    moved = str(tmp_path / "copy" / "policy")
    for name, reference in (("copy", None), ("same", str(sft_role)), ("base", "base"), ("moved", moved)):
        dpo.run(small_dpo(base, tmp_path / name, pairs, {**more, "reference_role": reference}))
        firsts.append(metric_rows(tmp_path / name)[0])
    assert firsts[0]["rewards/margins"] == firsts[1]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(firsts[2]["rewards/margins"]) > 1e-3 and abs(firsts[3]["rewards/margins"]) > 1e-3
    assert firsts[0]["logps/chosen"] == firsts[2]["logps/chosen"]


def test_ktos_mismatched_answer_is_one_to_another_prompt() -> None:
    examples = [Example([1], [[2]]), Example([1], [[3]]), Example([4], [[5]]), Example([4], [[6]])]
    found = [list(dpo.others_completions(examples, i)[0]) for i in range(4)]
    assert found == [[5], [5], [2], [2]]
    same = [Example([1], [[2]]), Example([1], [[3]])]
    assert dpo.others_completions(same, 0) == [[3]], "nothing better is there"


def test_what_the_losses_read_of_a_list_counts_counted_tokens_and_names_its_first_best_answer() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    examples = [
        Example([5, 6], [[7, 8, 9], [10]], counted=[[False, True, True], [True]], grades=[1.0, 2.0]),
        Example([5], [[7, 8], [9, 10], [11]], grades=[0.0, 3.0, 3.0]),
    ]
    comparisons = [draw_comparisons(example, max_pairs=8, seed=0, visit=(0, i)) for i, example in enumerate(examples)]
    batch = lay_out(base, examples)
    lists = lay_lists(base, batch, examples, comparisons, None)
    assert lists.lengths.tolist() == batch.completion_index.bincount().tolist() == [2, 1, 2, 2, 1]
    assert lists.list_index.tolist() == [0, 0, 1, 1, 1]
    assert lists.best.tolist() == [1, 3]
    assert lists.grades.tolist() == [1.0, 2.0, 0.0, 3.0, 3.0]
