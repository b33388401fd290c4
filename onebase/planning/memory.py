"""Peak memory of a planned run, by part and by phase, from formulas; what is measured is in one table of constants.

    peak = max over phases of (what is always held + what only this phase holds)

L layers, H hidden size, I intermediate size, V vocabulary, Q query heads times head size, K the same of key heads,
e bytes of a number in the base's format, r rank, T tokens of a microbatch, M of them counted, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onebase.engines.budget import tokens_that_fit
from onebase.engines.output_layer import FEWEST_TOKENS_PER_CHUNK, LOGITS_PER_CHUNK
from onebase.models.hardware import usual_size
from onebase.planning.architecture import Architecture, Linear
from onebase.planning.run import PlannedRole, PlannedRun
from onebase.sampling.local import MOST_ROWS, PREFILL_TOKENS, rows_that_fit
from onebase.training.plan import NF4_BYTES_PER_WEIGHT

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_BYTES = 4
"""Adapters and heads are float32 whatever the base is."""
MOMENTS = 2
"""AdamW keeps a mean and a variance for every parameter that trains (Loshchilov and Hutter 2019), in its format."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What formulas do not give. `bench/planned.py` measures it."""

    framework: float
    """Bytes of the process before a weight is loaded: Python, torch, transformers, PEFT, their libraries."""
    pieces: float
    """Memory that is taken for what a phase holds for a while, as a multiple of it: the rest lies between blocks that
    are in use, in pieces that are too small for the next tensor."""


MEASURED = {
    "cpu": Measured(framework=510e6, pieces=1.05),
    "cuda": Measured(framework=600e6, pieces=1.05),
}
"""CPU: PyTorch 2.13 on x86-64 Linux with glibc. CUDA: the context and its libraries, in round figures, not measured."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what is held."""

    name: str
    size: float
    """Bytes."""
    formula: str


@dataclass(frozen=True, slots=True)
class Phase:
    """What is held at the peak of one phase."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> float:
        """Bytes."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Peak:
    """The memory of a run."""

    phases: tuple[Phase, ...]
    microbatch_tokens: int
    rows: int
    """Completions decoded at once."""

    @property
    def highest(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.size)

    @property
    def size(self) -> float:
        """Bytes."""
        return self.highest.size


def peak_memory(run: PlannedRun, memory: float) -> Peak:
    """The peak of a run on a device with `memory` bytes, of which `auto` sizes take their share."""
    if run.parts:
        return _one_after_the_other(run, memory)
    held = held_parts(run)
    left = max(0.0, memory - sum(part.size for part in held))
    budget = microbatch_tokens(run, left)
    trained, scored, rows = trained_tokens(run, budget), scored_tokens(run, budget), decoded_rows(run, left)
    phases = [Phase("load", loading_parts(run))]
    if run.samples_per_prompt and not run.elsewhere:
        phases.append(Phase("generate", (*held, *in_pieces(run, generating_parts(run, rows)))))
    phases.append(Phase("score", (*held, *in_pieces(run, scoring_parts(run, scored)))))
    if run.trained:
        kept = kept_between_phases(run)
        parts = (*held, *kept, *gradient_parts(run), *in_pieces(run, updating_parts(run, trained)))
        phases.append(Phase("update", parts))
        phases.append(Phase("save", (*held, *saving_parts(run))))
    return Peak(tuple(phases), budget, rows)


def _one_after_the_other(run: PlannedRun, memory: float) -> Peak:
    """The peak of runs in one process: what one has freed goes back to the system before the next loads its base."""
    peaks = [peak_memory(part, memory) for part in run.parts]
    found = [
        Phase(f"{part.verb}: {phase.name}", phase.parts)
        for part, peak in zip(run.parts, peaks, strict=True)
        for phase in peak.phases
    ]
    return Peak(tuple(found), max(peak.microbatch_tokens for peak in peaks), max(peak.rows for peak in peaks))


def in_pieces(run: PlannedRun, parts: Iterable[Part]) -> list[Part]:
    """The parts that a phase holds for a while, and what lies unused between them."""
    found = list(parts)
    share = MEASURED[run.device].pieces - 1
    told = f"{share:.0%} of what this phase holds{', measured' if run.device == 'cpu' else ', assumed'}"
    return [*found, Part("between blocks", share * sum(part.size for part in found), told)]


# ------------------------------------------------------------------------------------------------ what is always held


