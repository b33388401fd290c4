"""A reward role trained in full, as the sequence classifier of transformers that it then is."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from onebase.errors import ModelError
from onebase.files import atomic_folder
from onebase.models.one_base import OneBase
from onebase.shown import shown


def harmless_padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A token to pad with that ends no text, None where the tokenizer has none.

    transformers' classifiers score the last token that is not padding: with the end token as padding they would read
    the one before it.
    """
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    return next((i for i in ids if i is not None and i != tokenizer.eos_token_id), None)


def check_classifier(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Finds out before training whether `save_classifier` will work.

    Raises:
        ModelError: transformers has no sequence classifier with a `score` layer for this architecture, or the tokenizer
            nothing but its end token to pad with.
    """
    if harmless_padding(tokenizer) is None:
        raise ModelError(
            f"{shown(tokenizer.name_or_path)}: the tokenizer has only the end token to pad with; a classifier would "
            "take the end of every answer for padding: give it a pad_token, or train an adapter: lora.r >= 1"
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
            "trained in full as; train an adapter: lora.r >= 1"
        )


def save_classifier(base: OneBase, name: str, folder: str | Path) -> None:
    """Writes the base with the role's head as a transformers sequence classifier with one label.

    For a reward role trained in full: it is a model of its own then, and no role on the base it came from.

    Raises:
        ModelError: transformers has no sequence classifier for this architecture.
    """
    head = base.roles[name].head
    assert head is not None, f"role '{name}' has no scalar head"
    config = copy.deepcopy(base.model.config)
    config.num_labels = 1
    # The classifier finds the last token of a row as the last that is not padding.
    check_classifier(base.model, base.tokenizer)
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.pad_token_id = config.pad_token_id = harmless_padding(tokenizer)
    classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    classifier.base_model.load_state_dict(base.model.base_model.state_dict())
    with torch.no_grad():
        classifier.score.weight.copy_(head.weight)
    with atomic_folder(Path(folder)) as temporary:
        classifier.to(base.model.dtype).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
