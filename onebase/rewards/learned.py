"""Scores from models: the reward role on the shared base, or a sequence classifier with its own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from onebase.data.rendering import Rendering, asked_in
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import per_completion
from onebase.errors import ModelError, RewardError
from onebase.models.base import OneBase
from onebase.models.base_config import UNLIMITED, cannot_load, context_length, read_config
from onebase.models.classifier import harmless_padding
from onebase.models.loading import check_finite, load_tokenizer
from onebase.models.role_card import check_model_name
from onebase.models.roles import Moments
from onebase.processes import ALONE, Group
from onebase.reading.tools import texts_of
from onebase.records import Message, Row, ScoreRequest, Scores
from onebase.shown import shown

LEAST_STD = 1e-6
"""At or below this standard deviation, a reward role's held-out scores count as all equal."""


class RoleReward:
    """Scores from a reward role, which reads the sampled tokens themselves."""

    def __init__(self, base: OneBase, role: str, *, budget: TokenBudget, normalize: bool = False) -> None:
        self.name = role
        self._base, self._role, self._budget = base, base.scalar_role(role), budget
        self._normalize = normalize
        if normalize:
            check_moments(self._role.moments)

    def score(self, request: ScoreRequest) -> Scores:
        """One per completion; with `normalize`, as deviations from the mean of the role's held-out scores."""
        per_prompt = per_completion(
            self._base,
            request.examples,
            lambda batch: completion_scores(self._base, batch, role=self._role.name),
            budget=self._budget,
        )
        scores = torch.cat(per_prompt)
        if not bool(torch.isfinite(scores).all()):
            raise RewardError(
                f"reward role {self._role.name}: a score is not finite; train it again with a lower learning rate"
            )
        if self._normalize:
            scores = (scores - self._role.moments.mean) / self._role.moments.std
        return Scores(scores)


def check_moments(moments: Moments) -> None:
    """Raises ModelError unless a reward role's scores can be normalised by these moments."""
    if not moments.measured:
        raise ModelError(
            "normalising needs the moments of held-out scores, and this reward role was saved without them",
            remedy="no-held-out-scores",
        )
    if moments.std <= LEAST_STD:
        raise ModelError(
            f"normalising would divide by the standard deviation of the held-out scores, which is {moments.std:g}: "
            "the reward role gives all answers the same score",
            remedy="equal-held-out-scores",
        )


def open_classifier(name_or_path: str, **arguments: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one label, and its tokenizer.

    Args:
        arguments: for transformers' `from_pretrained`.

    Raises:
        ModelError: no such model, more than one label, or weights that are missing or of another shape.
    """
    check_model_name(name_or_path, key="reward.model")
    labels = read_config(name_or_path).num_labels
    if labels != 1:
        raise ModelError(
            f"{shown(name_or_path)}: a reward model is a classifier with 1 label; this has {labels}",
            remedy="no-reward-model",
        )
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, output_loading_info=True, trust_remote_code=False, **arguments
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # safetensors, config checks and the hub raise classes of their own
        raise cannot_load(name_or_path, "sequence classifier", error) from error
    if report["missing_keys"]:
        missing = shown(sorted(report["missing_keys"])[0], 80)
        raise ModelError(
            f"{shown(name_or_path)}: not a trained reward model: its weights lack '{missing}', which would be random"
        )
    return model, load_tokenizer(name_or_path)


class ClassifierReward:
    """A sequence classifier with one label, which reads prompt and completion with its own tokenizer.

    If the tokenizer has a chat template, conversations are rendered with it, and scores equal
    `model(**tokenizer.apply_chat_template(messages, return_dict=True))`. Otherwise the classifier reads the policy's
    prompt and the completion as text, with the special tokens that its tokenizer puts around a text.

    Raises:
        ModelError: no such model, or more than one label.
    """

    def __init__(self, name_or_path: str, *, device: torch.device, batch_size: int = 16, group: Group = ALONE) -> None:
        self.name = Path(name_or_path).name
        self._group = group
        self._batch_size = batch_size
        model: Any
        model, self._tokenizer = open_classifier(name_or_path)
        check_finite(model, name_or_path)
        self._model = model.to(device).eval()
        self._tokenizer.padding_side = "right"
        self._tokenizer.truncation_side = "left"  # the completion is what is scored, and it is at the end
        # A batch scores like a single text: at the last token that the model does not treat as padding.
        config = self._model.config
        if config.pad_token_id is None:
            config.pad_token_id = harmless_padding(self._tokenizer)
        if config.pad_token_id is None or not 0 <= config.pad_token_id < len(self._tokenizer):
            self._batch_size = 1
        else:
            self._tokenizer.pad_token_id = config.pad_token_id

    def score(self, request: ScoreRequest) -> Scores:
        """The classifier's only logit. If a text exceeds its context, it reads the last tokens."""
        return Scores(self._group.from_main(lambda: self._score(request)))

    @torch.no_grad()
    def _score(self, request: ScoreRequest) -> Tensor:
        encoded = self._encoded(request)
        scores = []
        for start in range(0, len(encoded), self._batch_size):
            rows = {"input_ids": encoded[start : start + self._batch_size]}
            inputs = self._tokenizer.pad(rows, padding=self._batch_size > 1, return_tensors="pt")
            scores.append(self._model(**inputs.to(self._model.device)).logits[:, 0].float().cpu())
        result = torch.cat(scores)
        if not bool(torch.isfinite(result).all()):
            raise RewardError(f"reward model {self.name}: a score is not finite")
        return result

    def _encoded(self, request: ScoreRequest) -> list[list[int]]:
        rows = [example.row for example in request.examples for _ in example.completions]
        most = self._max_length()
        encoded = []
        for row, prompt, completion in zip(rows, request.prompts, request.completions, strict=True):
            text, templated = prompt + completion, bool(self._tokenizer.chat_template and row and row.messages)
            if templated and row is not None:
                text = self._rendered(row, f"{row.prefix or ''}{completion}".strip())
            # A template writes the special tokens itself; the tokenizer would add them once more.
            ids = self._tokenizer(text, add_special_tokens=not templated, truncation=most is not None, max_length=most)[
                "input_ids"
            ]
            encoded.append(list(ids))
        return encoded

    def _rendered(self, row: Row, answer: str) -> str:
        """The conversation in the classifier's own template. Raises DataError if that leaves out the row's tools."""
        rendering = Rendering(self._tokenizer, self._tokenizer.get_chat_template(), f"the chat template of {self.name}")
        if texts_of(row.messages, row.tools):
            rendering.prompt(asked_in(row))
        return rendering.text(asked_in(row).then(Message("assistant", answer)))

    def _max_length(self) -> int | None:
        config = self._model.config
        positions = context_length(config)
        if "roberta" in config.model_type:
            positions -= int(config.pad_token_id) + 1  # its positions start after the padding id
        return min(positions, self._tokenizer.model_max_length) if positions < UNLIMITED else None
