"""`onebase demo --label`: people rank the answers of the demo's own roles."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from onebase.demo import demo
from onebase.files import write_atomically
from onebase.labeling.run import serve

ROLES = ("sft", "dpo", "rft", "ppo")
RUBRIC = """\
**Right first, then polite, then short.** The fact decides; then a polite opening and closing; never a rude remark.

**先看对错，再看礼貌，最后看长短。** 事实正确最重要；其次是开头和结尾是否有礼貌；不得有粗鲁的话。
"""


def run(*, output_dir: Path, seed: int) -> None:
    """Runs the demo, unless the folder holds a finished one, and serves the pages on its roles."""
    folder = output_dir
    if not (folder / "plots" / "stages.png").is_file():  # what a demo writes last
        folder = demo.free_folder(output_dir)
        demo.run(output_dir=folder, seed=seed)
    answers: dict[str, object] = {"roles": [f"{name}/policy" for name in ROLES], "prompts": "data/held_out.jsonl"}
    answers |= {"max_tokens": demo.MAX_NEW_TOKENS, "model": str((folder / "pretrain" / "model").absolute())}
    project = {"name": "onebase demo", "answers": answers, "rubric": RUBRIC, "daily_goal": 20, "port": 0, "seed": seed}
    path = folder / "label.yaml"
    if not path.exists():  # somebody may have changed it
        write_atomically(path, yaml.safe_dump(project, allow_unicode=True, sort_keys=False))
    serve(path, opens=sys.stderr.isatty())
