"""`onebase chat`: talk to a policy in the terminal, or to two side by side on one base."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onebase.data.chat import ChatFormat
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import per_completion
from onebase.errors import ConfigError, PromptTooLongError
from onebase.models.base import OneBase
from onebase.recipes.setup.saved import open_saved
from onebase.records import Message, Prompt
from onebase.sampling.local import generate, stop_ids
from onebase.sampling.sampler import Sample, Sampling
from onebase.seeds import sample_seeds
from onebase.shown import number_of, shown

Answers = dict[str, tuple[str, float | None]]
"""By role: the answer, and the reward role's score if one is loaded."""


def run(
    *,
    role: str | None,
    compare: tuple[str, str] | None,
    once: str | None,
    reward: str | None,
    model: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    system: str | None = None,
    top_p: float = 1.0,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> None:
    """Answers `once`, or holds a conversation until an empty line or the end of input.

    Raises:
        ConfigError: a message is not UTF-8 text.
    """
    folders = {"A": compare[0], "B": compare[1]} if compare else {"A": str(role)}
    roles = {name: (folder, ("policy",)) for name, folder in folders.items()}
    if reward is not None:
        roles["reward"] = (reward, ("reward",))
    base, chat = open_saved(roles, model=model, dtype=dtype, quantization=quantization, device=device)
    stops = stop_ids(base, [chat.end_token_id])
    sampling = Sampling(max_new_tokens, temperature=temperature, top_p=top_p, stop_ids=stops)
    opening = [Message("system", system)] if system else []
    ask = partial(answer, base, chat, folders, sampling, scored=reward is not None)
    if once is not None:
        asked = [*opening, Message("user", once)]
        reply(chat, folders, partial(ask, asked, seed))
        return
    console = Console(stderr=True)
    console.print("An empty line or Ctrl-D ends the conversation; /new starts another.", style="dim")
    history = list(opening)
    for turn in range(sys.maxsize):
        said = _read_line(console)
        if not said:
            return
        if said == "/new":
            history = list(opening)
            continue
        history.append(Message("user", said))
        try:
            answers = reply(chat, folders, partial(ask, history, seed + turn))
        except PromptTooLongError as error:
            console.print(str(error), style="yellow", markup=False)
            history.pop()
            continue
        # Both roles continue from the answer of A, so that they stay in one conversation.
        history.append(Message("assistant", answers["A"][0]))


def _read_line(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip() if sys.stdin.isatty() else sys.stdin.readline().strip()
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise ConfigError(f"the message is not UTF-8 text: {wrong}") from None


def reply(chat: ChatFormat, folders: dict[str, str], ask: Callable[..., Answers]) -> Answers:
    """Prints and returns the answers of `ask`: a single one token by token through `on_token`, two side by side."""
    if len(folders) > 1:
        answers = ask()
        show_columns(answers, folders)
        return answers
    stream = Stream(chat)
    answers = ask(on_token=stream.write)
    ((text, score),) = answers.values()
    stream.end(text, "" if score is None else f"(reward {score:.3f})")
    return answers


class Stream:
    """Prints an answer to stdout as it is generated, stripped and with control characters escaped."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat, self._printed = chat, ""

    def write(self, sample: Sample) -> None:
        """Prints the text that is new; an incomplete character waits for the tokens with its other bytes."""
        self._print(self._chat.decode(sample.ids).strip().rstrip("\ufffd").rstrip())

    def end(self, text: str, note: str) -> None:
        """Prints the rest of the answer, then the note on its own line."""
        self._print(text)
        if shown(text, lines=True) != self._printed:  # its last tokens changed earlier characters
            print("\n" + shown(text, lines=True), end="")
        print(f"\n{note}" if note else "", flush=True)

    def _print(self, text: str) -> None:
        safe = shown(text, lines=True)
        if safe.startswith(self._printed):
            print(safe[len(self._printed) :], end="", flush=True)
            self._printed = safe


def answer(
    base: OneBase,
    chat: ChatFormat,
    folders: dict[str, str],
    sampling: Sampling,
    messages: list[Message],
    seed: int,
    *,
    scored: bool,
    on_token: Callable[[Sample], None] | None = None,
) -> Answers:
    """Returns each role's answer to the conversation, with the reward role's score if `scored`.

    A conversation that fills the context loses its oldest turns.

    Raises:
        PromptTooLongError: the last message alone is too long.
    """
    first = 1 if messages[0].role == "system" else 0  # a system message is never dropped
    while len(chat.encode_prompt(messages)) > base.context_length - 1 and len(messages) > first + 1:
        messages = [*messages[:first], *messages[first + 2 :]]
    prompt = Prompt(chat.encode_prompt(messages))
    room = base.context_length - len(prompt.ids)
    if room < 1:
        raise PromptTooLongError(
            f"the message has {number_of(len(prompt.ids), 'token')}, but the model's context is "
            f"{base.context_length}; shorten it"
        )
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
    answers: Answers = {}
    for name in folders:
        (sample,) = generate(
            base,
            [prompt.ids],
            role=name,
            sampling=sampling,
            seeds=sample_seeds(seed, num_prompts=1, samples_per_prompt=1, stream="chat"),
            on_token=on_token,
        )
        score = None
        if scored:
            answered = prompt.with_completions([sample.ids])
            (scores,) = per_completion(
                base,
                [answered],
                lambda batch: completion_scores(base, batch, role="reward"),
                budget=TokenBudget(answered.num_tokens),
            )
            score = float(scores[0])
        answers[name] = (chat.decode(sample.ids).strip(), score)
    return answers


def show_columns(answers: Answers, folders: dict[str, str]) -> None:
    """Prints two answers side by side."""
    scores = {name: "" if score is None else f"\n(reward {score:.3f})" for name, (_, score) in answers.items()}
    table = Table(show_lines=True)
    for name, folder in folders.items():
        table.add_column(f"{name}: {shown(Path(folder))}", overflow="fold", ratio=1)
    table.add_row(*(shown(text, lines=True) + scores[name] for name, (text, _) in answers.items()))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False).print(table)
