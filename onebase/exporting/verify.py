"""Compares a role on its base with the plain model written from it: log-probs of texts, greedy answers, scores.

The role is run by our engines, the written folder by transformers alone, so a fault in either shows.

Limits depend on the number format the model is written in. In float32 the two differ by the order of their sums, 1e-6
nats per token. In 16 bits every merged weight is rounded once, and so is every product; over the layers that adds up to
hundredths of a nat in bfloat16. A limit is several times what correct merges were measured to give, and below what a
wrong one does: an adapter that is lost, doubled or put into another layer moves log-probs by as much as the role itself
does, mostly tenths of nats. A role that changes less than the limit cannot be told from its base, and a line says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from onebase.data.chat import ChatFormat
from onebase.engines.forward import completion_scores, token_logprobs
from onebase.engines.passes import lay_out
from onebase.models.base import OneBase
from onebase.records import Example, Message, Row
from onebase.sampling.local import generate, stop_ids
from onebase.sampling.sampler import Sampling
from onebase.shown import number_of

PROBES = (
    ("Hello!", "Hello! How can I help you today?"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write one sentence about the sea.", "The sea is never the same colour twice."),
    ("请用一句话介绍你自己。", "我是一个语言模型。"),
    ("Compute 17 + 25.", "17 + 25 = 42"),
    ("def fibonacci(n):", "    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)"),
    ("List three fruits.", "1. Apples\n2. Pears\n3. Plums"),
    ("Explain to a child why the sky is blue.", "The air scatters blue light more than red light."),
)
"""Questions of several kinds, each with an answer whose log-probs are compared too."""
NEW_TOKENS = 32
"""Length of a greedy answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far apart a role and the model written from it may be."""

    logprob: float
    """Mean absolute difference of log-probs, in nats per token."""
    gap: float
    """Nats by which one prefers its own token where two greedy answers part."""
    score: float
    """Absolute difference of two scores, relative to the largest score if that is above 1."""


LIMITS = {
    torch.float32: Limits(logprob=1e-4, gap=1e-3, score=1e-4),
    torch.float16: Limits(logprob=0.01, gap=0.1, score=0.02),
    torch.bfloat16: Limits(logprob=0.05, gap=0.5, score=0.1),
}
"""Correct merges of the tiny models in the tests give log-probs 4e-7, 0.001 and 0.006 to 0.016 apart."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a policy says on the probes."""

    examples: list[Example]
    """Per probe: the prompt, with the greedy answer and the probe's own."""
    logprobs: Tensor
    """Of all tokens of these answers, end to end, `[M]`."""
    new_tokens: int
    """The longest that a greedy answer may be."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a written model is from the role it was made from."""

    logprob: float
    """Mean absolute difference of log-probs, in nats per token."""
    largest: float
    """The largest of them."""
    same: int
    """Greedy answers that are the same."""
    answers: int
    gap: float
    """The most nats by which the written model prefers its own token where two greedy answers part."""

    def __str__(self) -> str:
        return (
            f"log-probs differ by {self.logprob:.2g} nats per token on average (at most {self.largest:.2g}), and "
            f"{self.same} of {self.answers} greedy answers are the same"
        )

    def problem(self, dtype: torch.dtype) -> str:
        """Why this is not the same model; empty if it is. A difference that is not a number is a problem."""
        limits = LIMITS[dtype]
        if not self.logprob <= limits.logprob:
            return f"log-probs may differ by {limits.logprob:g} nats on average in {name_of(dtype)}"
        if not self.gap <= limits.gap:
            return (
                f"where they part, the merged model prefers its own token by {self.gap:.2g} nats, and "
                f"{limits.gap:g} is the limit in {name_of(dtype)}"
            )
        return ""


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """How far a written classifier is from the reward role it was made from."""

    largest: float
    scale: float
    """The largest score, at least 1."""
    answers: int

    def __str__(self) -> str:
        return (
            f"scores of {number_of(self.answers, 'answer')} differ by at most {self.largest:.2g} (the largest is "
            f"{self.scale:.2g})"
        )

    def problem(self, dtype: torch.dtype) -> str:
        """Why these are not the same scores; empty if they are."""
        limit = LIMITS[dtype].score * self.scale
        return "" if self.largest <= limit else f"scores may differ by {limit:.2g} in {name_of(dtype)}"


