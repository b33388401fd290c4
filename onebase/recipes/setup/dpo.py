"""Sets up preference optimisation: the policy, its reference, and the rows each loss can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onebase.config.losses import LOSSES
from onebase.config.preferences import DPOConfig
from onebase.data.chat import ChatFormat
from onebase.data.compared import drop_equal_completions, rank_scored, unranked_line
from onebase.data.encoded import Encoder, open_cache
from onebase.data.fit import require_end
from onebase.data.prepare import dropped_line, encode_rows
from onebase.data.tree import separate
from onebase.data.view import first_lines
from onebase.errors import DataError
from onebase.models.base import OneBase
from onebase.models.role_files import load_role
from onebase.recipes.setup.data import check_compares, is_streamed, order_of, read_rows, streamed
from onebase.recipes.setup.dry_run import planned_base
from onebase.recipes.setup.shared import (
    limits_of,
    load_start,
    new_lora,
    num_steps,
    open_chat,
    warn_of_warmup,
)
from onebase.records import Example, Row
from onebase.runs.progress import say
from onebase.shown import number_of
from onebase.training.plan import describe_steps


def loss_weights(config: DPOConfig) -> dict[str, float]:
    """The losses to add up, with their weights."""
    named = LOSSES.get(config.loss.strip())
    return dict(named.alone) if named is not None and named.alone else config.loss_weights()


def add_policy_and_reference(base: OneBase, config: DPOConfig) -> None:
    """Adds the policy, from a saved role or the base, and the reference: a frozen copy of it unless configured."""
    if config.start_from is not None:
        load_start(base, "policy", config.start_from, config.lora, kinds=("policy",), trains=True)
    else:
        base.add_role("policy", adapter=new_lora(base, config.lora), trains=True)
    if config.reference_role == "base" or (config.reference_role is None and config.start_from is None):
        base.add_role("reference")
    elif config.reference_role is None:
        base.add_role("reference", copy_of="policy")
    else:
        load_role(base, "reference", config.reference_role, kinds=("policy",))


def read_examples(config: DPOConfig, chat: ChatFormat, context: int) -> tuple[Sequence[Example], list[Example]]:
    """Reads and encodes training and held-out rows: graded answers, or for kto single answers with a label.

    Raises:
        DataError: the loss cannot learn from a row, or too many rows' answers were cut to the same tokens.
    """
    unpaired = "kto" in loss_weights(config)
    limits = limits_of(config.data, context)
    cache = open_cache(chat, limits, "completion")
    if not (unpaired and config.data.streaming == "auto") and is_streamed(config.data, ranks=True):
        if unpaired:
            raise DataError("kto compares all rows' labels and is not streamed; set data.streaming: false")
        encode = Encoder(chat, cache=cache)
        say("streamed rows: the reference's log-probs are computed in every step")
        stream, others = streamed(
            config.data, lambda row, cuts: _learned(encode(_checked(row), cuts)), limits, cache=cache
        )
        require_end(stream.sample(), chat, say, preferred=True)
        return stream, others
    sides = []
    for rows in read_rows(config.data, config.seed):
        if not unpaired:
            rows, left = rank_scored(rows)
            if line := unranked_line(left):
                say(line)
        for row in rows:
            _check_answers(row, unpaired=unpaired)
        examples = encode_rows(rows, chat, limits, cache=cache) if rows else []
        kept, dropped = drop_equal_completions(examples, max_share=config.data.max_dropped_share)
        # A reward role learns from a tie that two scores are equal; the losses here learn nothing from it.
        tied = [example.row.place for example in kept if example.row and _is_tied(example)]
        if tied:
            dropped["answers that are all tied"] = tied
            kept = [example for example in kept if not _is_tied(example)]
        if dropped:
            say(dropped_line(dropped))
        if unpaired and (between := sum(max(0, len(example.completions) - 2) for example in kept)):
            say(
                f"kto learns from the best and the worst answer of a list; {number_of(between, 'answer')} between "
                "them are left out"
            )
        sides.append([single for example in kept for single in labelled(example)] if unpaired else kept)
    if not sides[0]:
        raise DataError("no rows are left to train on; look at data.train and the limits on lengths")
    if unpaired:
        _check_labels(sides[0])
    require_end(sides[0], chat, say, preferred=True)
    return sides[0], sides[1]


def _checked(row: Row) -> Row:
    check_compares(row)
    _check_answers(row, unpaired=False)
    return row


def _learned(example: Example | None) -> Example | None:
    """The example without equal completions; None if nothing is left to learn from."""
    kept, _ = drop_equal_completions([example] if example else [], max_share=1.0)
    return kept[0] if kept and not _is_tied(kept[0]) else None


def labelled(example: Example) -> list[Example]:
    """Turns an example into kto's single labelled answers.

    A single answer stays as it is, because its row has a label. From compared answers the best becomes a good one and
    the worst a bad one. Those in between are left out: being worse than the best makes none bad, nor does being better
    than the worst make one good.
    """
    singles = separate([replace(example, grades=None, margin=None)])
    if len(singles) == 1 or example.grades is None or example.row is None:
        return singles
    best, worst = (example.grades.index(grade) for grade in (max(example.grades), min(example.grades)))
    row = replace(example.row, grades=None, margin=None)
    return [
        replace(singles[k], row=replace(row.only([k]), columns={**row.columns, "label": good}))
        for k, good in ((best, True), (worst, False))
    ]


def _check_labels(examples: list[Example]) -> None:
    """Raises DataError unless kto has both good and bad answers to learn from."""
    labels = {bool(example.row.columns["label"]) for example in examples if example.row}
    if len(labels) < 2:
        (label,) = labels
        raise DataError(
            f"kto learns from good answers and bad ones, and all {len(examples)} have the label {str(label).lower()}; "
            f"add rows with 'label' {str(not label).lower()}{', or use sft' if label else ''}"
        )


def _is_tied(example: Example) -> bool:
    return len(example.completions) > 1 and len(set(example.grades or ())) == 1


def _check_answers(row: Row, *, unpaired: bool) -> None:
    if row.grades is not None and len(row.answers) > 1:
        return
    if not unpaired:
        raise DataError(
            f"{row.place}: nothing is compared in this row; this loss learns from chosen and rejected answers, or "
            "ranked lists. For answers labelled good or bad there is --loss kto"
        )
    if len(row.answers) != 1 or not isinstance(row.columns.get("label"), bool | int | float):
        raise DataError(
            f"{row.place}: kto learns from one answer with 'label' true or false, or from answers that are compared; "
            "add a label"
        )


def plan(config: DPOConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context)
    order = order_of(config.data, train, config.seed)
    steps = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, steps)
    return "\n".join(
        [
            *base.lines,
            f"loss        {' + '.join(f'{weight:g} {name}' for name, weight in loss_weights(config).items())}",
            *describe_steps(train, held_out, steps=steps, minibatch=config.batch.minibatch),
            *order.lines(),
            *first_lines(train[0], chat),
            f"saves       {config.output_dir}/policy",
        ]
    )
