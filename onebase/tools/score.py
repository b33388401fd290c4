"""`onebase score`: scores every answer in a file with a reward role, as JSON lines.

Rows are scored a block at a time, here or by actors on a Ray cluster: whoever computes a block computes the same. The
file is read three times, to check its rows, to score and to print them, so that it need not fit into memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onebase.data.fit import Limits
from onebase.data.prepare import encode_rows
from onebase.data.selection import unusable_prompt
from onebase.distributed.ray_actors import cluster_of
from onebase.engines.budget import TokenBudget, find_token_budget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import per_completion
from onebase.errors import DataError
from onebase.models.role_card import read_card
from onebase.recipes.setup.saved import open_saved
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import json_shown, number_of
from onebase.tools.blocks import Computing, KeptBlocks, RowBlocks, digest_of, fingerprint_of


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
    """What was found of a block: a line for each row, and what was said about the rows."""

    lines: list[str]
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LinesOf:
    """Opens what makes a block's lines."""

    scoring: Scoring
    rank: bool

    def __call__(self) -> Callable[[Sequence[Row]], Scored]:
        scorer = self.scoring()

        def lines(rows: Sequence[Row]) -> Scored:
            scores, told = scorer(rows)
            return Scored([line_of(row, own, self.rank) for row, own in zip(rows, scores, strict=True)], told)

        return lines


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

    def __call__(self, rows: Sequence[Row]) -> tuple[list[list[float]], list[str]]:
        """The scores of each row's answers, and what was said about the rows."""
        base, told = self._base, list[str]()
        examples = encode_rows(rows, self._chat, Limits(base.context_length, tell=told.append))
        tokens = self._tokens or find_token_budget(base, "reward", longest=max(e.num_tokens for e in examples))
        scores = per_completion(
            base, examples, lambda batch: completion_scores(base, batch, role="reward"), budget=TokenBudget(tokens)
        )
        return [score.tolist() for score in scores], told


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
    blocks = RowBlocks((str(file),), columns)
    digests = [digest_of([_checked(row) for row in block]) for block in blocks]
    scoring = Scoring(role, model, microbatch_tokens, dtype, quantization, device)
    job = {"role": fingerprint_of(Path(role)), "rank": rank, "model": model, "microbatch_tokens": microbatch_tokens}
    job |= {"dtype": dtype, "quantization": quantization}
    with tempfile.TemporaryDirectory(prefix="onebase-") as temporary:
        kept = KeptBlocks(output or Path(temporary), digests, job)
        missing = kept.missing()
        if len(missing) < len(digests):
            say(f"score: {len(digests) - len(missing)} of {len(digests)} blocks are there already")
        found = Computing(blocks, LinesOf(scoring, rank)).over(digests, missing, cluster_of(ray, actors, device=device))
        for done, (number, scored) in enumerate(found, start=1):
            kept.keep(number, scored.lines)
            for text in scored.told:
                say(f"score: {text}" if len(digests) == 1 else f"score: block {number + 1}: {text}")
            if len(missing) > 1:
                say(f"score  {done}/{number_of(len(missing), 'block')}")
        _report(_printed(blocks, kept), role)


def _checked(row: Row) -> Row:
    if reason := unusable_prompt(row):
        raise DataError(f"{row.place}: {reason}; correct the row")
    if not row.answers:
        raise DataError(
            f"{row.place}: the row has no answer to score; give it 'completion', 'chosen' and "
            "'rejected', or 'output' with one answer or a list"
        )
    return row


def line_of(row: Row, scores: Sequence[float], rank: bool) -> str:
    """A row's line, as JSON."""
    numbers = [round(score, 6) for score in scores]
    line: dict[str, object] = {"row": row.place}
    line |= {"score": numbers[0]} if len(numbers) == 1 else {"scores": numbers}
    if rank:
        order = sorted(range(len(numbers)), key=lambda k: -numbers[k])
        line["ranking"] = [{"answer": k, "score": numbers[k], "text": row.answer(k).text} for k in order]
    return json_shown(line)


def _printed(blocks: RowBlocks, kept: KeptBlocks) -> Iterator[tuple[Row, list[float]]]:
    """Prints all lines in the rows' order; yields each row with its scores as printed."""
    for number, block in enumerate(blocks):
        text = kept.text(number)
        print(text, end="")
        for row, line in zip(block, text.split("\n")[:-1], strict=True):
            read = json.loads(line)
            yield row, read["scores"] if "scores" in read else [read["score"]]


def _report(scored: Iterable[tuple[Row, list[float]]], role: str) -> None:
    total, count = 0.0, 0

    def graded() -> Iterator[tuple[Sequence[float] | None, list[float]]]:
        nonlocal total, count
        for row, scores in scored:
            total, count = total + sum(scores), count + len(scores)
            yield row.grades, scores

    if told := agreement(graded()):
        say(told)
    card = read_card(Path(role))
    if card.score_mean is not None and card.score_std is not None:
        say(
            f"{number_of(count, 'answer')}, mean {total / count:.3f}; on held-out data the role had "
            f"mean {card.score_mean:.3f}, deviation {card.score_std:.3f}"
        )


def agreement(rows: Iterable[tuple[Sequence[float] | None, Sequence[float]]]) -> str:
    """Says how often a better answer scores above a worse one in its row; "" if there is nothing to compare.

    Args:
        rows: grades and scores of the answers. Tied scores count half; equal grades are not compared.
    """
    right, comparisons, compared = 0.0, 0, 0
    for grades, scores in rows:
        if grades is None:
            continue
        compared += len(set(grades)) > 1
        for i, better in enumerate(scores):
            for k, worse in enumerate(scores):
                if grades[i] > grades[k]:
                    right += 0.5 if worse == better else float(better > worse)
                    comparisons += 1
    if not comparisons:
        return ""
    counts = f"{number_of(comparisons, 'comparison')}, {number_of(compared, 'row')}"
    return f"accuracy {right / comparisons:.3f}: the better answer scores higher ({counts})"
