"""Keys of transformers' TrainingArguments and of the adapters and data beside them, which several tools share."""

from __future__ import annotations

import math
from typing import Any

from onebase.convert.conversion import Conversion
from onebase.shown import number_of

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
TRACKERS = ("tensorboard", "trackio", "wandb")


def schedule(c: Conversion, name: str, default: str) -> None:
    """The learning rate's schedule and warm-up."""
    theirs = str(c.take(name, default))
    ours = SCHEDULES.get(theirs)
    if ours is None:
        ours = "cosine" if "cosine" in theirs else "linear"
        c.changed(name, f"{theirs} is not among ours (constant, linear, cosine); {ours} is the nearest")
    c.put("optimizer.schedule", ours)
    steps, share = c.number("warmup_steps", 0), c.number("warmup_ratio", 0)
    named = "warmup_ratio"
    if 0 < steps < 1:  # newer versions of transformers take a share under this name
        steps, share, named = 0, steps, "warmup_steps"
    if steps:
        c.put("optimizer.warmup_steps", steps)
    elif share:
        total = c.left.get("max_steps")
        if isinstance(total, int) and total > 0:
            c.put("optimizer.warmup_steps", math.ceil(share * total))
        else:
            c.dropped(
                named,
                f"the warm-up is set in steps, and how many {share:g} of the run are depends on the data; see the "
                "steps of --dry-run and set optimizer.warmup_steps",
            )


def epochs(c: Conversion, name: str, default: float) -> None:
    """Passes over the data, or steps."""
    value = c.number(name, default)
    steps = c.number("max_steps", -1)
    if steps > 0:
        c.put("max_steps", steps)
        return
    if not c.can("optimizer.num_epochs"):
        if value != 1:
            c.changed(name, f"onebase {c.verb} reads the prompts once, not {value:g} times; max_steps counts rollouts")
        return
    whole = max(1, round(value))
    if whole != value:
        c.changed(name, f"{value:g} passes become {whole}; for a part of one, set max_steps")
    c.put("optimizer.num_epochs", whole)


def rollouts_for_steps(c: Conversion, steps_per_rollout: int) -> None:
    """Where we count rollouts, they count optimizer steps."""
    if "max_steps" in c.keys and steps_per_rollout > 1:
        steps = c.keys["max_steps"]
        c.put("max_steps", math.ceil(steps / steps_per_rollout))
        c.changed("max_steps", f"{steps} optimizer steps are {c.keys['max_steps']} rollouts of {steps_per_rollout}")


def examples_per_step(c: Conversion, per_device: str = "per_device_train_batch_size", default: int = 8) -> int:
    """What one process learns from in one optimizer step."""
    size, times = c.number(per_device, default), c.number("gradient_accumulation_steps", 1)
    return max(1, int(size) * int(times))


def minibatch(c: Conversion, per_device: str = "per_device_train_batch_size", default: int = 8) -> None:
    c.put("batch.minibatch", examples_per_step(c, per_device, default))
    c.changed(
        per_device,
        f"batch.minibatch = {c.keys['batch.minibatch']} is the whole optimizer step of one process, with "
        "gradient_accumulation_steps; if theirs ran on several GPUs, multiply it by their number",
    )


def saving(c: Conversion) -> None:
    """Checkpoints, evaluation and trackers."""
    when, every = c.take("save_strategy", "steps"), c.take("save_steps")
    if when != "steps":
        c.dropped("save_strategy", f"{when}: checkpoints come by steps and minutes (checkpoint.every_minutes)")
    elif isinstance(every, int) and every >= 1 and not isinstance(every, bool):
        c.put("checkpoint.every_steps", every)
    elif every is not None:
        c.dropped("save_steps", f"{every} is no whole number of steps; checkpoints come every ten minutes")
    name = next((n for n in ("eval_strategy", "evaluation_strategy") if c.has(n)), "eval_strategy")
    when, every = c.take(name, "no"), c.take("eval_steps")
    if when == "steps" and isinstance(every, int):
        c.put("evaluation.every_steps", every)
    elif when not in ("no", False) or every is not None:
        named = name if when not in ("no", False) else "eval_steps"
        c.dropped(named, "without steps to evaluate at, held-out rows are evaluated at the start and the end")
    trackers = c.take("report_to", [])
    trackers = [trackers] if isinstance(trackers, str) else list(trackers)
    known = [tracker for tracker in trackers if tracker in TRACKERS]
    if known:
        c.put("report_to", known)
    if others := [str(t) for t in trackers if t not in TRACKERS and t not in ("none", "all")]:
        c.dropped("report_to", f"{', '.join(others)}: the trackers are {', '.join(TRACKERS)}")
    if c.has("output_dir"):
        c.put("output_dir", str(c.take("output_dir")))
    else:
        c.put("output_dir", f"runs/{c.verb}")
        c.changed("output_dir", f"not in the file; written as runs/{c.verb}")


