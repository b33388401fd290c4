"""Peak memory of a planned run, by part and by phase, from formulas; what is measured is in one table of constants.

    peak = max over phases of (what is always held + what only this phase holds)

L layers, H hidden size, I intermediate size, V vocabulary, Q query heads times head size, K the same of key heads,
e bytes of a number in the base's format, r rank, T tokens of a microbatch, M of them counted, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onebase.engines.output_layer import FEWEST_TOKENS_PER_CHUNK, LOGITS_PER_CHUNK
from onebase.planning.activations import (
    activation_bytes_per_token,
    combined_part,
    kv_bytes_per_token,
    passing_bytes_per_token,
)
from onebase.planning.batch_sizes import decoded_rows, microbatch_tokens, scored_tokens, trained_tokens
from onebase.planning.peak import Part, Peak, Phase
from onebase.planning.run import PlannedRole, PlannedRun
from onebase.planning.weights import ADAPTER_BYTES, NUMBER_BYTES, weight_bytes
from onebase.sampling.local import PREFILL_TOKENS
from onebase.training.plan import NF4_BYTES_PER_WEIGHT

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
    """What is held while the weights are read: they are converted from the file, which is mapped meanwhile; then those
    that read the same input are laid together (`engines/projection.py`), and the room they leave stays until the end.
    """
    base, stored = run.architecture, NUMBER_BYTES.get(run.architecture.stored, 4)
    whole = weight_bytes(base, run.dtype, run.quantization)
    found = [framework_part(run), Part("base", whole, base_part(run).formula)]
    if run.device != "cpu":
        return tuple(found)
    passing, e = [], NUMBER_BYTES[run.dtype]
    if not run.starts_new:
        passing.append(
            Part("file", float(stored * base.parameters), f"{base.parameters / 1e6:.0f} M x {stored}, mapped")
        )
    if base.packs and run.quantization == "none":
        joined = base.joined_parameters
        passing.append(Part("laid together", float(e * joined), f"{joined / 1e6:.0f} M x {e}"))
    if passing:
        found.append(max(passing, key=lambda part: part.size))
    return tuple(found)


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


# --------------------------------------------------------------------------------------------------------------- phases


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
