"""Measures the seven usual ways of adapting a model: what the domain gains, and what is forgotten of everything else.

usage: python -m bench.adapting FOLDER [SHARE ...]      FOLDER is written to; shares of replay, by default 0 0.1 0.3

The demo's world is cut in two: the base (and the chat model) is made from texts about eight of its animals, the domain
is the other eight. The configs of `configs/adapting` run with their folders moved to FOLDER and their replay set to
each share; then every model answers the questions of both halves, and the grammar's gold score judges. Prints
a Markdown table after each share: the mean rise over the model each way starts from, with 95 % intervals over
questions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onebase.config.files import load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.data.chat import chat_format
from onebase.demo import grammar
from onebase.demo.world import THINGS
from onebase.engines.opening import load_base
from onebase.files import write_atomically
from onebase.models.role_files import load_role
from onebase.recipes import pretrain, sft
from onebase.records import Message
from onebase.reporting.intervals import paired_bootstrap
from onebase.sampling.local import LocalSampler, stop_ids
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds

CONFIGS = Path(__file__).parents[1] / "configs" / "adapting"
WAYS = {
    "base → domain SFT": ("base", "1-sft"),
    "base → domain text → domain SFT": ("base", "2-sft"),
    "base → domain text → general SFT → domain SFT": ("base", "3-sft"),
    "base → domain text → general and domain SFT mixed": ("base", "4-sft"),
    "base → domain text with SFT rows → domain SFT": ("base", "5-sft"),
    "chat → domain SFT": ("chat", "6-sft"),
    "chat → domain text → domain SFT": ("chat", "7-sft"),
}
"""What each way starts from, and the config that ends it."""
ADAPTING = (
    "pretrain",
    "5-pretrain",
    "7-pretrain",
    "1-sft",
    "2-sft",
    "3-general-sft",
    "3-sft",
    "4-sft",
    "5-sft",
    "6-sft",
    "7-sft",
)
GENERAL = tuple(THINGS)[:8]
TEXTS, DOMAIN_TEXTS, ROWS = 40_000, 4_000, 600
MAX_NEW_TOKENS = 40


def main() -> None:
    folder, shares = Path(sys.argv[1]), [float(word) for word in sys.argv[2:]] or [0.0, 0.1, 0.3]
    began = time.monotonic()
    write_data(folder / "data")
    for name in ("base", "chat"):
        run(name, folder, folder, 0.0)
    starts = {name: scores(folder / name) for name in ("base", "chat")}
    found: dict[float, dict[str, dict[str, list[float]]]] = {}
    for share in shares:
        for name in ADAPTING:
            run(name, folder, folder / f"replay-{share:g}", share)
        found[share] = {way: scores(folder / f"replay-{share:g}" / end) for way, (_, end) in WAYS.items()}
        print(f"{table(starts, found)}\n\n{time.monotonic() - began:.0f} seconds\n", flush=True)


def run(name: str, shared: Path, folder: Path, share: float) -> None:
    """Runs a config unless it has run: base, chat model and data are in `shared`, what it writes and starts from in
    `folder`."""
    if (folder / name / "summary.json").exists():
        return
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    for common in ("data", "base", "chat"):
        text = text.replace(f"runs/adapting/{common}", str(shared / common))
    text = text.replace("runs/adapting", str(folder))
    if share == 0:
        text = "\n".join(line for line in text.splitlines() if "replay:" not in line)
    moved = folder / f"{name}.yaml"
    write_atomically(moved, text.replace("share: 0.1", f"share: {share:g}"))
    verb = "pretrain" if name == "base" or name.endswith("pretrain") else "sft"
    config: Any = load_config(VERB_CONFIGS[verb], moved, ["--batch.microbatch_tokens", "4096"])
    (pretrain if verb == "pretrain" else sft).run(config)


def write_data(folder: Path) -> None:
    """Texts and answered questions about each half of the animals, the same for every run."""
    texts = grammar.pretraining_texts(seed=0, count=6 * TEXTS)
    halves = {True: [t for t in texts if about(t) == {True}], False: [t for t in texts if about(t) == {False}]}
    write_rows(folder / "general-texts.jsonl", ({"text": text} for text in halves[True][:TEXTS]))
    write_rows(folder / "domain-texts.jsonl", ({"text": text} for text in halves[False][:DOMAIN_TEXTS]))
    answered = grammar.sft_rows(seed=0, count=4 * ROWS)
    for name, half in (("general", True), ("domain", False)):
        rows = [row for row in answered if (row.columns["thing"] in GENERAL) is half][:ROWS]
        pairs = ({"prompt": row.messages[0].content, "completion": row.answers[0]} for row in rows)
        write_rows(folder / f"{name}-answers.jsonl", pairs)


def about(text: str) -> set[bool]:
    """Whether the animals a text names are general ones."""
    words = set(text.lower().replace(".", " ").replace("?", " ").split())
    return {name in GENERAL for name, chinese in THINGS.items() if name in words or chinese in text}


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def scores(folder: Path) -> dict[str, list[float]]:
    """The gold score of the likeliest answer of a run's model to every question, by half."""
    role = folder / "policy"
    if role.exists():
        base = load_base(
            json.loads((role / "adapter_config.json").read_text())["base_model_name_or_path"], dtype="float32"
        )
        load_role(base, "policy", role, kinds=("policy",))
    else:
        base = load_base(str(folder / "model"), dtype="float32")
        base.add_role("policy")
    chat = chat_format(base.tokenizer, "hh")
    questions = list(grammar.QUESTIONS.values())
    prompts = [chat.encode_prompt((Message("user", question.text),)) for question in questions]
    samples = LocalSampler(base, "policy").sample(
        prompts,
        Sampling(MAX_NEW_TOKENS, temperature=0.0, stop_ids=stop_ids(base)),
        seeds=sample_seeds(0, num_prompts=len(prompts), samples_per_prompt=1),
    )
    gold = [grammar.gold_score(questions[s.prompt].text, chat.decode(s.ids)) for s in samples]
    return {
        half: [
            mean for question, mean in zip(questions, gold, strict=True) if (question.thing in GENERAL) is is_general
        ]
        for half, is_general in (("general", True), ("domain", False))
    }


def table(starts: dict[str, dict[str, list[float]]], found: dict[float, dict[str, dict[str, list[float]]]]) -> str:
    titles = [f"{half}, replay {share:.0%}" for half in ("domain", "general") for share in found]
    lines = [f"| way | {' | '.join(titles)} |", "| --- |" + " --- |" * len(titles)]
    for way, (start, _) in WAYS.items():
        cells = [
            paired_bootstrap(starts[start][half], found[share][way][half]).text(2)
            for half in ("domain", "general")
            for share in found
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    said = "; ".join(
        f"{name}: domain {mean(of['domain']):.2f}, general {mean(of['general']):.2f}" for name, of in starts.items()
    )
    return "\n".join([*lines, "", f"gold scores at the start: {said}"])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
