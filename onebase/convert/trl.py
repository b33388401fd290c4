"""TRL's command-line configs: `trl sft|dpo|reward|kto|grpo|rloo --config FILE` (TRL 1.16; older names are read too)."""

from __future__ import annotations

from typing import Any

from onebase.convert import training_arguments as shared
from onebase.convert.conversion import Conversion
from onebase.errors import ConfigError
from onebase.shown import number_of, shown

STAGES = {"sft": "sft", "dpo": "dpo", "reward": "reward", "kto": "dpo", "grpo": "rft", "rloo": "rft"}
"""The verbs of `trl`, and ours."""
_TELLING = {
    "grpo": ("num_iterations", "scale_rewards", "importance_sampling_level", "top_entropy_quantile"),
    "rloo": ("normalize_advantages", "rloo_k"),
    "kto": ("desirable_weight", "undesirable_weight"),
    "reward": ("center_rewards_coefficient",),
    "dpo": ("precompute_ref_log_probs", "label_smoothing", "f_divergence_type", "rpo_alpha", "loss_weights"),
    "sft": ("packing", "assistant_only_loss", "completion_only_loss", "dataset_text_field", "max_seq_length"),
}
"""Keys that only one trainer has; the file itself does not say which one it is for."""
_LEARNING_RATES = {"sft": 2e-5, "dpo": 1e-6, "reward": 1e-4, "kto": 1e-6, "grpo": 1e-6, "rloo": 1e-6}
_LOSSES = {
    "sigmoid": "sigmoid",
    "hinge": "hinge",
    "ipo": "ipo",
    "robust": "robust",
    "sigmoid_norm": "sigmoid_norm",
    "sft": "nll",
    "simpo": "simpo",
    "orpo": "orpo",
    "kto": "kto",
}
_NORMALIZERS = {"grpo": "completion", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}
_THINK_FORMAT = r"^<think>(?!.*<think>)(.*?)</think>.*$"


def convert(c: Conversion, stage: str | None) -> None:
    """Reads a TRL config; `stage` is the word after `trl`, which the file does not hold.

    Raises:
        ConfigError: nothing in the file tells the stage, or there is no such stage.
    """
    stage = stage or _stage(c)
    if stage not in STAGES:
        raise ConfigError(f"TRL has no stage {shown(stage, 40)} that onebase reads; there are {', '.join(STAGES)}")
    c.verb = STAGES[stage]
    _model(c)
    _data(c)
    _training(c, stage)
    if stage == "sft":
        _sft(c)
    elif stage == "reward":
        if (weight := c.number("center_rewards_coefficient")) is not None:
            c.put("ranking.centering_coefficient", weight)
    elif stage in ("dpo", "kto"):
        _preference(c, stage)
    else:
        rollouts(c, stage)


def _stage(c: Conversion) -> str:
    if c.has("reward_funcs", "reward_model_name_or_path", "num_generations") and not c.has("normalize_advantages"):
        return "grpo"
    found = [stage for stage, keys in _TELLING.items() if any(name in c.left for name in keys)]
    if len(found) != 1:
        said = f"could be for {' or '.join(found)}" if found else "does not say which trainer it is for"
        raise ConfigError(f"the file {said}; say so with --stage {'|'.join(STAGES)}, the word after `trl`")
    return found[0]


def _model(c: Conversion) -> None:
    name = c.take("model_name_or_path")
    if name is None:
        raise ConfigError("'model_name_or_path' is missing in the file; add the base model to it")
    c.put("model.model_name_or_path", str(name))
    given = c.take("use_peft", False) is True
    shared.adapter(c, "lora_r", rank=16, alpha=32, dropout=0.05, trains_adapter=given)
    shared.targets(c, "lora_target_modules", c.take("lora_target_modules"))
    shared.precision(c)
    template = c.take("chat_template_path")
    if template is not None and str(template).endswith(".jinja"):
        c.put("model.chat_template", str(template))
    elif template is not None:
        c.dropped("chat_template_path", "a tokenizer's template; save it as a .jinja file and set model.chat_template")


