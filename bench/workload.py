"""The workload of both sides: rows, lengths, folders and the peers' environments."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.side import ROOT, SideFailed, run_side, tail

ENVIRONMENTS = {
    "classic": [
        "torch==2.13.0",
        "trl==0.11.4",
        "transformers==4.46.3",
        "peft==0.13.2",
        "accelerate==1.1.1",
        "datasets<4",
        "numpy>=2,<2.4",
        "rich",
    ],
    "last": ["torch==2.13.0", "trl==1.12.0", "peft"],
    "pairs": ["torch==2.13.0", "trl==1.16.0", "peft"],
}
"""Packages installed for each peer."""
TRANSCRIPTS = Path("hh_rlhf/harmless-base-test.jsonl.gz")


class Missing(Exception):
    """Something the benchmark needs is missing."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The sizes of a benchmark, the same for all runs of one sitting."""

    size: str = "s"
    """Model size: `s` has 34 M parameters, `m` 222 M."""
    pairs: int = 96
    """Rows for sft, reward and dpo."""
    ppo_batches: int = 3
    """Rollouts of PPO and GRPO; counting starts with the second."""
    new_tokens: int = 64
    """Tokens of every sampled completion."""
    rounds: int = 2
    """How often each side runs."""
    peers: Path = Path("../shared/peers")
    data: Path = Path("../shared/data")
    environments: Path = ROOT / "bench" / ".envs"
    work: Path = field(default=ROOT / "bench" / ".work")

    @property
    def folder(self) -> Path:
        """The folder with model, tokenizer, prompts and reward adapter, written by the peers' oldest environment."""
        return self.work / f"peers-{self.size}"

    @property
    def own_folder(self) -> Path:
        """The same folder written by our own environment, without the peers."""
        return self.work / f"own-{self.size}"

    @property
    def transcripts(self) -> Path:
        return self.data / TRANSCRIPTS

    def check(self) -> None:
        """Raises `Missing` if the peers' programs or the data are not in their folders."""
        for what, path in (("PEERS", self.peers / "prepare.py"), ("DATA", self.transcripts)):
            if not path.is_file():
                raise Missing(f"{path}: no such file; set its folder: make bench {what}=FOLDER")

    def ours(self, stage: str, precision: str, *more: str) -> list[str | Path]:
        """Returns the arguments for `bench.ours`."""
        return [
            self.folder,
            self.size,
            precision,
            stage,
            "--data",
            self.transcripts,
            "--rows",
            str(self.pairs),
            "--batches",
            str(self.ppo_batches),
            "--new-tokens",
            str(self.new_tokens),
            *more,
        ]


def python_of(workload: Workload, name: str) -> Path:
    """Returns the interpreter of a peer's environment, and builds the environment if needed.

    Raises:
        SideFailed: pip could not install it.
    """
    folder, wanted = workload.environments / name, ENVIRONMENTS[name]
    mark, python = folder / ".installed", folder / "bin" / "python"
    if mark.exists() and mark.read_text().split("\n") == wanted:
        return python
    print(f"bench: building the environment {folder}: {' '.join(wanted)}", flush=True)
    steps = [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "--quiet", *wanted]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            raise SideFailed(f"the environment {name}: {' '.join(step[:4])}: {tail(done.stderr or done.stdout)}")
    mark.write_text("\n".join(wanted))
    return python


def prepare(workload: Workload, python: Path, folder: Path) -> Path:
    """Makes model, tokenizer, prompts and reward adapter in a folder, all or nothing, unless it exists.

    Raises:
        SideFailed: the program that makes them failed.
    """
    script = workload.peers / "prepare.py"
    made_by = hashlib.sha256(script.read_bytes()).hexdigest()
    mark = folder / f".prepared-{workload.size}"
    if mark.exists() and mark.read_text() == made_by:
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    run_side("prepare.py", [python, script, temporary, workload.size])
    (temporary / mark.name).write_text(made_by)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder
