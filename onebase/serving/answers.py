"""Answers in the shape of OpenAI's API, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from onebase.serving.errors import from_error
from onebase.serving.job import Job, Piece, Report, Token
from onebase.serving.roles import Served


class Answer:
    """What one request gets: the choices of one job, or of several for a list of prompts.

    Args:
        chat: whether its choices are messages.
        tells: whether it was asked for log-probs.
    """

    def __init__(self, served: Served, jobs: Sequence[Job], *, chat: bool, tells: bool) -> None:
        self._served, self._jobs, self._chat, self._tells = served, jobs, chat, tells
        self._inbox: asyncio.Queue[tuple[int, Report]] = asyncio.Queue()
        self._count = len(jobs[0].seeds)
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }
        self.num_drawn = 0
        self.started = time.monotonic()
        for number, job in enumerate(jobs):
            job.report = partial(self._take, number)

    def _take(self, number: int, reports: Sequence[Report]) -> None:
        for report in reports:
            self._inbox.put_nowait((number, report))

    @property
    def first_token(self) -> float | None:
        """Seconds until the first token was drawn."""
        return min((job.began - self.started for job in self._jobs if job.began is not None), default=None)

    @property
    def num_prompt(self) -> int:
        return sum(len(job.prompt) for job in self._jobs)

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_drawn,
            "total_tokens": self.num_prompt + self.num_drawn,
        }

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every piece as it comes, its choice counted over all prompts. Raises what ended the answer."""
        left = self._count * len(self._jobs)
        while left:
            number, report = await self._inbox.get()
            if isinstance(report, Exception):
                raise report
            if report.finish is not None:
                self.num_drawn += report.num_tokens
                left -= 1
            choice = number * self._count + report.choice
            yield Piece(choice, report.text, report.tokens, report.finish, report.num_tokens)

    async def whole(self) -> dict[str, Any]:
        """The whole answer."""
        choices = await self.choices()
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [self._choice(piece) for piece in choices],
            "usage": self.usage,
        }

    async def choices(self) -> list[Piece]:
        """Each choice as a single piece, for jobs that are not reported piecewise."""
        return sorted([piece async for piece in self.pieces()], key=lambda piece: piece.choice)

    async def events(self, *, with_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events; an error ends it, as an event of its own."""
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        usage = {"usage": None} if with_usage else {}
        offsets: dict[int, int] = {}
        try:
            if self._chat:
                for n in range(self._count * len(self._jobs)):
                    delta = {"role": "assistant", "content": ""}
                    opening = {"index": n, "delta": delta, "logprobs": None, "finish_reason": None}
                    yield event({**head, "choices": [opening], **usage})
            async for piece in self.pieces():
                told = self._logprobs(piece.tokens, offsets.get(piece.choice, 0))
                offsets[piece.choice] = offsets.get(piece.choice, 0) + len(piece.text)
                said = {"delta": {"content": piece.text} if piece.text else {}} if self._chat else {"text": piece.text}
                choice = {"index": piece.choice, **said, "logprobs": told, "finish_reason": piece.finish}
                yield event({**head, "choices": [choice], **usage})
            if with_usage:
                yield event({**head, "choices": [], "usage": self.usage})
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield event(from_error(error).body())

    def _choice(self, piece: Piece) -> dict[str, Any]:
        said: dict[str, Any] = {"text": piece.text}
        if self._chat:
            said = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
        told = self._logprobs(piece.tokens, 0)
        return {"index": piece.choice, **said, "logprobs": told, "finish_reason": piece.finish}

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
        if not self._tells:
            return None
        if self._chat:
            content = [
                {**_entry(token.text, token.logprob), "top_logprobs": [_entry(*other) for other in token.likeliest]}
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(reversed(token.likeliest)) for token in tokens],
            "text_offset": offsets,
        }


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # Half a character has no text, and its bytes are not known here.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
