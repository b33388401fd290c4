"""What a base is made of: sizes of its layers and how many parameters, from config.json alone or from a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onebase.errors import ModelError
from onebase.planning.known_architectures import known
from onebase.shown import shown


class Linear(NamedTuple):
    """A linear layer that every decoder layer has."""

    name: str
    """As `lora.target_modules` names it."""
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + self.outputs * self.bias


@dataclass(frozen=True, slots=True)
class _Family:
    """What the layers of a `model_type` have."""

    norms: int = 2
    """Norms of the hidden state in a layer."""
    head_norms: bool = False
    """Norms of each query and key head."""
    query_bias: bool = False
    """The query, key and value layers have a bias whatever the configuration says."""
    fused: bool = False
    """Query, key and value are one layer, and so are gate and up."""
    tied: bool = False
    """Whether the output layer is the embedding where the configuration does not say."""
    packs: bool = False
    """Whether the packed engine can run it (`engines/decoder.py`)."""


_FAMILIES = {
    "llama": _Family(packs=True),
    "mistral": _Family(packs=True),
    "qwen2": _Family(query_bias=True, packs=True),
    "qwen3": _Family(head_norms=True, packs=True),
    "phi3": _Family(fused=True),
    "gemma": _Family(tied=True),
    "gemma2": _Family(norms=4, tied=True),
    "gemma3_text": _Family(norms=4, head_norms=True, tied=True),
    "gpt2": _Family(tied=True),
}
_POSITIVE = "a whole number above 0"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a causal language model."""

    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""
    context: int
    """Positions it can read at once."""
    attention_bias: bool = False
    mlp_bias: bool = False
    window: int | None = None
    """Tokens that attention looks back at most; None: all."""
    stored: str = "bfloat16"
    """The number format its weights are stored in, as config.json says."""

    @property
    def gated(self) -> bool:
        """Whether the unit between has a gate beside it (SwiGLU); GPT-2's has none."""
        return self.model_type != "gpt2"

    @property
    def packs(self) -> bool:
        """Whether the packed engine can run it: its family, without a sliding window."""
        return _FAMILIES[self.model_type].packs and self.window is None

    @property
    def linear(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, in the order they run."""
        family, hidden, between = _FAMILIES[self.model_type], self.hidden, self.intermediate
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        if self.model_type == "gpt2":
            sizes = (("c_attn", hidden, 3 * hidden), ("c_proj", hidden, hidden))
            sizes += (("c_fc", hidden, between), ("c_proj", between, hidden))  # type: ignore[assignment]
            return tuple(Linear(*size, bias=True) for size in sizes)
        if family.fused:
            return (
                Linear("qkv_proj", hidden, queries + 2 * keys),
                Linear("o_proj", queries, hidden),
                Linear("gate_up_proj", hidden, 2 * between),
                Linear("down_proj", between, hidden),
            )
        read, written = self.attention_bias or family.query_bias, self.attention_bias
        return (
            Linear("q_proj", hidden, queries, read),
            Linear("k_proj", hidden, keys, read),
            Linear("v_proj", hidden, keys, read),
            Linear("o_proj", queries, hidden, written),
            Linear("gate_proj", hidden, between, self.mlp_bias),
            Linear("up_proj", hidden, between, self.mlp_bias),
            Linear("down_proj", between, hidden, self.mlp_bias),
        )

    @property
    def joined_parameters(self) -> int:
        """Weights of the layers that have others beside them which read the same input: query, key, value; gate, up."""
        joined = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
        return self.layers * sum(each.inputs * each.outputs for each in self.linear if each.name in joined)

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and of learned positions where there are any (GPT-2)."""
        return self.vocabulary * self.hidden + (self.context * self.hidden if self.model_type == "gpt2" else 0)

    @property
    def output_parameters(self) -> int:
        """Of an output layer of its own; 0 where it is the embedding."""
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def linear_parameters(self) -> int:
        """Of all linear layers in all decoder layers: what NF4 keeps in 4 bits."""
        return self.layers * sum(layer.parameters for layer in self.linear)

    @property
    def norm_parameters(self) -> int:
        """Of all norms."""
        family = _FAMILIES[self.model_type]
        each = 2 * self.hidden if self.model_type == "gpt2" else self.hidden  # GPT-2's norms have a bias
        heads = 2 * self.head_size if family.head_norms else 0
        return self.layers * (family.norms * each + heads) + each

    @property
    def parameters(self) -> int:
        """All of them, shared ones counted once."""
        return self.embedding_parameters + self.output_parameters + self.linear_parameters + self.norm_parameters

    def adapter_parameters(self, rank: int, modules: tuple[str, ...] | None = None, layers: int | None = None) -> int:
        """Of a LoRA adapter: r (in + out) for every adapted linear layer (Hu et al. 2021, section 4.1).

        Args:
            modules: names of the adapted linear layers; None: all.
            layers: how many decoder layers have it; None: all.
        """
        chosen = [layer for layer in self.linear if modules is None or layer.name in modules]
        count = self.layers if layers is None else layers
        return count * sum(rank * (layer.inputs + layer.outputs) for layer in chosen)


def from_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        ModelError: its kind is not known here, or a size is missing or impossible.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(text, Mapping)
    kind = str(text.get("model_type") or config.get("model_type"))
    family = _FAMILIES.get(kind)
    if family is None:
        raise ModelError(
            f"{shown(name, 120)}: a model of the kind {shown(kind, 40)} cannot be planned; the kinds known here are "
            f"{', '.join(_FAMILIES)}"
        )

    def size(*keys: str, default: int | None = None) -> int:
        found = next((text[key] for key in keys if text.get(key) is not None), default)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise ModelError(
                f"{shown(name, 120)}: config.json says {keys[0]} = {shown(repr(found), 40)}; {_POSITIVE} is needed"
            )
        return found

    hidden, heads = size("hidden_size", "n_embd"), size("num_attention_heads", "n_head")
    tied, window = text.get("tie_word_embeddings"), text.get("sliding_window")
    stored = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32")
    return Architecture(
        name=name,
        model_type=kind,
        layers=size("num_hidden_layers", "n_layer"),
        hidden=hidden,
        intermediate=size("intermediate_size", "n_inner", default=4 * hidden if kind == "gpt2" else None),
        heads=heads,
        kv_heads=size("num_key_value_heads", default=heads),
        head_size=size("head_dim", default=hidden // heads),
        vocabulary=size("vocab_size"),
        tied=family.tied if tied is None else bool(tied),
        context=size("max_position_embeddings", "n_positions", default=2048),
        attention_bias=bool(text.get("attention_bias")),
        mlp_bias=bool(text.get("mlp_bias")),
        window=window if isinstance(window, int) and text.get("use_sliding_window", True) else None,
        stored=stored,
    )


def read_architecture(name_or_path: str) -> Architecture:
    """The architecture of a base: from its folder's config.json, from the table of well-known ones, or from the Hub.

    No weights are read, and torch is not needed.

    Raises:
        ModelError: there is no such folder or model, or its configuration cannot be read.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return from_config(_read_json(path / "config.json", name_or_path), name_or_path)
    if (found := known(name_or_path)) is not None:
        return from_config(found, name_or_path)
    return from_config(_read_json(_from_hub(name_or_path), name_or_path), name_or_path)


def _read_json(path: Path, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{shown(name, 120)}: there is no config.json in this folder; is it a model's?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{shown(name, 120)}: config.json cannot be read: {shown(error, 120)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{shown(name, 120)}: config.json holds no mapping; is it a model's?")
    return found


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # huggingface_hub's checks raise their own error classes
        reason = (shown(error, 160).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{shown(name, 120)}: no such folder, not in the table of well-known models, and its config.json could not "
            f"be fetched ({reason})"
        ) from error
