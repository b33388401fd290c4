"""Shows what reward, dpo and ppo learn at their defaults: held-out figures with intervals, for five seeds.

usage: defaults.py OUT [VERB ...] [KEY=VALUE ...]    from the root of the repository, beside `../shared`

Only files and their limits are set: the pretrained stories260K; for reward and dpo sentences of film reviews, positive
over negative; for ppo story openings and a Python reward for happy words. Chance is 0.5 for an accuracy and 0 for a
rise in score. KEY=VALUE replaces a default.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onebase.config.files import load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.recipes import dpo, ppo, reward

SHARED = Path("../shared")
HAPPY = {"happy", "love", "loved", "fun", "good", "nice", "smiled", "laughed", "friend", "friends", "kind", "best"}
RUN = {"reward": reward.run, "dpo": dpo.run, "ppo": ppo.run}
NEEDED = {
    "reward": ["model.chat_template=plain"],
    "dpo": ["model.chat_template=plain", "data.limit=2000"],
    "ppo": [
        f"reward.callable={Path(__file__)}:happy_words",
        "data.limit=480",
        f"data.train={SHARED}/data/text_en/tinystories_sample.txt.gz",
    ],
}
SEEDS = range(5)


def happy_words(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Returns 1 for a completion with a happy word, else 0."""
    return [float(any(word.strip(".,!?\"'").lower() in HAPPY for word in text.split())) for text in completions]


def main(words: Sequence[str]) -> None:
    out, rest = Path(words[0]), words[1:]
    verbs, more = [word for word in rest if word in RUN] or list(RUN), [word for word in rest if "=" in word]
    for verb in verbs:
        print(f"| {verb} | steps | held-out {'rise in score' if verb == 'ppo' else 'accuracy'} | KL |")
        print("| --- | --- | --- | --- |")
        figures = []
        for seed in SEEDS:
            summary = run(verb, out / f"{verb}-{seed}", [f"seed={seed}", *more])
            mean, low, high = (
                summary["score_rise"]
                if verb == "ppo"
                else (summary["eval_accuracy"], *summary["eval_accuracy_interval"])
            )
            figures.append(mean)
            kl = f"{summary['kl']:.2f}" if verb == "ppo" else ""
            steps = summary.get("steps") or summary["rollouts"]
            print(f"| seed {seed} | {steps} | {mean:.3f} [{low:.3f}, {high:.3f}] | {kl} |", flush=True)
        # No interval: the seeds share prompts, and five figures that agree would make it too narrow.
        mean = sum(figures) / len(figures)
        print(f"| all seeds | | {mean:.3f}, from {min(figures):.3f} to {max(figures):.3f} | |", flush=True)


def write_pairs(path: Path) -> Path:
    """Writes pairs of a positive sentence over a negative one, each sentence used once."""
    with gzip.open(SHARED / "data/sentiment/sentence_polarity.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sides = ([row["text"] for row in rows if row["label"] == label] for label in (1, 0))
    # Pairs are held out by prompt, so each pair gets its own.
    pairs = [
        {"prompt": f"Film review {i}:", "chosen": better, "rejected": worse}
        for i, (better, worse) in enumerate(zip(*sides, strict=True))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def run(verb: str, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """Returns a run's summary; runs it only if there is none yet."""
    path = folder / "summary.json"
    if not path.exists():
        model = f"model.model_name_or_path={SHARED / 'models/stories260K/hf'}"
        data = [] if verb == "ppo" else [f"data.train={write_pairs(folder.parent / 'pairs.jsonl')}"]
        words = [f"output_dir={folder}", model, "model.dtype=float32", *data, *NEEDED[verb], *more]
        RUN[verb](load_config(VERB_CONFIGS[verb], None, words))  # type: ignore[operator]
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
