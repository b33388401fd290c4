"""axolotl's configs: `axolotl train FILE`; the stage is told by `rl`, `reward_model` and `pretraining_dataset`."""

from __future__ import annotations

from typing import Any

from onebase.convert import training_arguments as shared
from onebase.convert import trl
from onebase.convert.conversion import Conversion
from onebase.errors import ConfigError
from onebase.shown import shown

_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo", "kto": "kto"}
_TEMPLATED = "chat_template"


def convert(c: Conversion, stage: str | None) -> None:
    """Reads an axolotl config.

    Raises:
        ConfigError: it trains something onebase does not, or the model or the data are missing.
    """
    if stage is not None:
        raise ConfigError("--stage is for TRL; an axolotl file says itself what it trains (rl, reward_model)")
    method = c.take("rl")
    method = None if method is None else ("dpo" if method is True else str(method))
    c.verb = _verb(c, method)
    _model(c)
    kinds = _data(c)
    c.put("optimizer.learning_rate", c.number("learning_rate", 2e-4))
    c.left.setdefault("eval_strategy", "steps" if c.has("eval_steps") else None)
    c.left.setdefault("save_strategy", None)
    shared.schedule(c, "lr_scheduler", "cosine")
    shared.epochs(c, "num_epochs", 1.0)
    if c.take("use_wandb") is True or c.has("wandb_project"):
        c.left.setdefault("report_to", "wandb")
    shared.saving(c)
    if c.verb != "rft":
        shared.minibatch(c, "micro_batch_size", 1)
        shared.lengths(c, "sequence_len", 512)
    for name, why in (
        ("evals_per_epoch", "evaluations come by steps: set evaluation.every_steps"),
        ("saves_per_epoch", "checkpoints come by steps and minutes: set checkpoint.every_steps"),
    ):
        c.drop(name, why=why)
    if c.verb == "sft":
        _sft(c, kinds)
    elif c.verb == "dpo":
        _preference(c, str(method))
    elif c.verb == "rft":
        _grpo(c)


def _verb(c: Conversion, method: str | None) -> str:
    if method in _LOSSES:
        return "dpo"
    if method == "grpo":
        return "rft"
    if method is not None:
        raise ConfigError(f"'rl' is {shown(method, 40)}; onebase reads {', '.join(_LOSSES)} and grpo")
    if c.take("process_reward_model") is True:
        raise ConfigError("'process_reward_model' is true; onebase trains reward roles on whole answers only")
    if c.take("reward_model") is True:
        return "reward"
    return "pretrain" if c.has("pretraining_dataset") else "sft"


def _model(c: Conversion) -> None:
    name = c.take("base_model")
    if name is None:
        raise ConfigError("'base_model' is missing in the file; add the base model to it")
    c.put("model.model_name_or_path", str(name))
    kind = c.take("adapter")
    if kind not in (None, "lora", "qlora"):
        c.changed("adapter", f"{shown(kind, 40)} is not among ours; an adapter (lora) is trained")
    shared.adapter(c, "lora_r", rank=8, alpha=16, dropout=0.0, trains_adapter=kind is not None)
    linear, named = c.take("lora_target_linear", False), c.take("lora_target_modules")
    if c.can("lora.r") and c.keys.get("lora.r") != 0:
        shared.targets(c, "lora_target_modules", "all" if linear is True else named)
    if kind == "qlora" and not c.has("load_in_4bit"):
        c.left["load_in_4bit"] = True
    if c.left.get("bf16") == "auto":
        c.take("bf16")  # ours decides by the hardware too
    shared.precision(c)
    if (start := c.take("lora_model_dir")) is not None and c.can("start_from"):
        c.put("start_from", str(start))
        c.changed("lora_model_dir", "start_from takes a role of onebase; train it here first, by the stage before")
    template = c.take("chat_template")
    if template == "jinja" and (path := c.take("chat_template_jinja")) is not None:
        if str(path).endswith(".jinja"):
            c.put("model.chat_template", str(path))
        else:
            c.dropped("chat_template_jinja", "save the template as a .jinja file and set model.chat_template to it")
    elif template == "chatml" and c.verb != "pretrain":
        c.put("model.chat_template", "chatml")
    elif template not in (None, "tokenizer_default"):
        c.dropped(
            "chat_template",
            f"{shown(template, 40)}: the tokenizer's own template is used; model.chat_template names another",
        )


