"""`onebase score`: scores every answer in a file with a reward role, as JSON lines.

Rows are scored a block at a time, here or by actors on a Ray cluster: whoever computes a block computes the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from onebase.data.fit import Limits
from onebase.data.prepare import encode_rows
from onebase.data.selection import unusable_prompt
from onebase.engines.budget import TokenBudget, find_token_budget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import per_completion
from onebase.errors import DataError
from onebase.models.role_card import read_card
from onebase.reading.formats import read_rows
from onebase.recipes.setup.saved import open_saved
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import json_shown, number_of
from onebase.tools.blocks import KeptBlocks, blocks_of, fingerprint_of
from onebase.tools.ray_actors import Cluster, over_blocks


@dataclass(frozen=True)
class Scoring:
    """How answers are scored: the role, and its base as it is loaded. Opened by whoever calls it."""

    role: str
    model: str | None
    microbatch_tokens: int | None
    dtype: str | None = None
    quantization: str | None = None
    device: str = "auto"

    def __call__(self) -> Scorer:
        return Scorer(self)


@dataclass(slots=True)
class Scored:
    """The scores of a block's answers, row by row, and what was said about the rows."""

    scores: list[list[float]]
    told: list[str] = field(default_factory=list)


class Scorer:
    """The role on its base, ready to score blocks of rows."""

    def __init__(self, scoring: Scoring) -> None:
        self._tokens = scoring.microbatch_tokens
        self._base, self._chat = open_saved(
            {"reward": (scoring.role, ("reward",))},
            model=scoring.model,
            dtype=scoring.dtype,
            quantization=scoring.quantization,
            device=scoring.device,
        )

    def __call__(self, rows: Sequence[Row]) -> Scored:
        base, told = self._base, list[str]()
        examples = encode_rows(rows, self._chat, Limits(base.context_length, tell=told.append))
        tokens = self._tokens or find_token_budget(base, "reward", longest=max(e.num_tokens for e in examples))
        scores = per_completion(
            base, examples, lambda batch: completion_scores(base, batch, role="reward"), budget=TokenBudget(tokens)
        )
        return Scored([score.tolist() for score in scores], told)


def run(
    *,
    role: str,
    file: Path,
    rank: bool,
    columns: Mapping[str, str] | None = None,
    model: str | None,
    microbatch_tokens: int | None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
    output: Path | None = None,
    ray: str | None = None,
    actors: int = 1,
) -> None:
    """Prints a line per row: `score` for one answer, `scores` for several, and with `rank` the answers from best to
    worst. Prints to stderr how often the scores agree with the rows' own grades.

    Args:
        output: a folder for finished blocks, which a later call goes on from.
        ray: address of a Ray cluster, or `local`, whose actors score; None scores in this process.

    Raises:
        DataError: a row has no answer.
        ConfigError: `output` holds the blocks of something else.
    """
    rows = read_rows(file, columns=columns)
    for row in rows:
        if reason := unusable_prompt(row):
            raise DataError(f"{row.place}: {reason}; correct the row")
        if not row.answers:
            raise DataError(
                f"{row.place}: the row has no answer to score; give it 'completion', 'chosen' and "
                "'rejected', or 'output' with one answer or a list"
            )
    blocks = blocks_of(rows)
    scoring = Scoring(role, model, microbatch_tokens, dtype, quantization, device)
    job = {"rank": rank, "model": model, "microbatch_tokens": microbatch_tokens}
    job |= {"dtype": dtype, "quantization": quantization}
    kept = KeptBlocks(output, blocks, {"role": fingerprint_of(Path(role)), **job} if output else job)
    missing = kept.missing()
    if len(missing) < len(blocks):
        say(f"score: {len(blocks) - len(missing)} of {len(blocks)} blocks are there already")
    found: Iterator[tuple[int, Scored]] = iter(())
    if ray is not None and missing:
        threads, gpus = torch.get_num_threads(), device.startswith("cuda")
        found = over_blocks([(n, blocks[n]) for n in missing], scoring, Cluster(ray, actors, threads, gpus))
    elif missing:
        scorer = scoring()
        found = ((n, scorer(blocks[n])) for n in missing)
    for done, (number, scored) in enumerate(found, start=1):
        kept.keep(number, [line_of(row, own, rank) for row, own in zip(blocks[number], scored.scores, strict=True)])
        for text in scored.told:
            say(f"score: {text}" if len(blocks) == 1 else f"score: block {number + 1}: {text}")
        if len(missing) > 1:
            say(f"score  {done}/{len(missing)} blocks")
    _report([(row.grades, own) for row, own in _printed(blocks, kept)], role)


def line_of(row: Row, scores: Sequence[float], rank: bool) -> str:
    """A row's line, as JSON."""
    numbers = [round(score, 6) for score in scores]
    line: dict[str, object] = {"row": row.place}
    line |= {"score": numbers[0]} if len(numbers) == 1 else {"scores": numbers}
    if rank:
        order = sorted(range(len(numbers)), key=lambda k: -numbers[k])
        line["ranking"] = [{"answer": k, "score": numbers[k], "text": row.answer(k).text} for k in order]
    return json_shown(line)


def _printed(blocks: Sequence[Sequence[Row]], kept: KeptBlocks) -> Iterator[tuple[Row, list[float]]]:
    """Prints all lines in the rows' order; yields each row with its scores as printed."""
    for number, block in enumerate(blocks):
        text = kept.text(number)
        print(text, end="")
        for row, line in zip(block, text.split("\n")[:-1], strict=True):
            read = json.loads(line)
            yield row, read["scores"] if "scores" in read else [read["score"]]


def _report(scored: Sequence[tuple[Sequence[float] | None, Sequence[float]]], role: str) -> None:
    if told := agreement(scored):
        say(told)
    card = read_card(Path(role))
    every = [score for _, scores in scored for score in scores]
    if card.score_mean is not None and card.score_std is not None:
        say(
            f"{number_of(len(every), 'answer')}, mean {sum(every) / len(every):.3f}; on held-out data the role had "
            f"mean {card.score_mean:.3f}, deviation {card.score_std:.3f}"
        )


def agreement(rows: Sequence[tuple[Sequence[float] | None, Sequence[float]]]) -> str:
    """Says how often a better answer scores above a worse one in its row; "" if there is nothing to compare.

    Args:
        rows: grades and scores of the answers. Tied scores count half; equal grades are not compared.
    """
    rights = [
        0.5 if worse == better else float(better > worse)
        for grades, scores in rows
        if grades is not None
        for i, better in enumerate(scores)
        for k, worse in enumerate(scores)
        if grades[i] > grades[k]
    ]
    compared = sum(1 for grades, _ in rows if grades is not None and len(set(grades)) > 1)
    if not rights:
        return ""
    share = sum(rights) / len(rights)
    counts = f"{number_of(len(rights), 'comparison')}, {number_of(compared, 'row')}"
    return f"accuracy {share:.3f}: the better answer scores higher ({counts})"
