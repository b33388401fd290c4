"""Kills runs of every stage at random moments, restarts them, and compares the results with undisturbed runs.

usage: python -m bench.crash_test [--kills 100] [--jobs CORES] [--seed 0] [--stages NAME ...] [--folder FOLDER]

Each stage runs once to its end. Then the same command runs in another folder, is stopped by faults again and again,
and at last runs to its end. Every file and every row of `metrics.jsonl` must match byte for byte, except for measured
times and memory. A tiny model and its data are made first, without a network.

    SIGKILL    comes at a moment drawn uniformly between the run's first step and its end; two in five wait until a file
               or folder is being written (nearly always a checkpoint)
    SIGTERM    must end with exit code 75, SIGINT (Ctrl-C) with 130

Exits with 1 and keeps the folders if anything differs.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ("SIGKILL", "SIGKILL", "SIGKILL", "in a write", "in a write", "SIGTERM", "SIGKILL", "in a write", "SIGINT")
"""Faults, dealt in this order over and over; `in a write` is a SIGKILL that waits for a write."""
EXIT_CODES = {"SIGKILL": -signal.SIGKILL, "in a write": -signal.SIGKILL, "SIGTERM": 75, "SIGINT": 130}
KILLS_OF_A_RUN = 5
"""Most kills of one run; further kills go to another run of the stage."""
LONGEST_WRITE = 0.03
"""Latest moment within a write at which it is cut, in seconds."""
PATIENCE = 300
"""Seconds after which a process counts as hanging."""
MEASURED = ("seconds", "phase_seconds", "peak_memory_mb")
"""Values that differ between any two processes; in `metrics.jsonl` also those under `perf/`."""
NOT_COMPARED = ("state.pt", "checksums.json", "report.html", "metrics.png")
"""Files that contain such values or are drawn from them; in a checkpoint, the roles are compared."""

Options = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A verb, its configuration, and the folder it runs in."""

    name: str
    verb: str
    options: Options
    folder: Path

    def start(self, attempt: str) -> subprocess.Popen[bytes]:
        """Starts the command as a person would, in its own working folder; stderr is kept."""
        place = self.folder / attempt / self.name
        place.mkdir(parents=True, exist_ok=True)
        config = place / "config.yaml"
        config.write_text(yaml.safe_dump({"output_dir": "run", **self.options}), encoding="utf-8")
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with (place / "stderr.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "onebase", self.verb, "config.yaml"],
                cwd=place,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )

    def run_folder(self, attempt: str) -> Path:
        return self.folder / attempt / self.name / "run"


@dataclass
class Outcome:
    """The faults a stage was given, and the result."""

    stage: str
    faults: Counter[str] = field(default_factory=Counter)
    cut_writes: int = 0
    """SIGKILLs that left something half-written behind, under its temporary name."""
    runs: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(self.faults.values())

    def line(self) -> str:
        kills = self.faults["SIGKILL"] + self.faults["in a write"]
        return (
            f"{self.stage:<22} {self.kills:>4}  {kills:>7}  {self.cut_writes:>8}  {self.faults['SIGTERM']:>7}  "
            f"{self.faults['SIGINT']:>6}  {self.runs:>4}  {self.seconds:>4.0f} s  "
            f"{'equal' if not self.problems else 'DIFFERS'}"
        )


