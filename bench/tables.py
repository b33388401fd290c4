"""Makes the tables of docs/performance.md, each from one entry of bench/results.json; "" if it was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from bench import compare
from bench.compare import ratios
from bench.ratios import Ratio, ratio_in_turn, shown
from bench.stolen import MOST

Results = dict[str, Any]
FOUR_ROLES_TARGET = 1.2
"""Highest allowed ratio of PPO's peak memory to LoRA SFT's."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def machine_line(measured: Results) -> str:
    """The date, machine and versions of a measurement."""
    instructions = ", ".join(measured["instructions"]) or "no vector instructions reported"
    return (
        f"{measured['date']}: {measured['processor']}, {measured['cores']} cores ({instructions}), "
        f"{measured['memory_gib']} GiB, {measured['system']}, Python {measured['python']}, torch "
        f"{measured['torch']}, {measured['threads']} threads on both sides"
    )


def comparison(results: Results, precision: str) -> str:
    """Our stages beside their peers, in one precision."""
    rows = [row for row in results.get("rows", {}).values() if row["precision"] == precision]
    if not rows:
        return ""
    with_target = any(row["target"] for row in rows)
    header = ["stage", "peer", "samples/s", "peer's", "ratio", "peak MB", "peer's", "ratio"]
    if with_target:
        header[5:5], header[9:9] = ["target"], ["target"]
    lines = []
    for row in rows:
        found, key = ratios(row), "samples_per_second_with_first" if row["counts_first"] else "samples_per_second"
        line = [
            stage_of(row),
            row["peer_name"],
            middle(row["ours"], key),
            middle(row["peer"], "samples_per_second"),
            str(found["samples"]),
            middle(row["ours"], "peak_rss_mb"),
            middle(row["peer"], "peak_rss_mb"),
            str(found["memory"]),
        ]
        if with_target:
            line[5:5] = [target(found["samples"], row["target"]["faster"], least=True)]
            line.append(target(found["memory"], row["target"]["memory"], least=False))
        lines.append(line)
    return table(header, lines)


def stage_of(row: Results) -> str:
    """The stage, with its completions per prompt, and the size of a model that is not the usual one."""
    completions = f" K={row['completions']}" if "completions" in row else ""
    return f"{row['stage']}{completions}{'' if row['model'] == 's' else ', model ' + row['model']}"


def middle(runs: list[dict[str, float]], key: str) -> str:
    return shown(median(run[key] for run in runs))


def target(found: Ratio, wanted: float | None, *, least: bool) -> str:
    """The target, marked if the ratio of the medians misses it."""
    if wanted is None:
        return "-"
    met = found.median >= wanted if least else found.median <= wanted
    return f"{'>=' if least else '<='} {wanted:g}{'' if met else ' **missed**'}"


def missed(results: Results) -> list[str]:
    """A line for every missed target."""
    found = []
    for row in results.get("rows", {}).values():
        if row["target"] is None:
            continue
        where, goal = f"{stage_of(row)} beside {row['peer_name']}", row["target"]
        samples, peak = (ratios(row)[key].median for key in ("samples", "memory"))
        if samples < goal["faster"]:
            found.append(f"{where}: {shown(samples)} times its samples/s, target {goal['faster']:g}")
        if goal["memory"] is not None and peak > goal["memory"]:
            found.append(f"{where}: {shown(peak)} times its memory, target {goal['memory']:g}")
    for precision, measured in results.get("memory", {}).items():
        beside_sft = four_roles(measured["peak_rss_mb"], "ppo", "sft").median
        if precision == "bf16" and beside_sft > FOUR_ROLES_TARGET:
            times = f"{shown(beside_sft)} times its memory, target {FOUR_ROLES_TARGET:g}"
            found.append(f"four roles beside LoRA SFT: {times}")
    return found


def targets(results: Results) -> str:
    """The missed targets, or a line that there are none."""
    if not results.get("rows"):
        return ""
    found = missed(results)
    if not found:
        return "All measured targets are met.\n"
    return "Targets missed:\n\n" + "\n".join(f"- {line}" for line in found) + "\n"


def four_roles(peaks: dict[str, list[float]], base: str, other: str) -> Ratio:
    return ratio_in_turn(peaks[base], peaks[other])


def memory(results: Results) -> str:
    """PPO's roles beside SFT and beside four models."""
    lines = []
    for precision, measured in results.get("memory", {}).items():
        peaks = measured["peak_rss_mb"]
        for stage, what in (("ppo", "four roles, separate critic"), ("ppo-head", "four roles, value head")):
            beside_sft = four_roles(peaks, stage, "sft")
            goal = target(beside_sft, FOUR_ROLES_TARGET, least=False) if (stage, precision) == ("ppo", "bf16") else "-"
            mine, sft, four = (shown(median(peaks[side])) for side in (stage, "sft", "four models"))
            lines.append(
                [what, precision, mine, sft, str(beside_sft), goal, four, str(four_roles(peaks, stage, "four models"))]
            )
    header = ["PPO", "precision", "peak MB", "LoRA SFT's", "ratio", "target", "four models'", "ratio"]
    return table(header, lines) if lines else ""


