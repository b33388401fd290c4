"""What crosses the border of the database: tasks, people, judgements, in plain records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from onebase.records import Message

Kind = Literal["ranked", "all_bad", "skipped"]
Chosen = Literal["file", "random", "active"]


@dataclass(frozen=True, slots=True)
class NewTask:
    """A prompt and its K answers, to be ranked."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    """2 to 9 answers."""
    sources: tuple[str, ...] = ()
    """Who wrote each answer: a role's name, or empty if the file does not say."""
    gold: tuple[float, ...] | None = None
    """For a gold question: a grade per answer, higher is better; what a careful annotator would give."""
    chosen: Chosen = "file"
    """How it came to be asked: `random` tasks give unbiased estimates, `active` ones teach more."""
    round: int = 0
    """Counted from 0; `onebase label next` adds one."""
    place: str = ""
    """`file:row`, for messages."""
    ended: tuple[bool, ...] | None = None
    """As in a `Row`: False for an answer that stops at its length limit."""
    tools: tuple[str, ...] = ()
    """As in a `Row`: the functions that the prompt offers."""


@dataclass(frozen=True, slots=True)
class Task(NewTask):
    """A task in the database."""

    id: int = 0
    key: str = ""
    """Hash of the prompt and the answers: the same task is added once."""
    overlap: int = 1
    """How many people are to judge it."""


@dataclass(frozen=True, slots=True)
class Person:
    """Someone who ranks, or who runs the project."""

    id: int
    name: str
    role: Literal["annotator", "admin"] = "annotator"
    password: str | None = None
    """Argon2 hash; None: comes by invitation link alone."""
    active: bool = True
    session: int = 0
    """Carried by their cookies: another number ends all sessions that began before."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person said of one task, once and for good: correcting it adds another and withdraws this one."""

    id: int
    task_id: int
    person: str
    """The annotator's name."""
    kind: Kind
    grades: tuple[int, ...] | None
    """One per answer, in the task's order: K for the best down to 1, equal for ties. None unless `ranked`."""
    reason: str
    """Why it was skipped; empty otherwise."""
    note: str
    seconds: float
    """Time in front of the task."""
    at: datetime
    """UTC."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A task held for one person until a moment."""

    task: Task
    until: datetime
    """UTC; from then on, someone else may get the task."""
    order: tuple[int, ...]
    """The order in which the answers are shown to this person: blind, shuffled, the same on every reload."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of a judgement that was sent."""

    id: int
    new: bool
    """False if the same was already saved under this key: sent twice, counted once."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one person is."""

    done: int
    today: int
    left: int
    """Tasks this person could still get."""
