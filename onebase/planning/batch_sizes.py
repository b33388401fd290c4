"""Tokens of a microbatch and completions decoded at once, as a planned run would choose them itself."""

from __future__ import annotations

from onebase.engines.budget import tokens_that_fit
from onebase.models.hardware import usual_size
from onebase.planning.activations import activation_bytes_per_token, kv_bytes_per_token
from onebase.planning.run import PlannedRun
from onebase.sampling.local import MOST_ROWS, rows_that_fit


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