def utilisation(results: Results) -> str:
    """Useful operations as shares of the best matrix product."""
    lines = [
        [stage, precision, shown(of["gflops"]), shown(of["best_gflops"]), f"{of['share']:.1%}"]
        for precision, measured in results.get("utilisation", {}).items()
        for stage, of in measured["stages"].items()
    ]
    header = ["stage", "precision", "useful GFLOP/s", "best matrix product", "utilisation"]
    return table(header, lines) if lines else ""


def decoding(results: Results) -> str:
    """Decoding beside its two lower limits."""
    lines = []
    for precision, measured in results.get("utilisation", {}).items():
        of, speed = measured["decode"], measured["machine"]
        lines.append(
            [
                precision,
                f"{of['seconds']:.2f} s",
                f"{of['bytes_seconds']:.3f} s at {shown(speed['cached_gb_per_second'])} GB/s",
                f"{of['bytes_seconds'] / of['seconds']:.0%}",
                f"{of['operations_seconds']:.3f} s at {shown(speed['gflops'])} GFLOP/s",
                f"{of['operations_seconds'] / of['seconds']:.0%}",
            ]
        )
    header = ["precision", "32 completions", "time to read weights, keys, values", "share", "time to compute", "share"]
    return table(header, lines) if lines else ""


def decoding_within(results: Results) -> str:
    """Decoding's share of a GRPO step, and the ratio to the peer if nothing else took time."""
    lines = []
    for row in results.get("rows", {}).values():
        if row["stage"] == "grpo":
            of = compare.decoding(row)
            seconds = [f"{of[key]:.2f}" for key in ("step", "generate")]
            ratio = ratios(row)["samples"].median
            lines.append(
                [stage_of(row), row["precision"], *seconds, f"{of['share']:.0%}"]
                + [f"{of['peer']:.2f}", shown(ratio), shown(of["limit"])]
            )
    header = ["stage", "precision", "seconds per step", "of these decoding", "share", "peer's step", "ratio"]
    return table([*header, "ratio if only decoding remained"], lines) if lines else ""


def phases(results: Results) -> str:
    """A PPO batch by phase, and its longest phase by operator."""
    measured = results.get("phases")
    if not measured:
        return ""
    seconds = measured["seconds_per_batch"]
    by_phase = table(
        ["phase", "seconds", "share"],
        [[phase, f"{spent:.2f}", f"{spent / seconds:.0%}"] for phase, spent in measured["phases"].items()],
    )
    by_operator = table(
        [f"operator in `{measured['longest']}`", "share of its operators' time", "calls"],
        [[f"`{of['name']}`", f"{of['share']:.1%}", f"{of['calls']:,}"] for of in measured["operators"]],
    )
    return f"A {measured['precision']} batch took {seconds:.2f} s.\n\n{by_phase}\n{by_operator}"


def layers(results: Results) -> str:
    """PPO with adapters on fewer layers."""
    measured = results.get("layers")
    if not measured:
        return ""
    everywhere = [run["seconds_per_batch"] for run in measured["runs"]["all"]]
    lines = []
    for name, runs in measured["runs"].items():
        seconds = [run["seconds_per_batch"] for run in runs]
        lines.append(
            [
                name,
                f"{median(seconds):.2f}",
                f"{median(run['update'] for run in runs):.2f}",
                str(ratio_in_turn(seconds, everywhere)) if name != "all" else "1",
                middle(runs, "peak_rss_mb"),
            ]
        )
    return table(["`lora.layers`", "seconds per batch", "update seconds", "ratio", "peak MB"], lines)


def serving(results: Results) -> str:
    """Servers asked by 1, 4 and 16 clients: the middle of the rounds, with the lowest and the highest."""
    measured = results.get("serving")
    if not measured:
        return ""
    sides = measured["sides"]
    speed, first = (
        ["clients", *(f"{side}, tokens/s" for side in sides)],
        ["clients", *(f"{side}, ms" for side in sides)],
    )
    ours = sides.get("onebase", {})
    others = [side for side in sides if side != "onebase"] if ours else []
    speeds, firsts = [], []
    for clients in next(iter(sides.values())):
        rates = {side: found[clients]["tokens_per_second"] for side, found in sides.items()}
        times = [f"{rates['onebase']['middle'] / rates[side]['middle']:.1f}" for side in others]
        speeds.append([clients, *(_spread(rate, 1, ".1f") for rate in rates.values()), *times])
        waits = (_spread(found[clients]["first_token_seconds"], 1000, ",.0f") for found in sides.values())
        firsts.append([clients, *waits])
    speed += [f"ours as times {side}'s" for side in others]
    asked = [each for found in sides.values() for each in found.values()]
    stolen = [share for each in asked if "stolen" in each for share in each["stolen"]["all"]]
    disturbed = sum(one > MOST for one in stolen)
    quiet = (
        f" Other machines on the host took up to {max(stolen):.0%} of the processor time; more than {MOST:.0%} in "
        f"{disturbed} of {len(stolen)} measurements."
        if stolen
        else ""
    )
    return (
        f"{machine_line(measured)}; completions of {measured['new_tokens']} tokens.{quiet}\n\n{table(speed, speeds)}\n"
        f"To the first token, middle of a round's clients:\n\n{table(first, firsts)}"
    )


def _spread(measured: Results, factor: float, form: str) -> str:
    middle, low, high = (
        format(factor * value, form) for value in (measured["middle"], min(measured["all"]), max(measured["all"]))
    )
    return f"{middle} ({low}, {high})"
