"""`onebase demo`: pretraining, SFT, a reward role, DPO, RFT and PPO on a laptop, and a table of the results.

A small grammar (`demo/grammar.py`) generates all texts, in English and Chinese, and knows the best behaviour: its gold
score judges the result and is never trained on. The SFT answers come from simulated annotators of mixed quality, and
the reward role learns from noisy preferences; PPO then has to find the behaviour these only hint at. DPO learns from
the same preferences directly, as many as PPO samples answers. RFT needs no preferences: a rule checks whether an answer
gives the right fact, and says nothing about manners.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from onebase.config.files import dump_config
from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.config.rft import RFTConfig
from onebase.config.rollouts import PPOConfig
from onebase.config.run import VerbConfig
from onebase.data.chat import chat_format
from onebase.data.fit import Limits
from onebase.data.prepare import encode_prompts
from onebase.demo import grammar
from onebase.engines.budget import TokenBudget
from onebase.engines.opening import load_base
from onebase.errors import ConfigError
from onebase.evaluation.held_out import HeldOut, evaluate_role
from onebase.evaluation.tables import figures_table, print_samples, result_console, rise_line
from onebase.files import write_atomically
from onebase.models.role_files import load_role
from onebase.reading.formats import read_rows
from onebase.recipes import dpo, ppo, pretrain, reward, rft, sft
from onebase.records import Row
from onebase.reporting.intervals import Interval, paired_bootstrap
from onebase.reporting.plots import plot_stages
from onebase.rewards.functions import FunctionReward
from onebase.rewards.learned import RoleReward
from onebase.runs.progress import say
from onebase.sampling.local import stop_ids
from onebase.sampling.sampler import Sampling
from onebase.tools.runs import leave_pictures

TEMPLATE = "hh"
TOKEN_BUDGET = 4096
MAX_NEW_TOKENS = 40
HELD_OUT_SAMPLES = 4


def run(*, output_dir: Path, seed: int) -> Interval:
    """Runs every stage, prints the table, and returns the rise in gold score from SFT to PPO."""
    folder = free_folder(output_dir)
    say(f"demo: everything goes to {folder}; about five minutes on four cores")
    write_data(folder / "data", seed)
    configs = make_configs(folder, seed)
    for name, config in configs.items():
        write_atomically(folder / f"{name}.yaml", dump_config(config))
    pretrain.run(configs["pretrain"])  # type: ignore[arg-type]
    sft.run(configs["sft"])  # type: ignore[arg-type]
    reward.run(configs["reward"])  # type: ignore[arg-type]
    dpo.run(configs["dpo"])  # type: ignore[arg-type]
    rft.train(configs["rft"])  # type: ignore[arg-type]
    ppo.train(configs["ppo"])  # type: ignore[arg-type]
    roles = compare(folder, seed)
    rises = {name: rise(roles, "gold", name) for name in ("DPO", "RFT", "PPO")}
    for name in configs:
        leave_pictures(folder / name)
    report(folder, roles, rises)
    return rises["PPO"]


def rise(roles: dict[str, HeldOut], judge: str, name: str) -> Interval:
    """Returns how much higher a role scores than SFT on the same questions."""
    return paired_bootstrap(roles["SFT"].judged[judge], roles[name].judged[judge])


def report(folder: Path, roles: dict[str, HeldOut], rises: dict[str, Interval]) -> None:
    """Prints samples, the table and what to try next; draws the bars."""
    plot_stages({name: role.row() for name, role in roles.items()}, folder / "plots" / "stages.png")
    names, held_out = list(roles), list(roles.values())
    console = result_console()
    print_samples(console, held_out, names)
    console.print(figures_table(held_out, names=names), markup=False)
    console.print(
        "gold: the grammar's own score in [0, 1], never trained on. fact: the rule that checked RFT's answers."
    )
    console.print("reward score: what PPO trained on.")
    for name, rise_in_gold in rises.items():
        console.print(rise_line("gold", rise_in_gold, "SFT", name))
    console.print(rise_line("fact", rise(roles, "fact", "RFT"), "SFT", "RFT"))
    console.print(f"run       {folder}")
    console.print(f"pictures  {folder / 'plots' / 'stages.png'}  {folder / 'ppo' / 'plots' / 'metrics.png'}")
    question = roles["SFT"].prompts[0]
    console.print(f"talk to it:\n  onebase chat {folder / 'ppo' / 'policy'}", soft_wrap=True)
    console.print(
        f"  onebase chat --compare {folder / 'sft' / 'policy'} {folder / 'ppo' / 'policy'} "
        f'--reward {folder / "reward" / "reward"} --once "{question}"',
        soft_wrap=True,
    )


def compare(folder: Path, seed: int) -> dict[str, HeldOut]:
    """Evaluates base, SFT, DPO, RFT and PPO on the held-out questions, as roles on one base in memory."""
    base = load_base(str(folder / "pretrain" / "model"), dtype="float32")
    chat = chat_format(base.tokenizer, TEMPLATE)
    base.add_role("base")
    load_role(base, "SFT", folder / "sft" / "policy", kinds=("policy",))
    load_role(base, "DPO", folder / "dpo" / "policy", kinds=("policy",))
    load_role(base, "RFT", folder / "rft" / "policy", kinds=("policy",))
    load_role(base, "PPO", folder / "ppo" / "policy", kinds=("policy",))
    load_role(base, "reward", folder / "reward" / "reward", kinds=("reward",))
    rows = read_rows(folder / "data" / "held_out.jsonl")
    prompts = encode_prompts(rows, chat, Limits(base.context_length), max_new_tokens=MAX_NEW_TOKENS, opening_tokens=1)
    sampling = Sampling(MAX_NEW_TOKENS, stop_ids=stop_ids(base))
    return {
        name: evaluate_role(
            base,
            chat,
            prompts,
            RoleReward(base, "reward", budget=TokenBudget(TOKEN_BUDGET)),
            role=name,
            reference="SFT",
            sampling=sampling,
            samples_per_prompt=HELD_OUT_SAMPLES,
            seed=seed,
            budget=TokenBudget(TOKEN_BUDGET),
            judges={name: FunctionReward(f"onebase.demo.grammar:{name}_reward") for name in ("gold", "fact")},
        )
        for name in ("base", "SFT", "DPO", "RFT", "PPO")
    }


def make_configs(folder: Path, seed: int) -> dict[str, VerbConfig]:
    """Returns the configuration of each stage, as a user would write it."""
    base, data = str(folder / "pretrain" / "model"), folder / "data"
    model = {"model_name_or_path": base, "dtype": "float32", "chat_template": TEMPLATE}
    lora = {"r": 16, "alpha": 32}
    stages: dict[str, VerbConfig] = {
        "pretrain": PretrainConfig.model_validate(
            {
                "output_dir": str(folder / "pretrain"),
                "seed": seed,
                "tiny": {"vocab_size": 768, "hidden_size": 160, "num_layers": 3, "num_heads": 4, "max_length": 160},
                "data": {"train": [str(data / "pretrain.jsonl")], "eval_fraction": 0.01},
                "block_length": 128,
                "optimizer": {"learning_rate": 4e-3, "schedule": "cosine", "warmup_steps": 30},
                "batch": {"minibatch": 16, "microbatch_tokens": TOKEN_BUDGET},
            }
        ),
        "sft": SFTConfig.model_validate(
            {
                "output_dir": str(folder / "sft"),
                "seed": seed,
                "model": model,
                "lora": lora,
                "data": {"train": [str(data / "sft.jsonl")], "eval_fraction": 0.05},
                "optimizer": {"learning_rate": 2e-3, "schedule": "linear", "num_epochs": 2},
                "batch": {"minibatch": 32, "microbatch_tokens": TOKEN_BUDGET},
            }
        ),
        "reward": RewardConfig.model_validate(
            {
                "output_dir": str(folder / "reward"),
                "seed": seed,
                "model": model,
                "lora": lora,
                "data": {"train": [str(data / "preferences.jsonl")], "eval_fraction": 0.1},
                "optimizer": {"learning_rate": 2e-3, "schedule": "linear"},
                "batch": {"minibatch": 32, "microbatch_tokens": TOKEN_BUDGET},
            }
        ),
        "dpo": DPOConfig.model_validate(
            {
                "output_dir": str(folder / "dpo"),
                "seed": seed,
                "model": model,
                "start_from": str(folder / "sft" / "policy"),
                "data": {"train": [str(data / "preferences.jsonl")], "limit": 6_400, "eval_fraction": 0.05},
                # A model this small needs a strong beta: at 0.1 DPO drifts away and falls below SFT.
                "preference": {"beta": 0.5},
                "optimizer": {"learning_rate": 2e-4, "schedule": "linear"},
                "batch": {"minibatch": 32, "microbatch_tokens": TOKEN_BUDGET},
            }
        ),
        **_that_sample(folder, seed, model),
    }
    return stages


def _that_sample(folder: Path, seed: int, model: dict[str, str]) -> dict[str, VerbConfig]:
    """The stages that sample answers, from the SFT policy on."""
    data = folder / "data"
    return {
        "rft": RFTConfig.model_validate(
            {
                "output_dir": str(folder / "rft"),
                "seed": seed,
                "model": model,
                "start_from": str(folder / "sft" / "policy"),
                "reward": {"verifiers": "onebase.demo.grammar:fact_reward"},
                "data": {"train": [str(data / "prompts.jsonl")], "eval": [str(data / "held_out.jsonl")]},
                "generation": {"max_new_tokens": MAX_NEW_TOKENS, "samples_per_prompt": 8},
                "rft": {"rollout_prompts": 16, "minibatch_prompts": 4, "kl_coefficient": 0.02},
                "optimizer": {"learning_rate": 1e-3},
                "batch": {"microbatch_tokens": TOKEN_BUDGET},
                "max_steps": 25,
            }
        ),
        "ppo": PPOConfig.model_validate(
            {
                "output_dir": str(folder / "ppo"),
                "seed": seed,
                "model": model,
                "start_from": str(folder / "sft" / "policy"),
                "reward": {"role": str(folder / "reward" / "reward"), "normalize": "held_out"},
                "data": {"train": [str(data / "prompts.jsonl")], "eval": [str(data / "held_out.jsonl")]},
                "generation": {"max_new_tokens": MAX_NEW_TOKENS, "samples_per_prompt": 4},
                "ppo": {
                    "rollout_prompts": 32,
                    "minibatch_prompts": 8,
                    "num_ppo_epochs": 2,
                    "kl_coefficient": 0.1,
                    "missing_end_penalty": 1.0,
                    "value_coefficient": 0.5,
                },
                "optimizer": {"learning_rate": 1e-3},
                "batch": {"microbatch_tokens": TOKEN_BUDGET},
                "max_steps": 50,
            }
        ),
    }


def write_data(folder: Path, seed: int) -> None:
    """Writes the demo's data files, in layouts that any user's files may have."""
    texts = grammar.pretraining_texts(seed=seed, count=100_000)
    _write_rows(folder / "pretrain.jsonl", ({"text": text} for text in texts))
    _write_rows(folder / "sft.jsonl", map(_answered, grammar.sft_rows(seed=seed, count=2_500)))
    _write_rows(folder / "preferences.jsonl", map(_ranked, grammar.preference_rows(seed=seed, count=14_000)))
    _write_rows(folder / "prompts.jsonl", map(_asked, grammar.prompt_rows(seed=seed, count=1_000, split="train")))
    held_out = {row.messages[0].content: row for row in grammar.prompt_rows(seed=seed, count=1_000, split="held_out")}
    _write_rows(folder / "held_out.jsonl", map(_asked, held_out.values()))


def free_folder(wanted: Path) -> Path:
    """Returns the wanted folder, or if it exists the first free name with a number appended.

    Raises:
        ConfigError: it exists and has no name to append a number to, such as `.`.
    """
    if wanted.exists() and wanted.name in ("", ".."):
        raise ConfigError(f"{wanted}: the demo needs a folder of its own; name one with --output-dir")
    number = 2
    folder = wanted
    while folder.exists():
        folder = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return folder


def _asked(row: Row) -> dict[str, object]:
    return {"prompt": row.messages[0].content, **row.columns}


def _answered(row: Row) -> dict[str, object]:
    return {"prompt": row.messages[0].content, "completion": row.answers[0]}


def _ranked(row: Row) -> dict[str, object]:
    return {"instruction": row.messages[0].content, "input": "", "output": row.answers, "grades": row.grades}


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