def _data(c: Conversion) -> None:
    named = c.take("dataset_name")
    mixture = c.take("datasets", [])
    paths = [str(named)] if named is not None else []
    for index, entry in enumerate(mixture if isinstance(mixture, list) else [mixture]):
        entry = c.mapping(f"datasets[{index}]", entry)
        files = entry.pop("data_files", None)
        path = entry.pop("path", None)
        paths += [str(file) for file in (files if isinstance(files, list) else [files or path])]
        if left := {k: v for k, v in entry.items() if v is not None and (k, v) != ("split", "train")}:
            c.dropped(f"datasets[{index}]", f"{', '.join(left)}: a file is read whole, with its columns recognised")
    if not paths:
        raise ConfigError("'dataset_name' is missing in the file; add the training data to it")
    c.put("data.train", paths)
    for name in ("dataset_config", "dataset_train_split"):
        if (value := c.take(name)) not in (None, "train"):
            c.dropped(name, f"{shown(value, 40)}: data.train names files; give the file that holds this part")
    shared.held_out(c, "test_split_size", files=[])
    if c.take("dataset_streaming", c.take("streaming")) is True and c.can("data.streaming"):
        c.put("data.streaming", True)


def _training(c: Conversion, stage: str) -> None:
    c.put("optimizer.learning_rate", c.number("learning_rate", _LEARNING_RATES[stage]))
    shared.schedule(c, "lr_scheduler_type", "linear")
    shared.epochs(c, "num_train_epochs", 3.0)
    shared.saving(c)
    if c.verb != "rft":
        shared.minibatch(c)
        shared.lengths(c, "max_seq_length" if c.has("max_seq_length") else "max_length", 1024)
    mode = c.take("truncation_mode")
    if mode not in (None, "keep_end"):
        c.changed("truncation_mode", f"{mode}: a long prompt loses its beginning, a long answer its end")


def _sft(c: Conversion) -> None:
    only, assistant = c.take("completion_only_loss"), c.take("assistant_only_loss", False)
    if assistant is True:
        c.put("data.train_on", "assistant")
    elif only is False:
        c.put("data.train_on", "all")
    elif only is None:
        c.changed(
            "completion_only_loss",
            "TRL decides by the data: the answer of prompt and completion, every token of a conversation; here the "
            "answer counts (data.train_on: all or assistant for the others)",
        )
    loss = c.take("loss_type", "nll")
    if loss not in ("nll", "chunked_nll"):
        c.dropped("loss_type", f"{shown(loss, 40)}: sft has the usual loss, nll")


def _preference(c: Conversion, stage: str) -> None:
    if stage == "kto":
        c.put("loss", "kto")
        c.drop("loss_type", why="kto has one loss here")
        for theirs in ("desirable_weight", "undesirable_weight"):
            if (weight := c.number(theirs)) is not None:
                c.put(f"preference.{theirs}", weight)
    else:
        c.put("loss", _loss(c))
    c.put("preference.beta", c.number("beta", 0.1))
    if (smoothing := c.number("label_smoothing", 0)) > 0:
        c.put("preference.label_smoothing", smoothing)
    cached = c.take("precompute_ref_log_probs", False)
    c.put("preference.reference", "cached" if cached is True else "live")


def _loss(c: Conversion) -> str:
    named, weights = c.take("loss_type", ["sigmoid"]), c.take("loss_weights")
    terms = [str(name) for name in (named if isinstance(named, list) else [named])]
    weights = weights or [1.0] * len(terms)
    if (alpha := c.number("rpo_alpha")) is not None:
        terms, weights = [*terms, "sft"], [*weights, alpha]
    said = []
    for name, weight in zip(terms, weights, strict=False):
        if name not in _LOSSES:
            c.changed("loss_type", f"{shown(name, 40)} is not among ours; sigmoid stands in its place")
        ours = _LOSSES.get(name, "sigmoid")
        said.append(ours if weight == 1 else f"{weight:g} {ours}")
    return " + ".join(said)