def held_parts(run: PlannedRun) -> list[Part]:
    """What is held from loading to the end: the program, the base, adapters and heads, the optimizer's moments."""
    base, e = run.architecture, NUMBER_BYTES[run.dtype]
    found = [framework_part(run), base_part(run)]
    for role in run.roles:
        if role.adapter is not None:
            count = role.adapter.parameters(base)
            found.append(Part(f"adapter {role.name}", ADAPTER_BYTES * count, f"4 x {count / 1e6:.1f} M"))
        if role.head:
            found.append(Part(f"head {role.name}", ADAPTER_BYTES * base.hidden, "4 H"))
    if run.trained:
        each = e if run.in_full else ADAPTER_BYTES
        size = MOMENTS * each * run.trained_parameters
        found.append(Part("optimizer", size, f"{MOMENTS} x {each} x {run.trained_parameters / 1e6:.1f} M"))
    if run.classifier is not None:
        found.append(
            Part("reward model", run.classifier.parameters * e, f"P e = {run.classifier.parameters / 1e6:.0f} M x {e}")
        )
    return found


def framework_part(run: PlannedRun) -> Part:
    """The program itself, before a weight is loaded."""
    return Part("framework", MEASURED[run.device].framework, "measured" if run.device == "cpu" else "assumed")


def weight_bytes(base: Architecture, dtype: str, quantization: str) -> float:
    """Bytes of a base's weights: P e; in NF4 0.5625 for each of the linear layers' and e for the others
    (Dettmers et al. 2023, section 3, without double quantisation).
    """
    e = NUMBER_BYTES[dtype]
    if quantization == "nf4":
        return NF4_BYTES_PER_WEIGHT * base.linear_parameters + e * (base.parameters - base.linear_parameters)
    return float(e * base.parameters)


def base_part(run: PlannedRun) -> Part:
    """The base's weights, or this process's part of them where it is spread."""
    base, e = run.architecture, NUMBER_BYTES[run.dtype]
    size = weight_bytes(base, run.dtype, run.quantization)
    name = "nf4" if run.quantization == "nf4" else run.dtype
    formula = f"{base.parameters / 1e6:.0f} M x {e}"
    if run.quantization == "nf4":
        rest = base.parameters - base.linear_parameters
        formula = f"{base.linear_parameters / 1e6:.0f} M x {NF4_BYTES_PER_WEIGHT} + {rest / 1e6:.0f} M x {e}"
    if run.spread:
        return Part(f"base ({name})", size / run.processes, f"({formula}) / {run.processes}")
    return Part(f"base ({name})", size, formula)


def loading_parts(run: PlannedRun) -> tuple[Part, ...]:
    """What is held while the weights are read: they are converted from the file, which is mapped meanwhile."""
    base, stored = run.architecture, NUMBER_BYTES.get(run.architecture.stored, 4)
    whole = weight_bytes(base, run.dtype, run.quantization)
    found = [framework_part(run), Part("base", whole, base_part(run).formula)]
    if not run.starts_new and run.device == "cpu":
        found.append(Part("file", float(stored * base.parameters), f"{base.parameters / 1e6:.0f} M x {stored}, mapped"))
    return tuple(found)


# ----------------------------------------------------------------------------------------------------- sizes of batches


def microbatch_tokens(run: PlannedRun, free: float) -> int:
    """Tokens of a microbatch: as configured, or as the run itself would choose them with `free` bytes."""
    longest = run.lengths.tree.longest
    if run.layout == "separate":
        longest = run.lengths.completions.longest * (run.lengths.prompt.longest + run.lengths.completion.longest)
    if run.microbatch_tokens is not None:
        return run.microbatch_tokens
    per_token = max(1.0, activation_bytes_per_token(run, run.roles[0]))
    return tokens_that_fit(free, per_token, longest=longest, device=run.device)


def trained_tokens(run: PlannedRun, budget: int) -> int:
    """Tokens of the largest microbatch that trains, as it is laid out."""
    if not run.trained:
        return 0
    return _laid_out(run, min(run.minibatch, max(1, run.lengths.examples)), budget)


def scored_tokens(run: PlannedRun, budget: int) -> int:
    """Tokens of the largest microbatch without gradient."""
    if run.rollout_prompts:
        return _laid_out(run, max(run.rollout_prompts, 1), budget)
    cached = any(each.role == "reference" for each in run.passes)
    count = run.lengths.examples if cached else run.lengths.held_out
    return _laid_out(run, count, budget) if count else 0


