"""Turns requests into prompts in tokens and settings for drawing, in a thread and with a tokenizer of its own.

Tokenizers are not safe to use from two threads, and a long prompt should not keep other clients waiting.
"""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from onebase.data.chat import ChatFormat
from onebase.errors import DataError
from onebase.records import Example, Message, Row
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from onebase.serving.errors import Refusal
from onebase.serving.job import Job
from onebase.serving.protocol import SamplingBody, Turn
from onebase.serving.roles import Served
from onebase.shown import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")
USUAL_TOKENS = 1024
"""Longest answer where neither the request nor the role says."""


class Reader:
    """Reads requests.

    Args:
        most_tokens: longest prompt and answer together.
        seconds: how long an answer may take.
    """

    def __init__(self, *, most_tokens: int, seconds: float) -> None:
        self._most_tokens, self._seconds = most_tokens, seconds
        self._copies: dict[str, ChatFormat] = {}
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="reader")

    def chat_prompt(self, served: Served, turns: Sequence[Turn]) -> list[int]:
        """The ids of a conversation, up to where the answer begins.

        Raises:
            Refusal: its template refuses it.
        """
        messages = [turn.message() for turn in turns]
        if served.defaults.system is not None and messages[0].role != "system":
            messages = [Message("system", served.defaults.system), *messages]
        return _read(lambda: self._chat(served).encode_prompt(messages), "messages")

    def text_prompts(self, served: Served, prompt: str | list[int] | list[str] | list[list[int]]) -> list[list[int]]:
        """The ids of one or several plain texts, each after the beginning token if the tokenizer writes one.

        Raises:
            Refusal: an id is not in the vocabulary, or there is no prompt.
        """
        tokenizer = self._chat(served).tokenizer
        several: Sequence[str | list[int]]
        if isinstance(prompt, str):
            several = [prompt]
        elif prompt and all(isinstance(item, int) for item in prompt):
            several = [[item for item in prompt if isinstance(item, int)]]
        else:
            several = [item for item in prompt if not isinstance(item, int)]
        found = []
        for text in several:
            ids = text if isinstance(text, list) else _text_ids(tokenizer, text)
            wrong = [i for i in ids if not 0 <= i < len(tokenizer)]
            if wrong:
                raise Refusal(400, f"{wrong[0]} is no token: ids run from 0 to {len(tokenizer) - 1}", param="prompt")
            first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            found.append(ids or [int(first)])
        if not found:
            raise Refusal(400, "'prompt' is an empty list; give a text, or leave it out", param="prompt")
        return found

    def example(
        self, served: Served, turns: Sequence[Turn], completions: Sequence[str], *, cuts: bool = False
    ) -> Example:
        """A conversation with its answers, as a reward role reads them.

        Args:
            cuts: cut answers that are too long, as in training: one that fills the context still gets an end token.

        Raises:
            Refusal: the template refuses it, or an answer is too long.
        """
        row = Row(tuple(turn.message() for turn in turns), tuple(completions))
        example = _read(lambda: self._chat(served).encode_example(row), "completions")
        room = self._most_tokens - len(example.prompt_ids)
        if cuts and room > 0:
            return replace(example, completions=[ids[:room] for ids in example.completions])
        longest = len(example.prompt_ids) + max(map(len, example.completions))
        if longest > self._most_tokens:
            raise self._too_long(
                f"the prompt with its longest completion has {number_of(longest, 'token')}", "completions"
            )
        return example

    def job(
        self,
        served: Served,
        prompt: Sequence[int],
        body: SamplingBody,
        *,
        count: int = 1,
        number: int = 0,
        tops: int | None = None,
        max_tokens: int | None = None,
        strips: bool = False,
    ) -> Job:
        """What the worker is asked for: `count` choices of one prompt.

        Args:
            number: of the prompt in its request; it changes the random numbers.
            max_tokens: longest answer, if the request says it elsewhere than in the body's `max_tokens`.

        Raises:
            Refusal: the prompt or the answer asked for is too long.
        """
        asked, usual = max_tokens or body.max_tokens, served.defaults
        room = self._most_tokens - len(prompt)
        if room < 1:
            raise self._too_long(f"the prompt has {number_of(len(prompt), 'token')}", "messages")
        if asked is not None and asked > room:
            said = f"the prompt has {number_of(len(prompt), 'token')} and max_tokens is {asked}"
            raise self._too_long(said, "max_tokens")

        def chosen(name: str) -> float:
            given = getattr(body, name)
            return getattr(usual, name) if given is None else given

        sampling = Sampling(
            max_new_tokens=asked or min(usual.max_tokens or USUAL_TOKENS, room),
            temperature=chosen("temperature"),
            top_p=chosen("top_p"),
            top_k=max(0, int(chosen("top_k"))),
            stop_ids=served.stop_ids,
        )
        seed = secrets.randbits(63) if body.seed is None else body.seed
        seeds = sample_seeds(seed, num_prompts=number + 1, samples_per_prompt=count, stream="serve")[-count:]
        return Job(
            served,
            prompt,
            sampling,
            seeds,
            stops=tuple(body.stop),
            tops=tops,
            strips=strips,
            deadline=time.monotonic() + self._seconds,
        )

    def _chat(self, served: Served) -> ChatFormat:
        """The role's format with a tokenizer that only this thread uses."""
        if served.role not in self._copies:
            self._copies[served.role] = replace(served.chat, tokenizer=copy.deepcopy(served.chat.tokenizer))
        return self._copies[served.role]

    def forget(self, served: Served) -> None:
        self._copies.pop(served.role, None)

    def _too_long(self, fact: str, param: str) -> Refusal:
        said = f"{fact}, and both together may have at most {self._most_tokens} here"
        return Refusal(400, said, param=param, code="context_length_exceeded")


def _read(read: Callable[[], Result], param: str) -> Result:
    try:
        return read()
    except DataError as error:
        raise Refusal(400, str(error), param=param) from None


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    try:
        return list(tokenizer.encode(text, verbose=False))
    except TypeError:  # half of a surrogate pair
        raise Refusal(400, "'prompt' is not valid Unicode text; correct it", param="prompt") from None
