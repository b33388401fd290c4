"""Draws with a vLLM server, through its OpenAI completions API with token ids (tried with vLLM 0.32).

Every setting of the draw is sent, as vLLM takes what is left out from the model's generation_config.json. A prompt is
one request with its first completion's seed, from which vLLM derives the others' (seed + k). A seed gives the same
tokens only as long as the server computes the same bits, which it does not promise where batches differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onebase.asking import Elsewhere, Refused, Unusable, in_parallel
from onebase.sampling.sampler import Sample, Sampling
from onebase.shown import number_of, shown

AT_ONCE = 64
"""Requests under way at once; vLLM batches them as they come."""
LIKELIEST = 8
"""Tokens whose log-probs are asked for at a place."""
PLAIN = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The distribution as it is, whatever the model's generation_config.json says."""


class VLLM:
    """A vLLM server (implements `elsewhere.AdapterServer`).

    Args:
        url: where it answers, before `/v1`.
        key: its API key.
        seconds: how long one answer may take.
    """

    def __init__(self, url: str, *, key: str | None = None, seconds: float = 600.0) -> None:
        self._server = Elsewhere(url, who="vLLM", key=key, seconds=seconds, remedy="engine-unanswered")
        self.where = self._server.who

    def answers(self) -> bool:
        """Whether it answers now; asked while it starts."""
        return self._server.ask("/health", read=lambda answer: True, seconds=5.0, waits=())

    def models(self) -> list[str]:
        """The names that it answers to, the base's first."""

        def read(answer: Any) -> list[str]:
            try:
                return [str(item["id"]) for item in sorted(answer["data"], key=lambda item: item["parent"] is not None)]
            except (LookupError, TypeError):
                raise Unusable(f"no list of models: {shown(answer, 100)}") from None

        return self._server.ask("/v1/models", read=read)

    def load(self, name: str, folder: Path) -> None:
        """Has it take the adapter in this folder."""
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        try:
            self._server.ask("/v1/load_lora_adapter", body, read=str)
        except Refused:  # the second try may find what the first did, when only its answer was lost
            if name not in self.models():
                raise

    def unload(self, name: str) -> None:
        """Has it forget an adapter."""
        try:
            self._server.ask("/v1/unload_lora_adapter", {"lora_name": name}, read=str)
        except Refused:
            if name in self.models():
                raise

    def draw(
        self,
        model: str,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples_per_prompt: int,
    ) -> list[Sample]:
        """Draws K completions of every prompt; a prompt without an answer has the whole draw fail."""
        settings = PLAIN | {
            "model": model,
            "n": samples_per_prompt,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(sampling.stop_ids),
            "ignore_eos": True,  # `stop_ids` has every token that ends a completion, and the model's settings may not
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }

        def one(place: int) -> list[Sample]:
            body = settings | {"prompt": list(prompts[place]), "seed": seeds[place * samples_per_prompt]}
            read = partial(_samples, place=place, asked=body, sampling=sampling)
            return self._server.ask("/v1/completions", body, read=read)

        of_prompts = in_parallel([partial(one, place) for place in range(len(prompts))], at_once=AT_ONCE)
        return [sample for samples in of_prompts for sample in samples]

    def likeliest(self, model: str, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """The likeliest next tokens after each prompt, with their log-probs at temperature 1.

        Not by `prompt_logprobs`: with several requests under way and an adapter in one, that ends vLLM 0.32 on a CPU.
        """
        settings = PLAIN | {
            "model": model,
            "temperature": 1.0,
            "max_tokens": 1,
            "logprobs": LIKELIEST,
            "return_tokens_as_token_ids": True,
            "ignore_eos": True,
        }

        def one(prompt: Sequence[int]) -> dict[int, float]:
            read = partial(_likeliest, model=model)
            return self._server.ask("/v1/completions", settings | {"prompt": list(prompt)}, read=read)

        return in_parallel([partial(one, prompt) for prompt in prompts], at_once=AT_ONCE)


def _samples(answer: Any, *, place: int, asked: dict[str, Any], sampling: Sampling) -> list[Sample]:
    """The completions of one prompt."""
    _require_model(answer, asked["model"])
    try:
        choices = {choice["index"]: choice for choice in answer["choices"]}
        found = []
        for k in range(asked["n"]):
            choice = choices[k]
            ids = [int(i) for i in choice["token_ids"]]
            logprobs = [float(p) for p in choice["logprobs"]["token_logprobs"]]
            if list(choice.get("prompt_token_ids") or asked["prompt"]) != asked["prompt"]:
                raise Unusable("an answer to another prompt")
            found.append(Sample(place, ids, logprobs, bool(ids) and ids[-1] in sampling.stop_ids))
            reason = choice["finish_reason"]
    except (LookupError, TypeError, ValueError):
        raise Unusable(f"no completions with token ids and log-probs: {shown(answer, 100)}") from None
    for sample in found:
        if not sample.ids or len(sample.ids) != len(sample.logprobs) or len(sample.ids) > sampling.max_new_tokens:
            raise Unusable(
                f"a completion of {number_of(len(sample.ids), 'token')} with {len(sample.logprobs)} log-probs"
            )
        if not all(math.isfinite(p) and p <= 1e-3 for p in sample.logprobs):
            raise Unusable("a log-prob that is not a finite number of at most 0")
        if not sample.ended and len(sample.ids) < sampling.max_new_tokens:
            raise Unusable(
                f"a completion of {number_of(len(sample.ids), 'token')} without an end ({shown(reason, 40)})"
            )
    return found


def _likeliest(answer: Any, *, model: str) -> dict[int, float]:
    """The tokens and log-probs of an answer's only place."""
    _require_model(answer, model)
    try:
        (place,) = answer["choices"][0]["logprobs"]["top_logprobs"]
        found = {int(token.removeprefix("token_id:")): float(logprob) for token, logprob in place.items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise Unusable(f"no log-probs of token ids: {shown(answer, 100)}") from None
    if not found or not all(map(math.isfinite, found.values())):
        raise Unusable("no tokens, or a log-prob that is not a finite number")
    return found


def _require_model(answer: Any, model: str) -> None:
    named = answer.get("model") if isinstance(answer, dict) else None
    if named != model:
        raise Unusable(f"an answer of the model {shown(repr(named), 80)}, and {model!r} was asked")
