"""Samples answers from roles while people rank, so that there is always something to rank."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from onebase.config.labeling import AnswersGroup
from onebase.data.chat import ChatFormat
from onebase.errors import OnebaseError, PromptTooLongError
from onebase.labeling.project import Project
from onebase.labels.judged import NewTask
from onebase.labels.store import Store
from onebase.models.base import OneBase
from onebase.reading.formats import read_files
from onebase.recipes.setup.saved import open_saved
from onebase.records import Prompt, Row
from onebase.rollouts.sampled_rows import own_answer
from onebase.runs.progress import say
from onebase.sampling.local import generate, stop_ids
from onebase.sampling.sampler import Sampling
from onebase.seeds import mixed_seed, sample_seeds
from onebase.shown import number_of, shown

SECONDS = 1.0
"""Between two looks at how many tasks wait."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to sample: the project's settings, with its paths found."""

    settings: AnswersGroup
    roles: Sequence[str]
    prompts: Sequence[str]
    overlap_share: float
    people: int
    seed: int


def wanted_by(project: Project) -> Wanted:
    """What a project's file asks for."""
    config = project.config
    roles, prompts = project.beside(config.answers.roles), project.beside(config.answers.prompts)
    return Wanted(config.answers, roles, prompts, config.overlap.share, config.overlap.people, config.seed)


class Drawing:
    """A thread that owns the model and keeps a queue of tasks filled; leaving the context ends it.

    Raises:
        DataError: a file of prompts cannot be read, on entering; ModelError likewise for a role that cannot be opened.
    """

    def __init__(self, wanted: Wanted, store: Store) -> None:
        self._wanted, self._store = wanted, store
        self._num_gold = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self.stopped = ""
        """Why nothing is sampled any more; empty while it goes on."""

    def __enter__(self) -> Drawing:
        self._rows = [row for row in read_files(self._wanted.prompts) if row.messages]
        folders = {f"role-{number}": (folder, ("policy",)) for number, folder in enumerate(self._wanted.roles)}
        self._base, self._chat = open_saved(
            folders, model=self._wanted.settings.model, device=self._wanted.settings.device
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            there = self._store.tasks.all()
            asked = {task.prompt for task in there}
            self._num_gold = sum(task.gold is not None for task in there)
            for number, row in enumerate(self._rows):
                if row.messages in asked:
                    continue
                while not self._stop.is_set() and self._num_waiting() >= self._wanted.settings.queue:
                    self._stop.wait(SECONDS)
                if self._stop.is_set():
                    return
                asked.add(row.messages)
                self._add(number, row)
        except OnebaseError as error:
            self._end(str(error))
        except Exception as error:  # people go on with the tasks that are there
            self._end(f"{type(error).__name__}: {shown(error, 300)}")

    def _end(self, said: str) -> None:
        self.stopped = said
        say(f"label: no more answers are sampled: {said}")

    def _num_waiting(self) -> int:
        """Tasks that somebody new could get, gold questions aside."""
        return self._store.judgements.progress(0, since=datetime.now(UTC)).left - self._num_gold

    def _add(self, number: int, row: Row) -> None:
        try:
            task = draw(self._base, self._chat, row, self._wanted, number)
        except PromptTooLongError as error:
            say(f"label: {row.place} is left out: {error}")
            return
        if task is None:
            say(f"label: {row.place} is left out: all answers to it are the same")
            return
        self._store.tasks.add(
            [task], overlap_share=self._wanted.overlap_share, people=self._wanted.people, seed=self._wanted.seed
        )


def draw(base: OneBase, chat: ChatFormat, row: Row, wanted: Wanted, number: int) -> NewTask | None:
    """A task of different answers that the roles write to a row's prompt; None if they are all the same.

    The answers are shared out among the roles in turn, beginning with another role at every prompt.

    Raises:
        PromptTooLongError: prompt and answer exceed the context.
    """
    settings, names = wanted.settings, _names(wanted.roles)
    stops = stop_ids(base, [chat.end_token_id])
    ids = chat.encode_prompt(row.messages, tools=row.tools, place=row.place)
    room = base.context_length - len(ids)
    if room < 1:
        raise PromptTooLongError(f"its {number_of(len(ids), 'token')} fill the context of {base.context_length}")
    sampling = Sampling(
        min(settings.max_tokens, room), temperature=settings.temperature, top_p=settings.top_p, stop_ids=stops
    )
    answers: dict[str, tuple[str, bool]] = {}
    for turn in range(min(len(names), settings.per_prompt)):
        role = (number + turn) % len(names)
        count = len(range(turn, settings.per_prompt, len(names)))
        seed = mixed_seed("label", wanted.seed, number, role)
        samples = generate(
            base,
            [ids],
            role=f"role-{role}",
            sampling=sampling,
            seeds=sample_seeds(seed, num_prompts=1, samples_per_prompt=count, stream="label"),
            samples_per_prompt=count,
        )
        for sample in samples:
            answer = own_answer(chat, Prompt(ids, row), sample, ())
            if answer.text.strip():
                answers.setdefault(answer.text, (names[role], answer.ended))
    if len(answers) < 2:
        return None
    return NewTask(
        prompt=row.messages,
        answers=tuple(answers),
        sources=tuple(name for name, _ in answers.values()),
        chosen="random",
        place=row.place,
        ended=tuple(ended for _, ended in answers.values()),
        tools=row.tools,
    )


def _names(folders: Sequence[str]) -> list[str]:
    """What to call each role: its run's folder, and the whole path where two are called the same."""
    paths = [Path(folder) for folder in folders]
    names = [(path.parent if path.name in ("policy", "model") else path).name or str(path) for path in paths]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
