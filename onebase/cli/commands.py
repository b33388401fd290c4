"""The command line: a verb, its config, one function. Nothing here imports torch; the verb's recipe does.

Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 bad data, 4 will not fit (memory or disk), 5 a quality gate failed,
6 a missing extra, 75 stopped after saving, 130 interrupted. 141 = whoever read our output stopped reading.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, Token

from onebase import __version__
from onebase.cli import failures, preflight, streams
from onebase.data.files import check_file
from onebase.errors import ConfigError, Interrupted, Stopped
from onebase.shown import shown
from onebase.verbs import VERBS

app = App(
    name="onebase",
    help="From supervised fine-tuning to preference alignment on one frozen base model, every role an adapter on it.",
    version=__version__,
    default_parameter=Parameter(negative=()),  # no --no-rank, no --empty-compare
    suppress_keyboard_interrupt=False,  # main answers it
)


def _written_as(kind: type, pattern: str, what: str) -> Callable[[Any, Sequence[Token]], Any]:
    """A converter for numbers written in one way: cyclopts would round 1.5 to a whole one and read 0x10 and 1_0."""

    def convert(_hint: Any, tokens: Sequence[Token]) -> Any:
        if not re.fullmatch(pattern, tokens[0].value):
            raise ValueError(f"{shown(tokens[0].value, 60)} is not {what}")
        return kind(tokens[0].value)

    return convert


_WHOLE = Parameter(converter=_written_as(int, r"[+-]?\d{1,18}", "a whole number"))
_REAL = Parameter(converter=_written_as(float, r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", "a number"))
Whole = Annotated[int, _WHOLE]
Real = Annotated[float, _REAL]
Dtype = Literal["auto", "float32", "bfloat16"]
Quantization = Literal["none", "nf4"]

_run_folder: Path | None = None
"""The folder of the run that this command line started: a traceback goes there."""


def _module(name: str) -> ModuleType:
    """The module of a verb, imported once the verb is known to be wanted: it may bring torch."""
    _quiet_libraries()
    # A signal waits until they are imported: raised in their midst it is swallowed, or taken for a broken installation.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return import_module(name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quiet_libraries() -> None:
    """Keeps the libraries' own notices off the terminal: on stderr is what the person can act on."""
    # bitsandbytes looks for optional kernels and says that they are not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers 5.23 warns of a name that peft 0.21 still uses.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _train(verb: str, words: Sequence[str], config_file: Path | None, dry_run: bool, resume: bool) -> None:
    from onebase.config.files import dump_config, load_config
    from onebase.config.verbs import VERB_CONFIGS
    from onebase.runs.folder import check_folder

    if config_file is None and words and not words[0].startswith("-"):
        if "=" not in words[0] or words[0].endswith((".yaml", ".yml")):
            config_file, words = Path(words[0]), words[1:]
    config = load_config(VERB_CONFIGS[verb], config_file, words)
    preflight.check(config)
    if resume and not _goes_on(Path(config.output_dir), dump_config(config)):
        return
    check_folder(Path(config.output_dir), dump_config(config))
    preflight.check_writable(Path(config.output_dir))
    preflight.check_models(config)
    if not dry_run:
        global _run_folder
        _run_folder = Path(config.output_dir)
        streams.say_first(f"{verb}: starting; the run goes to {config.output_dir}")
        _module(VERBS[verb].recipe).run(config)
        _module("onebase.tools.runs").leave_pictures(Path(config.output_dir))
        return
    print(dump_config(config), end="")
    sys.stdout.flush()
    print(_module(VERBS[verb].recipe).plan(config), file=sys.stderr)


def _goes_on(folder: Path, config_text: str) -> bool:
    """Whether there is something left to do in a run that should be resumed."""
    from onebase.runs.folder import asks_for_more

    if (folder / "summary.json").exists() and not asks_for_more(folder, config_text):
        print(f"{folder} holds a finished run; nothing is left to do", file=sys.stderr)
        return False
    if not folder.is_dir():
        raise ConfigError(f"--resume: there is no run in {folder}; leave it out to start one")
    if not any(folder.glob("checkpoint-*")) and not any(folder.glob("round-*")):
        print(f"{folder} holds no checkpoint yet; starting from the beginning", file=sys.stderr)
    return True


