"""Checks a base's configuration before loading its weights: is it a causal language model, how long is its context."""

from __future__ import annotations

import math
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
"""One token to read and one to predict."""
UNLIMITED = 2**31
"""The context length if the configuration names none."""


def read_base_config(name_or_path: str) -> PreTrainedConfig:
    """Reads the configuration of a causal language model that can be a base.

    Raises:
        ModelError: the model does not exist, is not a causal language model, is quantised in a way that cannot be
            trained on, needs its own Python code, or has impossible sizes.
    """
    check_model_name(name_or_path)
    config = read_config(name_or_path)
    _require_base(config, shown(name_or_path))
    if problem := _impossible_number(config.get_text_config()):
        raise ModelError(f"{shown(name_or_path)}: {problem}")
    return config


def read_config(name_or_path: str) -> PreTrainedConfig:
    """Reads any model's configuration. Python code in its folder is never run.

    Raises:
        ModelError: no configuration could be read.
    """
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # huggingface_hub's checks raise their own error classes
        raise cannot_load(name_or_path, "model", error) from error


def cannot_load(name_or_path: str, what: str, error: Exception) -> ModelError:
    """The error for a folder that transformers refuses."""
    reason = shown(" ".join(str(error).split()), 300) or type(error).__name__
    if "trust_remote_code" in reason or "custom code" in reason:
        reason = (
            "it needs Python code from its own folder, and onebase never runs that; only architectures that are part "
            "of transformers can be used"
        )
    elif what == "tokenizer":
        reason += "; check tokenizer.json, and tokenizer_config.json with the chat template in it"
    return ModelError(f"{shown(name_or_path)}: no {what} could be loaded: {reason}")


def empty_model(config: PreTrainedConfig, name_or_path: str) -> PreTrainedModel:
    """Builds the model with shapes but without weights.

    Raises:
        ModelError: transformers cannot build one from this configuration.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # each architecture has its own checks, or none
        raise cannot_load(name_or_path, "model", error) from error


def attention_heads(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Query heads, key heads and numbers per head of a model's text part."""
    text: Any = config.get_text_config()
    heads = int(text.num_attention_heads)
    key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    return heads, key_heads, int(getattr(text, "head_dim", None) or text.hidden_size // heads)


def context_length(config: PreTrainedConfig) -> int:
    """Positions a base can read at once.

    If all tokens' rotary angles depend on the batch's longest row (longrope, dynamic NTK), only positions with a short
    row's angles count: beyond them, the rest of the batch would change the result.
    """
    text = config.get_text_config()
    full = _full_context(text)
    kinds = _rotary_kinds(text)
    if "longrope" in kinds:
        originals = [each.get("original_max_position_embeddings") for each in _rotary_parts(text)]
        short = [int(value) for value in (*originals, getattr(text, "original_max_position_embeddings", None)) if value]
        return min([full, *short])
    return full


def context_note(config: PreTrainedConfig) -> str:
    """Why the context is shorter than the configuration says; empty if it is not."""
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
    """The rotary parameters, one entry per kind of layer if they differ."""
    found = getattr(text, "rope_parameters", None) or {}
    by_kind = [each for each in found.values() if isinstance(each, dict) and "rope_type" in each]
    return by_kind or [found]


def _rotary_kinds(text: PreTrainedConfig) -> set[str]:
    return {str(each.get("rope_type", "default")) for each in _rotary_parts(text)}


def _require_base(config: PreTrainedConfig, name: str) -> None:
    """Raises ModelError for a model that cannot be a base."""
    kind = shown(config.model_type, 60)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name}: this is an encoder-decoder model ({kind}); a causal language model is needed")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{name}: this is an encoder ({kind}), which sees the tokens to be predicted; a causal language model is "
            "needed"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{name}: transformers has no causal language model of the kind {kind}")
    other = next((architecture for architecture in config.architectures or [] if _OTHER_TASK.search(architecture)), "")
    if other:
        raise ModelError(
            f"{name}: this is a {shown(other, 80)}; a causal language model is needed",
            remedy="classifier-not-base" if "SequenceClassification" in other else "",
        )
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise ModelError(
            f"{name}: its weights are stored quantised as {shown(method, 40)}, which adapters cannot be trained on "
            "here",
            remedy="stored-quantised",
        )


def _impossible_number(text: PreTrainedConfig) -> str:
    """The first number in a configuration that no model can have, in words; empty if there is none."""
    for name, value in text.to_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"config.json says {shown(name, 60)} = {value}; a finite number is needed"
    for name in _SIZES:
        value = getattr(text, name, None)
        if value is None or isinstance(value, list | tuple | dict):  # one value per layer
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return f"config.json says {name} = {shown(repr(value), 40)}; a whole number of at least 1 is needed"
    if context_length(text) < _SHORTEST_CONTEXT:
        return (
            f"config.json says that the model reads {context_length(text)} positions at once; at least "
            f"{_SHORTEST_CONTEXT} are needed to predict anything"
        )
    return ""