def name_of(dtype: torch.dtype) -> str:
    """A number format's name: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------ policies


def probes(chat: ChatFormat, context: int) -> list[Example]:
    """The probes in tokens, cut to fit a short context."""
    found = []
    for question, answer in PROBES:
        row = Row((Message("user", question),), (answer,)) if chat.template else Row((), (f"{question} {answer}",))
        example = chat.encode_example(row)
        prompt, completion = list(example.prompt_ids), list(example.completions[0])
        if not chat.template:  # plain text is all completion: what stands first is the prompt
            prompt, completion = [*prompt, *completion[: len(completion) // 2]], completion[len(completion) // 2 :]
        found.append(Example(prompt[-(context // 2) :], [completion[: context // 4]]))
    return found


def what_role_says(base: OneBase, role: str, chat: ChatFormat, *, on: Sequence[Example] | None = None) -> Said:
    """Greedy answers of a role, and its log-probs of them and of the probes' answers.

    Args:
        on: the examples of another `Said`, to measure the same texts instead of its own answers.
    """
    if on is None:
        plain = probes(chat, base.context_length)
        answers = greedy_of_role(base, role, chat, plain)
        on = [replace(each, completions=[ids, *each.completions]) for each, ids in zip(plain, answers, strict=True)]
    return Said(list(on), logprobs_of_role(base, role, on), most_new_tokens(base))


def most_new_tokens(base: OneBase) -> int:
    """Tokens of a greedy answer: fewer if the context is short."""
    return min(NEW_TOKENS, base.context_length // 4)


def greedy_of_role(base: OneBase, role: str, chat: ChatFormat, examples: Sequence[Example]) -> list[list[int]]:
    """The role's greedy answer to each example's prompt, with its end token if it ended."""
    sampling = Sampling(most_new_tokens(base), temperature=0, stop_ids=stop_ids(base, [chat.end_token_id]))
    prompts = [example.prompt_ids for example in examples]
    return [sample.ids for sample in generate(base, prompts, role=role, sampling=sampling, seeds=[0] * len(prompts))]


@torch.no_grad()
def logprobs_of_role(base: OneBase, role: str, examples: Sequence[Example]) -> Tensor:
    """The role's log-probs of all completions' tokens, end to end: `[M]` on the CPU."""
    return torch.cat([token_logprobs(base, lay_out(base, [each]), role=role).float().cpu() for each in examples])


@torch.no_grad()
def what_model_says(model: PreTrainedModel, said: Said) -> tuple[Tensor, list[list[int]]]:
    """A plain model's log-probs of the same texts `[M]`, and its own greedy answers by its own end tokens."""
    logprobs, answers = [], []
    called: Any = model
    for example in said.examples:
        for k, completion in enumerate(example.completions):
            ids = torch.tensor([example.tokens(k)], device=model.device)
            every = called(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float().log_softmax(-1)
            logprobs.append(every.gather(-1, ids[0, 1:, None])[-len(completion) :, 0].cpu())
        prompt = torch.tensor([list(example.prompt_ids)], device=model.device)
        answered = called.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=said.new_tokens,
            do_sample=False,
            repetition_penalty=1.0,  # the base's own settings may ask for one, and the role answered without
            pad_token_id=model.config.pad_token_id or 0,
        )
        answers.append(answered[0, prompt.shape[1] :].tolist())
    return torch.cat(logprobs), answers


def compare_policies(
    model: PreTrainedModel, said: Said, logprobs: Tensor, answers: Sequence[Sequence[int]]
) -> Difference:
    """How far a written model, which says this, is from the role."""
    gap, same = 0.0, 0
    for example, other in zip(said.examples, answers, strict=True):
        own = list(example.completions[0])
        same += own == list(other)
        gap = gap if own == list(other) else max(gap, _gap(model, example.prompt_ids, own, other))
    return Difference(*_sizes(said.logprobs - logprobs), same, len(answers), gap)


def effect(base: OneBase, said: Said) -> float:
    """How far the role moves log-probs away from the base, on average: what a lost adapter would cost."""
    if "base" not in base.roles:
        base.add_role("base")
    return _sizes(said.logprobs - logprobs_of_role(base, "base", said.examples))[0]


def too_little(moved: float, dtype: torch.dtype) -> list[str]:
    """A line for a role that moves log-probs no more than rounding may; none for any other."""
    if moved > LIMITS[dtype].logprob:
        return []
    return [
        f"the role moves log-probs by only {moved:.2g} nats per token, as rounding in {name_of(dtype)} may too: this "
        "check cannot tell it from its base"
    ]


def _sizes(difference: Tensor) -> tuple[float, float]:
    return float(difference.abs().mean()), float(difference.abs().max())


@torch.no_grad()
def _gap(model: PreTrainedModel, prompt: Sequence[int], own: Sequence[int], other: Sequence[int]) -> float:
    """Where two answers part: the nats by which the model prefers its token. Infinite if one answer ends before."""
    place = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
    if place is None:
        return float("inf")
    called: Any = model
    ids = torch.tensor([[*prompt, *own[:place]]], device=model.device)
    logits = called(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].float()
    return float(logits[other[place]] - logits[own[place]])


# ------------------------------------------------------------------------------------------------- rewards


def answered(chat: ChatFormat, context: int) -> list[Example]:
    """Every probe with its own answer and with the next one's, as a reward role reads them."""
    found = []
    for k, (question, answer) in enumerate(PROBES):
        answers = (answer, PROBES[(k + 1) % len(PROBES)][1])
        messages = (Message("user", question),) if chat.template else ()
        for each in answers:
            example = chat.encode_example(Row(messages, (each if chat.template else f"{question} {each}",)))
            completion = list(example.completions[0])
            cut = completion[: context // 2 - 1] + completion[-1:] if len(completion) > context // 2 else completion
            found.append(Example(list(example.prompt_ids)[-(context // 2) :], [cut]))
    return found


@torch.no_grad()
def scores_of_role(base: OneBase, role: str, examples: Sequence[Example]) -> Tensor:
    """The reward role's scores, `[N]` on the CPU."""
    return completion_scores(base, lay_out(base, list(examples)), role=role).float().cpu()


@torch.no_grad()
def scores_of_model(model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """A sequence classifier's scores of the same texts in one padded batch, `[N]` on the CPU."""
    rows = [example.tokens(0) for example in examples]
    width = max(map(len, rows))
    ids = torch.tensor([row + [model.config.pad_token_id] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    called: Any = model
    return called(input_ids=ids, attention_mask=mask).logits[:, 0].float().cpu()


def compare_scores(expected: Tensor, found: Tensor) -> ScoreDifference:
    """How far two tensors of scores are apart."""
    return ScoreDifference(float((expected - found).abs().max()), max(1.0, float(expected.abs().max())), len(expected))
