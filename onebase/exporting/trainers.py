"""`onebase export --to openrlhf` and `--to verl`: what a larger trainer starts from, in one folder.

    model/     the policy merged into its base, checked to be the same
    reward/    the reward role as a sequence classifier, where prompts are trained on
    data/      the rows in the layout that the trainer reads
    train.sh   its command, with the options of the version in `VERSIONS`

Nothing here imports these trainers. Their options are those of their sources; nobody has run these commands yet.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onebase.errors import DataError, MissingExtraError, ModelError
from onebase.exporting.card import write_card
from onebase.exporting.merge import Written, write_model
from onebase.exporting.source import Source, find_source
from onebase.files import atomic_folder
from onebase.reading.formats import iter_rows
from onebase.reading.tools import for_template
from onebase.records import Row
from onebase.shown import shown

VERSIONS = {"openrlhf": "OpenRLHF 0.11.0", "verl": "verl at commit 1dda039b (August 2026)"}
"""Whose options these are."""
SHARD = "5GB"
GPUS = 8
MODEL, REWARD, SCRIPT = "model", "reward", "train.sh"
Option = tuple[str, str | None]
"""A name and its value; None for a switch."""


def run(source: Source, output: Path, *, to: str, data: Path, reward: str | None, device: str) -> list[str]:
    """Writes the folder; returns the command that starts training, and what to know.

    Raises:
        ModelError: the role is no policy, or the reward role cannot be a classifier.
        DataError: the rows are neither prompts nor pairs, or the trainer does not train on them.
        QualityError, DoesNotFitError: as `merge`.
    """
    if source.kind != "policy":
        raise ModelError(f"{shown(source.folder)} is a reward role; name a policy, and this one with --reward")
    pairs, count = _kind_of(data, to)
    if pairs and reward is not None:
        raise DataError(f"{shown(data, 200)} holds pairs, which are trained on without a reward; leave --reward out")
    if not pairs and reward is None:
        raise DataError(f"{shown(data, 200)} holds prompts, whose answers need a reward; name a reward role: --reward")
    judge = find_source(reward, model=source.model, kinds=("reward",)) if reward is not None else None
    with atomic_folder(output) as folder:
        written = _model(source, folder / MODEL, device)
        judged = _model(judge, folder / REWARD, device) if judge is not None else None
        file = write_data(data, folder / "data", to)
        options = (openrlhf_dpo if pairs else openrlhf_ppo)(file) if to == "openrlhf" else verl_ppo(file)
        script = script_of(to, pairs, options)
        (folder / SCRIPT).write_text(script, encoding="utf-8")
        (folder / SCRIPT).chmod(0o755)
        notes = [
            f"{count} {'pairs' if pairs else 'prompts'}; options of {VERSIONS[to]}, not run by us: read its output",
            "all weights are trained there, no adapter: what comes out is a plain model, not a role",
            *written.notes,
            written.verdict,
            *((*judged.notes, judged.verdict) if judged is not None else ()),
        ]
        usage = f"```bash\nbash {SCRIPT}\n```"
        write_card(folder, source, form="policy", dtype=written.dtype, notes=notes, usage=usage)
    return [f"bash {shlex.quote(str(output / SCRIPT))}", *filter(None, notes)]


def _model(source: Source, folder: Path, device: str) -> Written:
    folder.mkdir()
    return write_model(source, folder, max_shard_size=SHARD, verify=True, device=device)


def _kind_of(data: Path, to: str) -> tuple[bool, int]:
    """Whether the rows are pairs, and how many there are.

    Raises:
        DataError: they are neither pairs nor prompts, or both, or pairs for a trainer that has no use for them.
    """
    kinds: set[bool] = set()
    count = 0
    for row in iter_rows(data):
        pair = len(row.answers) == 2 and row.grades is not None and row.grades[0] > row.grades[1]
        if not row.messages or row.tools or row.prefix is not None:
            raise DataError(
                f"{row.place}: a text, tools or the beginning of an answer, which the layout has no place for; export "
                "conversations"
            )
        if row.grades is not None and not pair:
            raise DataError(f"{row.place}: a tie or a ranked list, and this trainer reads pairs; convert it first")
        kinds.add(pair)
        count += 1
        if len(kinds) > 1:
            raise DataError(f"{row.place}: pairs and prompts in one file; export one of them")
    if True in kinds and to == "verl":
        raise DataError(
            f"{shown(data, 200)} holds pairs, and verl trains on prompts: it has no trainer for preferences; export "
            "prompts with --reward, or the pairs --to openrlhf"
        )
    return True in kinds, count


def write_data(data: Path, folder: Path, to: str) -> str:
    """Writes the rows as the trainer reads them; returns the file's name, seen from the folder above.

    Raises:
        MissingExtraError: verl reads Parquet, and pyarrow is not installed.
    """
    folder.mkdir()
    if to == "openrlhf":
        with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
            for row in iter_rows(data):
                file.write(json.dumps(openrlhf_row(row), ensure_ascii=False) + "\n")
        return "data/train.jsonl"
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError('verl reads Parquet, which needs pyarrow: pip install "onebase[data]"') from None
    rows = [verl_row(row, index) for index, row in enumerate(iter_rows(data))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    return "data/train.parquet"


def openrlhf_row(row: Row) -> dict[str, Any]:
    """A row for OpenRLHF's prompt and reward data sets: lists of messages, for the tokenizer's own template."""
    found: dict[str, Any] = {"prompt": [for_template(turn) for turn in row.messages]}
    if row.grades is not None:
        found |= {"chosen": [for_template(row.answer(0))], "rejected": [for_template(row.answer(1))]}
    elif (gold := gold_of(row)) is not None:
        found["label"] = gold
    return found


def verl_row(row: Row, index: int) -> dict[str, Any]:
    """A row for verl's RL data set."""
    return {
        "data_source": "onebase",
        "prompt": [{"role": turn.role, "content": turn.content} for turn in row.messages],
        "ability": "alignment",
        "reward_model": {"style": "model", "ground_truth": gold_of(row) or ""},
        "extra_info": {"index": index},
    }


