"""Best of K: sample, score, keep the best; what is written is ordinary data.

    best.jsonl    the best answer to each prompt: `onebase sft` on it is rejection-sampling fine-tuning (RAFT, Dong et
                  al. 2023)
    pairs.jsonl   the best against the worst, where their scores differ: `onebase dpo` on it is one round of online DPO
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from onebase.config import BestOfConfig
from onebase.config_files import dump_config
from onebase.data.chat import ChatFormat
from onebase.data.formats import read_files
from onebase.data.prepare import Limits, encode_prompts
from onebase.evaluation.intervals import bootstrap_mean, paired_bootstrap
from onebase.files import write_atomically
from onebase.models.generation import Sample, generate, sample_seeds
from onebase.models.role_files import load_role
from onebase.recipes.ppo_setup import longest_rollout_tree, open_reward_source, sampling_of
from onebase.recipes.setup import open_base, open_chat, token_budget
from onebase.records import Example
from onebase.training.plan import describe_base
from onebase.training.progress import StepProgress, say
from onebase.training.rollout import score_request, trees
from onebase.training.run import Run

PROMPTS_AT_A_TIME = 32


def run(config: BestOfConfig) -> dict[str, Any]:
    """Samples, scores and writes `best.jsonl` and `pairs.jsonl` in the run's folder; returns the summary."""
    run = Run(config.output_dir, seed=config.seed, config_text=dump_config(config))
    one = open_base(config.model)
    chat = open_chat(one.tokenizer, config.model)
    if config.policy is not None:
        load_role(one, "policy", config.policy, kinds=("policy",))
    else:
        one.add_role("policy")
    if config.reward.role is not None:
        load_role(one, "reward", config.reward.role, kinds=("reward",))
    prompts = read_prompts(config, chat, one.context_length)
    count, longest = config.generation.samples_per_prompt, longest_rollout_tree(one, config.generation, prompts)
    source = open_reward_source(config.reward, one, token_budget(one, config.batch, role="policy", longest=longest))
    sampling = sampling_of(one, chat, config.generation)
    seeds = sample_seeds(config.seed, num_prompts=len(prompts), samples_per_prompt=count, stream="best-of")
    say(f"best-of: {len(prompts)} prompts x {count} answers, scored by {source.name}")

    best: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    means: list[float] = []
    with StepProgress("best-of", len(prompts)) as progress:
        for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
            part = prompts[start : start + PROMPTS_AT_A_TIME]
            samples = generate(
                one,
                [prompt.prompt_ids for prompt in part],
                role="policy",
                sampling=sampling,
                seeds=seeds[start * count : (start + len(part)) * count],
                samples_per_prompt=count,
            )
            scores = source.score(score_request(chat, trees(part, samples))).view(len(part), count).tolist()
            for i, (prompt, listed) in enumerate(zip(part, scores, strict=True)):
                chosen, pair = rows_of(chat, prompt, samples[i * count : (i + 1) * count], listed)
                best.append(chosen)
                pairs += [pair] if pair else []
                means.append(sum(listed) / count)
            progress.advance({"best": sum(row["score"] for row in best) / len(best)}, steps=len(part))

    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.folder / "config.yaml", dump_config(config))
    for name, rows in (("best.jsonl", best), ("pairs.jsonl", pairs)):
        write_atomically(run.folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    scores_of_best = [row["score"] for row in best]
    rise = paired_bootstrap(means, scores_of_best)
    summary = {
        "verb": "best-of",
        "prompts": len(prompts),
        "samples_per_prompt": count,
        "mean_score": bootstrap_mean(means).mean,
        "best_score": bootstrap_mean(scores_of_best).mean,
        "rise": [rise.mean, rise.low, rise.high],
        "pairs": len(pairs),
        "ended": sum(row["ended"] for row in best) / len(best),
    }
    run.finish(summary)
    say(f"best-of: mean score {bootstrap_mean(means)}, of the best {bootstrap_mean(scores_of_best)}; wrote "
        f"{run.folder / 'best.jsonl'} and {len(pairs)} pairs to {run.folder / 'pairs.jsonl'}")  # fmt: skip
    return summary


def rows_of(
    chat: ChatFormat, prompt: Example, samples: Sequence[Sample], scores: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The row of the best answer, and that of the best against the worst where they differ."""
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    texts = [chat.decode(sample.ids) for sample in samples]
    first, last = order[0], order[-1]
    row = prompt.row
    columns = {} if row is None else dict(row.columns)
    if row is None or not row.messages:  # a plain text is one text again
        opening = chat.decode(prompt.prompt_ids)
        best = {**columns, "text": opening + texts[first]}
        pair = {**columns, "prompt": opening, "chosen": texts[first], "rejected": texts[last]}
    else:
        asked: Any = [{"role": message.role, "content": message.content} for message in row.messages]
        if len(asked) == 1 and asked[0]["role"] == "user":
            asked = asked[0]["content"]
        best = {**columns, "prompt": asked, "completion": texts[first].strip()}
        pair = {**columns, "prompt": asked, "chosen": texts[first].strip(), "rejected": texts[last].strip()}
    rounded = [round(score, 6) for score in scores]
    best |= {"score": rounded[first], "scores": rounded, "ended": samples[first].ended}
    pair |= {"chosen_score": rounded[first], "rejected_score": rounded[last]}
    differ = scores[first] > scores[last] and texts[first].strip() != texts[last].strip()
    return best, pair if differ else None


def read_prompts(config: BestOfConfig, chat: ChatFormat, context: int) -> list[Example]:
    """The prompts, encoded and within the limits."""
    data = config.data
    return encode_prompts(
        read_files(data.train, limit=data.limit),
        chat,
        Limits(context, data.max_prompt_tokens, truncate_prompt=data.truncate_prompt),
        max_new_tokens=config.generation.max_new_tokens,
        opening_tokens=data.opening_tokens,
    )


def plan(config: BestOfConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = describe_base(
        config.model.model_name_or_path, config.model.quantization, config.model.dtype, config.model.device
    )
    prompts = read_prompts(config, open_chat(base.tokenizer, config.model), base.context)
    return "\n".join([
        *base.lines,
        f"samples     {len(prompts)} prompts x {config.generation.samples_per_prompt} answers of at most "
        f"{config.generation.max_new_tokens} tokens",
        f"writes      {config.output_dir}/best.jsonl and {config.output_dir}/pairs.jsonl",
    ])  # fmt: skip
