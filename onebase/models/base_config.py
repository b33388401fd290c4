"""A base's configuration, checked before weights are loaded: is it a causal language model, how long is its context."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from onebase.errors import ModelError
from onebase.models.role_card import check_model_name
from onebase.shown import shown

_OTHER_TASK = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM|NextSentencePrediction)$"
)
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
_SHORTEST_CONTEXT = 2
"""A token to read, and one to predict."""
UNLIMITED = 2**31
"""The context of a model whose configuration names none."""


def read_base_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of a causal language model that can be a base.

    Raises:
        ModelError: no such model, not a causal language model, quantised in a way that cannot be trained on, in need of
            Python code of its own, or with sizes that cannot be.
    """
    check_model_name(name_or_path)
    config = read_config(name_or_path)
    problem = _why_no_base(config) or _impossible_size(config.get_text_config())
    if problem:
        raise ModelError(f"{shown(name_or_path)}: {problem}")
    return config


def read_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of any model. Its folder's own Python code is never run.

    Raises:
        ModelError: none could be read.
    """
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # huggingface_hub's checks of single entries have classes of their own
        raise cannot_load(name_or_path, "model", error) from error


def cannot_load(name_or_path: str, what: str, error: Exception) -> ModelError:
    """The error of a folder that transformers refuses."""
    reason = shown(" ".join(str(error).split()), 300) or type(error).__name__
    if "trust_remote_code" in reason or "custom code" in reason:
        reason = (
            "it needs Python code from its own folder, and onebase never runs that; only architectures that are part "
            "of transformers can be used"
        )
    return ModelError(f"{shown(name_or_path)}: no {what} could be loaded: {reason}")


def empty_model(config: PreTrainedConfig, name_or_path: str) -> PreTrainedModel:
    """The model with shapes and without weights.

    Raises:
        ModelError: transformers cannot make one of this configuration.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # every architecture has checks of its own, or none
        raise cannot_load(name_or_path, "model", error) from error


def context_length(config: PreTrainedConfig) -> int:
    """Positions that a base can read at once.

    Where the rotary angles of all tokens depend on the longest row of a batch (longrope, dynamic NTK), only as many as
    have the angles of a short row: what else is in a batch would change the result beyond them.
    """
    text = config.get_text_config()
    full = _full_context(text)
    kinds = _rotary_kinds(text)
    if "longrope" in kinds:
        originals = [part.get("original_max_position_embeddings") for part in _rotary_parts(text)]
        short = [int(value) for value in (*originals, getattr(text, "original_max_position_embeddings", None)) if value]
        return min([full, *short])
    return full


def context_note(config: PreTrainedConfig) -> str:
    """Why the context is shorter than the configuration says; empty where it is not."""
    usable, full = context_length(config), _full_context(config.get_text_config())
    if usable == full:
        return ""
    return (
        f"context {usable} of {full} positions: beyond them the rotary angles of all tokens change with the longest "
        "row of a batch (longrope), and results would depend on what else is in it"
    )


def _full_context(text: PreTrainedConfig) -> int:
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(text, name, None)
        if value is not None:
            return int(value)
    return UNLIMITED


def _rotary_parts(text: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rotary parameters, of each kind of layer where they differ."""
    found = getattr(text, "rope_parameters", None) or {}
    parts = [part for part in found.values() if isinstance(part, dict) and "rope_type" in part]
    return parts or [found]


def _rotary_kinds(text: PreTrainedConfig) -> set[str]:
    return {str(part.get("rope_type", "default")) for part in _rotary_parts(text)}


def _why_no_base(config: PreTrainedConfig) -> str:
    """Why this cannot be a base, if it cannot."""
    kind = shown(config.model_type, 60)
    if getattr(config, "is_encoder_decoder", False):
        return f"this is an encoder-decoder model ({kind}); a causal language model is needed"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return f"this is an encoder ({kind}), which sees the tokens to be predicted; a causal language model is needed"
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"transformers has no causal language model of the kind {kind}"
    other = next((name for name in config.architectures or [] if _OTHER_TASK.search(name)), None)
    if other:
        hint = "; as a reward it goes to reward.model in ppo" if "SequenceClassification" in other else ""
        return f"this is a {shown(other, 80)}; a causal language model is needed{hint}"
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        return (
            f"its weights are stored quantised as {shown(method, 40)}, which adapters cannot be trained on here; take "
            "the model it was made from, with model.quantization: nf4 where memory is short"
        )
    return ""


def _impossible_size(text: PreTrainedConfig) -> str:
    """The first size in a configuration that no model can have."""
    for name in _SIZES:
        value = getattr(text, name, None)
        if value is None or isinstance(value, list | tuple | dict):  # one for each layer
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return f"config.json says {name} = {shown(repr(value), 40)}; a whole number of at least 1 is needed"
    if context_length(text) < _SHORTEST_CONTEXT:
        return (
            f"config.json says that the model reads {context_length(text)} positions at once; at least "
            f"{_SHORTEST_CONTEXT} are needed to predict anything"
        )
    return ""
