"""Kills runs of every stage at random moments, starts them again, and compares what they leave with runs left alone.

usage: python -m bench.crash_test [--kills 100] [--jobs CORES] [--seed 0] [--stages NAME ...] [--folder FOLDER]

Each stage runs once to its end. Then the same command runs in another folder until a fault stops it, again and again,
and at last to its end: every file it leaves must be the same byte for byte, and every row of `metrics.jsonl`, but for
what a clock measured. A tiny model and its data are made first; no network.

    SIGKILL    at a moment drawn uniformly between the first step of the run and its end; two in five are held back
               until a file or folder is being written (nearly always a checkpoint)
    SIGTERM    must end with exit code 75, SIGINT (Ctrl-C) with 130

Exit code 1 where anything differs; the folders stay then.
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
"""Dealt in this order, over and over; `in a write` is a SIGKILL held back until something is being written."""
EXIT_CODES = {"SIGKILL": -signal.SIGKILL, "in a write": -signal.SIGKILL, "SIGTERM": 75, "SIGINT": 130}
KILLS_OF_A_RUN = 5
"""At most; with more, another run of the stage is begun."""
LONGEST_WRITE = 0.03
"""Seconds into a write at which it is cut, at most."""
PATIENCE = 300
"""Seconds after which a process is taken to hang."""
MEASURED = ("seconds", "phase_seconds", "peak_memory_mb")
"""What differs from one process to the next in any case; in `metrics.jsonl` also what is under `perf/`."""
NOT_COMPARED = ("state.pt", "checksums.json", "report.html", "metrics.png")
"""Files that hold such measurements, or are drawn from the others; of a checkpoint the roles in it are compared."""

Options = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A verb and its configuration, and where it is run."""

    name: str
    verb: str
    options: Options
    folder: Path

    def start(self, attempt: str) -> subprocess.Popen[bytes]:
        """The command as a person gives it, with a working folder of its own; stderr is kept."""
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
    """What was done to a stage, and what came of it."""

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
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="stages at a time, a thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", help="some of them, by name")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if not given")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="crash-test-"))
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
    """The faults of each stage: the kinds in turn, as evenly as they go."""
    kinds = [FAULTS[i % len(FAULTS)] for i in range(kills)]
    return [kinds[i::stages] for i in range(stages)]


def crash(stage: Stage, faults: Sequence[str], rng: random.Random) -> Outcome:
    """Runs a stage to its end, then with these faults, and compares; a fault that came too late is tried again."""
    outcome, started = Outcome(stage.name), time.monotonic()
    try:
        marks = run_to_the_end(stage, "whole")
        waiting = list(faults)
        while waiting and outcome.runs < 2 + 2 * len(faults):
            outcome.runs += 1
            attempt = f"killed-{outcome.runs}"
            part, waiting = waiting[:KILLS_OF_A_RUN], waiting[KILLS_OF_A_RUN:]
            waiting += run_with_faults(stage, attempt, part, marks, rng, outcome)
            found = differences(stage.run_folder("whole"), stage.run_folder(attempt))
            outcome.problems += [f"{attempt}: {difference}" for difference in found]
        outcome.problems += [f"{fault}: always came too late" for fault in waiting]
    except (AssertionError, subprocess.TimeoutExpired) as error:
        outcome.problems.append(str(error))
    outcome.seconds = time.monotonic() - started
    return outcome


def run_to_the_end(stage: Stage, attempt: str) -> list[float]:
    """Seconds after the first row of its record at which each further row came, and at which the run was complete."""
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
    """One run, stopped by each fault at a moment of its own, and brought to its end; returns those that came too late.

    A moment is drawn in the time of the run left alone, and found again by the rows written until then.
    """
    run = stage.run_folder(attempt)
    ends = {"in a write": marks[-2] * 0.9}  # behind the last checkpoint there is little to write
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
        if (run / "summary.json").exists():  # all was done
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
    """Sends the signal, once something is being written if so wished; returns when, None where the process ended."""
    if fault == "in a write":
        while not in_a_write(run):
            if process.poll() is not None:
                return None
            time.sleep(0.0003)
        time.sleep(rng.uniform(0, LONGEST_WRITE))
    process.send_signal(getattr(signal, fault, signal.SIGKILL))
    return time.time()


