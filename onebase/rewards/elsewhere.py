"""Scores from a reward role that `onebase serve` answers with elsewhere (`POST /v1/score`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from onebase.asking import Elsewhere, Refused, Unusable, in_parallel
from onebase.errors import ConfigError, DataError, ModelError, RewardError
from onebase.processes import ALONE, Group
from onebase.records import Example, ScoreRequest, Scores
from onebase.shown import number_of, shown

MOST_COMPLETIONS = 256
"""Completions of one prompt in a request; the server takes no more."""
AT_ONCE = 8
"""Requests under way at once; the server scores them one after the other, and reads the next meanwhile."""
TRIAL = {"prompt": "Hello", "completions": ["Hello."]}
"""What is scored once before a run, to see that the role is there."""


class ElsewhereReward:
    """A reward role on a server, which reads the conversation and the completion as texts.

    The role reads them in its own chat template and gives each completion an end token, as for an answer that is whole:
    a score does not say whether the policy ended by itself.

    Nothing is asked before `meet` or the first `score`. A score counts only if the server says that the same weights
    gave it as at first: roles can be exchanged while it runs.

    Args:
        url: the server's, before `/v1`.
        role: the name it is served under; None: the only reward role there.
        key: the server's API key.
        timeout: seconds that one answer may take.
        normalize: the score as deviations from the mean of the role's held-out scores.
        group: the processes of the run; the first alone asks.

    Raises:
        ConfigError: the URL is not one.
    """

    def __init__(
        self,
        url: str,
        *,
        role: str | None = None,
        key: str | None = None,
        timeout: float = 600.0,
        normalize: bool = False,
        group: Group = ALONE,
    ) -> None:
        self._server = Elsewhere(url, who="the reward", key=key, seconds=timeout, remedy="reward-unanswered")
        self._role, self._normalize, self._group = role, normalize, group
        self._version: str | None = None
        self.name = role or "reward"

    @property
    def fingerprint(self) -> str:
        """Which weights score, by the server's own word: `name@version`. The URL is not in it: the same weights may be
        served elsewhere tomorrow."""
        return f"{self._role}@{self._version}"

    def meet(self) -> None:
        """Finds the role and has it score one text.

        Raises:
            ConfigError: it is not there, or the key is wrong.
            ModelError: its scores are to be normalised, and it has no held-out scores.
            UnansweredError: the server does not answer.
        """
        try:
            self._role, self._version = self._group.from_main(self._met)
        except Refused as refused:
            raise ConfigError(str(refused), remedy="reward-refused") from refused
        self.name = self._role

    def _met(self) -> tuple[str, str]:
        if self._role is None:
            there = self._server.ask("/health", read=_reward_names)
            if len(there) != 1:
                listed = ", ".join(shown(name, 60) for name in there) or "none"
                raise ConfigError(
                    f"{self._server.who} has {len(there)} reward roles ({listed})", remedy="which-reward-role"
                )
            self._role = there[0]
        _, version = self._server.ask("/v1/score", {"model": self._role, **TRIAL}, read=partial(self._read, count=1))
        return self._role, version

    def score(self, request: ScoreRequest) -> Scores:
        """The server's scores.

        Raises:
            DataError: a row has tools or calls, which the protocol does not carry.
            RewardError: the server refuses a prompt, or other weights score than at first.
            UnansweredError: the server does not answer, or not with usable scores.
        """
        if self._version is None:
            self.meet()
        return Scores(torch.tensor(self._group.from_main(lambda: self._scores(request)), dtype=torch.float32))

    def _scores(self, request: ScoreRequest) -> list[float]:
        bodies, first = [], 0
        for example in request.examples:
            texts = request.completions[first : first + len(example.completions)]
            asked = body_of(example, request.prompts[first])
            prefix = example.row.prefix or "" if example.row else ""
            for start in range(0, len(texts), MOST_COMPLETIONS):
                some = [prefix + text for text in texts[start : start + MOST_COMPLETIONS]]
                bodies.append((example, {"model": self._role, **asked, "completions": some}))
            first += len(texts)
        found = in_parallel([partial(self._asked, example, body) for example, body in bodies], at_once=AT_ONCE)
        return [score for scores in found for score in scores]

    def _asked(self, example: Example, body: dict[str, Any]) -> list[float]:
        try:
            scores, version = self._server.ask(
                "/v1/score", body, read=partial(self._read, count=len(body["completions"]))
            )
        except Refused as refused:
            place = f"{shown(example.row.place, 200)}: " if example.row and example.row.place else ""
            raise RewardError(f"{place}{refused}", remedy="reward-refused") from refused
        if version != self._version:
            raise RewardError(
                f"{self._server.who}: {self._role} had the weights {self._version} and now has {shown(version, 40)}",
                remedy="reward-exchanged",
            )
        return scores

    def _read(self, answer: Any, *, count: int) -> tuple[list[float], str]:
        """The scores of an answer and the version of the weights."""
        try:
            data, version = answer["data"], answer["version"]
            items = sorted(data, key=lambda item: item["index"])
            in_place = [item["index"] for item in items] == list(range(count))
        except (LookupError, TypeError):
            raise Unusable(f"no scores with the version of their weights: {shown(answer, 100)}") from None
        if not in_place or not isinstance(version, str):
            raise Unusable(
                f"{number_of(len(items), 'score')} for {number_of(count, 'completion')}, or no version: "
                f"{shown(answer, 100)}"
            )
        if self._normalize and any(item.get("normalised", 0) is None for item in items):
            raise ModelError(
                f"{self._server.who}: {self._role} has no held-out scores to normalise by", remedy="no-held-out-scores"
            )
        scores = [item.get("normalised" if self._normalize else "score") for item in items]
        for score in scores:
            if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
                raise Unusable(f"a score that is not a finite number: {shown(repr(score), 60)}")
        return [float(score) for score in scores], version


def body_of(example: Example, prompt: str) -> dict[str, Any]:
    """How a prompt is sent: a conversation as messages, a text as it stands.

    Raises:
        DataError: the row has tools or calls.
    """
    row = example.row
    if row is None or not row.messages:
        return {"prompt": prompt}
    if row.tools or any(turn.tool_calls or turn.role == "tool" for turn in row.messages):
        raise DataError(
            f"{shown(row.place, 200)}: a reward elsewhere is sent plain turns, and this row has tools or calls",
            remedy="reward-without-tools",
        )
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in row.messages]}


def _reward_names(answer: Any) -> Sequence[str]:
    names = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unusable(f"no list of reward roles: {shown(answer, 100)}")
    return names