def precision(c: Conversion) -> None:
    """The number format of the base, and quantisation."""
    named = str(c.take("dtype", c.take("torch_dtype", "")) or "").removeprefix("torch.")
    bf16, fp16 = c.take("bf16"), c.take("fp16")
    in_full = c.keys.get("lora.r") == 0
    if named in ("float32", "bfloat16"):
        c.put("model.dtype", named)
    elif named == "float16" or (fp16 is True and bf16 is not True):
        c.put("model.dtype", "bfloat16")
        c.changed("fp16" if fp16 else "dtype", "training in float16 is not supported; bfloat16 takes as much memory")
    elif bf16 is True and not in_full:
        c.put("model.dtype", "bfloat16")
    elif bf16 is True:
        c.dropped("bf16", "a base that trains in full is kept in float32, as in mixed precision")
    bits = c.take("quantization_bit", 4 if c.take("load_in_4bit") is True else None)
    if c.take("load_in_8bit") is True:
        bits = 8
    kind = c.take("bnb_4bit_quant_type", c.take("quantization_type", "nf4"))
    if bits is not None and c.can("model.quantization"):
        c.put("model.quantization", "nf4")
        if bits != 4 or kind != "nf4":
            c.changed("load_in_8bit" if bits == 8 else "quantization", f"{bits} bits ({kind}) become nf4, in 4 bits")


def adapter(c: Conversion, r: str, *, rank: int, alpha: Any, dropout: float, trains_adapter: bool) -> None:
    """The adapter, or full-parameter training where the verb can."""
    lora_names = (r, "lora_alpha", "lora_dropout", "lora_target", "lora_target_modules", "lora_target_linear")
    if not c.can("lora.r"):
        c.drop(*lora_names, why=f"onebase {c.verb} trains the whole model, without an adapter")
        return
    if not trains_adapter:
        if c.verb in ("sft", "reward"):
            c.put("lora.r", 0)
            c.drop(*lora_names, why="the file trains the whole model, without an adapter")
            return
        c.changed(
            "use_peft" if c.tool == "TRL" else "adapter",
            f"onebase {c.verb} trains an adapter, as the base is also the reference; theirs trains the whole model",
        )
    found = c.number(r, rank)
    c.put("lora.r", found)
    c.put("lora.alpha", c.number("lora_alpha", alpha if alpha is not None else 2 * found))
    if (drop := c.number("lora_dropout", dropout)) > 0:
        c.put("lora.dropout", drop)


def targets(c: Conversion, name: str, value: Any) -> None:
    """The layers that get an adapter."""
    if not c.can("lora.r") or c.keys.get("lora.r") == 0:
        return
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not value or value in (["all"], ["all-linear"]):
        c.put("lora.target_modules", "all-linear")
    else:
        c.put("lora.target_modules", value)
    if not value:
        c.changed(name, "not in the file: PEFT's choice for the architecture becomes all linear layers")


def lengths(c: Conversion, name: str, default: int | None, prompt: str = "max_prompt_length") -> None:
    """One limit on prompt and answer together, as our limits on each."""
    whole, asked = c.number(name, default), c.number(prompt) if prompt else None
    if c.verb == "pretrain":
        if whole is not None:
            c.put("block_length", whole)
        return
    if asked is not None:
        c.put("data.max_prompt_tokens", asked)
    if whole is None:
        return
    if not c.can("data.max_completion_tokens"):
        if asked is None:
            c.put("data.max_prompt_tokens", whole)
            c.changed(name, f"limits the prompts here; generation.max_new_tokens limits the answers of {c.verb}")
        return
    room = asked if asked is not None and asked < whole else whole // 2
    c.put("data.max_prompt_tokens", max(1, room))
    c.put("data.max_completion_tokens", max(1, whole - room))
    c.changed(
        name,
        f"{number_of(whole, 'token')} for prompt and answer together become {room} for the prompt and "
        f"{whole - room} for the answer",
    )


def held_out(c: Conversion, name: str, *, files: list[str]) -> None:
    """Held-out data: files, a share, or none where the verb can do without."""
    share = c.number(name, 0)
    if files:
        c.put("data.eval", files)
    elif 0 < share < 1:
        c.put("data.eval_fraction", min(share, 0.9))
    elif c.verb in ("ppo", "rft"):
        c.changed(name, f"nothing is held out in the file; onebase {c.verb} compares the policy on a tenth of the rows")
    elif share >= 1:
        c.changed(
            name, f"{number_of(share, 'row becomes', 'rows become')} a tenth of them: data.eval_fraction is a share"
        )
    else:
        c.put("data.eval_fraction", 0.0)
