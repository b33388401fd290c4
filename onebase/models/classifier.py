"""Turns a reward role whose weights are the base's own into the transformers sequence classifier that it is."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from onebase.errors import ModelError
from onebase.files import atomic_folder
from onebase.models.base import OneBase
from onebase.models.heads import ScalarHead
from onebase.shown import shown


def harmless_padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A padding token that ends no text; None if the tokenizer has none.

    transformers' classifiers score the last token that is not padding; with the end token as padding they would score
    the token before it.
    """
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    return next((i for i in ids if i is not None and i != tokenizer.eos_token_id), None)


def check_classifier(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks before training that `save_classifier` will work.

    Raises:
        ModelError: transformers has no sequence classifier with a `score` layer for this architecture, or the tokenizer
            can pad only with its end token.
    """
    if harmless_padding(tokenizer) is None:
        raise ModelError(
            f"{shown(tokenizer.name_or_path)}: the tokenizer has only the end token to pad with; a classifier would "
            "take the end of every answer for padding",
            remedy="no-padding-token",
        )
    try:
        with torch.device("meta"):
            empty = AutoModelForSequenceClassification.from_config(model.config, trust_remote_code=False)
        found = hasattr(empty, "score")
    except ValueError:
        found = False
    if not found:
        raise ModelError(
            f"{type(model).__name__}: transformers has no sequence classifier of this kind to save a reward model "
            "trained in full as",
            remedy="train-an-adapter",
        )


def as_classifier(
    base: OneBase, head: ScalarHead, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base with a scalar head as a transformers sequence classifier with one label, and its tokenizer.

    Args:
        tokenizer: not changed; the one returned pads with a token that ends no text.

    Raises:
        ModelError: transformers has no sequence classifier for this architecture, or there is no such token.
    """
    check_classifier(base.model, tokenizer)
    config = copy.deepcopy(base.model.config)
    config.num_labels = 1
    tokenizer = copy.deepcopy(tokenizer)
    # The classifier takes the last token that is not padding for the end of a row.
    tokenizer.pad_token_id = config.pad_token_id = harmless_padding(tokenizer)
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    setattr(classifier, classifier.base_model_prefix, base.model.base_model)  # the trunk itself, not a copy
    score = torch.nn.Linear(base.hidden_size, 1, bias=False, device=base.device, dtype=base.model.dtype)
    with torch.no_grad():
        score.weight.copy_(head.weight)
    classifier.score = score
    return classifier.eval(), tokenizer


def save_classifier(base: OneBase, name: str, folder: str | Path) -> None:
    """Writes the base and the role's head as a transformers sequence classifier with one label.

    For a reward role trained in full, which is a full model and no longer a role on the base it came from.

    Raises:
        ModelError: as `as_classifier`.
    """
    head = base.scalar_role(name).head
    assert head is not None, f"role '{name}' has no scalar head"
    classifier, tokenizer = as_classifier(base, head, base.tokenizer)
    with atomic_folder(Path(folder)) as temporary:
        classifier.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
