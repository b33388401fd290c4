"""A dry run refuses what the run would refuse before its first step, and does so without the weights."""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.config.rft import RFTConfig
from onebase.config.rollouts import BestOfConfig, IterateConfig, PPOConfig
from onebase.errors import ConfigError, MissingExtraError, ModelError, OnebaseError, RoleMismatchError
from onebase.recipes import best_of, dpo, iterate, ppo, pretrain, reward, rft, sft
from onebase.recipes.setup.shared import open_run
from onebase.runs import trackers
from tests.recipes.conftest import Options, common, load, make_base, pair_rows, write_rows

SAMPLED: Options = {"reward.callable": "tests.recipes.conftest:count_vowels", "generation.max_new_tokens": 6}
VERBS: dict[str, tuple[Any, Any, Options]] = {
    "sft": (sft, SFTConfig, {}),
    "reward": (reward, RewardConfig, {}),
    "dpo": (dpo, DPOConfig, {}),
    "ppo": (ppo, PPOConfig, SAMPLED),
    "rft": (rft, RFTConfig, {**SAMPLED, "advantage": "gae"}),
    "best-of": (best_of, BestOfConfig, {**SAMPLED, "data.eval_fraction": None}),
    "iterate": (iterate, IterateConfig, {**SAMPLED, "data.eval_fraction": None}),
}


def planned(verb: str, base: Path, folder: Path, *more: Options) -> str:
    recipe, model, needed = VERBS[verb]
    rows = write_rows(folder / "rows.jsonl", pair_rows())
    plan: str = recipe.plan(load(model, common(base, folder / "run", rows), needed, *more))
    return plan