def rollouts(c: Conversion, stage: str) -> None:
    """GRPO and RLOO: sizes are in completions there, in prompts here."""
    c.put("advantage", "group" if stage == "grpo" else "rloo")
    count = c.number("num_generations", 8 if stage == "grpo" else 2)
    c.put("generation.samples_per_prompt", count)
    accumulated = c.number("gradient_accumulation_steps", 1)
    c.left["gradient_accumulation_steps"] = accumulated
    per_device = c.left.get("per_device_train_batch_size") or 8
    step = shared.examples_per_step(c)
    rollout = c.number("generation_batch_size") or int(per_device) * c.number("steps_per_generation", accumulated)
    minibatch, prompts = max(1, step // count), max(1, int(rollout) // count)
    prompts = max(minibatch, prompts - prompts % minibatch)
    c.put("rft.minibatch_prompts", minibatch)
    c.put("rft.rollout_prompts", prompts)
    c.changed(
        "per_device_train_batch_size",
        f"{number_of(step, 'completion')} in an optimizer step are {number_of(minibatch, 'prompt')} with {count} "
        "each, and a rollout has "
        f"{prompts}; if theirs ran on several GPUs, multiply both by their number",
    )
    c.put("generation.max_new_tokens", c.number("max_completion_length", 256))
    if (asked := c.number("max_prompt_length")) is not None:
        c.put("data.max_prompt_tokens", asked)
    epochs = c.number("num_iterations", 1)
    c.put("rft.num_epochs", epochs)
    shared.rollouts_for_steps(c, prompts // minibatch * epochs)
    low = c.number("epsilon", 0.2)
    c.put("rft.clip_low", low)
    c.put("rft.clip_high", c.number("epsilon_high", low))
    if (beta := c.number("beta", 0.0 if stage == "grpo" else 0.05)) > 0:
        c.put("rft.kl_coefficient", beta)
        if stage == "rloo":
            c.put("rft.kl_placement", "reward")
    if stage == "grpo":
        _grpo(c)
    else:
        c.put("rft.policy_loss", "sequence_clip")
    _rewards(c)


def _grpo(c: Conversion) -> None:
    if (bound := c.number("delta")) is not None:
        c.put("rft.dual_clip", bound)
    if c.take("importance_sampling_level", "token") == "sequence":
        c.put("rft.policy_loss", "gspo")
    loss = str(c.take("loss_type", "dapo"))
    if loss not in _NORMALIZERS:
        c.changed("loss_type", f"{shown(loss, 40)} is not among ours; its nearest, dapo, weighs all tokens alike")
    c.put("rft.normalizer", _NORMALIZERS.get(loss, "token"))
    scale = c.take("scale_rewards", "group")
    found = {"group": "group", "batch": "rollout", "none": "none", "True": "group", "False": "none"}.get(str(scale))
    if found is None:
        c.changed("scale_rewards", f"{shown(scale, 40)} is not among ours; scores are divided by their group's spread")
    c.put("rft.deviation", found or "group")


def _rewards(c: Conversion) -> None:
    """Reward functions become verifiers, which may be Python functions too."""
    named = c.take("reward_funcs", [])
    named = named if isinstance(named, list) else [named]
    weights = c.take("reward_weights") or [1.0] * len(named)
    verifiers: list[dict[str, Any]] = []
    for name, weight in zip(map(str, named), weights, strict=False):
        if name in ("accuracy_reward", "reasoning_accuracy_reward"):
            verifiers.append({"name": "maths", "weight": weight})
            c.put("reward.gold", "solution")
            c.changed("reward_funcs", f"{name} is the verifier maths, which reads the column 'solution' (reward.gold)")
        elif name == "think_format_reward":
            verifiers.append({"name": "pattern", "pattern": f"(?s){_THINK_FORMAT}", "weight": weight})
        elif name == "get_soft_overlong_punishment":
            buffer = min(256, c.keys["generation.max_new_tokens"])
            c.put("rft.overlong_buffer", buffer)
            c.changed(
                "reward_funcs",
                f"{name} is rft.overlong_buffer, which counts from generation.max_new_tokens and not from 1280",
            )
        elif "." in name:
            module, _, function = name.rpartition(".")
            verifiers.append({"name": f"{module}:{function}", "weight": weight})
        else:
            c.dropped("reward_funcs", f"{shown(name, 60)} is neither a function of TRL's nor a module.function")
    if verifiers:
        c.put("reward.verifiers", verifiers)
    if (model := c.take("reward_model_name_or_path")) is not None:
        c.put("reward.model", str(model))
    elif not verifiers:
        c.put("reward.callable", "my_rewards:score")
        c.changed("reward_funcs", "the file names no reward; write yours as the function score in my_rewards.py")
