"""A policy's answers to a few held-out prompts, before and after training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from onebase.data.chat import ChatFormat
from onebase.evaluation.held_out import prompt_text
from onebase.files import write_atomically
from onebase.models.base import OneBase
from onebase.records import Example, Prompt
from onebase.sampling.local import generate, stop_ids
from onebase.sampling.sampler import Sampling

NUM_PROMPTS = 4
MAX_NEW_TOKENS = 64
OPENING_TOKENS = 16
"""A plain text has no prompt; the policy continues this many of its first tokens."""


def answers(base: OneBase, chat: ChatFormat, held_out: Sequence[Example], *, role: str) -> list[tuple[str, str]]:
    """The first held-out prompts that leave room for an answer, each with its greedy answer."""
    room = min(MAX_NEW_TOKENS, base.context_length // 2)
    asked = {
        tuple(ids): text
        for ids, text in (_asked(example, chat) for example in held_out)
        if len(ids) + room <= base.context_length
    }
    prompts = dict(islice(asked.items(), NUM_PROMPTS))
    sampling = Sampling(room, temperature=0, stop_ids=stop_ids(base, [chat.end_token_id]))
    samples = generate(base, list(prompts), role=role, sampling=sampling, seeds=[0] * len(prompts))
    return [(text, chat.decode(sample.ids)) for text, sample in zip(prompts.values(), samples, strict=True)]


def _asked(example: Example, chat: ChatFormat) -> tuple[list[int], str]:
    text = prompt_text(Prompt(example.prompt_ids, example.row), chat)
    if text.strip() or not example.completions:
        return list(example.prompt_ids), text
    ids = [*example.prompt_ids, *example.completions[0][:OPENING_TOKENS]]
    return ids, chat.decode(ids)


def write_answers(path: Path, before: Sequence[tuple[str, str]], after: Sequence[tuple[str, str]]) -> None:
    """Writes a JSON line per prompt, for the report; without prompts, no file."""
    lines = [
        json.dumps({"prompt": prompt, "before": {"completion": old}, "after": {"completion": new}}, ensure_ascii=False)
        for (prompt, old), (_, new) in zip(before, after, strict=True)
    ]
    if lines:
        write_atomically(path, "\n".join(lines) + "\n")
