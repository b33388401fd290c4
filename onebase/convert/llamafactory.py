"""LLaMA-Factory's training configs: `llamafactory-cli train FILE`, stages pt, sft, rm, ppo, dpo and kto."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onebase.convert import training_arguments as shared
from onebase.convert.conversion import Conversion
from onebase.errors import ConfigError
from onebase.shown import shown

STAGES = {"pt": "pretrain", "sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "dpo"}
_LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo", "simpo": "simpo"}


def convert(c: Conversion, stage: str | None) -> None:
    """Reads a LLaMA-Factory config.

    Raises:
        ConfigError: its stage is none that trains, or the model or the data are missing.
    """
    named = str(c.take("stage", "sft"))
    if stage is not None and stage != named:
        raise ConfigError(f"the file has stage: {shown(named, 40)}, and --stage is {shown(stage, 40)}; leave it out")
    if named not in STAGES:
        raise ConfigError(f"'stage' is {shown(named, 40)}; the stages are {', '.join(STAGES)}")
    c.verb = STAGES[named]
    _model(c)
    _data(c)
    c.put("optimizer.learning_rate", c.number("learning_rate", 5e-5))
    shared.schedule(c, "lr_scheduler_type", "linear")
    shared.epochs(c, "num_train_epochs", 3.0)
    shared.saving(c)
    if c.verb != "ppo":
        shared.minibatch(c)
    shared.lengths(c, "cutoff_len", 2048, prompt="")
    if c.verb == "sft":
        _sft(c)
    elif c.verb == "dpo":
        _preference(c, kto=named == "kto")
    elif c.verb == "ppo":
        _ppo(c)


def _model(c: Conversion) -> None:
    name = c.take("model_name_or_path")
    if name is None:
        raise ConfigError("'model_name_or_path' is missing in the file; add the base model to it")
    c.put("model.model_name_or_path", str(name))
    kind = str(c.take("finetuning_type", "lora"))
    if kind not in ("lora", "full"):
        c.changed("finetuning_type", f"{shown(kind, 40)} is not among ours; an adapter (lora) is trained")
    shared.adapter(c, "lora_rank", rank=8, alpha=None, dropout=0.0, trains_adapter=kind != "full")
    target = c.take("lora_target", "all")
    shared.targets(c, "lora_target", target)
    shared.precision(c)
    start = c.take("adapter_name_or_path")
    if start is not None and c.can("start_from"):
        c.put("start_from", str(start).split(",")[-1].strip())
        c.changed(
            "adapter_name_or_path", "start_from takes a role of onebase; train it here first, by the stage before"
        )
    elif start is not None:
        c.dropped("adapter_name_or_path", f"onebase {c.verb} trains the model itself; merge the adapter first")
    template = str(c.take("template", ""))
    if template == "chatml" and c.can("model.chat_template") and c.verb != "pretrain":
        c.put("model.chat_template", "chatml")
    elif template:
        c.dropped(
            "template",
            f"{shown(template, 40)}: the tokenizer's own template is used; model.chat_template names another",
        )


def _files(c: Conversion, name: str) -> list[str]:
    """The files behind data-set names, by the tool's own `dataset_info.json` where it is there."""
    value = c.take(name)
    if value is None:
        return []
    names = [str(part).strip() for part in (value if isinstance(value, list) else str(value).split(","))]
    folder = Path(str(c.left.get("dataset_dir") or "data"))
    table = _table(c, folder)
    paths = []
    for dataset in names:
        entry = table.get(dataset)
        if not isinstance(entry, dict):
            path = f"{folder}/{dataset}.json"
            c.changed(name, f"there is no dataset_info.json with {shown(dataset, 60)}; taken for the file {path}")
        elif "file_name" in entry:
            path = f"{folder}/{entry['file_name']}"
        else:
            path = str(entry.get("hf_hub_url") or entry.get("ms_hub_url") or entry.get("script_url") or dataset)
            c.changed(name, f"{shown(dataset, 60)} is {shown(path, 80)} on a hub; download it, or name a file")
        if isinstance(entry, dict) and entry.get("columns"):
            renamed = ", ".join(f"{ours}: {theirs}" for ours, theirs in entry["columns"].items())
            c.changed(
                name, f"{shown(dataset, 60)} maps its columns ({shown(renamed, 200)}); layouts are recognised here"
            )
        paths.append(path)
    return paths


