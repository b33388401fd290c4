"""`onebase eval`: how often a policy's answers are right, checked by verifiers: pass@k and maj@k with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onebase.config.verifiers import VerifierGroup
from onebase.data.fit import Limits
from onebase.data.prepare import encode_prompts
from onebase.data.remarks import remarks
from onebase.data.selection import unusable_prompt
from onebase.engines.budget import TokenBudget
from onebase.errors import ConfigError, DataError
from onebase.evaluation.held_out import prompt_text
from onebase.evaluation.pass_rates import Judged, Rates, by_value, rates
from onebase.evaluation.tables import print_rates
from onebase.files import write_atomically
from onebase.reading.formats import read_files
from onebase.recipes.setup.saved import open_saved
from onebase.recipes.setup.verifiers import open_verifiers
from onebase.records import Prompt, RewardSource, Row, Scores
from onebase.rewards.functions import FunctionReward
from onebase.rewards.verified import VerifiedReward, Weighted, check_gold
from onebase.rollouts.collect import Rollout, collect
from onebase.runs.progress import StepProgress, say
from onebase.sampling.local import LocalSampler, stop_ids
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from onebase.shown import json_shown, number_of, shown

SAMPLES_AT_A_TIME = 256
ALL = "all"


def run(
    *,
    role: str,
    file: Path,
    verifiers: Sequence[VerifierGroup],
    samples: int,
    ks: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    limit: int | None,
    by: Sequence[str],
    seed: int,
    output: Path | None,
    as_json: bool,
    gold: str | None = None,
    columns: Mapping[str, str] | None = None,
    allow_code_execution: bool = False,
    model: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> None:
    """Samples answers to every row's prompt, verifies them, and prints the rates over all rows and by `by`.

    Args:
        gold: the column of the gold answers; None: `gold`, else `answer`, else a row's only answer.

    Raises:
        ConfigError: no verifier says whether an answer is right.
        DataError: a row is no task, has no column to split by, or a verifier does not agree with its gold answer.
    """
    parts = open_verifiers(verifiers, allow_code_execution=allow_code_execution, key="--verifier")
    if not any(getattr(part.source, "decides", False) for part in parts):
        names = ", ".join(part.source.name for part in parts)
        raise ConfigError(
            f"{names}: this says nothing about right or wrong; add a verifier of answers, such as numeric"
        )
    rows = read_tasks(file, parts, columns=columns, limit=limit, by=by, gold=gold)
    base, chat = open_saved(
        {"policy": (role, ("policy",))}, model=model, dtype=dtype, quantization=quantization, device=device
    )
    prompts = encode_prompts(
        rows,
        chat,
        Limits(base.context_length, tell=lambda line: say(f"eval: {line}")),
        max_new_tokens=max_new_tokens,
        opening_tokens=1,
    )
    reward: RewardSource = VerifiedReward(parts, gold=gold)
    sampling = Sampling(
        max_new_tokens, temperature=temperature, top_p=top_p, stop_ids=stop_ids(base, [chat.end_token_id])
    )
    seeds = sample_seeds(seed, num_prompts=len(prompts), samples_per_prompt=samples, stream="eval")
    at_a_time = max(1, SAMPLES_AT_A_TIME // samples)
    judged: list[Judged] = []
    lines: list[dict[str, Any]] = []
    with StepProgress("eval", len(prompts)) as progress:
        for start in range(0, len(prompts), at_a_time):
            part = prompts[start : start + at_a_time]
            rollout = collect(
                base,
                chat,
                part,
                sampler=LocalSampler(base, "policy"),
                sampling=sampling,
                seeds=seeds[start * samples : (start + len(part)) * samples],
                samples_per_prompt=samples,
                budget=TokenBudget(1),  # no role measures anything
                reward=reward,
            )
            judged += judge(part, rollout)
            lines += sample_lines(part, rollout, [prompt_text(prompt, chat) for prompt in part])
            progress.advance(steps=len(part))
    report(judged, lines, samples=samples, ks=ks, by=by, seed=seed, output=output, as_json=as_json)


def read_tasks(
    file: Path,
    parts: Sequence[Weighted],
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None,
    by: Sequence[str],
    gold: str | None,
) -> list[Row]:
    """The rows to evaluate on, each with the columns in `by`, and with a gold answer that the verifiers accept."""
    rows = read_files([file], columns=columns, limit=limit)
    for row in rows:
        reason = "a text without a question" if not row.messages else unusable_prompt(row)
        if reason:
            raise DataError(f"{row.place}: {reason}; correct the row")
        if missing := next((column for column in by if column not in row.columns), None):
            found = ", ".join(shown(name, 40) for name in row.columns) or "none"
            raise DataError(f"{row.place}: there is no column {shown(missing, 60)!r} to split by; the row has {found}")
    for line in remarks(rows, []):
        say(f"eval: {line}")
    for part in parts:
        if isinstance(part.source, FunctionReward):
            part.source.check_columns([row.columns for row in rows])
    checked = [part.source for part in parts if not isinstance(part.source, FunctionReward)]
    check_gold(checked, rows, gold=gold)  # type: ignore[arg-type]
    return rows


def judge(prompts: Sequence[Prompt], rollout: Rollout) -> Iterator[Judged]:
    """What the verifiers said of each prompt's samples."""
    scores = _scores(rollout)
    assert scores.right is not None and scores.answers is not None, "a verifier decides"
    right, count = scores.right.tolist(), len(rollout.samples) // len(prompts)
    for i, prompt in enumerate(prompts):
        own = slice(i * count, (i + 1) * count)
        yield Judged(
            right=right[own],
            answers=scores.answers[own],
            ended=[sample.ended for sample in rollout.samples[own]],
            failed=sum(k in scores.failures for k in range(i * count, (i + 1) * count)),
            columns=prompt.row.columns if prompt.row else {},
        )


