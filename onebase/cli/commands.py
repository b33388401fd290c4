"""The `onebase` app: the tool verbs with their options, and the training verbs from `training`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from onebase import __version__
from onebase.cli import exporting, modules, preflight, starting, streams
from onebase.cli.config import config
from onebase.cli.data import data
from onebase.cli.deploying import deploy
from onebase.cli.labeling import check_installed, label
from onebase.cli.numbers import REAL, WHOLE, Real, Whole
from onebase.cli.planning import plan
from onebase.cli.serving import serve
from onebase.cli.submitting import submit
from onebase.cli.training import training_command
from onebase.errors import ConfigError
from onebase.processes import is_launched
from onebase.reading.databases import as_path
from onebase.reading.files import check_file
from onebase.shown import shown
from onebase.verbs import VERBS

app = App(
    name="onebase",
    help="From supervised fine-tuning to preference alignment on one frozen base model, every role an adapter on it.",
    version=__version__,
    help_format="plaintext",  # what reads Markdown takes a fifth of the time to import
    default_parameter=Parameter(negative=()),  # no --no-rank, no --empty-compare
    suppress_keyboard_interrupt=False,  # main() handles it
)


Dtype = Literal["auto", "float32", "bfloat16"]
Quantization = Literal["none", "nf4"]

for _order, _verb in enumerate(VERBS):
    # These verbs print their own help: it lists every config key.
    app.command(training_command(_verb), name=_verb, help_flags=[], version_flags=[], sort_key=_order)


@app.command
def score(
    role: str,
    file: str,
    /,
    *,
    columns: str | None = None,
    rank: bool = False,
    model: str | None = None,
    microbatch_tokens: Annotated[int | None, WHOLE] = None,
    dtype: Dtype | None = None,
    quantization: Quantization | None = None,
    device: str = "auto",
    output: Path | None = None,
    ray: str | None = None,
    actors: Whole = 1,
) -> None:
    """Score the completions in a file with a reward role; prints one JSON line per row.

    Args:
        role: Folder of a reward role.
        file: Rows with answers: completion, chosen and rejected, or output with one answer or a list; or a database of
            rankings (sqlite:///label.db).
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        rank: Also print each row's completions from best to worst.
        model: Folder of the base model, if it is not where the role says.
        microbatch_tokens: Tokens in one forward pass; by default measured on this machine.
        dtype: Number format of the base; by default the one the role was trained with.
        quantization: none, or nf4 for a base in 4 bits; by default what the role was trained with.
        device: auto, cpu, cuda, cuda:1.
        output: A folder that keeps finished blocks of a thousand rows; the same command goes on from them.
        ray: Score on the Ray cluster with this address; local starts one on this machine.
        actors: Processes on that cluster, each with the base.
    """
    if microbatch_tokens is not None and microbatch_tokens < 1:
        raise ConfigError(f"--microbatch-tokens is {microbatch_tokens}; it should be at least 1, or left out")
    preflight.check_actors(actors, ray, [as_path(file)])
    if output is not None:
        preflight.check_blocks(output)
    mapping = preflight.read_columns(columns)
    preflight.check_device(device)
    check_file(file)
    preflight.check_roles({role: ("reward",)}, model=model)
    streams.say_first(f"score: loading {role}")
    modules.load("onebase.tools.score").run(
        role=role,
        file=as_path(file),
        columns=mapping,
        rank=rank,
        model=model,
        microbatch_tokens=microbatch_tokens,
        dtype=dtype,
        quantization=quantization,
        device=device,
        output=output,
        ray=ray,
        actors=actors,
    )


@app.command
def chat(
    role: str | None = None,
    /,
    *,
    compare: tuple[str, str] | None = None,
    once: str | None = None,
    system: str | None = None,
    reward: str | None = None,
    model: str | None = None,
    max_new_tokens: Whole = 128,
    temperature: Real = 0.8,
    top_p: Real = 1.0,
    seed: Whole = 0,
    dtype: Dtype | None = None,
    quantization: Quantization | None = None,
    device: str = "auto",
) -> None:
    """Talk to a policy role, or to two side by side.

    Args:
        role: Folder of a policy role, or of a base model.
        compare: Two folders whose answers to show side by side.
        once: Answer this one message and exit.
        system: System prompt, for templates that have a system turn.
        reward: Folder of a reward role; its score is shown under each answer.
        model: Folder of the base model, if it is not where the roles say.
        max_new_tokens: Longest answer, in tokens.
        temperature: Divides the logits; 0 = always take the likeliest token.
        top_p: Sample among the likeliest tokens that together have this probability; 1 = off.
        seed: Random seed for sampling.
        dtype: Number format of the base; by default the one the role was trained with.
        quantization: none, or nf4 for a base in 4 bits; by default what the role was trained with.
        device: auto, cpu, cuda, cuda:1.
    """
    if (role is None) == (compare is None):
        raise ConfigError("chat needs one role folder, or two after --compare; see 'onebase chat --help'")
    preflight.check_device(device)
    preflight.check_sampling(
        {"--once": once, "--system": system},
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    kinds = {folder: ("policy",) for folder in compare or (str(role),)}
    preflight.check_roles(kinds | ({reward: ("reward",)} if reward is not None else {}), model=model)
    streams.say_first(f"chat: loading {role or ' and '.join(compare or ())}")
    modules.load("onebase.tools.chat").run(
        role=role,
        compare=compare,
        once=once,
        system=system,
        reward=reward,
        model=model,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        dtype=dtype,
        quantization=quantization,
        device=device,
    )


app.command(serve)
app.command(submit)


@app.command(name="eval")
def eval_(
    role: str,
    file: Path,
    /,
    *,
    verifier: list[str],
    columns: str | None = None,
    samples: Whole = 8,
    k: list[Whole] | None = None,
    max_new_tokens: Whole = 256,
    temperature: Real = 1.0,
    top_p: Real = 1.0,
    limit: Annotated[int | None, WHOLE] = None,
    by: list[str] | None = None,
    gold: str | None = None,
    seed: Whole = 0,
    output: Path | None = None,
    json: bool = False,
    allow_code_execution: bool = False,
    model: str | None = None,
    dtype: Dtype | None = None,
    quantization: Quantization | None = None,
    device: str = "auto",
) -> None:
    """Sample answers to a file's questions and count the right ones: pass@k and maj@k with 95 % intervals.

    Args:
        role: Folder of a policy role, or of a base model.
        file: Rows with prompts and what their verifiers need: a gold answer, or tests.
        verifier: numeric, exact, ..., or {name: numeric, tolerance: 0.01}; repeat it for several.
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        samples: Answers per question.
        k: A k of pass@k and maj@k; repeat it for several. By default 1, 2, 4, ... up to --samples.
        max_new_tokens: Longest answer, in tokens.
        temperature: Divides the logits; 0 = always take the likeliest token.
        top_p: Sample among the likeliest tokens that together have this probability; 1 = off.
        limit: Only this many rows, from the first.
        by: A column of the data to split the table by; repeat it for several.
        gold: The column with the right answer; by default gold, or else answer.
        seed: Random seed for sampling.
        output: A file for every sample with its verdicts, as JSON lines.
        json: Print one JSON object.
        allow_code_execution: Let the verifier code run the policy's programs.
        model: Folder of the base model, if it is not where the role says.
        dtype: Number format of the base; by default the one the role was trained with.
        quantization: none, or nf4 for a base in 4 bits; by default what the role was trained with.
        device: auto, cpu, cuda, cuda:1.
    """
    mapping = preflight.read_columns(columns)
    preflight.check_device(device)
    preflight.check_sampling({}, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    ks = preflight.check_samples(samples, k or [], temperature=temperature, limit=limit)
    verifiers = preflight.read_verifiers(verifier)
    if output is not None:
        preflight.check_output(output)
    check_file(file)
    preflight.check_roles({role: ("policy",)}, model=model)
    streams.say_first(f"eval: loading {role}")
    modules.load("onebase.tools.evaluate").run(
        role=role,
        file=file,
        columns=mapping,
        verifiers=verifiers,
        samples=samples,
        ks=ks,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        limit=limit,
        by=by or [],
        gold=gold,
        seed=seed,
        output=output,
        as_json=json,
        allow_code_execution=allow_code_execution,
        model=model,
        dtype=dtype,
        quantization=quantization,
        device=device,
    )


@app.command
def demo(*, output_dir: Path = Path("runs/demo"), seed: Whole = 0, label: bool = False) -> None:
    """Run every stage on a tiny model in minutes, without network access.

    Args:
        output_dir: Folder the stages write to.
        seed: Random seed of all stages.
        label: Then rank the answers of its roles in a browser; with the folder of a finished demo, at once.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; it should be between 0 and {2**32 - 1}")
    preflight.check_writable(output_dir, "--output-dir")
    if label:
        check_installed()
        modules.load("onebase.demo.label").run(output_dir=output_dir, seed=seed)
    else:
        modules.load("onebase.demo.demo").run(output_dir=output_dir, seed=seed)


@app.command
def doctor(
    *,
    json: bool = False,
    output_dir: Path = Path("runs"),
    distributed: bool = False,
    processes: Annotated[int | None, WHOLE] = None,
    config: Path | None = None,
) -> int | None:
    """Check this machine: versions, memory, devices, and which number formats work.

    Args:
        json: Print one JSON object.
        output_dir: Folder whose disk to check; it is not created.
        distributed: Check instead whether several processes can train together: under torchrun those that it started,
            otherwise some on this machine.
        processes: With --distributed, how many to start on this machine; by default 2.
        config: With --distributed, a run's config file: it and all that it names must be the same on all machines.
    """
    if os.path.lexists(output_dir) and not output_dir.is_dir():
        raise ConfigError(f"{shown(output_dir, 200)}: not a folder; choose another --output-dir")
    if not distributed:
        for option, value in (("--processes", processes), ("--config", config)):
            if value is not None:
                raise ConfigError(f"{option} goes with --distributed; add that, or leave it out")
        modules.load("onebase.tools.doctor").run(output_dir=output_dir, as_json=json)
        return None
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else torch tells of a failed connection in 40 lines
    if is_launched():
        if processes is not None:
            starting.check(processes)
        return int(
            modules.load("onebase.tools.doctor_distributed").run(output_dir=output_dir, config=config, as_json=json)
        )
    starting.check(2 if processes is None else processes, at_least=2)
    words = ["doctor", "--distributed", *(["--json"] if json else []), "--output-dir", str(output_dir)]
    words += [] if config is None else ["--config", str(config)]
    return starting.start(words, processes or 2)


for _command in (exporting.merge, exporting.export, exporting.push):
    app.command(_command)
app.command(data)
app.command(config)
app.command(deploy)
app.command(plan)
app.command(label)

runs = App(name="runs", help="List, inspect, plot and compare runs.", sort_key=50)
app.command(runs)


@runs.command
def ls(folder: Path = Path("runs"), /, *, json: bool = False) -> None:
    """List the runs below a folder, newest last.

    Args:
        folder: Where to look.
        json: Print one JSON list.
    """
    modules.load("onebase.tools.runs").ls(folder, as_json=json)


@runs.command
def show(run: Path, /, *, json: bool = False) -> None:
    """Show a run: state, non-default keys, last metrics, summary, checkpoints.

    Args:
        run: Folder of a run.
        json: Print one JSON object.
    """
    modules.load("onebase.tools.runs").show(run, as_json=json)


@runs.command
def plot(*folders: Path, output: Path | None = None) -> None:
    """Plot the curves of a run, even while it runs; several runs go into one picture.

    Args:
        folders: Folders of runs.
        output: The PNG to write; by default one in plots/ of the first folder.
    """
    modules.load("onebase.tools.runs").plot(folders, output=output)


@runs.command
def compare(*folders: Path, json: bool = False) -> None:
    """Compare runs side by side: config keys that differ, summaries, last metrics.

    Args:
        folders: Folders of two or more runs.
        json: Print one JSON object.
    """
    modules.load("onebase.tools.runs").compare(folders, as_json=json)


@runs.command
def report(run: Path, /, *, price_per_hour: Annotated[float | None, REAL] = None) -> None:
    """Write report.html into a run's folder: everything about the run on one page.

    Args:
        run: Folder of a run, finished or not.
        price_per_hour: Price of the machine, to report the cost of the run and of a thousand tokens.
    """
    modules.load("onebase.tools.runs").report(run, price_per_hour=price_per_hour)