@pytest.mark.parametrize("verb", VERBS)
def test_what_fits_is_planned_and_leaves_nothing(verb: str, base: Path, sft_role: Path, tmp_path: Path) -> None:
    plan = planned(verb, base, tmp_path, {"start_from": str(sft_role)})
    assert "base   " in plan
    # The first example, as `data show` would show it.
    assert re.search(r"^example     .*rows\.jsonl:\d+, read as pair; template hh$", plan, re.MULTILINE)
    assert "Human: " in plan and "Assistant:" in plan
    if verb in ("sft", "dpo"):
        assert "⟦" in plan and "end token <|eos|> learned in " in plan
    if verb == "reward":  # it learns from whole scores, and from no token by itself
        assert "⟦" not in plan and "of 2; each has one score, read at its last token" in plan
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_role_of_another_base_is_refused(verb: str, sft_role: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(RoleMismatchError, match="made on another base"):
        planned(verb, other, tmp_path, {"start_from": str(sft_role)})


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"best-of"}))
def test_another_adapter_than_the_one_a_role_brings_is_refused(
    verb: str, base: Path, sft_role: Path, tmp_path: Path
) -> None:
    start: Options = {"start_from": str(sft_role)}
    own = json.loads((sft_role / "adapter_config.json").read_text(encoding="utf-8"))
    planned(verb, base, tmp_path, start, {"lora.r": own["r"], "lora.target_modules": own["target_modules"]})
    others: list[Options] = [{"lora.r": own["r"] + 1}, {"lora.target_modules": ["q_proj"]}, {"lora.layers": "0"}]
    if verb not in ("ppo", "rft"):  # where dropout is refused in any case
        others.append({"lora.dropout": 0.5})
    for other in others:
        key, value = next(iter(other.items()))
        with pytest.raises(ConfigError, match=f"'{key}' = .* would change nothing: .*policy brings its own adapter"):
            planned(verb, base, tmp_path, start, other)
        recipe, model, needed = VERBS[verb]
        if verb == "iterate":  # whose run samples before it learns
            continue
        with pytest.raises(ConfigError, match="would change nothing"):
            recipe.run(load(model, common(base, tmp_path / "run", tmp_path / "rows.jsonl"), needed, start, other))


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"best-of", "iterate"}))
def test_a_warm_up_longer_than_the_run_is_said(
    verb: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(verb, base, tmp_path, {"max_steps": 1, "optimizer.warmup_steps": 1000})
    assert "optimizer.warmup_steps = 1000 is longer than the run" in "".join(capsys.readouterr())


@pytest.mark.parametrize("verb", VERBS)
def test_a_role_that_is_not_there_or_of_another_kind_is_refused(
    verb: str, base: Path, sft_role: Path, reward_role: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        planned(verb, base, tmp_path, {"start_from": str(tmp_path / "nowhere")})
    if verb != "reward":  # which goes on from either
        with pytest.raises(RoleMismatchError, match="this is a reward role, and a policy role is needed here"):
            planned(verb, base, tmp_path, {"start_from": str(reward_role)})
    if verb in ("ppo", "rft", "best-of", "iterate"):
        with pytest.raises(RoleMismatchError, match="this is a policy role, and a reward role is needed here"):
            planned(verb, base, tmp_path, {"reward.callable": None, "reward.role": str(sft_role)})


def test_a_reference_of_another_kind_is_refused(base: Path, reward_role: Path, tmp_path: Path) -> None:
    with pytest.raises(RoleMismatchError, match="this is a reward role"):
        planned("dpo", base, tmp_path, {"reference_role": str(reward_role)})
    assert planned("dpo", base, tmp_path, {"reference_role": "base"})


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "ppo", "iterate"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora.target_modules": ["q_prog"]}, "no linear layer is named 'q_prog'"),
        ({"lora.layers": "1-7"}, "the layers '?1-7'? reach outside the model's, 0-1"),
    ],
)
def test_an_adapter_where_the_base_has_no_layer_is_refused(
    verb: str, more: Options, message: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        planned(verb, base, tmp_path, more)


def test_a_reward_role_without_moments_is_refused_where_they_are_needed(
    base: Path, reward_role: Path, tmp_path: Path
) -> None:
    role = tmp_path / "reward"
    shutil.copytree(reward_role, role)
    card = json.loads((role / "role.json").read_text())
    (role / "role.json").write_text(json.dumps(card | {"score_std": None}))
    more: Options = {"reward.callable": None, "reward.role": str(role)}
    assert planned("ppo", base, tmp_path, more)
    with pytest.raises(ModelError, match="normalising needs the moments"):
        planned("ppo", base, tmp_path, more, {"reward.normalize": "held_out"})


@pytest.mark.parametrize("verb", [*VERBS, "pretrain"])
def test_a_finished_run_and_a_tracker_that_is_not_installed_are_refused(
    verb: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(more: Options) -> str:
        if verb != "pretrain":
            return planned(verb, base, tmp_path, more)
        (tmp_path / "texts.txt").write_text("a text\n\nanother one")
        options: Options = {"output_dir": str(tmp_path / "run"), "data.train": str(tmp_path / "texts.txt")}
        return pretrain.plan(load(PretrainConfig, options, more))

    def no_spec(name: str) -> ModuleSpec | None:
        return None

    with monkeypatch.context() as patched:
        patched.setattr(trackers, "find_spec", no_spec)
        with pytest.raises(MissingExtraError, match="the tracker wandb is not installed"):
            plan({"report_to": ["wandb"]})
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(OnebaseError, match="holds a finished run"):
        plan({})


def test_a_function_that_cannot_take_the_rows_is_refused_by_best_of_and_iterate(base: Path, tmp_path: Path) -> None:
    more: Options = {"reward.callable": "tests.recipes.test_ppo:reward_by_column"}
    for verb in ("best-of", "iterate"):
        with pytest.raises(OnebaseError, match="reward.callable: .* missing a required .*'gold'"):
            planned(verb, base, tmp_path, more)


def test_a_folder_that_cannot_be_written_or_is_being_written_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
        with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
            planned("sft", base, tmp_path, {"output_dir": str(tmp_path / "not" / "yet")})
    config = load(SFTConfig, common(base, tmp_path / "run", write_rows(tmp_path / "rows.jsonl", pair_rows())))
    writing = open_run(config)
    with pytest.raises(ConfigError, match="another process is writing this run"):
        planned("sft", base, tmp_path)
    writing.close()
    assert planned("sft", base, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: _cut(base / "model.safetensors"), "no model could be loaded: "),
        (lambda base: (base / "model.safetensors").unlink(), "no model could be loaded: "),
        (lambda base: _config(base, num_hidden_layers=1), "stored weights have no place in the model"),
        (lambda base: _config(base, num_hidden_layers=3), "weights are missing or of another shape"),
        (lambda base: _config(base, vocab_size=10**9), "weights are missing or of another shape"),
        (lambda base: _config(base, rms_norm_eps=float("nan")), "config.json says rms_norm_eps = nan; a finite"),
        (lambda base: _config(base, name="tokenizer_config.json", chat_template=[3]), "no tokenizer could be loaded: "),
    ],
)
def test_a_damaged_base_is_refused_without_its_weights(change: Any, message: str, base: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(base, tmp_path / "damaged"))
    change(damaged)
    with pytest.raises(ModelError, match=f"{damaged}.*: .*{message}"):
        planned("sft", damaged, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda role: _cut(role / "adapter_model.safetensors"), "the adapter cannot be read"),
        (lambda role: _cut(role / "adapter_config.json"), "the adapter cannot be read"),
        (lambda role: _config(role, name="adapter_config.json", r=3), "r is 3, and the weights beside it have rank 4"),
        (lambda role: _config(role, name="adapter_config.json", target_modules=["nosuch"]), "cannot be put on this"),
    ],
)
@pytest.mark.parametrize("key", ["start_from", "reward.role"])
def test_a_damaged_role_is_refused_without_the_weights_of_the_base(
    key: str, change: Any, message: str, base: Path, sft_role: Path, reward_role: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(sft_role if key == "start_from" else reward_role, tmp_path / "damaged"))
    change(damaged)
    more: Options = {key: str(damaged), **({"reward.callable": None} if key == "reward.role" else {})}
    with pytest.raises(ModelError, match=f"{damaged}.*: .*{message}"):
        planned("ppo", base, tmp_path, more)


def test_a_model_that_is_no_classifier_is_refused(base: Path, tmp_path: Path) -> None:
    more: Options = {"reward.callable": None, "reward.model": str(base)}
    with pytest.raises(ModelError, match="a reward model is a classifier with 1 label; this has 2"):
        planned("ppo", base, tmp_path, more)
    one_label = Path(shutil.copytree(base, tmp_path / "model"))
    _config(one_label, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(ModelError, match="not a trained reward model: its weights lack 'score.weight'"):
        planned("ppo", base, tmp_path, {**more, "reward.model": str(one_label)})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _config(folder: Path, *, name: str = "config.json", **entries: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