HEADER = f"{'stage':<22} kills  SIGKILL  in write  SIGTERM  SIGINT  runs  time"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="stages at once, one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", help="names of the stages to run")
    parser.add_argument("--folder", type=Path, help="working folder; by default a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="crash-test-"))
    # A shell's background program ignores Ctrl-C, and so would the runs that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    stages = [stage for stage in make_stages(folder) if options.stages is None or stage.name in options.stages]
    shares = deal(options.kills, len(stages))
    print(HEADER, flush=True)
    total = Outcome("total")
    with ThreadPoolExecutor(options.jobs) as pool:
        drawn = [random.Random(f"{options.seed} {stage.name}") for stage in stages]
        for outcome in pool.map(crash, stages, shares, drawn):
            print(outcome.line(), *outcome.problems, sep="\n    ", flush=True)
            total.faults += outcome.faults
            total.cut_writes += outcome.cut_writes
            total.runs += outcome.runs
            total.problems += outcome.problems
    total.seconds = time.monotonic() - started
    print(total.line())
    if total.problems:
        print(f"the runs are in {folder}")
    elif options.folder is None:
        shutil.rmtree(folder)
    return int(bool(total.problems))


def deal(kills: int, stages: int) -> list[list[str]]:
    """Deals the faults to the stages, as evenly as possible."""
    kinds = [FAULTS[i % len(FAULTS)] for i in range(kills)]
    return [kinds[i::stages] for i in range(stages)]


def crash(stage: Stage, faults: Sequence[str], rng: random.Random) -> Outcome:
    """Runs a stage to its end, then with these faults, and compares; a fault that comes too late is retried."""
    outcome, started = Outcome(stage.name), time.monotonic()
    try:
        marks = run_to_the_end(stage, "whole")
        waiting = list(faults)
        while waiting and outcome.runs < 2 + 2 * len(faults):
            outcome.runs += 1
            attempt = f"killed-{outcome.runs}"
            due, waiting = waiting[:KILLS_OF_A_RUN], waiting[KILLS_OF_A_RUN:]
            waiting += run_with_faults(stage, attempt, due, marks, rng, outcome)
            found = differences(stage.run_folder("whole"), stage.run_folder(attempt))
            outcome.problems += [f"{attempt}: {difference}" for difference in found]
        outcome.problems += [f"{fault}: always came too late" for fault in waiting]
    except (AssertionError, subprocess.TimeoutExpired) as error:
        outcome.problems.append(str(error))
    outcome.seconds = time.monotonic() - started
    return outcome


def run_to_the_end(stage: Stage, attempt: str) -> list[float]:
    """Runs a stage undisturbed; returns the times of its rows and of its end, in seconds after the first row."""
    process, run = stage.start(attempt), stage.run_folder(attempt)
    marks: list[float] = []
    with ended(process):
        watch = Record(run)
        while process.poll() is None and not (run / "summary.json").exists():
            marks += [time.monotonic()] * (watch.rows() - len(marks))
            time.sleep(0.002)
        marks.append(time.monotonic())
        process.wait(PATIENCE)
    check_exit(stage, attempt, process, 0)
    return [mark - marks[0] for mark in marks]


def run_with_faults(
    stage: Stage, attempt: str, faults: Sequence[str], marks: Sequence[float], rng: random.Random, outcome: Outcome
) -> list[str]:
    """Stops one run with each fault at its own moment, then runs it to its end; returns faults that came too late.

    Moments are drawn on the timeline of the undisturbed run, and found again by the rows written until then.
    """
    run = stage.run_folder(attempt)
    ends = {"in a write": marks[-2] * 0.9}  # after the last checkpoint there is little to write
    moments = sorted((rng.uniform(0, ends.get(fault, marks[-1])), fault) for fault in faults)
    for number, (moment, fault) in enumerate(moments):
        row = bisect.bisect_right(marks[:-1], moment)
        process = stage.start(attempt)
        with ended(process):
            watch, sent = Record(run), None
            if watch.wait_for(row, process):
                time.sleep(moment - marks[row - 1])
                sent = strike(fault, process, run, rng)
            process.wait(PATIENCE)
        if (run / "summary.json").exists():  # the run is complete
            late = (run / "summary.json").stat().st_mtime - (sent or time.time())
            assert sent is None or late < 0.2, f"{attempt}: {fault} was ignored for {late:.1f} s"
            return [fault for _, fault in moments[number:]]
        assert sent, f"{attempt}: ended before any fault with exit code {process.returncode}{last_line(stage, attempt)}"
        check_exit(stage, attempt, process, EXIT_CODES[fault])
        outcome.faults[fault] += 1
        outcome.cut_writes += fault in ("SIGKILL", "in a write") and in_a_write(run)
    with ended(process := stage.start(attempt)):
        process.wait(PATIENCE)
    check_exit(stage, attempt, process, 0)
    return []


def strike(fault: str, process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> float | None:
    """Sends the signal, for `in a write` during a write; returns the time, or None if the process ended first."""
    if fault == "in a write":
        while not in_a_write(run):
            if process.poll() is not None:
                return None
            time.sleep(0.0003)
        time.sleep(rng.uniform(0, LONGEST_WRITE))
    process.send_signal(getattr(signal, fault, signal.SIGKILL))
    return time.time()


def in_a_write(run: Path) -> bool:
    """Whether something is half-written there; os.walk tolerates files that vanish."""
    return any(name.endswith(".tmp") for _, folders, names in os.walk(run) for name in (*folders, *names))


class Record:
    """Counts the rows of a run's `metrics.jsonl` from the moment the current process reopens it."""

    def __init__(self, run: Path) -> None:
        self._run, self._fresh, self._since = run, False, self._stamp(run)

    def rows(self) -> int:
        """Returns the number of rows; 0 until this process has reopened the file."""
        if not self._fresh:
            self._fresh = self._stamp(self._run) != self._since
        try:
            return sum(path.read_bytes().count(b"\n") for path in records(self._run)) if self._fresh else 0
        except FileNotFoundError:
            return 0

    def wait_for(self, count: int, process: subprocess.Popen[bytes]) -> bool:
        """Waits for `count` rows; returns False if the process ends first."""
        while self.rows() < count:
            if process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    @staticmethod
    def _stamp(run: Path) -> list[tuple[int, int]]:
        return [(path.stat().st_ino, path.stat().st_size) for path in records(run)]


def records(run: Path) -> list[Path]:
    """Returns the run's `metrics.jsonl`, or those of its rounds."""
    return sorted(run.glob("round-*/*/metrics.jsonl")) or sorted(run.glob("metrics.jsonl"))


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Makes sure the process has ended on exit."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def check_exit(stage: Stage, attempt: str, process: subprocess.Popen[bytes], code: int) -> None:
    said = last_line(stage, attempt)
    assert process.returncode == code, f"{attempt}: exit code {process.returncode} instead of {code}{said}"


def last_line(stage: Stage, attempt: str) -> str:
    lines = (stage.folder / attempt / stage.name / "stderr.txt").read_text(encoding="utf-8").splitlines()
    return f": {lines[-1]}" if lines else ""


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """Yields the differences between two runs' files; checkpoints are compared only if both runs have them."""
    base, other = files(whole), files(killed)
    for name in sorted({*base, *other}):
        if name not in base or name not in other:
            if not name.startswith("checkpoint-") and "/checkpoint-" not in name:
                yield f"{name} is only in the {'killed' if name in other else 'whole'} run"
        elif name.endswith("metrics.jsonl"):
            yield from (f"{name}: {line}" for line in differing_rows(base[name], other[name]))
        elif name.endswith("summary.json"):
            if without_measured(base[name]) != without_measured(other[name]):
                yield f"{name}: {other[name].read_text()} instead of {base[name].read_text()}"
        elif base[name].read_bytes() != other[name].read_bytes():
            yield f"{name} has different bytes"


def files(run: Path) -> dict[str, Path]:
    return {str(p.relative_to(run)): p for p in run.rglob("*") if p.is_file() and p.name not in NOT_COMPARED}


def differing_rows(base: Path, other: Path) -> Iterator[str]:
    """Yields the first differing row, by its step and the metrics that differ, and a differing number of rows."""
    rows, others = ([json.loads(line) for line in path.read_text().splitlines()] for path in (base, other))
    for row, another in zip(rows, others, strict=False):
        names = [
            name
            for name in sorted({*row, *another})
            if row.get(name, "none") != another.get(name, "none") and not is_measured(name)
        ]
        if names:
            yield f"step {row['step']} differs in {', '.join(names)}"
            return
    if len(rows) != len(others):
        yield f"{len(others)} rows instead of {len(rows)}"


def is_measured(metric: str) -> bool:
    return metric.startswith("perf/") or metric.rsplit("/", 1)[-1] in MEASURED


def without_measured(path: Path) -> Options:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in MEASURED}


# --------------------------------------------------------------------------------------------------- the stages


def make_stages(folder: Path, *, length: float = 1.0) -> list[Stage]:
    """Makes a tiny base with a policy and a reward role and data from the demo's grammar; returns every stage.

    Args:
        length: scales the steps of the runs, which by default take some seconds each.
    """
    inputs = make_inputs(folder.resolve() / "inputs")
    model = {"model_name_or_path": inputs["base"], "dtype": "float32", "chat_template": "hh"}
    step_wise = {"every_steps": 2, "every_minutes": None}

    def steps(count: int) -> int:
        return max(4, int(count * length))

    def on_base(data: str, count: int, **more: Any) -> Options:
        return {
            "model": model,
            "data": {"train": inputs[data]},
            "checkpoint": step_wise,
            "max_steps": steps(count),
            "batch": {"minibatch": 4, "microbatch_tokens": 1024},
            **more,
        }

    optimizer = {"optimizer": {"learning_rate": 2e-3, "schedule": "cosine"}}
    lora = {"lora": {"r": 4, "dropout": 0.1}, **optimizer}
    evaluated = {"evaluation": {"every_steps": 5}}  # so that best/ is written too
    sampling = {"max_new_tokens": 8, "samples_per_prompt": 2}
    sampled = {"model": model, "reward": {"callable": "bench.crash_test:vowels"}}

    def ppo(count: int, **more: Any) -> Options:
        return {
            **sampled,
            "start_from": inputs["policy"],
            "data": {"train": inputs["prompts"]},
            "generation": sampling,
            "checkpoint": {**step_wise, "every_steps": 1},
            "max_steps": steps(count),
            "evaluation": {"prompts": 8},
            "batch": {"microbatch_tokens": 1024},
            "optimizer": {"learning_rate": 2e-3},
            **more,
        }

    small = {"rollout_prompts": 4, "minibatch_prompts": 2}
    all_options: list[tuple[str, str, Options]] = [
        ("sft", "sft", on_base("answers", 60, **lora, **evaluated)),
        (
            "ppo",
            "ppo",
            ppo(
                30,
                reward={"role": inputs["reward"], "normalize": "held_out"},
                ppo={**small, "kl_target": 0.5, "kl_horizon": 100, "score_scaling": "running"},
            ),
        ),
        (
            "pretrain",
            "pretrain",
            {
                "tiny": {"vocab_size": 400, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_length": 64},
                "data": {"train": inputs["texts"], "eval_fraction": 0.05},
                "max_steps": steps(60),
                "checkpoint": step_wise,
                "batch": {"minibatch": 4, "microbatch_tokens": 1024},
                **evaluated,
            },
        ),
        ("reward", "reward", on_base("preferences", 60, **lora, **evaluated)),
        ("dpo sigmoid", "dpo", on_base("preferences", 60, start_from=inputs["policy"], **optimizer, **evaluated)),
        ("dpo kto", "dpo", on_base("preferences", 50, loss="kto", **lora, **evaluated)),
        (
            "ppo critic=head",
            "ppo",
            ppo(30, ppo={**small, "critic": "head"}, evaluation={"prompts": 8, "every_steps": 5}),
        ),
        ("ppo kl_budget", "ppo", ppo(40, optimizer={"learning_rate": 5e-3}, ppo={**small, "kl_budget": 0.3})),
        (
            "rft",
            "rft",
            ppo(
                30,
                reward={"verifiers": [{"name": "length", "most": 12, "unit": "characters"}]},
                rft={**small, "kl_coefficient": 0.05, "dynamic_sampling": True, "num_epochs": 2},
            ),
        ),
        (
            "best-of",
            "best-of",
            {
                **sampled,
                "start_from": inputs["policy"],
                "data": {"train": inputs["prompts"]},
                "generation": sampling,
                "checkpoint": {**step_wise, "every_steps": 32},
                "batch": {"microbatch_tokens": 1024},
            },
        ),
        (
            "iterate",
            "iterate",
            {
                **sampled,
                "start_from": inputs["policy"],
                "data": {"train": inputs["prompts"]},
                "generation": sampling,
                "rounds": 2,
                "prompts_per_round": steps(96),
                "reference": "kept",
                "checkpoint": step_wise,
                "optimizer": {"learning_rate": 2e-3, "num_epochs": 3},
                "batch": {"minibatch": 4, "microbatch_tokens": 1024},
            },
        ),
    ]
    return [Stage(name, verb, options, folder.resolve()) for name, verb, options in all_options]


def vowels(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """A reward that varies with the completion: its vowels."""
    return [sum(letter in "aeiou" for letter in text) / 4 for text in completions]


def make_inputs(folder: Path) -> dict[str, str]:
    """Makes the files and folders that the stages read, and returns their paths by kind."""
    import torch

    from onebase.config.language import SFTConfig
    from onebase.config.preferences import RewardConfig
    from onebase.demo import grammar
    from onebase.models.scratch import make_llama, train_tokenizer
    from onebase.recipes import reward, sft

    torch.set_num_threads(1)
    texts = grammar.pretraining_texts(seed=0, count=300)
    tokenizer = train_tokenizer(texts, vocab_size=600)
    base = make_llama(tokenizer, hidden_size=32, num_layers=2, num_heads=2, max_length=160, seed=0)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    asked: dict[str, Callable[[Any], Options]] = {
        "prompts": lambda row: {},
        "answers": lambda row: {"completion": row.answers[0]},
        "preferences": lambda row: {"chosen": row.answers[0], "rejected": row.answers[-1]},
    }
    rows = {
        "prompts": grammar.prompt_rows(seed=0, count=400, split="train"),
        "answers": grammar.sft_rows(seed=0, count=100),
        "preferences": grammar.preference_rows(seed=0, count=100),
    }
    paths = {"base": str(folder / "base")}
    for name, of in asked.items():
        paths[name] = write_rows(
            folder / f"{name}.jsonl", ({"prompt": row.messages[0].content, **of(row)} for row in rows[name])
        )
    paths["texts"] = write_rows(folder / "texts.jsonl", ({"text": text} for text in texts))
    shared = {
        "model": {"model_name_or_path": paths["base"], "dtype": "float32", "chat_template": "hh"},
        "lora": {"r": 4},
        "optimizer": {"learning_rate": 5e-3},
        "max_steps": 10,
        "batch": {"minibatch": 8, "microbatch_tokens": 1024},
    }
    sft.run(
        SFTConfig.model_validate({**shared, "output_dir": str(folder / "sft"), "data": {"train": paths["answers"]}})
    )
    reward.run(
        RewardConfig.model_validate(
            {**shared, "output_dir": str(folder / "rm"), "data": {"train": paths["preferences"]}}
        )
    )
    return {**paths, "policy": str(folder / "sft" / "policy"), "reward": str(folder / "rm" / "reward")}


def write_rows(path: Path, rows: Iterable[Options]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
