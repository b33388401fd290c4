"""How each request is answered, with a worker's roles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from onebase.config.serving import ServeConfig
from onebase.runs.progress import say
from onebase.serving.answers import Answer
from onebase.serving.errors import Refusal
from onebase.serving.job import Job
from onebase.serving.metrics import Metrics
from onebase.serving.protocol import AnswerBody, ChatBody, CompareBody, CompletionBody, RoleBody, ScoreBody, Turn
from onebase.serving.reader import Reader
from onebase.serving.roles import Served
from onebase.serving.scoring import scores_of
from onebase.serving.worker import Worker
from onebase.shown import number_of, shown

Result = TypeVar("Result")


class Server:
    """Answers requests with a worker's roles."""

    def __init__(self, config: ServeConfig, worker: Worker, metrics: Metrics) -> None:
        self.config, self.worker, self.metrics = config, worker, metrics
        self.roles = worker.roles
        self.reader = Reader(most_tokens=worker.most_tokens, seconds=config.limits.seconds)
        self._started = int(time.time())

    # ------------------------------------------------------------------------------------------------- answers

    async def chat(self, body: ChatBody, request: Request) -> Response:
        served = self.roles.find(body.model, "policy")
        prompt = await self._read(lambda: self.reader.chat_prompt(served, body.messages))
        if body.top_logprobs and not body.logprobs:
            raise Refusal(400, "'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        tops = (body.top_logprobs or 0) if body.logprobs else None
        count, most = body.n or 1, body.max_completion_tokens
        job = self.reader.job(served, prompt, body, count=count, tops=tops, max_tokens=most, strips=True)
        return await self._answer(served, [job], body, request, chat=True, tells=tops is not None)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        served = self.roles.find(body.model, "policy")
        prompts = await self._read(lambda: self.reader.text_prompts(served, body.prompt))
        jobs = [
            self.reader.job(served, prompt, body, count=body.n or 1, number=number, tops=body.logprobs)
            for number, prompt in enumerate(prompts)
        ]
        return await self._answer(served, jobs, body, request, chat=False, tells=body.logprobs is not None)

    async def _answer(
        self, served: Served, jobs: Sequence[Job], body: AnswerBody, request: Request, *, chat: bool, tells: bool
    ) -> Response:
        answer = Answer(served, jobs, chat=chat, tells=tells)
        for job in jobs:
            job.piecewise = bool(body.stream)
        self._submit(jobs)
        if not body.stream:
            whole = await self._while_there(request, jobs, answer.whole())
            self._log(answer, served, jobs)
            return JSONResponse(whole)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)

        async def events() -> AsyncIterator[str]:
            try:
                async for event in answer.events(with_usage=with_usage):
                    yield event
                self._log(answer, served, jobs)
            finally:  # also when the client goes away
                for job in jobs:
                    self.worker.drop(job)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def compare(self, body: CompareBody, request: Request) -> Response:
        several = [self.roles.find(name, "policy", param="models") for name in body.models]
        reward = self.roles.find(body.reward, "reward", param="reward") if body.reward is not None else None
        jobs = []
        for served in several:
            prompt = await self._read(partial(self.reader.chat_prompt, served, body.messages))
            jobs.append(self.reader.job(served, prompt, body, strips=True))
        answers = [Answer(served, [job], chat=True, tells=False) for served, job in zip(several, jobs, strict=True)]
        self._submit(jobs)

        async def found() -> list[dict[str, Any]]:
            data = []
            for served, job, answer in zip(several, jobs, answers, strict=True):
                (piece,) = await answer.choices()
                item = {
                    "model": served.name,
                    "version": served.version,
                    "message": {"role": "assistant", "content": piece.text},
                    "finish_reason": piece.finish,
                    "score": None,
                    "normalised": None,
                    "usage": answer.usage,
                }
                if reward is not None:
                    (scored,) = await self._scored(reward, body.messages, [piece.text], cuts=True)
                    item |= {"score": scored["score"], "normalised": scored["normalised"]}
                data.append(item)
                self._log(answer, served, [job])
            return data

        return JSONResponse({"object": "comparison", "data": await self._while_there(request, jobs, found())})

    # -------------------------------------------------------------------------------------------------- scores

    async def score(self, body: ScoreBody, request: Request) -> Response:
        served = self.roles.find(body.model, "reward")
        turns = body.messages if body.messages is not None else [Turn(role="user", content=body.prompt or "")]
        data = await self._while_there(request, [], self._scored(served, turns, body.completions))
        return JSONResponse({"object": "score", "model": served.name, "version": served.version, "data": data})

    async def _scored(
        self, served: Served, turns: Sequence[Turn], completions: Sequence[str], *, cuts: bool = False
    ) -> list[dict[str, Any]]:
        example = await self._read(lambda: self.reader.example(served, turns, completions, cuts=cuts))
        self.metrics.count_tokens(served.name, prompt=example.num_tokens)
        return await asyncio.wrap_future(self.worker.call(lambda: scores_of(self.roles.base, served, example)))

    # --------------------------------------------------------------------------------------------------- roles

    def models(self) -> Response:
        data = [
            {
                "id": served.name,
                "object": "model",
                "created": self._started,
                "owned_by": "onebase",
                "version": served.version,
            }
            for served in self.roles.all("policy")
        ]
        return JSONResponse({"object": "list", "data": data})

    def health(self) -> Response:
        names = {kind: [served.name for served in self.roles.all(kind)] for kind in ("policy", "reward")}
        found = {"base": self.roles.base.name_or_path, "policies": names["policy"], "rewards": names["reward"]}
        return JSONResponse({"status": "ok", **found})

    async def load(self, body: RoleBody) -> Response:
        self._changes_allowed()
        try:  # by the config's own rules: a name that no file may give is refused here too
            settings = ServeConfig.model_validate({"roles": {body.name: body.role}}).roles[body.name]
        except ValidationError as error:
            raise Refusal(400, error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        served = await asyncio.wrap_future(self.worker.call(lambda: self.roles.load(body.name, settings)))
        say(f"serve: loaded {served.fingerprint} ({served.kind}) from {shown(body.role, 200)}")
        return JSONResponse(_role(served))

    async def unload(self, name: str) -> Response:
        self._changes_allowed()
        served = await asyncio.wrap_future(self.worker.call(lambda: self.worker.unload(name)))
        self.reader.executor.submit(self.reader.forget, served)
        say(f"serve: unloaded {served.fingerprint}")
        return JSONResponse({"id": name, "object": "role", "deleted": True})

    def _changes_allowed(self) -> None:
        if not self.config.allow_role_changes:
            raise Refusal(403, "roles cannot be changed here: the server runs without allow_role_changes")

    # ------------------------------------------------------------------------------------------------- shared

    def _submit(self, jobs: Sequence[Job]) -> None:
        for number, job in enumerate(jobs):
            try:
                if len(job.seeds) > self.worker.most_rows:
                    raise Refusal(400, f"n is {len(job.seeds)}, and {self.worker.most_rows} fit here", param="n")
                self.worker.submit(job, most_waiting=self.config.limits.queue)
            except Refusal:
                for submitted in jobs[:number]:
                    self.worker.drop(submitted)
                raise

    async def _read(self, read: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.reader.executor, read)

    async def _while_there(self, request: Request, jobs: Sequence[Job], answer: Awaitable[Result]) -> Result:
        """Waits for an answer as long as the client does; then its rows are free at once."""
        task = asyncio.ensure_future(answer)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Refusal(499, "the client went away")
            return task.result()
        finally:
            task.cancel()
            gone.cancel()
            for job in jobs:
                self.worker.drop(job)

    def _log(self, answer: Answer, served: Served, jobs: Sequence[Job]) -> None:
        seconds = time.monotonic() - answer.started
        self.metrics.answer.labels(served.name).observe(seconds)
        if answer.first_token is not None:
            self.metrics.first_token.labels(served.name).observe(answer.first_token)
        say(
            f"serve: {served.fingerprint}: {answer.num_prompt} + {number_of(answer.num_drawn, 'token')} in "
            f"{seconds:.2f} s"
        )


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _role(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "role", "kind": served.kind, "version": served.version}