def gold_of(row: Row) -> str | None:
    """The right answer, where the row has one."""
    found = row.columns.get("gold", row.columns.get("answer"))
    return None if found is None else str(found)


def openrlhf_ppo(file: str) -> list[Option]:
    """PPO with all roles on the same GPUs, which take turns."""
    options: list[Option] = []
    for role in ("actor", "ref", "reward", "critic"):
        options += [(f"--{role}.num_nodes", "$NODES"), (f"--{role}.num_gpus_per_node", "$GPUS")]
    return [
        *options,
        ("--vllm.num_engines", "$((NODES * GPUS))"),
        ("--vllm.tensor_parallel_size", "1"),
        ("--vllm.gpu_memory_utilization", "0.5"),
        ("--vllm.sync_backend", "nccl"),
        ("--vllm.enforce_eager", None),
        ("--train.colocate_all", None),
        ("--vllm.enable_sleep", None),
        ("--ds.enable_sleep", None),
        ("--actor.model_name_or_path", MODEL),
        ("--reward.model_name_or_path", REWARD),
        ("--ds.value_head_prefix", "score"),
        ("--data.prompt_dataset", file),
        ("--data.input_key", "prompt"),
        ("--data.apply_chat_template", None),
        ("--data.max_len", "2048"),
        ("--train.batch_size", "128"),
        ("--rollout.batch_size", "1024"),
        ("--rollout.n_samples_per_prompt", "1"),
        ("--train.max_epochs", "1"),
        ("--ds.zero_stage", "3"),
        ("--ds.param_dtype", "bf16"),
        ("--ds.packing_samples", None),
        ("--actor.gradient_checkpointing_enable", None),
        ("--actor.adam.lr", "5e-7"),
        ("--critic.adam.lr", "9e-6"),
        ("--algo.kl.init_coef", "0.01"),
        ("--algo.advantage.is_correction_enable", None),
        ("--ckpt.output_dir", "out"),
        ("--ckpt.path", "out/checkpoints"),
        ("--ckpt.save_hf", None),
    ]