OPTIONS = {
    "--config PATH": "The config file, for those who like to name it.",
    "--resume": "Resume the run in output_dir. The same command without it resumes too, where there is a checkpoint; "
    "with it, a folder without a run is an error, and a finished run is left as it is.",
    "--dry-run": "Print the resolved config to stdout and the plan to stderr, and train nothing.",
}


def _print_verb_help(verb: str) -> None:
    from onebase.config.files import describe_config
    from onebase.config.verbs import VERB_CONFIGS

    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))

    def tell(text: str, *, indent: str = "", after: str = "\n") -> None:
        print("\n".join(textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)), end=after)

    tell(f"Usage: onebase {verb} [CONFIG.yaml] [--group.key VALUE | group.key=VALUE ...] [--dry-run]", after="\n\n")
    tell(VERBS[verb].about)
    tell("A value on the command line wins over the file; a list is written a b c or '[a, b, c]'.", after="\n\n")
    for option, about in OPTIONS.items():
        print(f"  {option}")
        tell(about, indent=" " * 6)
    print()
    print(describe_config(VERB_CONFIGS[verb], width))


def _training_command(verb: str) -> Callable[..., None]:
    def command(
        *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
        config: Path | None = None,
        dry_run: bool = False,
        resume: bool = False,
        help: Annotated[bool, Parameter(name=["--help", "-h"])] = False,
    ) -> None:
        if help:
            _print_verb_help(verb)
        else:
            _train(verb, words, config, dry_run, resume)

    command.__doc__ = VERBS[verb].about
    return command


for _order, _verb in enumerate(VERBS):
    # The help of these verbs lists every config key, which only the config models know.
    app.command(_training_command(_verb), name=_verb, help_flags=[], version_flags=[], sort_key=_order)


