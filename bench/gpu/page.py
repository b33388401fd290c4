"""Writes docs/gpu.md from what `make gpu-check` measured, or says that nothing has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = {"none": "bf16", "nf4": "NF4"}
STAGES = {"sft": "SFT", "reward": "reward", "dpo": "DPO", "ppo": "PPO", "decode": "decoding"}
HEAD = """# On a GPU

`make gpu-check` runs on the machine's first GPU, within eight minutes and without a network: the tests marked `gpu`,
then SFT, a reward model, DPO, PPO and decoding at 1 B and 8 B parameters, in bfloat16 and NF4, each beside transformers
and PEFT doing the same on the same weights. It writes this page and `bench/gpu.json`. The models have the shapes of
Llama-3.2-1B and Llama-3.1-8B and random weights; rows have prompts of 64 to 512 tokens and two answers each. A PPO
rollout is 100 prompts with one completion of 32 tokens, scored by a reward role, measured by reference and critic, and
one epoch of four minibatches; decoding draws 128 tokens for each of these prompts.
"""
NOTHING = """
**Nothing has run on a GPU yet.** What is known without one, and the tests that show it:

| what | shown in |
| --- | --- |
| every recipe's step stays on its device, forward, backward and decoding, on all engines | `tests/devices` (1) |
| nothing waits for the device inside a microbatch | `tests/devices` (2) |
| FlexAttention gives what the CPU's tree attention gives, gradients too | `tests/engines/test_flex.py` (3) |
| its masks take memory for tokens, not for pairs of tokens | the same file, on 26,000 tokens |
| decoding with fixed buffers draws the same samples | `tests/engines/test_captured.py` (4) |
| NF4 bases run packed, and keep no expanded weight | `tests/engines/test_decoder.py`, on a CPU |

1. On fake tensors, which have a shape and a device `cuda` and no numbers; a state left on the CPU makes it fail.
2. The tests count what makes the host wait: three reads in an optimizer step, however many microbatches it has; one for
   each pass without gradient; one look for every eight tokens drawn.
3. Uncompiled, in float32 within 1e-5, on Llama, Qwen3, Gemma-2 (soft cap, window), Gemma-3, Mistral and GPT-NeoX.
4. With a stand-in for the recorded graph.

What only a GPU can show: that the kernels compile, that a step can be recorded as a CUDA graph, and every speed. Both
fall back by themselves: loading a base tries the kernel, forward and backward, against plain products, and a step that
cannot be recorded runs kernel by kernel. Figures from your GPU are welcome.
"""
TARGETS = """
What to reach on one H200, set before anything ran: PPO at 8 B in at most 12 s for a rollout; SFT, reward and DPO at 1 B
with three times the samples per second of transformers and PEFT in half the memory above the weights; decoding with
five times the tokens per second of `generate`.
"""


def page(results: Mapping[str, Any] | None) -> str:
    """The page, as Markdown."""
    if not results:
        return HEAD + NOTHING + TARGETS
    lines = [
        HEAD,
        f"Measured on {results['date']} on one {results['device']}, torch {results['torch']}, "
        f"commit {results['commit']}.",
        "",
        f"Tests marked `gpu`: {results['tests']}.",
        TARGETS,
    ]
    if results.get("not_reached"):
        lines += [f"Not reached in the time given: {', '.join(results['not_reached'])}.", ""]
    for case, measured in results["cases"].items():
        lines += [f"## {case}", "", *table(measured), ""]
    lines += ["## Reached", "", *reached(results["cases"]), ""]
    return "\n".join(lines)


def table(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One case's table: a line per stage, both sides beside each other."""
    lines = [
        "| | onebase /s | transformers /s | times | onebase MB | transformers MB | share | first run, s | engine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage, name in STAGES.items():
        own, other = measured["ours"].get(stage, {}), measured["theirs"].get(stage, {})
        cells = [
            _figure(own, "per_second"),
            _figure(other, "per_second"),
            _ratio(own, other, "per_second"),
            _figure(own, "memory_mb"),
            _figure(other, "memory_mb"),
            _ratio(own, other, "memory_mb"),
            _figure(own, "first_seconds"),
            own.get("engine", ""),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def reached(cases: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A line for each target: reached or not, with the figure."""
    lines = []
    for case, measured in cases.items():
        seconds = measured["ours"].get("ppo", {}).get("seconds")
        if case.startswith("8b") and seconds is not None:
            lines.append(f"- {case}, PPO rollout: {seconds:.2f} s, {_verdict(seconds <= 12)} (at most 12 s)")
        for stage in ("sft", "reward", "dpo") if case.startswith("1b") else ():
            times, share = (ratio(measured, stage, key) for key in ("per_second", "memory_mb"))
            if times is not None and share is not None:
                verdict = _verdict(times >= 3 and share <= 0.5)
                lines.append(f"- {case}, {STAGES[stage]}: {times:.2f} times in {share:.2f} of the memory, {verdict}")
        times = ratio(measured, "decode", "per_second")
        if times is not None:
            lines.append(f"- {case}, decoding: {times:.2f} times, {_verdict(times >= 5)} (at least 5)")
    return lines


def ratio(measured: Mapping[str, Mapping[str, Any]], stage: str, key: str) -> float | None:
    """Ours over theirs; None if either is missing."""
    own, other = (measured[side].get(stage, {}).get(key) for side in ("ours", "theirs"))
    return own / other if own is not None and other else None


def _verdict(is_reached: bool) -> str:
    return "reached" if is_reached else "**not reached**"


def _figure(found: Mapping[str, Any], key: str) -> str:
    if "error" in found:
        return f"failed: {found['error']}".replace("|", "/") if key == "per_second" else ""
    value = found.get(key)
    return "" if value is None else f"{value:,.4g}" if value < 100 else f"{value:,.0f}"


def _ratio(own: Mapping[str, Any], other: Mapping[str, Any], key: str) -> str:
    found = ratio({"ours": {"": own}, "theirs": {"": other}}, "", key)
    return "" if found is None else f"{found:.2f}"


def merged(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The JSON lines of `bench.gpu.measure` as `{side: {stage: figures}}`."""
    found: dict[str, dict[str, Any]] = {"ours": {}, "theirs": {}}
    for line in lines:
        found[line["side"]][line["stage"]] = {k: v for k, v in line.items() if k not in ("side", "stage")}
    return found