def _data(c: Conversion) -> list[str]:
    """Puts the files; returns the types the file gives them."""
    entries = c.take("pretraining_dataset") if c.verb == "pretrain" else c.take("datasets")
    paths, kinds = _paths(c, entries, "datasets")
    if not paths:
        raise ConfigError("'datasets' is missing in the file; add the training data to it")
    c.put("data.train", paths)
    held_out, _ = _paths(c, c.take("test_datasets"), "test_datasets")
    shared.held_out(c, "val_set_size", files=held_out)
    if c.take("streaming") is True and c.can("data.streaming"):
        c.put("data.streaming", True)
    return kinds


def _paths(c: Conversion, entries: Any, name: str) -> tuple[list[str], list[str]]:
    paths: list[str] = []
    kinds: list[str] = []
    for index, entry in enumerate(entries if isinstance(entries, list) else [entries] if entries else []):
        entry = {"path": entry} if isinstance(entry, str) else c.mapping(f"{name}[{index}]", entry)
        files, path, kind = entry.pop("data_files", None), entry.pop("path", None), entry.pop("type", None)
        found = [str(file) for file in (files if isinstance(files, list) else [files or path]) if file is not None]
        if not found:
            raise ConfigError(f"'{name}[{index}]' has no path; name the data file")
        paths += found
        kinds.append("custom" if isinstance(kind, dict) else str(kind or ""))
        if isinstance(kind, dict):
            c.changed(f"{name}[{index}].type", f"a format of its own ({', '.join(kind)}); layouts are recognised here")
        left = {k: v for k, v in entry.items() if v not in (None, [], {}) and (k, v) != ("split", "train")}
        if left:
            said = ", ".join(f"{key}: {shown(value, 40)}" for key, value in left.items())
            c.dropped(f"{name}[{index}]", f"{said}; a file is read whole, its layout recognised by its keys")
    return paths, kinds


def _sft(c: Conversion, kinds: list[str]) -> None:
    if c.take("train_on_inputs") is True:
        c.put("data.train_on", "all")
    elif any(kind.startswith(_TEMPLATED) or kind == "sharegpt" for kind in kinds):
        c.put("data.train_on", "assistant")  # its chat templates learn every assistant turn


def _preference(c: Conversion, method: str) -> None:
    loss = _LOSSES[method]
    beta = c.number("rl_beta", c.number("dpo_beta", None))
    options = c.mapping("trl", c.take("trl", {}))
    beta = options.pop("beta", None) if beta is None else beta
    c.left.update({f"trl.{key}": value for key, value in options.items()})
    if method == "orpo":
        weight = c.number("orpo_alpha", beta if beta is not None else 0.1)
        c.put("loss", f"nll + {weight:g} orpo")
        return
    c.put("loss", loss)
    c.put("preference.beta", beta if beta is not None else 0.1)
    if method == "simpo":
        # TRL's CPO trainer holds the margin in units of beta times nats, as here; cpo_alpha mixes the nll in.
        c.put("preference.gamma", c.number("simpo_gamma", 0.5))
        if (alpha := c.number("cpo_alpha", 0)) > 0:
            c.put("loss", f"simpo + {alpha:g} nll")
    for theirs, ours in (
        ("kto_desirable_weight", "desirable_weight"),
        ("kto_undesirable_weight", "undesirable_weight"),
    ):
        if (weight := c.number(theirs)) is not None and method == "kto":
            c.put(f"preference.{ours}", weight)
    if (smoothing := c.number("dpo_label_smoothing", 0)) > 0:
        c.put("preference.label_smoothing", smoothing)
    alpha = c.number("rpo_alpha", 0)
    if alpha > 0:
        c.put("loss", f"{loss} + {alpha:g} nll")


def _grpo(c: Conversion) -> None:
    """axolotl hands its `trl` group to TRL's trainer; so does this."""
    for key, value in c.mapping("trl", c.take("trl", {})).items():
        c.left.setdefault(key, value)
    c.left["per_device_train_batch_size"] = c.take("micro_batch_size", 1)
    if (limit := c.number("sequence_len")) is not None:
        c.put("data.max_prompt_tokens", limit)
        c.changed("sequence_len", "limits the prompts here; generation.max_new_tokens limits the answers")
    trl.rollouts(c, "grpo")