def _laid_out(run: PlannedRun, examples: int, budget: int) -> int:
    """Tokens of the largest microbatch of so many examples: whole trees up to the budget, one in any case."""
    lengths = run.lengths
    if run.layout == "separate":
        width = lengths.prompt.mean + lengths.completion.mean
        tree, longest = lengths.completions.mean * width, lengths.completions.longest * width
    else:
        tree, longest = lengths.tree.mean, float(lengths.tree.longest)
    # The largest of several minibatches: two deviations above the mean.
    wanted = examples * tree + 2 * lengths.deviation * examples**0.5
    wanted = min(wanted, examples * longest)
    fits = max(1, budget // max(1, round(tree))) * tree
    return usual_size(max(1, round(max(min(wanted, fits), min(longest, wanted)))))


def decoded_rows(run: PlannedRun, free: float) -> int:
    """Completions decoded at once, as the run itself would choose them with `free` bytes."""
    if not run.samples_per_prompt or run.elsewhere:
        return 0
    prompts = max(run.rollout_prompts, -(-run.evaluated // run.samples_per_prompt))
    wanted = min(max(1, prompts) * run.samples_per_prompt, MOST_ROWS)
    row = kv_bytes_per_token(run) * (run.lengths.prompt.longest + run.max_new_tokens) + 32 * run.architecture.vocabulary
    return rows_that_fit(free, row, wanted=wanted, samples_per_prompt=run.samples_per_prompt)


# --------------------------------------------------------------------------------------------------------- activations


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


_READ_TOGETHER = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn")


def _projections(base: Architecture) -> dict[str, list[Linear]]:
    """The linear layers that read one input, as the packed engine runs them."""
    found: dict[str, list[Linear]] = {"qkv": [], "o": [], "gate_up": [], "down": []}
    for layer in base.linear:
        group = (
            "qkv" if layer.name in ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn") else layer.name.split("_")[0]
        )
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


def chunk_tokens(run: PlannedRun, counted: float) -> float:
    """Tokens whose logits exist at once, as `engines/output_layer.py` cuts them."""
    most = max(FEWEST_TOKENS_PER_CHUNK, LOGITS_PER_CHUNK[run.device] // run.architecture.vocabulary)
    return min(most, counted)


def logits_part(run: PlannedRun, counted: float, *, trains: bool) -> Part:
    """The logits of a chunk and their softmax in float32; where the output layer trains, their gradients besides."""
    tokens = chunk_tokens(run, counted)
    copies = 4 if trains and run.in_full else 2
    size = copies * 4 * tokens * run.architecture.vocabulary
    return Part("logits chunk", size, f"{copies} x 4 x {tokens:.0f} tokens x {run.architecture.vocabulary} V")


def counted_tokens(run: PlannedRun, tokens: int) -> float:
    """Of a microbatch's tokens, those that are learned or measured."""
    return tokens * run.lengths.counted / max(1.0, run.lengths.tree.mean)


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


# --------------------------------------------------------------------------------------------------------------- phases


def kv_bytes_per_token(run: PlannedRun) -> float:
    """Keys and values of one token in all layers: 2 L K e."""
    base = run.architecture
    return float(2 * base.layers * base.kv_heads * base.head_size * NUMBER_BYTES[run.dtype])


def generating_parts(run: PlannedRun, rows: int) -> list[Part]:
    """What decoding holds: keys and values, the prefill's activations, the distribution that tokens are drawn from."""
    each, lengths = kv_bytes_per_token(run), run.lengths
    prompts = -(-rows // max(1, run.samples_per_prompt))
    prefilled = min(prompts, max(1, PREFILL_TOKENS // max(1, lengths.prompt.longest))) * lengths.prompt.mean
    own_bytes = each
    if run.packs and run.device == "cpu":
        # A prompt's are kept once, and a completion's own in float32.
        own_bytes = each * 4 / NUMBER_BYTES[run.dtype]
        kept = prompts * lengths.prompt.longest * each + rows * run.max_new_tokens * own_bytes
        formula = f"2 L K ({prompts} x {lengths.prompt.longest} + {rows} x {run.max_new_tokens})"
    else:
        kept = rows * (lengths.prompt.longest + run.max_new_tokens) * each
        formula = f"2 L K e x {rows} x {lengths.prompt.longest + run.max_new_tokens}"
    found = [Part("KV cache", kept, formula)]
    found.append(Part("prefill", prefilled * (each + passing_bytes_per_token(run)), "its keys and values, one layer"))
    found.append(Part("drawing", 32.0 * run.architecture.vocabulary * rows, f"32 V x {rows}"))
    policy = next((role for role in run.roles if role.name == "policy"), None)
    return found + (combined_part(run, policy) if policy is not None else []) + expanded_part(run)


def expanded_part(run: PlannedRun) -> list[Part]:
    """In NF4, the largest weight as it is expanded for its product."""
    if run.quantization != "nf4":
        return []
    largest = max(layer.inputs * layer.outputs for layer in run.architecture.linear)
    return [Part("expanded weight", float(largest * 4), "the largest in x out, in float32")]


def scoring_parts(run: PlannedRun, tokens: int) -> list[Part]:
    """What a pass without gradient holds: one layer's activations, a chunk of logits."""
    if not tokens:
        return []
    found = [Part("one layer's activations", tokens * passing_bytes_per_token(run), f"(2 H + 3 I) e x {tokens} tokens")]
    found.append(logits_part(run, counted_tokens(run, tokens), trains=False))
    biggest = max(run.roles, key=lambda role: role.adapter.rank if role.adapter else 0)
    return found + combined_part(run, biggest) + expanded_part(run)


def gradient_parts(run: PlannedRun) -> list[Part]:
    """The gradients of what trains, in its format."""
    each = NUMBER_BYTES[run.dtype] if run.in_full else ADAPTER_BYTES
    size = float(each * run.trained_parameters)
    return [Part("gradients", size, f"{each} x {run.trained_parameters / 1e6:.1f} M")]


def kept_between_phases(run: PlannedRun) -> list[Part]:
    """What a rollout leaves for its updates: log-probs, values and advantages, and lower layers' states if all roles
    share these; for dpo, the reference's log-probs.
    """
    lengths = run.lengths
    if not run.rollout_prompts:
        count = lengths.examples * lengths.completions.mean if any(p.role == "reference" for p in run.passes) else 0
        return [Part("reference log-probs", 4.0 * count, f"4 x {count:.0f} completions")] if count else []
    trees = run.rollout_prompts
    found = [Part("log-probs, values, advantages", 4.0 * 8 * trees * lengths.counted, "4 x 8 a token of the rollout")]
    policy = next(role for role in run.roles if role.name == "policy")
    if run.packs and policy.adapter is not None and min(policy.adapter.layers, default=0) > 0:
        size = trees * lengths.tree.mean * run.architecture.hidden * NUMBER_BYTES[run.dtype]
        found.append(Part("lower layers' states", size, f"H e x {trees * lengths.tree.mean:.0f} tokens"))
    return found


def updating_parts(run: PlannedRun, tokens: int) -> list[Part]:
    """What a training pass holds, for the role that needs most: only one role's activations exist at a time."""
    role = max(run.trained, key=lambda role: activation_bytes_per_token(run, role) if not _only_head(role) else 0.0)
    per_token, e = activation_bytes_per_token(run, role), NUMBER_BYTES[run.dtype]
    counted = counted_tokens(run, tokens)
    found = [Part("activations", per_token * tokens, f"{per_token / 1e3:.1f} kB x {tokens} tokens")]
    found.append(
        Part("backward of one layer", tokens * 2 * passing_bytes_per_token(run), f"2 (2 H + 3 I) e x {tokens}")
    )
    if not (role.head and not run.in_full):
        found.append(logits_part(run, counted, trains=True))
        found.append(Part("states read", counted * run.architecture.hidden * e * 2, f"2 H e x {counted:.0f} tokens"))
    if run.in_full:
        ends = run.architecture.vocabulary * run.architecture.hidden * e
        found.append(Part("gradient of the embedding", float(ends), "V H e, before it is added"))
    return found + combined_part(run, role) + expanded_part(run)


def _only_head(role: PlannedRole) -> bool:
    return role.adapter is None and not role.in_full


def saving_parts(run: PlannedRun) -> list[Part]:
    """What a checkpoint holds besides: a copy of the weights that train."""
    each = NUMBER_BYTES[run.dtype] if run.in_full else ADAPTER_BYTES
    return [Part("copy of what trains", float(each * run.trained_parameters), "for the checkpoint")]
