"""Bytes that a pass takes per token: what a layer keeps for the backward pass, what passes, keys and values.

L layers, H hidden size, I intermediate size, Q query heads times head size, K the same of key heads, e bytes of a
number in the base's format, r rank.
"""

from __future__ import annotations

from onebase.planning.architecture import Architecture, Linear
from onebase.planning.peak import Part
from onebase.planning.run import PlannedRole, PlannedRun
from onebase.planning.weights import NUMBER_BYTES

_READ_TOGETHER = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn")
"""Query, key and value projections, together or apart, by the names that architectures give them."""


def layer_bytes_per_token(run: PlannedRun, role: PlannedRole, *, adapted: bool) -> float:
    """Bytes that one decoder layer keeps for the backward pass per token.

    Packed engine: the input of each norm (2 H) with its inverse root, queries, keys and values (Q + 2 K), what
    attention reads (Q) with a log-sum per head, gate and up (2 I); and, where adapters train, the input of every
    projection that has one (H, Q, H, I; what attention reads is kept already) and its product with A (r each).

    transformers: the input, the normed and the scaled state of each norm (6 H; in 16 bits the first is in float32),
    Q + 2 K after the rotation, Q read, and gate, its activation, up and their product (4 I).
    """
    base, e = run.architecture, NUMBER_BYTES[run.dtype]
    hidden, between = base.hidden, base.intermediate
    queries, keys = base.heads * base.head_size, base.kv_heads * base.head_size
    if run.packs:
        kept = (2 * hidden + 2 * queries + 2 * keys + 2 * between) * e + 2 * 4 + 4 * base.heads
        if role.adapter is not None and adapted:
            names = role.adapter.modules
            groups = _projections(base)
            inputs = {"qkv": hidden, "o": 0, "gate_up": hidden, "down": between}
            for group, layers in groups.items():
                count = sum(names is None or layer.name in names for layer in layers)
                kept += (inputs[group] * bool(count) + role.adapter.rank * count) * e
        return kept
    norms = 6 * hidden * e if e == 4 else 2 * hidden * (4 + e + e)
    units = 4 * between if base.gated else 3 * between
    kept = norms + (2 * queries + 2 * keys + units) * e
    if role.adapter is not None and adapted:
        kept += sum(layer.inputs * (5 if run.dropout else 0) + 4 * role.adapter.rank for layer in base.linear)
    return float(kept)


def _projections(base: Architecture) -> dict[str, list[Linear]]:
    """The linear layers that read one input, as the packed engine runs them."""
    found: dict[str, list[Linear]] = {"qkv": [], "o": [], "gate_up": [], "down": []}
    for layer in base.linear:
        group = "qkv" if layer.name in _READ_TOGETHER else layer.name.split("_")[0]
        found["gate_up" if group in ("gate", "up", "c") else group].append(layer)
    return found


def activation_bytes_per_token(run: PlannedRun, role: PlannedRole) -> float:
    """Bytes that a training pass keeps per token in all layers.

    Layers below the lowest adapter keep nothing. With gradient checkpointing, H e for each layer and all of one.
    """
    base, e = run.architecture, NUMBER_BYTES[run.dtype]
    adapted = tuple(range(base.layers)) if role.adapter is None else role.adapter.layers
    lowest = min(adapted, default=0)
    above = [index in adapted for index in range(lowest, base.layers)]
    each = {kind: layer_bytes_per_token(run, role, adapted=kind) for kind in (True, False)}
    if run.checkpointing:
        return base.hidden * e * len(above) + max(each[kind] for kind in above)
    return sum(each[kind] for kind in above)


def passing_bytes_per_token(run: PlannedRun) -> float:
    """Bytes per token that exist for a moment in one layer: state, normed state, gate and up, their product."""
    base, e = run.architecture, NUMBER_BYTES[run.dtype]
    return float((2 * base.hidden + 3 * base.intermediate) * e)


def kv_bytes_per_token(run: PlannedRun) -> float:
    """Keys and values of one token in all layers: 2 L K e."""
    base = run.architecture
    return float(2 * base.layers * base.kv_heads * base.head_size * NUMBER_BYTES[run.dtype])


def combined_part(run: PlannedRun, role: PlannedRole) -> list[Part]:
    """An adapter's matrices as the packed engine multiplies them: stacked A, and B as a block diagonal."""
    if not run.packs or role.adapter is None:
        return []
    rank, total = role.adapter.rank, 0
    for layers in _projections(run.architecture).values():
        chosen = [layer for layer in layers if role.adapter.modules is None or layer.name in role.adapter.modules]
        if chosen:
            total += len(chosen) * rank * (chosen[0].inputs + sum(layer.outputs for layer in layers))
    size = len(role.adapter.layers) * total * NUMBER_BYTES[run.dtype]
    return [Part("adapter, laid out", float(size), "L R (in + out) e")] if size else []
