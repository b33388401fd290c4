"""`onebase label next` and `onebase label curve`: what to rank next, and what more rankings would buy."""

from __future__ import annotations

from pathlib import Path

from onebase.cli import preflight, streams
from onebase.cli.label_project import load, named
from onebase.cli.numbers import Real, Whole
from onebase.errors import ConfigError
from onebase.reading.files import check_file


def next_(
    project: str,
    candidates: Path,
    /,
    *,
    num: Whole,
    role: str | None = None,
    random_share: Real = 0.25,
    seed: Whole = 0,
    columns: str | None = None,
    model: str | None = None,
    device: str = "auto",
) -> None:
    """Choose which tasks people rank next, and add them to the database.

    Args:
        project: PROJECT.yaml, or the database: a URL or a path that ends in .db.
        candidates: A data file whose rows have a prompt and 2 to 9 answers.
        num: How many tasks.
        role: Folder of the reward role that is to learn most; without one all tasks are random.
        random_share: Share of the tasks that is random, so that what is measured on them is unbiased.
        seed: Random seed.
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
        model: Folder of the base model, if it is not where the role says.
        device: auto, cpu, cuda, cuda:1.
    """
    if num < 1:
        raise ConfigError(f"--num is {num}; it should be at least 1")
    if not 0 <= random_share <= 1:
        raise ConfigError(f"--random-share is {random_share}; it should be between 0 and 1")
    _check_seed(seed)
    preflight.check_device(device)
    mapping = preflight.read_columns(columns)
    check_file(candidates)
    given = named(project)
    if role is not None:
        preflight.check_roles({role: ("reward",)}, model=model)
        streams.say_first(f"label next: loading {role}")
    load("onebase.active_learning.next_round").run(
        url=given.url,
        candidates=candidates,
        role=role,
        num=num,
        random_share=random_share,
        seed=seed,
        model=model,
        device=device,
        overlap_share=given.overlap_share,
        people=given.people,
        columns=given.columns if mapping is None else mapping,
    )


def curve(
    project: str,
    /,
    *,
    role: str,
    json: bool = False,
    plot: Path | None = None,
    seed: Whole = 0,
    model: str | None = None,
    device: str = "auto",
) -> None:
    """Show how well people's preferences are predicted by now, how well they could be, and what more would buy.

    Args:
        project: PROJECT.yaml, or the database: a URL or a path that ends in .db.
        role: Folder of a base, a policy role or a reward role whose features are read; one that was trained on these
            rankings makes the accuracy too high.
        json: Print one JSON object.
        plot: A PNG file to draw the curve in.
        seed: Random seed of the folds and subsets.
        model: Folder of the base model, if it is not where the role says.
        device: auto, cpu, cuda, cuda:1.
    """
    _check_seed(seed)
    preflight.check_device(device)
    if plot is not None:
        preflight.check_output(plot, "--plot")
    url = named(project).url
    preflight.check_roles({role: ("policy", "reward")}, model=model)
    streams.say_first(f"label curve: loading {role}")
    load("onebase.active_learning.learning_curve").run(
        url=url, role=role, as_json=json, plot=plot, seed=seed, model=model, device=device
    )


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; it should be between 0 and {2**32 - 1}")
