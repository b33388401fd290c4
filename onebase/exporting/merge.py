"""`onebase merge`: writes a role as a plain model that needs neither PEFT nor onebase, and checks that it is the same.

    policy   base + adapter -> a causal language model with the tokenizer, template and end tokens it was trained with
    reward   base + adapter + head -> a sequence classifier with one label

Weights are merged in the number format the base is stored in. A role trained on a base in 4 bits is merged into the
base's own weights, which differ from those it was trained on; how much that changes is measured and said.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from onebase.data.chat import ChatFormat
from onebase.errors import ConfigError, DoesNotFitError, ModelError, QualityError
from onebase.exporting import verify as checks
from onebase.exporting.card import write_card
from onebase.exporting.source import Source, find_source
from onebase.files import atomic_folder
from onebase.models.base import OneBase
from onebase.models.classifier import as_classifier
from onebase.models.loading import check_finite
from onebase.models.role_files import standalone_tokenizer
from onebase.recipes.setup.saved import open_saved
from onebase.rewards.learned import open_classifier
from onebase.sampling.local import stop_ids
from onebase.shown import number_of, shown

KINDS = ("policy", "reward")
NAME = "role"
"""The role's name on the base."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written as a plain model."""

    kind: str
    dtype: str
    verdict: str
    """How it was checked and what that showed; empty if it was not checked."""
    notes: tuple[str, ...] = ()
    """What differs from the role as it was trained."""
    said: checks.Said | None = None
    """What the policy said when it was checked."""


def run(*, role: str, output: Path, model: str | None, max_shard_size: str, verify: bool, device: str = "auto") -> None:
    """Writes the role as a plain model into `output` and prints what was written.

    Raises:
        ConfigError: `output` is inside the role's or the base's folder.
        ModelError: the role cannot be a plain model.
        DoesNotFitError: the disk is too small.
        QualityError: the written model is not the same; nothing is left of it.
    """
    source = find_source(role, model=model)
    check_place(output, source)
    with atomic_folder(output) as folder:
        written = write_model(source, folder, max_shard_size=max_shard_size, verify=verify, device=device)
        write_card(folder, source, form=written.kind, dtype=written.dtype, notes=(*written.notes, written.verdict))
        files = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
        size = sum(path.stat().st_size for path in files)
    print(f"{shown(output)}: {sized(size)} in {len(files)} weight file{'s'[: len(files) > 1]}, {written.dtype}")
    for line in filter(None, (*written.notes, written.verdict or "not checked (--no-verify)")):
        print(line)


def check_place(output: Path, source: Source) -> None:
    """Raises ConfigError if a folder is inside the role's or its base's own."""
    home = Path(os.path.realpath(output))
    for name in filter(None, (source.folder, source.base)):
        if Path(name).is_dir() and Path(os.path.realpath(name)) in (home, *home.parents):
            raise ConfigError(
                f"{shown(output)} is inside {shown(name)}, which is only read here; name a folder elsewhere"
            )


def write_model(source: Source, folder: Path, *, max_shard_size: str, verify: bool, device: str = "auto") -> Written:
    """Writes a role as a plain model into a folder that exists, and compares the two unless told not to.

    Raises:
        ModelError, DoesNotFitError, QualityError: as `run`.
    """
    transformers_logging.disable_progress_bar()
    if source.is_classifier:
        return _rewrite_classifier(source, folder, max_shard_size, verify)
    write = _write_reward if source.kind == "reward" else _write_policy
    return write(source, folder, max_shard_size, verify, device)


def _open(source: Source, folder: Path, device: str) -> tuple[OneBase, ChatFormat]:
    """The role on its base in the number format the base is stored in."""
    base, chat = open_saved(
        {NAME: (source.folder, KINDS)},
        model=source.model,
        dtype=source.stored_dtype,
        quantization="none",
        device=device,
    )
    check_room(folder, base.model)
    return base, chat


def _write_policy(source: Source, folder: Path, max_shard_size: str, verify: bool, device: str) -> Written:
    base, chat = _open(source, folder, device)
    dtype, where, notes = base.model.dtype, base.device, list[str]()
    stops = (chat.end_token_id, *(i for i in stop_ids(base) if i != chat.end_token_id))
    said = checks.what_role_says(base, NAME, chat) if verify else None
    if said is not None and base.roles[NAME].adapter is not None:
        notes += checks.too_little(checks.effect(base, said), dtype)
    merged, tokenizer = base.merged(NAME), standalone_tokenizer(base.tokenizer, chat)
    check_finite(merged, f"{source.folder}, merged,")
    notes += _set_end_tokens(merged, tokenizer, stops)
    merged.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    del base, merged
    gc.collect()
    if said is None:
        return Written("policy", checks.name_of(dtype), "", tuple(notes))
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    plain = plain.to(where).eval()
    logprobs, answers = checks.what_model_says(plain, said)
    difference = checks.compare_policies(plain, said, logprobs, answers)
    refuse(source, difference, dtype)
    del plain
    gc.collect()
    if source.trained_otherwise:
        notes.append(_against_training(source, said, logprobs, answers, where))
    verdict = f"checked on {number_of(len(answers), 'prompt')}: {difference}"
    return Written("policy", checks.name_of(dtype), verdict, tuple(notes), said)


