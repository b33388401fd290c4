"""Setting up preference optimisation: the policy and its reference, the rows each loss can read."""

from __future__ import annotations

from onebase.config import DPOConfig
from onebase.data.chat import ChatFormat
from onebase.data.prepare import drop_equal_cuts, encode_rows
from onebase.errors import DataError
from onebase.models.one_base import OneBase
from onebase.models.role_files import load_role
from onebase.recipes.setup import limits_of, new_lora, num_steps, open_chat, read_rows
from onebase.records import Example, Row
from onebase.training.plan import describe_base, describe_steps
from onebase.training.progress import say

PAPER_MIXTURES = {
    "orpo": {"nll": 1.0, "orpo": 0.1},
    "cpo": {"cpo": 1.0, "nll": 1.0},
    "rrhf": {"rrhf": 1.0, "nll": 1.0},
}
"""What the papers train when they name one of these losses alone; a mixture in the configuration is taken as it is."""


def loss_weights(config: DPOConfig) -> dict[str, float]:
    """The losses that are added up, with their weights."""
    return PAPER_MIXTURES.get(config.loss.strip()) or config.loss_weights()


def add_policy_and_reference(one: OneBase, config: DPOConfig) -> None:
    """The policy goes on from a saved role, whose frozen copy is the reference; a new adapter starts as the base."""
    if config.start_from is not None:
        load_role(one, "policy", config.start_from, kinds=("policy",), trains=True)
        one.add_role("reference", copy_of="policy")
    else:
        one.add_role("policy", lora=new_lora(one, config.lora), trains=True)
        one.add_role("reference")


def read_examples(config: DPOConfig, chat: ChatFormat, context: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out rows, encoded: graded answers, or for kto single answers with a label.

    Raises:
        DataError: a row that the loss cannot learn from.
    """
    unpaired = "kto" in loss_weights(config)
    sides = []
    for rows in read_rows(config.data, config.seed):
        chosen = [single for row in rows for single in labelled(row)] if unpaired else rows
        for row in chosen:
            if not unpaired and (row.grades is None or len(row.answers) < 2):
                raise DataError(
                    f"{row.place}: nothing is compared in this row; this loss learns from chosen and rejected answers "
                    "or ranked lists. For answers labelled good or bad there is --loss kto"
                )
        examples = encode_rows(chosen, chat, limits_of(config.data, context)) if chosen else []
        kept, cut = drop_equal_cuts(examples)
        if cut:
            say(f"left out: {len(cut)} whose answers were cut to the same tokens ({', '.join(cut[:3])})")
        sides.append(kept)
    if not sides[0]:
        raise DataError("no rows are left to train on; look at data.train and the limits on lengths")
    return sides[0], sides[1]


def labelled(row: Row) -> list[Row]:
    """A row for kto: as it is where it has a label; a pair as one good and one bad answer.

    Raises:
        DataError: neither.
    """
    label = row.columns.get("label")
    if len(row.answers) == 1 and isinstance(label, bool | int | float):
        return [row]
    if row.grades is not None and len(row.answers) == 2 and row.grades[0] != row.grades[1]:
        better = row.grades.index(max(row.grades))
        return [
            Row(row.messages, (answer,), columns={**row.columns, "label": k == better}, place=row.place)
            for k, answer in enumerate(row.answers)
        ]
    raise DataError(f"{row.place}: kto learns from one answer with 'label' true or false, or from a pair; add a label")


def plan(config: DPOConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = describe_base(
        config.model.model_name_or_path, config.model.quantization, config.model.dtype, config.model.device
    )
    train, held_out = read_examples(config, open_chat(base.tokenizer, config.model), base.context)
    steps = num_steps(config.max_steps, config.optimizer, len(train), config.batch.minibatch)
    return "\n".join([
        *base.lines,
        f"loss        {' + '.join(f'{weight:g} {name}' for name, weight in loss_weights(config).items())}",
        *describe_steps(train, held_out, steps=steps, minibatch=config.batch.minibatch),
        f"saves       {config.output_dir}/policy",
    ])  # fmt: skip
