"""Measures the implicit reward's held-out accuracy on real preferences, before and after training.

usage: real_pairs.py OUT    from the root of the repository, beside `../shared`, after
    onebase sft configs/stories260k/sft.yaml; onebase pretrain configs/minimind/pretrain.yaml

Two models with fewer than 3 M parameters see little of what makes an answer better; this shows that every layout of
preferences works, and whether the held-out order is learnt at all. A policy equal to its reference orders nothing, so
its accuracy is 0. The last column is the accuracy of length alone: the share of held-out comparisons in which the
longer answer is the better one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onebase.config.files import load_config
from onebase.config.preferences import DPOConfig
from onebase.engines.opening import load_base
from onebase.recipes import dpo
from onebase.recipes.setup.shared import open_chat
from onebase.reporting.intervals import bootstrap_mean

DATA = {
    "hh-rlhf harmless-base": ("hh_rlhf/harmless-base-test.jsonl.gz", "sigmoid"),
    "dpo_en_demo": ("llamafactory_demo/dpo_en_demo.json.gz", "sigmoid"),
    "dpo_zh_demo": ("llamafactory_demo/dpo_zh_demo.json.gz", "sigmoid"),
    "kto_en_demo": ("llamafactory_demo/kto_en_demo.json.gz", "kto"),
    "oaast_rm_zh, ranked": ("oasst1_zh/oaast_rm_zh.json.gz", "plackett_luce"),
    "fine_grained_rlhf, 4-way": ("fine_grained_rlhf/dev_feedback.json.gz", "plackett_luce"),
}
MODELS = ("stories260k", "minimind")


def main() -> None:
    out = Path(sys.argv[1])
    print("| data | loss | model | rows | held out | accuracy | margin | longer is better |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (file, loss) in DATA.items():
        for model in MODELS:
            words = [
                f"--output_dir={out / model / Path(file).name.split('.')[0]}",
                f"--loss={loss}",
                f"--data.train=../shared/data/{file}",
                "--data.eval_fraction=0.2",
                "--optimizer.num_epochs=2",
                "--batch.minibatch=16",
                "--preference.beta=0.1",
            ]
            config = load_config(DPOConfig, Path(f"configs/{model}/dpo.yaml"), words)
            summary_file = Path(config.output_dir) / "summary.json"
            summary = json.loads(summary_file.read_text()) if summary_file.exists() else dpo.run(config)
            base = load_base(config.model.model_name_or_path, dtype="float32")
            train, held_out = dpo.read_examples(config, open_chat(base.tokenizer, config.model), base.context_length)
            low, high = summary["eval_accuracy_interval"]
            print(
                f"| {name} | {loss} | {model} | {len(train)} | {len(held_out)} | {summary['eval_accuracy']:.3f} "
                f"[{low:.3f}, {high:.3f}] | {summary['eval_margin']:.3f} | {longer_is_better(held_out)} |",
                flush=True,
            )


def longer_is_better(examples: list) -> str:
    shares = []
    for example in examples:
        if example.grades is None:
            continue
        lengths, grades = [len(ids) for ids in example.completions], example.grades
        pairs = [(i, j) for i in range(len(lengths)) for j in range(len(lengths)) if grades[i] > grades[j]]
        if pairs:
            shares.append(sum(lengths[i] > lengths[j] for i, j in pairs) / len(pairs))
    return f"{bootstrap_mean(shares).mean:.3f}" if shares else ""


if __name__ == "__main__":
    main()
