"""Scores from models: the reward role on the shared base, or a sequence classifier with a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from onebase import processes
from onebase.errors import ModelError, RewardError
from onebase.models.base_config import UNLIMITED, cannot_load, context_length, read_config
from onebase.models.classifier import harmless_padding
from onebase.models.forward import completion_scores
from onebase.models.loading import check_finite, load_tokenizer
from onebase.models.one_base import OneBase
from onebase.models.passes import per_example
from onebase.models.role_card import check_model_name
from onebase.records import ScoreRequest
from onebase.shown import shown

LEAST_STD = 1e-6
"""Standard deviation of a reward role's held-out scores at or below which they are all equal."""


class RoleReward:
    """The score of a reward role, read from the very tokens that were sampled."""

    def __init__(self, base: OneBase, role: str, *, token_budget: int, normalize: bool = False) -> None:
        self.name = role
        self._base, self._role, self._token_budget, self._normalize = base, role, token_budget, normalize
        if normalize:
            check_moments(base.roles[role].score_mean, base.roles[role].score_std)

    def score(self, request: ScoreRequest) -> Tensor:
        """`[N]`: one per completion; with `normalize`, less the mean of the role's held-out scores, over their
        deviation."""
        per_prompt = per_example(
            self._base,
            request.examples,
            lambda batch: completion_scores(self._base, batch, role=self._role),
            token_budget=self._token_budget,
            per_completion=True,
        )
        scores = torch.cat(per_prompt)
        if not bool(torch.isfinite(scores).all()):
            raise RewardError(f"reward role {self._role}: a score is not finite; train it again, more slowly")
        role = self._base.roles[self._role]
        if not self._normalize:
            return scores
        assert role.score_mean is not None and role.score_std is not None
        return (scores - role.score_mean) / role.score_std


def check_moments(mean: float | None, std: float | None) -> None:
    """Raises ModelError unless scores can be normalised by these moments of a reward role."""
    if mean is None or std is None:
        raise ModelError(
            "reward.normalize: held_out needs the moments of held-out scores, and this reward role was saved "
            "without them; train it to the end with held-out data, or set reward.normalize: none"
        )
    if std <= LEAST_STD:
        raise ModelError(
            f"reward.normalize: held_out would divide by the deviation of the held-out scores, which is {std:g}: the "
            "reward role gives all answers the same score; train it further, or set reward.normalize: none"
        )


def open_classifier(name_or_path: str, **arguments: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one label, and its tokenizer.

    Args:
        arguments: of transformers' `from_pretrained`.

    Raises:
        ModelError: no such model, more labels than one, or weights that are missing or of another shape.
    """
    check_model_name(name_or_path, key="reward.model")
    labels = read_config(name_or_path).num_labels
    if labels != 1:
        raise ModelError(f"{shown(name_or_path)}: reward.model needs a classifier with 1 label; this has {labels}")
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, output_loading_info=True, trust_remote_code=False, **arguments
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # safetensors, the configuration's checks and the hub have classes of their own
        raise cannot_load(name_or_path, "sequence classifier", error) from error
    if report["missing_keys"]:
        missing = shown(sorted(report["missing_keys"])[0], 80)
        raise ModelError(
            f"{shown(name_or_path)}: no trained reward model: '{missing}' is not in its weights and would be random"
        )
    return model, load_tokenizer(name_or_path)


class ClassifierReward:
    """A sequence-classification model with one label, reading prompt and completion with its own tokenizer.

    Where that has a chat template, conversations are rendered by it, and the score is that of
    `model(**tokenizer.apply_chat_template(messages, return_dict=True))`. Else the classifier reads the text of the
    policy's prompt and the completion, with the special tokens that its tokenizer puts around a text.

    Raises:
        ModelError: no such model, or more labels than one.
    """

    def __init__(self, name_or_path: str, *, device: torch.device, batch_size: int = 16) -> None:
        self.name = Path(name_or_path).name
        self._batch_size = batch_size
        model: Any
        model, self._tokenizer = open_classifier(name_or_path)
        check_finite(model, name_or_path)
        self._model = model.to(device).eval()
        self._tokenizer.padding_side = "right"
        self._tokenizer.truncation_side = "left"  # the completion is at the end, and it is what is scored
        # A batch reads what one text alone does: the last token that the model does not take for padding.
        config = self._model.config
        if config.pad_token_id is None:
            config.pad_token_id = harmless_padding(self._tokenizer)
        if config.pad_token_id is None or not 0 <= config.pad_token_id < len(self._tokenizer):
            self._batch_size = 1
        else:
            self._tokenizer.pad_token_id = config.pad_token_id

    def score(self, request: ScoreRequest) -> Tensor:
        """`[N]`: the classifier's only logit. Of a text longer than its context it reads the last tokens."""
        return processes.from_main(lambda: self._score(request))

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
            raise RewardError(f"reward.model {self.name}: a score is not finite")
        return result

    def _encoded(self, request: ScoreRequest) -> list[list[int]]:
        rows = [example.row for example in request.examples for _ in example.completions]
        most = self._max_length()
        encoded = []
        for row, prompt, completion in zip(rows, request.prompts, request.completions, strict=True):
            text, templated = prompt + completion, bool(self._tokenizer.chat_template and row and row.messages)
            if templated and row is not None:
                turns = [{"role": message.role, "content": message.content} for message in row.messages]
                turns.append({"role": "assistant", "content": f"{row.prefix or ''}{completion}".strip()})
                text = str(self._tokenizer.apply_chat_template(turns, tokenize=False))
            # A template writes the special tokens itself; the tokenizer would put its own around them once more.
            ids = self._tokenizer(text, add_special_tokens=not templated, truncation=most is not None, max_length=most)[
                "input_ids"
            ]
            encoded.append(list(ids))
        return encoded

    def _max_length(self) -> int | None:
        config = self._model.config
        positions = context_length(config)
        if "roberta" in config.model_type:
            positions -= int(config.pad_token_id) + 1  # its positions begin behind the padding id
        return min(positions, self._tokenizer.model_max_length) if positions < UNLIMITED else None
