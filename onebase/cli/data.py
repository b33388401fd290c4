"""`onebase data`: what is in a data file, and how a model sees it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App

from onebase.cli import modules, preflight, streams
from onebase.cli.numbers import WHOLE, Real, Whole
from onebase.errors import ConfigError, DataError
from onebase.reading.databases import as_path
from onebase.reading.files import check_file, file_id
from onebase.shown import shown

data = App(name="data", help="Show, describe, clean, split and convert data files.", sort_key=51)


@data.command
def show(
    file: str,
    /,
    *,
    model: str,
    columns: str | None = None,
    row: Annotated[int, WHOLE] = 1,
    chat_template: str | None = None,
    train_on: Literal["completion", "assistant", "all", "score"] | None = None,
    system_prompt: str | None = None,
    max_prompt_tokens: Annotated[int | None, WHOLE] = None,
    max_completion_tokens: Annotated[int | None, WHOLE] = None,
    truncate_prompt: Literal["left", "drop", "error"] = "left",
    html: Path | None = None,
) -> None:
    """Show a row as the model sees it: its tokens, which are learned, where answers end, and what is cut.

    Args:
        file: A data file, or a database of rankings (sqlite:///label.db).
        model: Folder of a model, a role or a tokenizer; no weights are loaded.
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        row: Which row, counted from 1.
        chat_template: As model.chat_template: a shipped template by name, or a .jinja file.
        train_on: As data.train_on; score shows answers as a reward role scores them, which is the default for one.
        system_prompt: As data.system_prompt.
        max_prompt_tokens: As data.max_prompt_tokens.
        max_completion_tokens: As data.max_completion_tokens.
        truncate_prompt: As data.truncate_prompt.
        html: Write a page to this file instead of printing.
    """
    counts = {"row": row, "max-prompt-tokens": max_prompt_tokens, "max-completion-tokens": max_completion_tokens}
    for option, number in counts.items():
        if number is not None and number < 1:
            raise ConfigError(f"--{option} is {number}; it should be at least 1")
    if system_prompt is not None and not system_prompt.strip():
        raise ConfigError("--system-prompt is blank; leave it out for none")
    if html is not None:
        preflight.check_output(html, "--html")
    check_file(file)
    modules.load("onebase.tools.data_show").run(
        file=as_path(file),
        columns=preflight.read_columns(columns),
        model=model,
        row=row,
        chat_template=chat_template,
        train_on=train_on,
        system_prompt=system_prompt,
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
        truncate_prompt=truncate_prompt,
        html=html,
    )


@data.command(help_format="markdown")  # its lines are joined
def clean(
    *files: str,
    output: Path,
    columns: str | None = None,
    filter: list[str] | None = None,
    against: list[str] | None = None,
    difficulty: str | None = None,
    reward: str | None = None,
    seed: Whole = 0,
    json: bool = False,
    model: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    quantization: Literal["none", "nf4"] | None = None,
    device: str = "auto",
    ray: str | None = None,
    actors: Whole = 1,
) -> None:
    """Write the rows that are worth training on, and the others apart, each with the reason.

    Filters, in the order in which they run: encoding, length, repetition, script, equal_answers, leaks, contradictions,
    consistency, duplicates, near_duplicates, difficulty, noise. By default all but script, leaks, difficulty and noise.

    Args:
        files: Data files, or databases of rankings (sqlite:///label.db).
        output: A new folder for kept/, dropped/ and report.json.
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        filter: near_duplicates, ..., or {name: near_duplicates, similarity: 0.7}; repeat it for several.
        against: A test file whose prompts must not be trained on (adds the filter leaks); repeat it for several.
        difficulty: A role, or samples from 'onebase eval --output'; keeps the middle (adds the filter difficulty).
        reward: A reward role that judges which answer is better (adds the filter noise, which trains heads without it).
        seed: Random seed of the filter noise.
        json: Print one JSON object.
        model: Folder of the base model, if it is not where the role says.
        dtype: Number format of the base; by default the one the role was trained with.
        quantization: none, or nf4 for a base in 4 bits; by default what the role was trained with.
        device: auto, cpu, cuda, cuda:1.
        ray: Judge the rows on the Ray cluster with this address; local starts one on this machine.
        actors: Processes on that cluster, each with the roles' base.
    """
    paths, tests = [as_path(file) for file in files], [as_path(file) for file in against or []]
    preflight.check_actors(actors, ray, [*paths, *tests])
    _check_files(paths)
    _check_files(tests, needed=False)
    chosen = preflight.read_filters(
        filter or [], leaks=bool(tests), difficulty=difficulty is not None, reward=reward is not None
    )
    preflight.check_new_folder(output)
    _check_seed(seed)
    preflight.check_device(device)
    if difficulty is not None:
        if not Path(difficulty).is_file():
            preflight.check_roles({difficulty: ("policy", "reward")}, model=model)
        else:
            check_file(Path(difficulty))
        streams.say_first(f"data clean: measuring difficulty with {difficulty}")
    if reward is not None:
        preflight.check_roles({reward: ("reward",)}, model=model)
        streams.say_first(f"data clean: judging preferences with {reward}")
    modules.load("onebase.tools.data_clean").run(
        files=paths,
        columns=preflight.read_columns(columns),
        output=output,
        filters=chosen,
        against=tests,
        difficulty=difficulty,
        reward=reward,
        seed=seed,
        as_json=json,
        model=model,
        dtype=dtype,
        quantization=quantization,
        device=device,
        ray=ray,
        actors=actors,
    )


@data.command
def split(file: str, /, *, output: Path, columns: str | None = None, test: Real = 0.1, seed: Whole = 0) -> None:
    """Split a file into train and test by prompt: rows with one prompt, or nearly one, stay together.

    Args:
        file: A data file, or a database of rankings (sqlite:///label.db).
        output: A new folder for train.jsonl and test.jsonl.
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        test: The share of the rows for test.
        seed: Another seed chooses other prompts.
    """
    path = as_path(file)
    _check_files([path])
    if not 0 < test < 1:
        raise ConfigError(f"--test is {test:g}; it should be a share between 0 and 1")
    preflight.check_new_folder(output)
    _check_seed(seed)
    modules.load("onebase.tools.data_split").run(
        file=path, output=output, columns=preflight.read_columns(columns), test=test, seed=seed
    )


@data.command
def stats(
    *files: str,
    columns: str | None = None,
    model: str | None = None,
    chat_template: str | None = None,
    json: bool = False,
    plots: Path | None = None,
) -> None:
    """Describe files: rows, lengths, turns, scripts, duplicates, overlap, length bias, agreement of annotators.

    Args:
        files: Data files, or databases of rankings (sqlite:///label.db).
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        model: Folder of a model or a tokenizer, to count tokens; no weights are loaded.
        chat_template: As model.chat_template: a template by name, or a .jinja file.
        json: Print one JSON object.
        plots: A folder for pictures, one PNG per file.
    """
    paths = [as_path(file) for file in files]
    _check_files(paths)
    if plots is not None:
        preflight.check_writable(plots, "--plots")
    if chat_template is not None and model is None:
        raise ConfigError("--chat-template says how tokens are counted; name a tokenizer with --model too")
    modules.load("onebase.tools.data_stats").run(
        files=paths,
        columns=preflight.read_columns(columns),
        model=model,
        chat_template=chat_template,
        as_json=json,
        plots=plots,
    )


@data.command
def convert(
    file: str,
    output: Path,
    /,
    *,
    to: Literal["trl", "llamafactory", "openai", "sharegpt", "alpaca", "jsonl"],
    columns: str | None = None,
    drop: list[str] | None = None,
) -> None:
    """Convert a data file to the layout of another tool, or to ours; what a layout cannot hold is named.

    Args:
        file: A file in any layout that onebase reads, or a database of rankings (sqlite:///label.db).
        output: The .jsonl or .json file to write; it must not exist.
        to: The layout to write.
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        drop: A part to leave out if the layout cannot hold it (margin, ended, tie, answers, a column's name, columns,
            or rows); repeat it for several.
    """
    check_file(file)
    preflight.check_writable(output.absolute().parent, "output file")
    if os.path.lexists(output):
        raise ConfigError(f"{shown(output, 200)} exists; choose another name, or remove it first")
    modules.load("onebase.convert.rows").run(
        file=as_path(file), output=output, to=to, drop=drop or [], columns=preflight.read_columns(columns)
    )


def _check_files(files: Sequence[Path], *, needed: bool = True) -> None:
    if needed and not files:
        raise ConfigError("name at least one data file")
    seen: dict[tuple[int, int], Path] = {}
    for file in files:
        check_file(file)
        if (first := seen.setdefault(file_id(file), file)) is not file:
            raise DataError(f"{shown(file)} and {shown(first)} are the same file; name it once")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; it should be between 0 and {2**32 - 1}")
