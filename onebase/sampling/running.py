"""A running batch: samples of one role decoded together; between two steps some leave and others join.

Each row has its own settings and its own random numbers, one per token, which are known before it starts. What else is
in the batch, and when the row joined, therefore never changes its sample (beyond the last bits of the logits, which
matter only where a random number falls that close to the border between two tokens).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onebase.engines.engine import engine_of
from onebase.engines.output_layer import adjust_logits, final_logits
from onebase.models.base import OneBase
from onebase.sampling.drawing import draw
from onebase.sampling.sampler import Sample, Sampling
from onebase.transfer import to_device

STEPS_AT_ONCE = {"cuda": 8}
"""Tokens drawn before the host looks at them: reading them makes a GPU wait, and a CPU is never ahead."""
SHARE_OF_FREE_MEMORY = 0.4
"""Share of the free memory used for keys and values, those of all batches together."""

Tops = list[tuple[int, float]]
"""The likeliest tokens at one place with their log-probs, best first."""


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """A prompt that joins, with a row for each sample to draw."""

    prompt: Sequence[int]
    samples: Sequence[Sample]
    """Filled token by token."""
    randoms: Tensor
    """`[samples, max_new_tokens]` in [0, 1), on the CPU (`drawing.random_numbers`)."""
    sampling: Sampling
    tops: int | None = None
    """How many of the likeliest tokens to tell of at every place; None: nothing is told."""


@dataclass(slots=True, eq=False)
class Row:
    """A sample being drawn."""

    sample: Sample
    sampling: Sampling
    numbers: list[float]
    tops: int | None = None
    plain_logprobs: list[float] = field(default_factory=list)
    """One per token, at temperature 1, if `tops` is given."""
    likeliest: list[Tops] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        """Tokens up to the length limit."""
        return self.sampling.max_new_tokens - len(self.sample.ids)

    @property
    def is_over(self) -> bool:
        return self.sample.ended or self.num_left <= 0


class RunningBatch:
    """Decodes with the base run as `role`, which has to be in force (`base.role`) whenever this is called.

    Args:
        max_rows: most rows at once.
        max_length: most tokens of a row, its prompt included.
    """

    def __init__(self, base: OneBase, role: str, *, max_rows: int, max_length: int) -> None:
        self.rows: list[Row] = []
        self._decoding = engine_of(base, role).decode(max_slots=max_rows, max_length=max_length)
        self._head, self._final = base.model.get_output_embeddings(), final_logits(base.model)
        self._ids = torch.zeros(0, dtype=torch.long, device=base.device)
        """The last token of each row."""

    @property
    def device(self) -> torch.device:
        return self._ids.device

    def admit(self, entrants: Sequence[Entrant]) -> list[Row]:
        """Reads prompts, each with as many samples as the others, and draws the first token of every sample.

        Returns:
            The new rows, those that are over already included.
        """
        new = [
            Row(sample, entrant.sampling, numbers, entrant.tops)
            for entrant in entrants
            for sample, numbers in zip(entrant.samples, entrant.randoms.tolist(), strict=True)
        ]
        hidden = self._decoding.prefill([entrant.prompt for entrant in entrants], len(entrants[0].samples))
        drawn = _Drawn(new, self.device)
        drawn.add(self._logits(hidden))
        self._note(new, drawn)
        self.rows, self._ids = self.rows + new, torch.cat([self._ids, drawn.last])
        self._leave([row for row in new if row.is_over])
        return new

    def step(self, at_once: int | None = None) -> list[Row]:
        """Draws the next tokens of every row, up to `at_once` (None: as many as suit the device).

        A row that ends on the way draws on, and what it draws is dropped: that costs less than waiting for the device
        after every token.

        Returns:
            The rows that drew, those that are over now included.
        """
        rows, at_once = self.rows, at_once or STEPS_AT_ONCE.get(self.device.type, 1)
        drawn = _Drawn(rows, self.device, min(at_once, *(row.num_left for row in rows)))
        drawn.last = self._ids
        for _ in range(drawn.steps):
            drawn.add(self._logits(self._decoding.step(drawn.last)))
        self._ids = drawn.last
        self._note(rows, drawn)
        self._leave([row for row in rows if row.is_over])
        return rows

    def drop(self, rows: Collection[Row]) -> None:
        """Takes rows out before they are over; those that have left already are no matter."""
        self._leave(rows)

    def _leave(self, rows: Collection[Row]) -> None:
        leaving = set(rows)
        keep = [slot for slot, row in enumerate(self.rows) if row not in leaving]
        if len(keep) < len(self.rows):
            self.rows = [self.rows[slot] for slot in keep]
            self._ids = self._ids[to_device(torch.tensor(keep, dtype=torch.long), self.device)]
            self._decoding.keep(keep)

    def _logits(self, hidden: Tensor) -> Tensor:
        return adjust_logits(self._head(hidden).float(), self._final)

    def _note(self, rows: Sequence[Row], drawn: _Drawn) -> None:
        """Appends the tokens drawn for these rows, step by step, up to the end of each. Waits for the device."""
        for step, (ids, of_ids) in enumerate(
            zip(torch.stack(drawn.ids).cpu().tolist(), torch.stack(drawn.logprobs).cpu().tolist(), strict=True)
        ):
            for slot, (row, token, logprob) in enumerate(zip(rows, ids, of_ids, strict=True)):
                if row.is_over:
                    continue
                row.sample.ids.append(token)
                row.sample.logprobs.append(logprob)
                row.sample.ended = token in row.sampling.stop_ids
                if row.tops is not None:
                    drawn.tell(row, slot, step)


class _Drawn:
    """The tokens drawn for some rows in one or more steps, still on the device."""

    def __init__(self, rows: Sequence[Row], device: torch.device, steps: int = 1) -> None:
        self.steps = steps
        self.last = torch.zeros(0, dtype=torch.long, device=device)
        self.ids: list[Tensor] = []
        self.logprobs: list[Tensor] = []
        numbers = [row.numbers[len(row.sample.ids) :][:steps] for row in rows]
        self._numbers = to_device(torch.tensor(numbers, dtype=torch.float32), device)
        self._groups = _groups(rows, device)
        self._told = {slot: i for i, slot in enumerate(s for s, row in enumerate(rows) if row.tops is not None)}
        self._most_told = max((row.tops or 0 for row in rows), default=0)
        self._plain: list[tuple[Tensor, Tensor, Tensor]] = []
        self._read: list[tuple[list[float], list[list[float]], list[list[int]]]] = []

    def add(self, logits: Tensor) -> None:
        """Draws every row's next token from `logits [B, V]`, by its next random number."""
        numbers = self._numbers[:, len(self.ids)]
        if len(self._groups) == 1:
            ids, logprobs = draw(logits, numbers, self._groups[0][0])
        else:
            ids = torch.empty(len(logits), dtype=torch.long, device=logits.device)
            logprobs = torch.empty(len(logits), device=logits.device)
            for sampling, slots in self._groups:
                ids[slots], logprobs[slots] = draw(logits[slots], numbers[slots], sampling)
        if self._told:
            slots = to_device(torch.tensor(list(self._told)), logits.device)
            plain = logits[slots].log_softmax(-1)
            values, tokens = plain.topk(min(self._most_told, plain.shape[-1]), dim=-1)
            self._plain.append((plain.gather(-1, ids[slots][:, None]).squeeze(-1), values, tokens))
        self.ids.append(ids)
        self.logprobs.append(logprobs)
        self.last = ids

    def tell(self, row: Row, slot: int, step: int) -> None:
        """Appends what the model itself gave the token of this step, and the likeliest tokens there."""
        if not self._read:
            self._read = [(a.tolist(), b.tolist(), c.tolist()) for a, b, c in self._plain]
        chosen, values, tokens = self._read[step]
        i = self._told[slot]
        row.plain_logprobs.append(chosen[i])
        row.likeliest.append(list(zip(tokens[i], values[i], strict=True))[: row.tops])


def _groups(rows: Sequence[Row], device: torch.device) -> list[tuple[Sampling, Tensor]]:
    """The rows' slots by how their tokens are drawn.

    Drawing group by group, not with a vector per setting, gives each row what it would get alone, to the bit, and sorts
    the vocabulary only for the rows that ask for top-p.
    """
    slots: dict[tuple[float, int, float], list[int]] = {}
    for slot, row in enumerate(rows):
        slots.setdefault((row.sampling.temperature, row.sampling.top_k, row.sampling.top_p), []).append(slot)
    if len(slots) == 1:
        return [(rows[0].sampling, torch.empty(0))]
    return [(rows[some[0]].sampling, to_device(torch.tensor(some), device)) for some in slots.values()]


def bytes_beside_keys(base: OneBase) -> int:
    """Bytes a row takes while its token is drawn: logits and log-probs in float32, the distribution in float64."""
    return 32 * int(base.model.config.get_text_config().vocab_size)
