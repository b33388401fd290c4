"""Interrupted equals uninterrupted, for every verb that trains or samples: the same bytes, the same record."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onebase.cli.main import main
from onebase.config.verbs import VERB_CONFIGS
from onebase.data.batches import minibatch_indices
from onebase.errors import CheckpointError, Interrupted, NonFiniteError, Stopped
from onebase.models.loading import load_tokenizer
from onebase.processes import Group
from onebase.recipes import best_of, dpo, iterate, ppo, pretrain, reward, rft, sft
from onebase.training.checkpoint import checkpoints
from onebase.training.update import MAX_REFUSED_IN_A_ROW
from tests.recipes.conftest import (
    SENTENCES,
    SMALL_PPO,
    SMALL_RFT,
    Options,
    answered_rows,
    common,
    file_bytes,
    leftovers,
    load,
    make_base,
    metric_rows,
    pair_rows,
    prompt_rows,
    words,
    write_rows,
)

Capture = pytest.CaptureFixture[str]

RECIPES = {
    "pretrain": pretrain,
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "rft": rft,
    "best-of": best_of,
    "iterate": iterate,
}
ROLES = ("model", "policy", "critic", "reward", "best")
SCHEDULED: Options = {
    "max_steps": 6,
    "batch.minibatch": 4,
    "lora.r": 4,
    "evaluation.every_steps": 2,
    "optimizer.learning_rate": 5e-3,
    "optimizer.warmup_steps": 2,
    "optimizer.schedule": "cosine",
    "optimizer.weight_decay": 0.1,
}
NEW_MODEL: Options = {
    "max_steps": 6,
    "batch.minibatch": 4,
    "tiny.vocab_size": 300,
    "tiny.hidden_size": 32,
    "tiny.num_layers": 2,
    "tiny.num_heads": 2,
    "tiny.max_length": 32,
    "evaluation.every_steps": 2,
    "optimizer.schedule": "linear",
}
SAMPLED: Options = {
    "reward.callable": "tests.recipes.conftest:count_vowels",
    "generation.max_new_tokens": 6,
    "generation.samples_per_prompt": 3,
}
ROUNDS: Options = {
    **SAMPLED,
    "rounds": 2,
    "prompts_per_round": 8,
    "optimizer.learning_rate": 5e-3,
    "optimizer.num_epochs": 2,
    "lora.r": 4,
    "lora.dropout": 0.1,
    "batch.minibatch": 4,
    "data.eval_fraction": None,
}
FOUR_ROLLOUTS: Options = {**SMALL_PPO, "max_steps": 4, "evaluation.prompts": 4, "evaluation.every_steps": 1}

Stops = list[tuple[int, str]]
"""One a process: in the middle of which piece of work (an optimizer step, a batch of samples), counted from 1, comes
what: a signal, or an error."""
STOPS: Stops = [(2, "SIGTERM"), (2, "error"), (1, "SIGINT")]


@dataclass(frozen=True)
class Stage:
    verb: str
    options: Options
    stops: Stops


STAGES = {
    "pretrain": Stage("pretrain", NEW_MODEL, STOPS),
    "sft": Stage("sft", {**SCHEDULED, "lora.dropout": 0.2}, STOPS),
    "pretrain streamed": Stage("pretrain", {**NEW_MODEL, "data.streaming": True}, STOPS),
    "sft streamed": Stage("sft", {**SCHEDULED, "data.streaming": True}, STOPS),
    "sft from a packed file": Stage("sft", {**SCHEDULED, "data.streaming": True, "data.train": "PACKED"}, STOPS),
    "dpo streamed": Stage("dpo", {**SCHEDULED, "data.streaming": True}, STOPS),
    "sft in full": Stage("sft", {**SCHEDULED, "lora.r": 0}, STOPS),
    "reward": Stage("reward", SCHEDULED, STOPS),
    "dpo": Stage("dpo", {**SCHEDULED, "start_from": "SFT"}, STOPS),
    "kto": Stage("dpo", {**SCHEDULED, "loss": "kto", "preference.reference": "live"}, STOPS),
    # A rollout is four optimizer steps: it is stopped in the middle of the first, fails before the third has changed
    # anything, and then in the middle of it.
    "ppo": Stage(
        "ppo",
        {
            **FOUR_ROLLOUTS,
            "start_from": "SFT",
            "reward.callable": None,
            "reward.role": "REWARD",
            "ppo.critic_start": "auto",
            "ppo.kl_target": 0.5,
            "ppo.kl_horizon": 50,
            "ppo.score_scaling": "running",
            "ppo.kl_budget": 100,
            "ppo.ptx_coefficient": 0.5,
            "ppo.ptx_data": "PTX",
            "generation.random_min_new_tokens": 3,
        },
        [(3, "SIGTERM"), (5, "error"), (2, "error")],
    ),
    "ppo with a head": Stage(
        "ppo",
        {**FOUR_ROLLOUTS, "ppo.critic": "head", "ppo.critic_warmup_rollouts": 1},
        [(3, "SIGTERM"), (5, "error"), (2, "error")],
    ),
    "rft": Stage(
        "rft",
        {
            **SMALL_RFT,
            "max_steps": 4,
            "evaluation.prompts": 4,
            "evaluation.every_steps": 1,
            "start_from": "SFT",
            "rft.kl_coefficient": 0.1,
            "rft.policy_loss": "kl_penalty",
            "rft.dynamic_sampling": True,
            "generation.samples_per_prompt": 2,
            "generation.random_min_new_tokens": 3,
        },
        [(3, "SIGTERM"), (5, "error"), (2, "error")],
    ),
    "rft with a critic": Stage(
        "rft",
        {**SMALL_RFT, "max_steps": 4, "advantage": "gae", "evaluation.prompts": 4},
        [(3, "SIGTERM"), (5, "error"), (2, "error")],
    ),
    "best-of": Stage("best-of", {**SAMPLED, "data.eval_fraction": None}, STOPS),
    # A round is two batches of samples and some optimizer steps.
    "iterate": Stage("iterate", ROUNDS, [(2, "SIGTERM"), (2, "error"), (4, "SIGINT"), (3, "error")]),
    "raft": Stage("iterate", {**ROUNDS, "learn": "sft"}, [(4, "SIGTERM"), (4, "SIGTERM")]),
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples in several batches."""
    monkeypatch.setattr(best_of, "PROMPTS_AT_A_TIME", 4)