def openrlhf_dpo(file: str) -> list[Option]:
    """DPO on pairs; the reference is the same model, frozen."""
    return [
        ("--model.model_name_or_path", MODEL),
        ("--ref.model_name_or_path", MODEL),
        ("--data.dataset", file),
        ("--data.prompt_key", "prompt"),
        ("--data.chosen_key", "chosen"),
        ("--data.rejected_key", "rejected"),
        ("--data.apply_chat_template", None),
        ("--data.max_len", "2048"),
        ("--train.batch_size", "128"),
        ("--train.micro_batch_size", "1"),
        ("--train.max_epochs", "1"),
        ("--adam.lr", "5e-7"),
        ("--model.beta", "0.1"),
        ("--ds.zero_stage", "3"),
        ("--ds.param_dtype", "bf16"),
        ("--ds.packing_samples", None),
        ("--model.gradient_checkpointing_enable", None),
        ("--ckpt.output_dir", "out"),
        ("--ckpt.save_steps", "-1"),
    ]


def verl_ppo(file: str) -> list[Option]:
    """PPO with FSDP, rollouts and scores by vLLM; the reward model takes turns on the same GPUs."""
    actor, reward = "actor_rollout_ref", "reward.reward_model"
    return [
        ("algorithm.adv_estimator", "gae"),
        ("data.train_files", file),
        ("data.val_files", file),
        ("data.train_batch_size", "1024"),
        ("data.max_prompt_length", "1024"),
        ("data.max_response_length", "1024"),
        ("data.filter_overlong_prompts", "True"),
        ("data.return_raw_chat", "True"),
        (f"{actor}.model.path", MODEL),
        (f"{actor}.model.use_remove_padding", "True"),
        (f"{actor}.model.enable_gradient_checkpointing", "True"),
        (f"{actor}.actor.optim.lr", "1e-6"),
        (f"{actor}.actor.ppo_mini_batch_size", "256"),
        (f"{actor}.actor.use_dynamic_bsz", "True"),
        (f"{actor}.actor.ppo_max_token_len_per_gpu", "16384"),
        (f"{actor}.rollout.name", "vllm"),
        (f"{actor}.rollout.tensor_model_parallel_size", "1"),
        (f"{actor}.rollout.gpu_memory_utilization", "0.5"),
        (f"{actor}.rollout.log_prob_use_dynamic_bsz", "True"),
        (f"{actor}.ref.log_prob_use_dynamic_bsz", "True"),
        ("critic.model.path", MODEL),
        ("critic.model.enable_gradient_checkpointing", "True"),
        ("critic.optim.lr", "1e-5"),
        ("critic.use_dynamic_bsz", "True"),
        (f"{reward}.enable", "True"),
        (f"{reward}.model_path", REWARD),
        (f"{reward}.rollout.name", "vllm"),
        (f"{reward}.rollout.tensor_model_parallel_size", "1"),
        ("algorithm.use_kl_in_reward", "True"),
        ("algorithm.kl_ctrl.kl_coef", "0.01"),
        ("trainer.n_gpus_per_node", "$GPUS"),
        ("trainer.nnodes", "$NODES"),
        ("trainer.default_local_dir", "out"),
        ("trainer.logger", '["console"]'),
        ("trainer.save_freq", "20"),
        ("trainer.total_epochs", "1"),
    ]


def script_of(to: str, pairs: bool, options: Sequence[Option]) -> str:
    """The script that starts training, for the options of a trainer."""
    if to == "verl":
        start = "python3 -m verl.trainer.main_ppo"
    elif pairs:
        start = "deepspeed --module openrlhf.cli.train_dpo"
    else:
        start = "python3 -m openrlhf.cli.train_ppo_ray"
    lines = list(_written(options, "=" if to == "verl" else " "))
    counts = f"NODES=${{NODES:-1}} GPUS=${{GPUS:-{GPUS}}}  # machines, and GPUs of each\n" if not pairs else ""
    body = " \\\n".join([start, *(f"  {line}" for line in lines), '  "$@"'])
    return (
        "#!/usr/bin/env bash\n"
        f"# A start for {VERSIONS[to]}, in an environment of its own. Never run by what wrote it: batch sizes\n"
        "# and learning rates are those of its own examples, and lengths are to be fitted to the data.\n"
        f'set -euo pipefail\ncd "$(dirname "$0")"\n{counts}{body}\n'
    )


def _written(options: Sequence[Option], between: str) -> Iterator[str]:
    for name, value in options:
        if value is None:
            yield name
        elif value.startswith("$"):
            yield f'{name}{between}"{value}"'
        else:
            yield f"{name}{between}{shlex.quote(value)}"