def _table(c: Conversion, folder: Path) -> dict[str, Any]:
    for place in (folder, c.folder / folder):
        try:
            found = json.loads((place / "dataset_info.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _data(c: Conversion) -> None:
    paths, held_out = _files(c, "dataset"), _files(c, "eval_dataset")
    c.take("dataset_dir")
    if not paths:
        raise ConfigError("'dataset' is missing in the file; add the training data to it")
    limit, strategy, shares = c.number("max_samples"), c.take("mix_strategy", "concat"), c.take("interleave_probs")
    if limit is None and shares is None:
        c.put("data.train", paths)
    else:
        weights = [float(share) for share in str(shares).split(",")] if shares is not None else [None] * len(paths)
        c.put(
            "data.train",
            [
                {"path": path}
                | ({"weight": weight} if weight is not None else {})
                | ({"limit": limit} if limit is not None else {})
                for path, weight in zip(paths, weights, strict=False)
            ],
        )
    if strategy == "interleave_under":
        c.changed("mix_strategy", "an epoch reads the sources until all are read, as interleave_over does")
    shared.held_out(c, "val_size", files=held_out)
    if c.take("streaming") is True and c.can("data.streaming"):
        c.put("data.streaming", True)


def _sft(c: Conversion) -> None:
    if c.take("train_on_prompt") is True:
        c.put("data.train_on", "all")
    elif c.take("mask_history") is not True:
        c.put("data.train_on", "assistant")  # every answer of a conversation counts there


def _preference(c: Conversion, *, kto: bool) -> None:
    beta = c.number("pref_beta", 0.1)
    c.put("preference.beta", beta)
    loss = str(c.take("pref_loss", "sigmoid"))
    if kto:
        c.put("loss", "kto")
        for theirs, ours in (("kto_chosen_weight", "desirable_weight"), ("kto_rejected_weight", "undesirable_weight")):
            if (weight := c.number(theirs)) is not None:
                c.put(f"preference.{ours}", weight)
    elif loss == "orpo":
        c.put("loss", f"nll + {beta:g} orpo")
        del c.keys["preference.beta"]
    else:
        if loss not in _LOSSES:
            c.changed("pref_loss", f"{shown(loss, 40)} is not among ours; sigmoid stands in its place")
        ftx = c.number("pref_ftx", 0)
        c.put("loss", _LOSSES.get(loss, "sigmoid") + (f" + {ftx:g} nll" if ftx > 0 else ""))
    if loss == "simpo":
        c.put("preference.gamma", c.number("simpo_gamma", 0.5))
    if (smoothing := c.number("dpo_label_smoothing", 0)) > 0:
        c.put("preference.label_smoothing", smoothing)
    if (reference := c.take("ref_model")) is not None:
        c.dropped("ref_model", f"{shown(reference, 60)}: the reference is a role on the same base (reference_role)")


def _ppo(c: Conversion) -> None:
    times = c.number("ppo_buffer_size", 1)
    step = shared.examples_per_step(c)
    c.put("generation.samples_per_prompt", 1)
    c.put("ppo.minibatch_prompts", step)
    c.put("ppo.rollout_prompts", step * times)
    epochs = c.number("ppo_epochs", 4)
    c.put("ppo.num_ppo_epochs", epochs)
    shared.rollouts_for_steps(c, times * epochs)
    c.put("ppo.kl_coefficient", 0.2)
    c.put("ppo.kl_target", c.number("ppo_target", 6.0))
    c.put("ppo.whiten_rewards", c.take("ppo_whiten_rewards", False) is True)
    if c.take("ppo_score_norm", False) is True:
        c.put("ppo.score_scaling", "running")
    c.put("generation.max_new_tokens", c.number("max_new_tokens", 1024))
    c.put("generation.temperature", c.number("temperature", 0.95))
    for name, off in (("top_p", 1), ("top_k", 0)):
        value = c.number(name)
        if value is not None and value != off:
            c.dropped(name, f"{value:g} would sample from another distribution than ppo trains; it is left at {off}")
    kind, named = str(c.take("reward_model_type", "lora")), str(c.take("reward_model", "") or "")
    if kind == "lora" and named:
        c.put("reward.role", named)
        c.changed("reward_model", "reward.role takes a reward role of onebase; train it with `onebase reward` first")
    elif kind == "full" and named:
        c.put("reward.model", named)
        c.changed("reward_model", "reward.model takes a classifier with one label, as transformers saves it")
    else:
        c.put("reward.callable", "my_rewards:score")
        c.changed("reward_model", "no model in the file that is read here; write the function score in my_rewards.py")