@app.command
def score(
    role: str,
    file: Path,
    /,
    *,
    rank: bool = False,
    model: str | None = None,
    microbatch_tokens: Annotated[int | None, _WHOLE] = None,
    dtype: Dtype | None = None,
    quantization: Quantization | None = None,
    device: str = "auto",
) -> None:
    """Score the completions of a file with a reward role; one JSON line per row on stdout.

    Args:
        role: Folder of a reward role.
        file: Rows with an answer: completion, chosen and rejected, or output with one answer or a list.
        rank: Also print each row's completions from best to worst.
        model: Folder of the base model, when it is not where the role says.
        microbatch_tokens: Tokens in one forward pass; found by trying when not given.
        dtype: Number format of the base; when not given, that of the role's training.
        quantization: none, or nf4 for a base in 4 bits; when not given, that of the role's training.
        device: auto, cpu, cuda, cuda:1.
    """
    if microbatch_tokens is not None and microbatch_tokens < 1:
        raise ConfigError(f"--microbatch-tokens is {microbatch_tokens}; at least 1 is needed, or leave it out")
    preflight.check_device(device)
    check_file(file)
    preflight.check_roles({role: ("reward",)}, model=model)
    streams.say_first(f"score: loading {role}")
    _module("onebase.tools.score").run(
        role=role,
        file=file,
        rank=rank,
        model=model,
        microbatch_tokens=microbatch_tokens,
        dtype=dtype,
        quantization=quantization,
        device=device,
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
        compare: Two folders whose answers are shown side by side.
        once: Answer this one message and stop.
        system: Instructions that stand before the conversation, for templates that have a system turn.
        reward: Folder of a reward role whose score is shown under each answer.
        model: Folder of the base model, when it is not where the roles say.
        max_new_tokens: Longest answer, in tokens.
        temperature: The logits are divided by this; 0 takes the likeliest token.
        top_p: Sample among the likeliest tokens that together have this probability; 1 = off.
        seed: Seed of sampling.
        dtype: Number format of the base; when not given, that of the role's training.
        quantization: none, or nf4 for a base in 4 bits; when not given, that of the role's training.
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
    _module("onebase.tools.chat").run(
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


@app.command
def demo(*, output_dir: Path = Path("runs/demo"), seed: Whole = 0) -> None:
    """Run every stage on a tiny model in minutes, without network.

    Args:
        output_dir: Folder the stages write to.
        seed: Seed of all of them.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; a number from 0 up to {2**32 - 1} is needed")
    preflight.check_writable(output_dir, "--output-dir")
    _module("onebase.demo.demo").run(output_dir=output_dir, seed=seed)


@app.command
def doctor(*, json: bool = False, output_dir: Path = Path("runs")) -> None:
    """Check this machine: versions, memory, devices, and which number formats work.

    Args:
        json: Print one JSON object.
        output_dir: Folder whose disk is checked; it is not created.
    """
    if os.path.lexists(output_dir) and not output_dir.is_dir():
        raise ConfigError(f"{shown(output_dir, 200)}: not a folder; choose another --output-dir")
    _module("onebase.tools.doctor").run(output_dir=output_dir, as_json=json)


runs = App(name="runs", help="What runs left: list them, look into one, draw and compare them.", sort_key=50)
app.command(runs)


@runs.command
def ls(folder: Path = Path("runs"), /, *, json: bool = False) -> None:
    """List the runs below a folder, the newest last.

    Args:
        folder: Where to look.
        json: Print one JSON list.
    """
    _module("onebase.tools.runs").ls(folder, as_json=json)


@runs.command
def show(run: Path, /, *, json: bool = False) -> None:
    """Show a run: state, what is not at its default, last metrics, summary, checkpoints.

    Args:
        run: Folder of a run.
        json: Print one JSON object.
    """
    _module("onebase.tools.runs").show(run, as_json=json)


@runs.command
def plot(*folders: Path, output: Path | None = None) -> None:
    """Draw the curves of a run, also while it runs; of several in one picture.

    Args:
        folders: Folders of runs.
        output: The PNG to write; when not given, one in plots/ of the first folder.
    """
    _module("onebase.tools.runs").plot(folders, output=output)


@runs.command
def compare(*folders: Path, json: bool = False) -> None:
    """Compare runs: the config keys that differ, the summaries and the last metrics side by side.

    Args:
        folders: Folders of two runs or more.
        json: Print one JSON object.
    """
    _module("onebase.tools.runs").compare(folders, as_json=json)


@runs.command
def report(run: Path, /, *, price_per_hour: Annotated[float | None, _REAL] = None) -> None:
    """Write report.html into a run's folder: everything about it on one page, in one file.

    Args:
        run: Folder of a run, finished or not.
        price_per_hour: What the machine costs, for the cost of the run and of a thousand tokens.
    """
    _module("onebase.tools.runs").report(run, price_per_hour=price_per_hour)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code. Every failure is one line on stderr per problem."""
    words = list(sys.argv[1:] if argv is None else argv)
    global _run_folder
    _run_folder = None
    verb = " ".join(word for word in words[: 2 if words[:1] == ["runs"] else 1] if not word.startswith("-"))
    streams.open_streams()
    if any("\0" in word for word in words):
        failures.say("a word of the command line has a zero character in it; take it out")
        return ConfigError.exit_code
    try:
        # Where a run is in its steps, it saves first; before and after them there is nothing to save.
        signal.signal(signal.SIGTERM, _stop)
    except ValueError:
        pass  # not in the main thread, where signals arrive
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return 0 if words else 2  # nothing asked: the help is shown, but a script with an empty verb should notice
    except CycloptsError as error:
        known = f" {words[0]}" if words and words[0] in app else ""
        failures.say(f"{shown(' '.join(str(error).split()), 500)} See 'onebase{known} --help'.")
        return ConfigError.exit_code
    except KeyboardInterrupt:
        failures.say("interrupted")
        return Interrupted.exit_code
    except _StopNow:
        failures.say("stopped; run the same command to start again, or to resume from the last checkpoint")
        return Stopped.exit_code
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:  # sys.exit in a reward function too: 0 would say that all went well
        return failures.told(error, shown(verb, 40), _run_folder)
    finally:
        if sys.stdout.closed:  # by a reward function, say: Python would complain when it flushes it at exit
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class _StopNow(BaseException):
    """No Exception: libraries that try one thing and then another catch those, and the run would go on."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StopNow
