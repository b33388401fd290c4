"""The training verbs: each reads its config, checks it and calls its recipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from onebase.cli import modules, preflight, starting, streams
from onebase.cli.numbers import WHOLE, Whole
from onebase.errors import ConfigError
from onebase.runs.watching import watched
from onebase.verbs import VERBS

run_folder: Path | None = None
"""Folder of the run that this command line started; a traceback goes there."""


def _train(
    verb: str,
    words: Sequence[str],
    config_file: Path | None,
    dry_run: bool,
    resume: bool,
    processes: int | None,
    ray: str | None,
    actors: int,
) -> int | None:
    """Trains, or starts the processes that do and returns their exit code."""
    from onebase.config.files import dump_config, load_config
    from onebase.config.verbs import VERB_CONFIGS
    from onebase.runs.folder import check_folder

    again = [*(["--config", str(config_file)] if config_file else []), *words, *(["--resume"] if resume else [])]
    if config_file is None and words and not words[0].startswith("-"):
        if "=" not in words[0] or words[0].endswith((".yaml", ".yml")):
            config_file, words = Path(words[0]), words[1:]
    config = load_config(VERB_CONFIGS[verb], config_file, words)
    preflight.check(config)
    if resume and not _has_work_left(Path(config.output_dir), dump_config(config)):
        return None
    check_folder(Path(config.output_dir), dump_config(config))
    preflight.check_writable(Path(config.output_dir))
    preflight.check_models(config)
    if processes is not None:
        starting.check(processes)
    more = _on_ray(verb, config, processes, ray, actors)
    if not dry_run and processes is not None and processes > 1:
        keys: Any = config
        return starting.start([verb, *again], processes, device=keys.model.device)
    if not dry_run:
        global run_folder
        run_folder = Path(config.output_dir)
        streams.say_first(f"{verb}: starting; the run goes to {config.output_dir}")
        recipe = modules.load(VERBS[verb].recipe)
        watch = modules.load("onebase.plans.first_steps").first_steps(config)
        with watched(watch) if watch is not None else nullcontext():
            recipe.run(config, **more)
        modules.load("onebase.tools.runs").leave_pictures(Path(config.output_dir))
        return None
    print(dump_config(config), end="")
    sys.stdout.flush()
    print(modules.load(VERBS[verb].recipe).plan(config), file=sys.stderr)
    return None


def _on_ray(verb: str, config: Any, processes: int | None, ray: str | None, actors: int) -> dict[str, Any]:
    """The recipe's arguments for actors on a Ray cluster; empty without one."""
    preflight.check_actors(actors, ray)
    if ray is None:
        return {}
    if verb != BY_ACTORS:
        raise ConfigError(
            f"--ray: {verb} learns, and no actors share that; onebase submit --to ray {verb} runs it on Ray"
        )
    if processes is not None:
        raise ConfigError("--ray and --processes both deal out the work; leave one out")
    if config.generation.engine != "own":
        raise ConfigError("--ray: generation.engine is a server, which draws for all; leave --ray out")
    from onebase.distributed.ray_actors import cluster_of
    from onebase.training.threads import use_threads

    use_threads(config.threads)
    return {"cluster": cluster_of(ray, actors, device=config.model.device)}


def _has_work_left(folder: Path, config_text: str) -> bool:
    """Whether a run that should be resumed has anything left to do."""
    from onebase.runs.folder import asks_for_more

    if (folder / "summary.json").exists() and not asks_for_more(folder, config_text):
        print(f"{folder} holds a finished run; there is nothing left to do", file=sys.stderr)
        return False
    if not folder.is_dir():
        raise ConfigError(f"--resume: there is no run in {folder}; leave --resume out to start one")
    if not any(folder.glob("checkpoint-*")) and not any(folder.glob("round-*")):
        print(f"{folder} holds no checkpoint yet; starting from the beginning", file=sys.stderr)
    return True


ALLOW_CODE = "--allow-code-execution"
BY_ACTORS = "best-of"
"""The verb whose prompts are dealt to actors, as they are sampled one by one and nothing is learned in between."""
OPTIONS = {
    "--config PATH": "The config file; the same as naming it first.",
    "--resume": "Resume the run in output_dir. Without this option the same command also resumes if there is a "
    "checkpoint; with it, a folder without a run is an error, and a finished run is left alone.",
    "--processes N": "Run in N processes on this machine, one per GPU where there are GPUs; they share all work, and "
    "the result is the same up to rounding.",
    "--dry-run": "Print the resolved config to stdout and the plan to stderr, without training.",
    "--ray ADDRESS": "Sample and score on the Ray cluster with this address; local starts one on this machine.",
    "--actors N": "Processes on that cluster, each with the base. The files are the same whatever their number.",
    ALLOW_CODE: "Let the verifier code run what the policy writes, in a sandbox; no config file can say so.",
}


def _scores_answers(verb: str) -> bool:
    """Whether the verb has a reward, whose verifiers may run code."""
    from onebase.config.files import config_keys
    from onebase.config.verbs import VERB_CONFIGS

    return any(key == "reward.allow_code_execution" for key, _ in config_keys(VERB_CONFIGS[verb]))


def _has_option(verb: str, option: str) -> bool:
    if option.startswith(("--ray", "--actors")):
        return verb == BY_ACTORS
    return option != ALLOW_CODE or _scores_answers(verb)


def _print_verb_help(verb: str) -> None:
    from onebase.config.files import describe_config
    from onebase.config.verbs import VERB_CONFIGS

    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))

    def tell(text: str, *, indent: str = "", after: str = "\n") -> None:
        print("\n".join(textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)), end=after)

    tell(f"Usage: onebase {verb} [CONFIG.yaml] [--group.key VALUE | group.key=VALUE ...] [--dry-run]", after="\n\n")
    tell(VERBS[verb].about)
    tell("Values on the command line override the file; write a list as a b c or '[a, b, c]'.", after="\n\n")
    for option, about in OPTIONS.items():
        if _has_option(verb, option):
            print(f"  {option}")
            tell(about, indent=" " * 6)
    print()
    print(describe_config(VERB_CONFIGS[verb], width))


def training_command(verb: str) -> Callable[..., int | None]:
    def command(
        *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
        config: Path | None = None,
        dry_run: bool = False,
        resume: bool = False,
        processes: Annotated[int | None, WHOLE] = None,
        ray: str | None = None,
        actors: Whole = 1,
        allow_code_execution: bool = False,
        help: Annotated[bool, Parameter(name=["--help", "-h"])] = False,
    ) -> int | None:
        if help:
            _print_verb_help(verb)
            return None
        if allow_code_execution:
            if not _scores_answers(verb):
                raise ConfigError(f"{ALLOW_CODE}: {verb} runs no code; leave it out")
            words = (*words, "--reward.allow_code_execution=true")
        return _train(verb, words, config, dry_run, resume, processes, ray, actors)

    command.__doc__ = VERBS[verb].about
    return command