@pytest.fixture(autouse=True)
def a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A new one for each test, so that what is kept there is made anew as well."""
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path_factory.mktemp("cache")))


@dataclass(frozen=True)
class Materials:
    """What the stages start from, and what they gave when nobody stopped them."""

    folder: Path
    base: Path
    sft_role: Path
    reward_role: Path
    finished: dict[str, Path]

    def options(self, name: str, output: Path, *more: Options) -> Options:
        """Of a stage; later ones win."""
        stage = STAGES[name]
        rows: dict[str, Callable[[], Iterable[Options]]] = {
            "pretrain": lambda: [{"text": text} for text in SENTENCES],
            "sft": answered_rows,
            "reward": pair_rows,
            "dpo": pair_rows,
            "ppo": prompt_rows,
            "rft": prompt_rows,
            "iterate": prompt_rows,
            "best-of": lambda: [{**row, "more": [None, {"big": 1 << 70, "漢": 0.1}]} for row in prompt_rows()],
        }
        data = write_rows(self.folder / f"{stage.verb}.jsonl", rows[stage.verb]())
        packed = data.with_suffix(".jsonl.gz")
        packed.write_bytes(gzip.compress(data.read_bytes(), mtime=0))
        ptx = write_rows(self.folder / "ptx.jsonl", [{"text": text} for text in SENTENCES[:8]])
        named = {"SFT": str(self.sft_role), "REWARD": str(self.reward_role), "PTX": str(ptx), "PACKED": str(packed)}
        options = common(self.base, output, data)
        if stage.verb == "pretrain":
            options = {key: value for key, value in options.items() if not key.startswith("model.")}
        for part in (stage.options, *more):
            options |= {key: named.get(str(value), value) for key, value in part.items()}
        return options

    def run(self, name: str, output: Path, *more: Options) -> Path:
        verb = STAGES[name].verb
        RECIPES[verb].run(load(VERB_CONFIGS[verb], self.options(name, output, *more)))
        return output

    def whole(self, name: str, kind: str = "", *more: Options) -> Path:
        """The run that nobody stopped, of a stage as it is or of another kind."""
        if name + kind not in self.finished:
            self.finished[name + kind] = self.run(name, self.folder / (name + kind), *more)
        return self.finished[name + kind]


@pytest.fixture(scope="module")
def materials(base: Path, sft_role: Path, reward_role: Path, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return Materials(tmp_path_factory.mktemp("resume"), base, sft_role, reward_role, {})


Happening = Callable[[Sequence[nn.Parameter] | None], None]
"""Is given the parameters that train, in the middle of an optimizer step."""


def happens(patch: pytest.MonkeyPatch, at: int, what: Happening) -> None:
    """In the middle of a piece of work: the passes are done, their gradients are there, and no weight has changed."""
    done = [0]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            done[0] += 1
            if done[0] == at:
                what(arguments[1] if isinstance(arguments[0], Group) else None)
            return result

        return call

    patch.setattr(Group, "sum_gradients", watched(Group.sum_gradients))
    patch.setattr(best_of, "collect", watched(best_of.collect))


ERRORS: dict[str, type[Exception]] = {"SIGTERM": Stopped, "SIGINT": Interrupted, "error": ZeroDivisionError}


def stop_by(kind: str) -> Happening:
    if kind == "error":
        return lambda parameters: 1 // 0  # type: ignore[return-value]
    return lambda parameters: os.kill(os.getpid(), signal.Signals[kind])


def run_interrupted(
    materials: Materials, name: str, output: Path, stops: Stops, *more: Options, finish: Options | None = None
) -> Path:
    """The same command again and again; the last time with `finish` beside."""
    for at, kind in stops:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ERRORS[kind]):
            happens(patch, at, stop_by(kind))
            materials.run(name, output, *more)
        assert not (output / "summary.json").exists()
    return materials.run(name, output, *more, finish or {})


def roles_of(run: Path) -> dict[str, bytes]:
    """Every file of every role, also those of the best and of the rounds."""
    return {
        name: content
        for name, content in file_bytes(run).items()
        if set(Path(name).parts[:-1]) & set(ROLES) and "checkpoint-" not in name and "failed-in-step-" not in name
    }


def clockless(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if not name.startswith("perf/") and not name.endswith(("seconds", "peak_memory_mb"))
    }


def summary_of(run: Path) -> dict[str, Any]:
    return clockless(json.loads((run / "summary.json").read_text()))


def assert_same_run(found: Path, expected: Path) -> None:
    """The bytes of all roles, the metrics and the summary; of runs inside it too."""
    assert roles_of(found) == roles_of(expected) and (roles_of(found) or (found / "best.jsonl").exists())
    runs = sorted(path.parent.relative_to(expected) for path in expected.rglob("summary.json"))
    assert runs == sorted(path.parent.relative_to(found) for path in found.rglob("summary.json"))
    for run in runs:
        rows = [[clockless(row) for row in metric_rows(folder / run)] for folder in (found, expected)]
        assert rows[0] == rows[1] and rows[0]
        assert summary_of(found / run) == summary_of(expected / run)
        for name in ("best.jsonl", "pairs.jsonl", "samples.jsonl", "findings.jsonl"):
            assert (found / run / name).exists() == (expected / run / name).exists()
            if (found / run / name).exists():
                assert (found / run / name).read_bytes() == (expected / run / name).read_bytes()


# --------------------------------------------------------------------------------------------- every verb


@pytest.mark.parametrize("name", STAGES)
def test_interrupted_equals_uninterrupted(materials: Materials, tmp_path: Path, name: str, capsys: Capture) -> None:
    whole = materials.whole(name)
    assert not list(whole.rglob("failed-in-step-*"))
    capsys.readouterr()
    again = run_interrupted(materials, name, tmp_path / "run", STAGES[name].stops)
    found = capsys.readouterr().err.count(": found checkpoint-")
    assert found == len(STAGES[name].stops), "it was not gone on with"
    assert_same_run(again, whole)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(("name", "at"), [("sft", 6), ("ppo with a head", 14), ("best-of", 4)])
def test_a_run_that_was_stopped_in_its_last_step_only_ends(
    materials: Materials, tmp_path: Path, name: str, at: int
) -> None:
    again = run_interrupted(materials, name, tmp_path / "run", [(at, "SIGTERM")])
    assert_same_run(again, materials.whole(name))
    assert len(list(again.glob("checkpoint-*"))) == 1


@pytest.mark.parametrize("by", ["SIGTERM", "a crash"])
def test_ppo_that_was_stopped_over_its_kl_budget_does_not_go_on(
    materials: Materials, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight: Options = {"ppo.kl_budget": 0.02, "max_steps": 8, "checkpoint.every_steps": 1, "evaluation.every_steps": 99}
    whole = materials.whole("ppo with a head", "tight", tight)
    rollouts = metric_rows(whole)
    assert "train/over_kl_budget" in rollouts[-1] and 1 < len(rollouts) < 8
    train_rollout, evaluate = ppo.train_rollout, ppo.evaluate

    def stopping(*arguments: Any) -> dict[str, float]:
        metrics = train_rollout(*arguments)
        if "train/over_kl_budget" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    def crashing(*arguments: Any, role: str) -> Any:
        if role == "policy":
            raise ZeroDivisionError
        return evaluate(*arguments, role=role)

    with monkeypatch.context() as patch, pytest.raises(Stopped if by == "SIGTERM" else ZeroDivisionError):
        if by == "SIGTERM":
            patch.setattr(ppo, "train_rollout", stopping)
        else:
            patch.setattr(ppo, "evaluate", crashing)
        materials.run("ppo with a head", tmp_path / "cut", tight)
    assert checkpoints(tmp_path / "cut")[0].name == f"checkpoint-{len(rollouts)}"
    assert_same_run(materials.run("ppo with a head", tmp_path / "cut", tight), whole)


def test_ppo_goes_back_to_a_policy_from_before_the_stop(materials: Materials, tmp_path: Path, capsys: Capture) -> None:
    far: Options = {
        "ppo.kl_budget": 0.8,
        "max_steps": 2,
        "optimizer.learning_rate": 2e-2,
        "ppo.critic_warmup_rollouts": 0,
        "generation.samples_per_prompt": 4,
        "evaluation.prompts": 3,
        "evaluation.samples_per_prompt": 4,
        "seed": 12,
    }
    whole = materials.run("ppo with a head", tmp_path / "whole", far)
    assert capsys.readouterr().err.count("; back to an earlier policy") == 2
    again = run_interrupted(materials, "ppo with a head", tmp_path / "cut", [(8, "SIGTERM")], far)
    assert_same_run(again, whole)


# --------------------------------------------------------------------------------------------- another machine

ROUNDING = {
    "pretrain": 1e-6,
    "sft in full": 1e-6,
    "reward": 5e-6,
    "dpo": 1e-6,
    "kto": 1e-6,
    "ppo": 1e-6,
    "ppo with a head": 1e-6,
    "rft with a critic": 1e-6,
}
"""How far a weight may be from that of the run that nobody stopped, when the end of it ran with other microbatches; the
weights moved by 1e-2 and more. Without dropout, whose random numbers depend on the split."""


def largest_difference(found: Path, expected: Path) -> float:
    differences = [0.0]
    for path in expected.rglob("*.safetensors"):
        name = path.relative_to(expected)
        if not set(name.parts) & set(ROLES):
            continue
        a, b = load_file(found / name), load_file(path)
        assert a.keys() == b.keys()
        differences += [float((a[key] - b[key]).abs().max()) for key in a]
    return max(differences)


@pytest.mark.parametrize("name", ROUNDING)
def test_other_microbatches_after_going_on_change_the_last_bits_alone(
    materials: Materials, tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    whole = materials.whole(name)
    stops = STAGES[name].stops[:1]
    again = run_interrupted(materials, name, tmp_path / "run", stops, finish={"batch.microbatch_tokens": 1})
    difference = largest_difference(again, whole)
    record_property("largest difference of a weight", difference)
    assert difference <= ROUNDING[name]
    for row, expected in zip(metric_rows(again), metric_rows(whole), strict=True):
        assert row.keys() == expected.keys()
        numbers = {key: value for key, value in clockless(expected).items() if value is not None}
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)


def test_other_microbatches_change_no_sample(materials: Materials, tmp_path: Path) -> None:
    stops = STAGES["best-of"].stops[:1]
    again = run_interrupted(materials, "best-of", tmp_path / "run", stops, finish={"batch.microbatch_tokens": 1})
    assert_same_run(again, materials.whole("best-of"))


def test_a_microbatch_found_by_trying_stays_what_it_was(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto: Options = {"batch.microbatch_tokens": "auto"}
    monkeypatch.setattr("onebase.recipes.setup.shared.find_token_budget", lambda *a, **named: 64)
    whole = materials.run("sft", tmp_path / "whole", auto)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        happens(patch, 2, stop_by("SIGTERM"))
        materials.run("sft", tmp_path / "cut", auto)
    monkeypatch.setattr("onebase.recipes.setup.shared.find_token_budget", lambda *a, **named: 4096)  # less is used now
    assert_same_run(materials.run("sft", tmp_path / "cut", auto), whole)


# --------------------------------------------------------------------------------------------- what changed since


def test_changed_weights_of_the_base_are_refused(base: Path, tmp_path: Path) -> None:
    own = make_base(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows())
    config = load(VERB_CONFIGS["sft"], common(own, tmp_path / "run", rows), SCHEDULED)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        happens(patch, 2, stop_by("SIGTERM"))
        sft.run(config)
    make_base(own, seed=1)
    with pytest.raises(CheckpointError, match="the base model changed since checkpoint-2 was written$"):
        sft.run(config)
    make_base(own)
    assert sft.run(config)["steps"] == 6


def test_changed_rows_and_a_changed_reward_role_are_refused(base: Path, reward_role: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", prompt_rows())
    role = tmp_path / "reward"
    for path in [role, tmp_path / "kept"]:
        path.mkdir()
        for name, content in file_bytes(reward_role).items():
            (path / name).write_bytes(content)
    more: Options = {"reward.callable": None, "reward.role": str(role)}
    config = load(VERB_CONFIGS["ppo"], common(base, tmp_path / "run", rows), SMALL_PPO, more)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        happens(patch, 2, stop_by("SIGTERM"))
        ppo.run(config)
    card = role / "role.json"
    card.write_text(card.read_text().replace('"score_mean": ', '"score_mean": 1'))
    with pytest.raises(CheckpointError, match="a role that does not train changed since checkpoint-1 was written"):
        ppo.run(config)
    card.write_bytes((tmp_path / "kept" / "role.json").read_bytes())
    write_rows(rows, [{**row, "gold": "new"} for row in prompt_rows()])  # a column that a reward may read
    with pytest.raises(CheckpointError, match="run: the data changed since checkpoint-1 was written"):
        ppo.run(config)
    write_rows(rows, prompt_rows())
    assert ppo.run(config)["rollouts"] == 2


def test_rounds_that_are_finished_are_not_mixed_with_those_of_another_configuration(
    materials: Materials, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        happens(patch, 3, stop_by("error"))  # the samples of the first round are there, and nothing was learnt yet
        materials.run("iterate", tmp_path / "run")
    for key, value in (("generation.temperature", 0.5), ("preference.beta", 0.7), ("seed", 3)):
        with pytest.raises(CheckpointError, match=f"run was written with another configuration: {key} differ$"):
            materials.run("iterate", tmp_path / "run", {key: value})
    assert_same_run(materials.run("iterate", tmp_path / "run"), materials.whole("iterate"))


# --------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("name", STAGES)
def test_the_same_configuration_gives_the_same_bytes_and_the_seed_alone_others(
    materials: Materials, tmp_path: Path, name: str
) -> None:
    whole = materials.whole(name)
    assert_same_run(materials.run(name, tmp_path / "again"), whole)
    other = materials.run(name, tmp_path / "other", {"seed": 1})
    assert [clockless(row) for row in metric_rows(other)] != [clockless(row) for row in metric_rows(whole)]
    made = [path for path in whole.glob("*/*.safetensors") if path.parent.name in ROLES] + [*whole.glob("best.jsonl")]
    assert made and all((other / path.relative_to(whole)).read_bytes() != path.read_bytes() for path in made)


# --------------------------------------------------------------------------------------------- steps that are refused


def nan(parameters: Sequence[nn.Parameter] | None) -> None:
    assert parameters is not None
    parameters[-1].grad[0] = torch.nan  # type: ignore[index]


def test_a_step_that_is_not_finite_is_skipped_and_its_examples_are_kept(
    materials: Materials, tmp_path: Path, capsys: Capture
) -> None:
    def with_nan(output: Path, stop: bool) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            happens(patch, 3, nan)
            if stop:
                happens(patch, 3, stop_by("SIGTERM"))
            return materials.run("sft", output)

    whole = with_nan(tmp_path / "whole", stop=False)
    path = whole / "refused" / "step-3.json"
    assert [row.get("train/refused_steps") for row in metric_rows(whole)] == [None, None, 1, None, None, None]
    assert metric_rows(whole)[2]["grad_norm"] is None and [p.name for p in path.parent.iterdir()] == ["step-3.json"]
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2 and "optimizer step 3 refused: loss " in warned[0] and str(path) in warned[0]
    assert warned[1] == (
        "warning: 1 of 6 optimizer steps were refused, as their loss or gradient was not finite; their examples are in "
        f"{path.parent}"
    )
    summary = summary_of(whole)
    assert summary["optimizer_steps"] == 6 and summary["refused_steps"] == 1

    kept = json.loads(path.read_text())
    assert kept["optimizer_step"] == 3 and kept["grad_norm"] == "nan" and kept["token_budget"] == 2048
    config = load(VERB_CONFIGS["sft"], materials.options("sft", whole))
    train, _ = sft.read_examples(config, sft.open_chat(load_tokenizer(str(materials.base)), config.model), 96)
    chosen = [train[i] for i in minibatch_indices(2, num_examples=len(train), size=4, seed=0)]
    assert kept["examples"] == [
        {"place": e.row and e.row.place, "prompt_ids": list(e.prompt_ids), "completions": [list(e.completions[0])]}
        for e in chosen
    ]
    assert {example["place"].rsplit(":", 1)[0] for example in kept["examples"]} == {config.data.train[0]}

    with pytest.raises(Stopped):
        with_nan(tmp_path / "cut", stop=True)
    again = materials.run("sft", tmp_path / "cut")
    assert_same_run(again, whole)
    assert file_bytes(again / "refused") == file_bytes(whole / "refused")
    assert roles_of(whole) != roles_of(materials.whole("sft"))


def test_a_run_whose_every_step_was_refused_fails_and_saves_no_role(
    materials: Materials, tmp_path: Path, capsys: Capture
) -> None:
    options = materials.options("sft", tmp_path / "run", {"max_steps": 3})
    with pytest.MonkeyPatch.context() as patch:
        for step in range(1, 4):
            happens(patch, step, nan)
        assert main(["sft", *words(options)]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(
            "error: nothing was trained: all 3 optimizer steps had a loss or gradient that is not finite; no step was "
            "taken"
        )
    )
    assert not (tmp_path / "run" / "policy").exists() and not (tmp_path / "run" / "summary.json").exists()
    assert not checkpoints(tmp_path / "run")


def test_steps_refused_in_a_row_are_counted_across_a_stop(materials: Materials, tmp_path: Path) -> None:
    def always_nan(stop_at: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for step in range(1, 20):
                happens(patch, step, nan)
            happens(patch, stop_at, stop_by("SIGTERM"))
            materials.run("sft", tmp_path / "run", {"max_steps": 9})

    with pytest.raises(Stopped):
        always_nan(3)
    with pytest.raises(NonFiniteError, match="5 optimizer steps in a row had a loss or gradient that is not finite"):
        always_nan(99)
    refused = [f"step-{step}.json" for step in range(1, MAX_REFUSED_IN_A_ROW + 1)]
    assert sorted(path.name for path in (tmp_path / "run" / "refused").iterdir()) == refused
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]


# --------------------------------------------------------------------------------------------- the command line


def test_resume_of_a_run_that_is_not_there_is_one_line(materials: Materials, tmp_path: Path, capsys: Capture) -> None:
    command = ["sft", *words(materials.options("sft", tmp_path / "gone")), "--resume"]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"error: --resume: there is no run in {tmp_path / 'gone'}; leave --resume out to start one\n"
    )
    assert not (tmp_path / "gone").exists()


def test_resume_of_a_finished_run_says_that_nothing_is_left(
    materials: Materials, tmp_path: Path, capsys: Capture
) -> None:
    run = materials.run("sft", tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main(["sft", *words(materials.options("sft", run)), "--resume"]) == 0
    assert capsys.readouterr() == ("", f"{run} holds a finished run; there is nothing left to do\n")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert main(["sft", *words(materials.options("sft", run))]) == 2


def test_resume_goes_on_and_says_where_there_is_nothing_to_go_on_from(
    materials: Materials, tmp_path: Path, capsys: Capture
) -> None:
    options = materials.options("sft", tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        happens(patch, 1, stop_by("error"))
        assert main(["sft", *words(options)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: sft failed in ")
    with pytest.MonkeyPatch.context() as patch:
        happens(patch, 4, stop_by("SIGTERM"))
        assert main(["sft", *words(options), "--resume"]) == 75
    err = capsys.readouterr().err.splitlines()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert err[0] == f"{tmp_path / 'run'} holds no checkpoint yet; starting from the beginning"
    assert err[-1] == f"error: stopped after step 4 and saved {checkpoint}; run the same command to resume"
    assert main(["sft", *words(options), "--resume"]) == 0
    assert f"{tmp_path / 'run'}: found checkpoint-4, resuming after step 4" in capsys.readouterr().err.splitlines()
    assert_same_run(tmp_path / "run", materials.whole("sft"))


LONG: Options = {
    "max_steps": 100,
    "batch.minibatch": 2,
    "lora.r": 2,
    "evaluation.every_steps": None,
    "checkpoint.every_steps": 5,
}


def wait_for(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    while not what():
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_was_stopped_or_killed_is_resumed_by_the_same_command(
    materials: Materials, tmp_path: Path, capsys: Capture, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = ["sft", *words(materials.options("sft", run, LONG))]
    process = subprocess.Popen(
        [sys.executable, "-m", "onebase", *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for(process, (run / "checkpoint-10").exists)
        process.send_signal(signal.SIGSTOP)  # time stands still for it
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines(keepends=True)[-1]
        assert said == f"error: {run}: another process is writing this run; wait for it, or stop it first\n"
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL), err
    assert len(checkpoints(run)) >= 1 and not (run / "summary.json").exists()
    assert main(command) == 0
    assert ": found checkpoint-" in capsys.readouterr().err
    assert_same_run(run, materials.whole("sft", "long", LONG))
    assert not leftovers(tmp_path)
