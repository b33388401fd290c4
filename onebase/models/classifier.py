"""A reward role trained in full, as the sequence classifier of transformers that it then is."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from onebase.errors import ModelError
from onebase.files import atomic_folder
from onebase.models.one_base import OneBase


def check_classifier(one: OneBase) -> None:
    """Finds out before training whether `save_classifier` will work.

    Raises:
        ModelError: transformers has no sequence classifier with a `score` layer for this architecture.
    """
    try:
        with torch.device("meta"):
            empty = AutoModelForSequenceClassification.from_config(one.model.config, trust_remote_code=False)
        found = hasattr(empty, "score")
    except ValueError:
        found = False
    if not found:
        raise ModelError(
            f"{type(one.model).__name__}: transformers has no sequence classifier of this kind to save a reward model "
            "trained in full as; train an adapter: lora.r >= 1"
        )


def save_classifier(one: OneBase, name: str, folder: str | Path) -> None:
    """Writes the base with the role's head as a transformers sequence classifier with one label.

    For a reward role trained in full: it is a model of its own then, and no role on the base it came from.

    Raises:
        ModelError: transformers has no sequence classifier for this architecture.
    """
    head = one.roles[name].head
    assert head is not None, f"role '{name}' has no scalar head"
    config = copy.deepcopy(one.model.config)
    config.num_labels = 1
    # The classifier finds the last token of a row as the last that is not padding.
    config.pad_token_id = one.tokenizer.pad_token_id
    check_classifier(one)
    classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    classifier.base_model.load_state_dict(one.model.base_model.state_dict())
    with torch.no_grad():
        classifier.score.weight.copy_(head.weight)
    with atomic_folder(Path(folder)) as temporary:
        classifier.to(one.model.dtype).save_pretrained(temporary)
        one.tokenizer.save_pretrained(temporary)