def in_a_write(run: Path) -> bool:
    """Whether something is half-written there; os.walk does not mind what goes away meanwhile."""
    return any(name.endswith(".tmp") for _, folders, names in os.walk(run) for name in (*folders, *names))


class Record:
    """The record of a run as it grows, from when it is opened anew."""

    def __init__(self, run: Path) -> None:
        self._run, self._fresh, self._since = run, False, self._stamp(run)

    def rows(self) -> int:
        """Rows there are, or 0 while all are of the process before."""
        if not self._fresh:
            self._fresh = self._stamp(self._run) != self._since
        try:
            return sum(path.read_bytes().count(b"\n") for path in records(self._run)) if self._fresh else 0
        except FileNotFoundError:
            return 0

    def wait_for(self, count: int, process: subprocess.Popen[bytes]) -> bool:
        """Until there are so many rows; False where the process ended before."""
        while self.rows() < count:
            if process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    @staticmethod
    def _stamp(run: Path) -> list[tuple[int, int]]:
        return [(path.stat().st_ino, path.stat().st_size) for path in records(run)]


def records(run: Path) -> list[Path]:
    """That of the run, or those of its rounds."""
    return sorted(run.glob("round-*/*/metrics.jsonl")) or sorted(run.glob("metrics.jsonl"))


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leaves no process behind, whatever happens to this one."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def check_exit(stage: Stage, attempt: str, process: subprocess.Popen[bytes], code: int) -> None:
    said = last_line(stage, attempt)
    assert process.returncode == code, f"{attempt}: exit code {process.returncode} in place of {code}{said}"


def last_line(stage: Stage, attempt: str) -> str:
    lines = (stage.folder / attempt / stage.name / "stderr.txt").read_text(encoding="utf-8").splitlines()
    return f": {lines[-1]}" if lines else ""


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """What a run left that another did not, or otherwise; checkpoints where both have one, but for their clocks."""
    base, other = files(whole), files(killed)
    for name in sorted({*base, *other}):
        if name not in base or name not in other:
            if not name.startswith("checkpoint-") and "/checkpoint-" not in name:
                yield f"{name} is only in the {'killed' if name in other else 'whole'} run"
        elif name.endswith("metrics.jsonl"):
            yield from (f"{name}: {line}" for line in differing_rows(base[name], other[name]))
        elif name.endswith("summary.json"):
            if without_measured(base[name]) != without_measured(other[name]):
                yield f"{name}: {other[name].read_text()} in place of {base[name].read_text()}"
        elif base[name].read_bytes() != other[name].read_bytes():
            yield f"{name} has other bytes"


def files(run: Path) -> dict[str, Path]:
    return {str(p.relative_to(run)): p for p in run.rglob("*") if p.is_file() and p.name not in NOT_COMPARED}


def differing_rows(base: Path, other: Path) -> Iterator[str]:
    """The first row that differs, by its step and the metrics in which it does."""
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
        yield f"{len(others)} rows in place of {len(rows)}"


def is_measured(metric: str) -> bool:
    return metric.startswith("perf/") or metric.rsplit("/", 1)[-1] in MEASURED


def without_measured(path: Path) -> Options:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in MEASURED}


# --------------------------------------------------------------------------------------------------- the stages


def make_stages(folder: Path, *, length: float = 1.0) -> list[Stage]:
    """A tiny base, a policy and a reward role on it, data of the demo's grammar, and every stage on them.

    Args:
        length: of the runs, as a multiple of some seconds of steps each.
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
    evaluated = {"evaluation": {"every_steps": 5}}  # best/ is written too
    sampling = {"max_new_tokens": 8, "samples_per_prompt": 2}
    sampled = {"model": model, "reward": {"callable": "bench.crash_test:vowels"}}

    def ppo(count: int, **more: Any) -> Options:
        return {
            **sampled,
            "policy": inputs["policy"],
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
            "best-of",
            "best-of",
            {
                **sampled,
                "policy": inputs["policy"],
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
                "policy": inputs["policy"],
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
    """A reward that varies."""
    return [sum(letter in "aeiou" for letter in text) / 4 for text in completions]


def make_inputs(folder: Path) -> dict[str, str]:
    """The files and folders that the stages read, by what they are."""
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