def sample_lines(prompts: Sequence[Prompt], rollout: Rollout, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line of the output file per sample."""
    scores, count = _scores(rollout), len(rollout.samples) // len(prompts)
    assert scores.right is not None and scores.answers is not None, "a verifier decides"
    for i, sample in enumerate(rollout.samples):
        row = prompts[sample.prompt].row
        line: dict[str, Any] = {
            "row": row.place if row else "",
            "sample": i % count,
            "prompt": texts[sample.prompt],
            "completion": rollout.request.completions[i],
            "tokens": len(sample.ids),
            "logprob": round(sum(sample.logprobs), 4),
            "ended": sample.ended,
            "right": bool(scores.right[i]),
            "answer": scores.answers[i],
            "score": round(float(scores.total[i]), 6),
            "scores": {name: round(float(part[i]), 6) for name, part in scores.parts.items()},
        }
        told = {"failure": scores.failures.get(i), "note": scores.notes.get(i)}
        yield line | {key: text for key, text in told.items() if text is not None}


def _scores(rollout: Rollout) -> Scores:
    assert rollout.scores is not None, "the rollout was scored"
    return rollout.scores


def report(
    judged: Sequence[Judged],
    lines: Sequence[dict[str, Any]],
    *,
    samples: int,
    ks: Sequence[int],
    by: Sequence[str],
    seed: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Prints the rates as a table or as JSON, and writes the samples."""
    rates_of = partial(rates, ks=ks, seed=seed, votes=any(line["answer"] is not None for line in lines))
    overall = rates_of(judged)
    groups = {column: {value: rates_of(own) for value, own in by_value(judged, column).items()} for column in by}
    if failure := next((line["failure"] for line in lines if "failure" in line), None):
        counted = f"{overall.failed} of {number_of(len(lines), 'completion')} could not be checked and count as wrong"
        say(f"eval: {counted}; the first: {shown(failure, 200)}")
    if as_json:
        found = {column: {value: as_figures(own) for value, own in values.items()} for column, values in groups.items()}
        print(json_shown({"samples_per_prompt": samples, ALL: as_figures(overall), "by": found}, indent=2))
    else:
        split = {f"{column} {value}": own for column, values in groups.items() for value, own in values.items()}
        print_rates({ALL: overall, **split}, samples_per_prompt=samples)
    if output is not None:
        write_atomically(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        say(f"eval: wrote {number_of(len(lines), 'sample')} to {shown(output)}")


def as_figures(rates: Rates) -> dict[str, Any]:
    """The rates as JSON: shares from 0 to 1."""
    figures = {name: {"mean": rate.mean, "low": rate.low, "high": rate.high} for name, rate in rates.figures().items()}
    return {"prompts": rates.num_prompts, **figures, "ended": rates.ended, "not_checked": rates.failed}