def refuse(source: Source, difference: checks.Difference | checks.ScoreDifference, dtype: torch.dtype) -> None:
    """Raises QualityError if a written model is not the role it was made from."""
    if problem := difference.problem(dtype):
        raise QualityError(
            f"{shown(source.folder)}: merged, it is another model: {difference}; {problem}. Nothing was written; "
            "--no-verify writes it unchecked"
        )


def _write_reward(source: Source, folder: Path, max_shard_size: str, verify: bool, device: str) -> Written:
    base, chat = _open(source, folder, device)
    scalar = base.scalar_role(NAME)
    if scalar.pooling != "last":
        raise ModelError(
            f"{shown(source.folder)}: its scores are means over an answer's tokens (pooling mean), which no sequence "
            "classifier computes; train it with pooling last, or score with onebase"
        )
    dtype, where = base.model.dtype, base.device
    examples = checks.answered(chat, base.context_length)
    expected = checks.scores_of_role(base, NAME, examples) if verify else None
    base.merged(NAME)
    check_finite(base.model, f"{source.folder}, merged,")
    classifier, tokenizer = as_classifier(base, scalar.head, standalone_tokenizer(base.tokenizer, chat))
    classifier.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    del base, classifier, scalar
    gc.collect()
    if expected is None:
        return Written("reward", checks.name_of(dtype), "")
    plain: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    plain = plain.to(where).eval()
    found = checks.scores_of_model(plain, examples)
    difference = checks.compare_scores(expected, found)
    refuse(source, difference, dtype)
    del plain
    gc.collect()
    notes = []
    if source.trained_otherwise:
        base, _ = open_saved({NAME: (source.folder, KINDS)}, model=source.model, device=str(where))
        changed = checks.compare_scores(checks.scores_of_role(base, NAME, examples), found)
        notes.append(f"{_merged_elsewhere(source)}: compared with training, {changed}")
    return Written("reward", checks.name_of(dtype), f"checked: {difference}", tuple(notes))


def _rewrite_classifier(source: Source, folder: Path, max_shard_size: str, verify: bool) -> Written:
    """A reward model trained in full is a classifier already; it is read, written anew and compared."""
    model, tokenizer = open_classifier(source.folder, dtype="auto")
    check_room(folder, model)
    model.eval().save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    verdict = ""
    if verify:
        plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval()
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
        if not same:
            raise QualityError(f"{shown(source.folder)}: written anew, its weights are others; nothing was written")
        verdict = "checked: every weight is the same"
    return Written("reward", checks.name_of(model.dtype), verdict)


def check_room(folder: Path, model: PreTrainedModel) -> None:
    """Raises DoesNotFitError unless the disk has room for a model's weights."""
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DoesNotFitError(
            f"{shown(folder.parent)}: the model takes {sized(needed)}, and the disk has {sized(free)} free; free some, "
            "or name a folder on another disk"
        )


def sized(count: int) -> str:
    """A number of bytes for a person."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _set_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...]) -> list[str]:
    """Sets the end tokens the role was trained with; says what else had to change in the generation settings."""
    ends = list(stops) if len(stops) > 1 else stops[0]
    model.config.get_text_config().eos_token_id = stops[0]
    settings = model.generation_config or GenerationConfig()
    model.generation_config = settings
    settings.eos_token_id = ends
    settings._from_model_config = False  # or transformers would make them from config.json, which has one end token
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    try:
        settings.validate(strict=True)
    except ValueError:  # some published settings contradict themselves, and transformers does not write those
        model.generation_config = GenerationConfig(
            eos_token_id=ends, pad_token_id=settings.pad_token_id, bos_token_id=settings.bos_token_id
        )
        return ["the base's generation settings contradict each other and were left out, but for the tokens"]
    return []


def _against_training(
    source: Source, said: checks.Said, logprobs: Tensor, answers: Sequence[Sequence[int]], device: torch.device
) -> str:
    """Measures the role as it was trained on the same texts, and says how far the written model is from it."""
    base, chat = open_saved({NAME: (source.folder, KINDS)}, model=source.model, device=str(device))
    moved = (checks.what_role_says(base, NAME, chat, on=said.examples).logprobs - logprobs).abs()
    own = checks.greedy_of_role(base, NAME, chat, said.examples)
    same = sum(ids == list(answer) for ids, answer in zip(own, answers, strict=True))
    return (
        f"{_merged_elsewhere(source)}: that changes log-probs by {float(moved.mean()):.2g} nats per token on average "
        f"(at most {float(moved.max()):.2g}); {same} of {len(own)} greedy answers are the same"
    )


def _merged_elsewhere(source: Source) -> str:
    return f"trained on the base {source.trained_on}, merged into its weights in {source.stored_dtype}"
