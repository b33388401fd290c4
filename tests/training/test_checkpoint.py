"""A run that was stopped, killed or damaged goes on from the last checkpoint that is whole, bit for bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from onebase import files
from onebase.config.remedies import with_remedy
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import token_logprobs
from onebase.engines.passes import num_counted
from onebase.errors import CheckpointError, ConfigError, DoesNotFitError, Stopped
from onebase.models.role_files import save_role
from onebase.models.roles import Moments
from onebase.records import Example, Row, ToolCall, TreeBatch
from onebase.runs.folder import changed_keys
from onebase.runs.record import read_metrics
from onebase.training.averages import Averages
from onebase.training.checkpoint import (
    RandomStates,
    TrainedWeights,
    checkpoints,
    fingerprint_data,
    inputs_of,
    read_checkpoint,
    remove_old,
    write_checkpoint,
)
from onebase.training.loop import Loop
from onebase.training.run import Run, Schedule
from onebase.training.update import ParameterGroup, Update
from tests.tiny_models import add_adapter_role, random_ids, tiny_base

Capture = pytest.CaptureFixture[str]
CONFIG = """output_dir: a
seed: 0
batch:
  minibatch: 3
  microbatch_tokens: 64
model:
  device: auto
checkpoint:
  every_steps: null
report_to: []
"""
TOTAL = 6


def some_examples(count: int = 3) -> list[Example]:
    return [Example(random_ids(5, seed=e), [random_ids(3, seed=e + 50)]) for e in range(count)]


@dataclass
class Training:
    """A few optimizer steps on a tiny model with dropout, whose every step draws random numbers."""

    folder: Path
    config: str = CONFIG
    schedule: Schedule = field(default_factory=lambda: Schedule(keep=2))
    examples: list[Example] = field(default_factory=some_examples)
    best: str | None = None
    measured: Mapping[int, float] = field(default_factory=dict)
    """Step -> what the metric `eval` is then."""
    hooks: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    """Step -> what happens in the middle of it, before the weights change."""
    afterwards: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    """Step -> what happens when the weights have changed, and the step is not done."""
    base_seed: int = 0

    def run(self) -> Training:
        self.base = tiny_base("llama", seed=self.base_seed)
        add_adapter_role(self.base, "policy", dropout=0.3)
        run = Run(self.folder, seed=0, config_text=self.config, schedule=self.schedule)
        update = Update(
            self.base,
            [ParameterGroup(self.base.parameters("policy"), 1e-2)],
            dropout=True,
            weight_decay=0.01,
            schedule="cosine",
            warmup_steps=2,
            total_steps=TOTAL,
            max_grad_norm=1.0,
            budget=TokenBudget(16),
        )
        self.steps: list[int] = []
        with Loop(
            run,
            "test",
            TOTAL,
            save=self.save,
            weights=TrainedWeights(self.base, "policy"),
            update=update,
            inputs=inputs_of(self.base, self.examples),
            best=self.best,
        ) as loop:
            for step in loop:
                metrics = update.step((self.examples, self.loss(step + 1)))
                self.afterwards.get(step + 1, lambda: None)()
                drawn = {"python": random.random(), "numpy": float(numpy.random.randn())}
                measured = {"eval": self.measured[step + 1]} if step + 1 in self.measured else {}
                loop.end_step({**metrics, **drawn, **measured})
                self.steps.append(step + 1)
        self.save(self.folder)
        loop.finish({})
        return self

    def loss(self, step: int) -> Callable[[TreeBatch, list[int], Averages], Tensor]:
        def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
            share = -token_logprobs(self.base, batch, role="policy").sum() / num_counted(self.examples)
            self.hooks.get(step, lambda: None)()
            return share

        return loss

    def save(self, folder: Path) -> None:
        save_role(self.base, "policy", folder / "policy", kind="policy")

    @property
    def role(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "policy").iterdir()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was measured, but for the clock."""
        return [
            {name: value for name, value in row.items() if not name.startswith("perf/")}
            for row in read_metrics(self.folder / "metrics.jsonl")
        ]


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise ValueError("the step failed")


def stopped(folder: Path, at: int, **options: Any) -> None:
    with pytest.raises(Stopped):
        Training(folder, hooks={at: stop}, **options).run()


def every_step(keep: int = 9) -> Schedule:
    return Schedule(every_steps=1, keep=keep)


def killed(folder: Path, at: int, **options: Any) -> None:
    """Leaves what a process leaves that is killed after writing `at` checkpoints, one a step."""
    options.setdefault("schedule", every_step())
    with pytest.raises(KeyboardInterrupt):  # which saves nothing
        Training(folder, hooks={at + 1: interrupt}, **options).run()
    assert [path.name for path in checkpoints(folder)][0] == f"checkpoint-{at}"


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """What nobody stopped."""
    done = Training(tmp_path_factory.mktemp("whole")).run()
    assert not checkpoints(done.folder)
    return done


def lines_without_clock(folder: Path) -> list[str]:
    """The record as it is written, with what a clock measured cut out."""
    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("}\n")
    return re.sub(r', "perf/\w+": [^,}]+', "", text).splitlines()


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def message_of(caught: pytest.ExceptionInfo[Any]) -> str:
    message = with_remedy(caught.value)
    assert "\n" not in message
    return message


# --------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("at", [1, 3, TOTAL])
def test_a_stopped_run_ends_as_one_that_nobody_stopped(
    whole: Training, tmp_path: Path, capsys: Capture, at: int
) -> None:
    stopped(tmp_path, at)
    assert inside(tmp_path) == [f"checkpoint-{at}", "config.yaml", "metrics.jsonl"]
    assert inside(tmp_path / f"checkpoint-{at}") == ["checksums.json", "policy", "state.pt"]
    capsys.readouterr()
    again = Training(tmp_path).run()
    assert f"{tmp_path}: found checkpoint-{at}, resuming after step {at}" in capsys.readouterr().err.splitlines()
    assert again.steps == list(range(at + 1, TOTAL + 1))
    assert again.role == whole.role and again.rows == whole.rows and len(whole.rows) == TOTAL


def test_three_stops_of_three_kinds_change_nothing(whole: Training, tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    with pytest.raises(ValueError, match="the step failed"):
        Training(tmp_path, hooks={4: fail}).run()
    killed(tmp_path, 5)
    again = Training(tmp_path).run()
    assert again.steps == [6]
    assert again.role == whole.role and again.rows == whole.rows


def test_a_step_that_failed_before_it_changed_anything_is_done_again(whole: Training, tmp_path: Path) -> None:
    # The passes of the failed step have drawn their dropout already.
    with pytest.raises(ValueError, match="the step failed"):
        Training(tmp_path, hooks={4: fail}).run()
    assert inside(tmp_path) == ["checkpoint-3", "config.yaml", "metrics.jsonl"]
    again = Training(tmp_path).run()
    assert again.steps == [4, 5, 6] and again.role == whole.role and again.rows == whole.rows


def test_a_step_that_failed_after_it_changed_the_weights_leaves_the_roles_and_no_checkpoint(
    whole: Training, tmp_path: Path
) -> None:
    schedule = Schedule(every_steps=2)
    with pytest.raises(ValueError, match="the step failed"):
        Training(tmp_path, schedule=schedule, afterwards={4: fail}).run()
    assert inside(tmp_path) == ["checkpoint-2", "config.yaml", "failed-in-step-4", "metrics.jsonl"]
    assert inside(tmp_path / "failed-in-step-4") == ["policy"]
    before, failed = (
        (tmp_path / name / "policy" / "adapter_model.safetensors").read_bytes()
        for name in ("checkpoint-2", "failed-in-step-4")
    )
    assert before != failed
    again = Training(tmp_path, schedule=schedule).run()
    assert again.steps == [3, 4, 5, 6] and again.role == whole.role and again.rows == whole.rows


def test_the_order_of_the_files_of_a_folder_does_not_decide_which_is_newest(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-x", "checkpoint-7.bak", "other-8"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]


def test_weights_lose_no_bit_in_any_dtype(tmp_path: Path) -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    add_adapter_role(base, "critic", seed=1, head=True)
    for number, dtype in enumerate((torch.bfloat16, torch.float16, torch.float64)):
        base.parameters("policy")[number].data = base.parameters("policy")[number].data.to(dtype)
    trained = TrainedWeights(base, "policy", "critic")
    write_checkpoint(tmp_path / "checkpoint-1", trained.state_dict(), lambda folder: None)
    parameters = [*base.parameters("policy"), *base.parameters("critic")]
    expected = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.add_(1)
    trained.load_state_dict(read_checkpoint(tmp_path / "checkpoint-1"))
    assert all(torch.equal(p, e) and p.dtype == e.dtype for p, e in zip(parameters, expected, strict=True))
    with pytest.raises(CheckpointError, match="other shapes than the roles of this run"):
        TrainedWeights(base, "policy").load_state_dict(trained.state_dict())


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            float(numpy.random.rand()),
            float(numpy.random.randn()),
            *torch.rand(3).tolist(),
            float(torch.randn(())),
        ]

    random.seed(3), numpy.random.seed(3), torch.manual_seed(3)
    draws()  # an odd number of normal ones: Python and NumPy keep the second of a pair for later
    write_checkpoint(tmp_path / "checkpoint-1", RandomStates().state_dict(), lambda folder: None)
    expected = [draws() for _ in range(3)]
    random.seed(4), numpy.random.seed(4), torch.manual_seed(4)
    assert draws() != expected[0]
    RandomStates().load_state_dict(read_checkpoint(tmp_path / "checkpoint-1"))
    assert [draws() for _ in range(3)] == expected


# --------------------------------------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("state.pt", truncate, "state.pt is damaged: it is not what was written"),
    ("state.pt", flip_a_bit, "state.pt is damaged: it is not what was written"),
    ("state.pt", Path.unlink, "checkpoint-3 is not complete: state.pt is missing"),
    ("policy/adapter_model.safetensors", truncate, "adapter_model.safetensors is damaged: it is not what was written"),
    ("policy/adapter_model.safetensors", flip_a_bit, "adapter_model.safetensors is damaged: "),
    ("policy/role.json", Path.unlink, "checkpoint-3 is not complete: role.json is missing"),
    ("policy", shutil.rmtree, "is missing"),
    ("checksums.json", Path.unlink, "checkpoint-3 is not complete: checksums.json is missing"),
    ("checksums.json", truncate, "checkpoint-3 cannot be read: "),
    ("checksums.json", lambda path: path.write_bytes(b"\xff\xfe") and None, "checkpoint-3 cannot be read: "),
    ("checksums.json", lambda path: path.write_text("{}") and None, "state.pt is damaged: "),
    ("checksums.json", lambda path: path.write_text("[]") and None, "checkpoint-3 cannot be read: "),
]


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch it-ran",)


def holding(state: Any) -> Callable[[Path], None]:
    """Another state, with its checksum: whoever wrote it knew how."""

    def write(folder: Path) -> None:
        known = torch.load(folder / "state.pt")
        torch.save(state(known) if callable(state) else state, folder / "state.pt")
        sums = json.loads((folder / "checksums.json").read_text())
        sums["state.pt"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
        (folder / "checksums.json").write_text(json.dumps(sums))

    return write


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def made_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE += [
    (
        "",
        holding({"format": 1, "a": Evil()}),
        "state.pt holds more than numbers, texts and tensors, which onebase never writes; nothing of it was run",
    ),
    *(
        (name, made_a_pipe, f"{Path(name).name} is not a file")
        for name in ("state.pt", "checksums.json", "policy/role.json")
    ),
    ("", holding([1, 2]), "state.pt is not of this version of onebase: its format is 'list', not 2"),
    ("", holding(without("format")), "state.pt is not of this version of onebase: its format is None, not 2"),
    ("", holding(lambda state: {**state, "format": 99}), "its format is 99, not 2"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_of_a_damaged_checkpoint_it_is_said_and_the_one_before_is_used(
    whole: Training, tmp_path: Path, capsys: Capture, name: str, damage: Callable[[Path], None], message: str
) -> None:
    killed(tmp_path, 3)
    damage(tmp_path / "checkpoint-3" / name)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "checkpoint-3")
    assert message in message_of(caught) and str(tmp_path / "checkpoint-3") in str(caught.value)
    assert caught.value.exit_code == 2
    read_checkpoint(tmp_path / "checkpoint-2")
    capsys.readouterr()
    again = Training(tmp_path).run()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"warning: {caught.value}; trying the one before"
    assert lines[1] == f"{tmp_path}: found checkpoint-2, resuming after step 2"
    assert again.steps == [3, 4, 5, 6]
    assert again.role == whole.role and again.rows == whole.rows


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("config"), "checkpoint-3 is not what a run writes: config is missing or wrong"),
        (without("weights"), "checkpoint-3 is not what a run writes: weights is missing or wrong"),
        (lambda state: {**state, "step": "3", "parts": []}, "not what a run writes: step, parts is missing or wrong"),
        (lambda state: {**state, "step": -1}, "checkpoint-3 is not what a run writes: step is missing or wrong"),
        (lambda state: {**state, "step": 2}, "checkpoint-3 is not what a run writes: step is missing or wrong"),
        (lambda state: {**state, "config": "x"}, "checkpoint-3 is not what a run writes: config is missing or wrong"),
        (lambda state: {**state, "config": "["}, "checkpoint-3 is not what a run writes: config is missing or wrong"),
        (lambda state: {**state, "update": {}}, "checkpoint-3 is not what a run writes: update is missing or wrong"),
    ],
)
def test_a_state_that_is_not_one_of_a_run_gives_way_to_the_one_before(
    whole: Training, tmp_path: Path, capsys: Capture, state: Any, message: str
) -> None:
    killed(tmp_path, 3)
    holding(state)(tmp_path / "checkpoint-3")
    capsys.readouterr()
    again = Training(tmp_path).run()
    assert message in capsys.readouterr().err.splitlines()[0]
    assert again.steps == [3, 4, 5, 6] and again.role == whole.role


@pytest.mark.parametrize(
    "state",
    [
        lambda state: {**state, "parts": {}},
        lambda state: {**state, "weights": {"weights": [None]}},
        lambda state: {**state, "weights": {}},
        lambda state: {**state, "update": {"token_budget": 16}},
        lambda state: {**state, "update": {**state["update"], "optimizer": {"state": {}, "param_groups": []}}},
    ],
)
def test_a_state_that_does_not_fit_the_run_is_one_line(tmp_path: Path, state: Any) -> None:
    killed(tmp_path, 3)
    holding(state)(tmp_path / "checkpoint-3")
    with pytest.raises(CheckpointError) as caught:
        Training(tmp_path).run()
    message = message_of(caught)
    assert "checkpoint-3 does not fit this run" in message or message.startswith("its weights have other shapes")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"\xff\xfe\n"), "it is not text"),
        (lambda path: path.write_text("[1]\n"), "a line is not a step's"),
        (lambda path: path.write_text('{"loss": 1}\n'), "a line is not a step's"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_a_damaged_record_is_one_line_before_anything_is_done(
    whole: Training, tmp_path: Path, damage: Callable[[Path], Any], reason: str
) -> None:
    stopped(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        Training(tmp_path).run()
    assert message_of(caught) == (
        f"{path} cannot be read ({reason}); put it back or remove it to resume without what was measured so far"
    )
    path.rmdir() if path.is_dir() else path.unlink()
    again = Training(tmp_path).run()
    assert again.steps == [4, 5, 6] and again.role == whole.role and again.rows == whole.rows[3:]


def test_a_damaged_checkpoint_is_written_anew_when_its_step_is_reached_again(whole: Training, tmp_path: Path) -> None:
    killed(tmp_path, 3)
    truncate(tmp_path / "checkpoint-3" / "state.pt")
    stopped(tmp_path, 3)
    assert read_checkpoint(tmp_path / "checkpoint-3")["step"] == 3
    again = Training(tmp_path).run()
    assert again.steps == [4, 5, 6] and again.role == whole.role


def test_a_damaged_checkpoint_takes_no_place_of_a_good_one(tmp_path: Path) -> None:
    killed(tmp_path, 5)
    for step in (4, 5):
        truncate(tmp_path / f"checkpoint-{step}" / "state.pt")
    stopped(tmp_path, 4, schedule=Schedule(keep=2))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-3"]
    for path in checkpoints(tmp_path):
        read_checkpoint(path)


def test_where_all_are_damaged_nothing_is_started_over(tmp_path: Path, capsys: Capture) -> None:
    killed(tmp_path, 3)
    for path in checkpoints(tmp_path):
        flip_a_bit(path / "state.pt")
    kept = inside(tmp_path)
    capsys.readouterr()
    with pytest.raises(CheckpointError) as caught:
        Training(tmp_path).run()
    assert message_of(caught) == (
        f"{tmp_path}: none of its 3 checkpoints can be read; remove them to start from the beginning, or choose "
        "another --output_dir"
    )
    assert capsys.readouterr().err.count("warning: ") == 3
    assert inside(tmp_path) == kept and len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    # And what is asked for helps, though the error is still held.
    for path in checkpoints(tmp_path):
        shutil.rmtree(path)
    assert Training(tmp_path).run().steps == [1, 2, 3, 4, 5, 6]


def test_what_a_killed_writer_left_is_removed_and_what_it_was_replacing_comes_back(
    whole: Training, tmp_path: Path
) -> None:
    killed(tmp_path, 2)
    (tmp_path / ".checkpoint-3.4711.tmp" / "policy").mkdir(parents=True)
    (tmp_path / ".checkpoint-3.4711.tmp" / "state.pt").write_bytes(b"half")
    (tmp_path / ".config.yaml.4711.tmp").write_text("half")
    (tmp_path / ".policy.4711.old").mkdir()
    (tmp_path / "policy").mkdir()
    (tmp_path / ".best.4711.old").mkdir()
    (tmp_path / ".best.4711.old" / "best.json").write_text("{}")
    (tmp_path / "notes.tmp").write_text("mine")
    files.settle_leftovers(tmp_path)
    assert inside(tmp_path) == [
        "best",
        "checkpoint-1",
        "checkpoint-2",
        "config.yaml",
        "metrics.jsonl",
        "notes.tmp",
        "policy",
    ]
    assert (tmp_path / "best" / "best.json").read_text() == "{}"
    (tmp_path / ".checkpoint-3.4711.tmp").mkdir()
    again = Training(tmp_path).run()
    assert again.steps == [3, 4, 5, 6] and again.role == whole.role
    assert not [name for name in inside(tmp_path) if name.startswith(".")]


# --------------------------------------------------------------------------------------------- how many, and when


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_no_more_checkpoints_stay_than_asked_for(tmp_path: Path, keep: int) -> None:
    killed(tmp_path, 5, schedule=every_step(keep))
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in range(5, 5 - keep, -1)]


def test_old_ones_go_by_their_number_and_nothing_else_goes(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    remove_old(tmp_path, newest=tmp_path / "checkpoint-11", keep=2)
    assert inside(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-final"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(every_steps=2, keep=9), [2, 4]),  # behind the last step is the end of the run
        (Schedule(every_steps=4, keep=9), [4]),
        (Schedule(every_minutes=1e-9, keep=9), [1, 2, 3, 4, 5]),
        (Schedule(every_minutes=60, keep=9), []),
        (Schedule(), []),
    ],
)
def test_checkpoints_are_written_by_steps_or_by_time(tmp_path: Path, schedule: Schedule, expected: list[int]) -> None:
    Training(tmp_path, schedule=schedule).run()
    assert [path.name for path in checkpoints(tmp_path)][::-1] == [f"checkpoint-{step}" for step in expected]


def test_steps_done_many_at_once_do_not_jump_over_a_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=0, config_text=CONFIG, schedule=Schedule(every_steps=10, keep=9))
    with Loop(run, "test", 50, save=lambda folder: None) as loop:
        while loop.done < 50:
            loop.end_step({"loss": 1.0}, steps=7)
    assert [path.name for path in checkpoints(tmp_path)][::-1] == [f"checkpoint-{step}" for step in (14, 21, 35, 42)]


# --------------------------------------------------------------------------------------------- the record


@pytest.mark.parametrize("cut", [0, 1, 9, 30])
def test_the_record_is_cut_back_to_the_checkpoint(whole: Training, tmp_path: Path, cut: int) -> None:
    stopped(tmp_path, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # it went on to step 5, and was killed as it wrote its line
        file.write(json.dumps({"step": 4, "loss": 9.0}) + "\n" + (json.dumps({"step": 5, "loss": 9.0}) + "\n")[:cut])
    again = Training(tmp_path).run()
    assert again.rows == whole.rows
    assert lines_without_clock(tmp_path) == lines_without_clock(whole.folder)


def test_without_a_checkpoint_the_record_begins_anew(whole: Training, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, hooks={4: interrupt}).run()
    assert inside(tmp_path) == ["config.yaml", "metrics.jsonl"]
    again = Training(tmp_path).run()
    assert again.steps == [1, 2, 3, 4, 5, 6] and again.rows == whole.rows and again.role == whole.role


def test_a_checkpoint_is_not_on_the_disk_before_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, path.stat().st_size))
        fsync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file is synced")
    monkeypatch.setattr(os, "fsync", note)
    stopped(tmp_path, 3)
    names = [name for name, _ in synced]
    whole_record = ("metrics.jsonl", (tmp_path / "metrics.jsonl").stat().st_size)
    assert whole_record in synced[: names.index("state.pt")]


# --------------------------------------------------------------------------------------------- what changed since


def test_a_changed_configuration_is_refused_by_the_names_of_its_keys(tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    kept = inside(tmp_path)
    other = CONFIG.replace("seed: 0", "seed: 1").replace("minibatch: 3", "minibatch: 4") + "loss: sigmoid\n"
    with pytest.raises(CheckpointError) as caught:
        Training(tmp_path, config=other).run()
    assert message_of(caught) == (
        f"{tmp_path / 'checkpoint-2'} was written with another configuration: batch.minibatch, loss, seed differ; "
        f"resume with {tmp_path / 'config.yaml'}, choose another --output_dir, or remove that folder first"
    )
    assert caught.value.exit_code == 2 and inside(tmp_path) == kept


FREE = """output_dir: elsewhere
seed: 0
batch:
  minibatch: 3
  microbatch_tokens: auto
model:
  device: cpu
checkpoint:
  every_steps: 7
report_to: [tensorboard]
"""


def test_what_does_not_change_the_result_may_differ(whole: Training, tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    again = Training(tmp_path, config=FREE).run()
    assert again.steps == [3, 4, 5, 6] and again.role == whole.role
    assert (tmp_path / "config.yaml").read_text() == FREE


def test_changed_keys_are_named_by_their_path() -> None:
    before = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": [1, 2], "g": None}
    assert list(changed_keys(before, before)) == []
    now = {"a": 1, "b": {"c": 5, "d": {"e": 4}, "new": 0}, "f": [2, 1], "h": None}
    # A key that is null and one that is not there say the same.
    assert list(changed_keys(before, now)) == ["b.c", "b.d.e", "b.new", "f"]
    assert list(changed_keys({"b": {"c": 1}}, {"b": 2})) == ["b"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_seed": 1}, "the base model changed"),
        ({"examples": [*some_examples(2), *some_examples(1)]}, "the data changed"),
        ({"base_seed": 1, "examples": some_examples(4)}, "the base model and the data changed"),
    ],
)
def test_another_base_or_other_data_is_refused(tmp_path: Path, changed: Any, said: str) -> None:
    stopped(tmp_path, 2)
    kept = inside(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Training(tmp_path, **changed).run()
    assert message_of(caught) == (
        f"{tmp_path}: {said} since checkpoint-2 was written; put it back, or choose another --output_dir"
    )
    assert inside(tmp_path) == kept
    assert Training(tmp_path).run().steps == [3, 4, 5, 6]  # put back


ROW = Row((), ("yes", "no"), (1.0, 0.0), columns={"label": True, "gold": "7"}, place="a.jsonl:1")
EXAMPLE = Example([3, 4], [[5, 6], [7]], None, (1.0, 0.0), 0.5, ROW)


@pytest.mark.parametrize(
    "other",
    [
        replace(EXAMPLE, prompt_ids=[3, 5]),
        replace(EXAMPLE, completions=[[5], [6, 7]]),
        replace(EXAMPLE, counted=[[True, False], [True]]),
        replace(EXAMPLE, grades=(0.0, 1.0)),
        replace(EXAMPLE, margin=1.5),
        replace(EXAMPLE, row=replace(ROW, columns={"label": False, "gold": "7"})),  # what kto learns from
        replace(EXAMPLE, row=replace(ROW, columns={"label": True, "gold": "8"})),  # what a reward function reads
        replace(EXAMPLE, row=replace(ROW, answers=("yes", "maybe"))),  # what best-of pairs with
        replace(EXAMPLE, row=replace(ROW, calls=((ToolCall("f", "{}"),), ()))),
    ],
)
def test_the_data_is_known_by_all_that_is_learnt_from(other: Example) -> None:
    assert fingerprint_data([EXAMPLE]) == fingerprint_data([replace(EXAMPLE)])
    assert fingerprint_data([EXAMPLE]) != fingerprint_data([other])


def test_the_data_is_known_by_its_order_and_its_sides_and_not_by_its_place() -> None:
    a, b = EXAMPLE, replace(EXAMPLE, prompt_ids=[9])
    prints = {fingerprint_data(*sides) for sides in ([[a, b], []], [[b, a], []], [[a], [b]], [[], [a, b]])}
    assert len(prints) == 4
    moved = replace(EXAMPLE, row=replace(ROW, place="b.jsonl:7"))
    assert fingerprint_data([EXAMPLE]) == fingerprint_data([moved])


def test_a_role_that_does_not_train_is_known_by_its_adapter_its_head_and_its_moments() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    add_adapter_role(base, "reward", seed=1, head=True, trains=False)

    def found() -> dict[str, str]:
        return inputs_of(base, [EXAMPLE])

    first, role = found(), base.roles["reward"]
    assert found() == first
    with torch.no_grad():
        base.parameters("policy")[0].add_(1)
    assert found() == first, "a role that trains changes"
    prints = [first["roles"]]
    adapter = next(p for name, p in base.model.named_parameters() if "reward" in name)
    with torch.no_grad():
        adapter.add_(1e-3)
        prints.append(found()["roles"])
        role.head.weight.add_(1e-3)
        prints.append(found()["roles"])
    role.moments = Moments(0.0, 2.0, measured=True)
    prints.append(found()["roles"])
    assert len(set(prints)) == 4
    assert {name: found()[name] for name in ("base", "data")} == {name: first[name] for name in ("base", "data")}


# --------------------------------------------------------------------------------------------- one process at a time

HOLD = """
import sys, time
from onebase.training.run import Run
run = Run(sys.argv[1], seed=0, config_text="a: 1")
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_written_by_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        (tmp_path / "run" / ".config.yaml.1.tmp").write_text("it is being written")
        for _ in range(2):
            with pytest.raises(ConfigError) as caught:
                Run(tmp_path / "run", seed=0, config_text="a: 1")
            assert message_of(caught) == (
                f"{tmp_path / 'run'}: another process is writing this run; wait for it, or stop it first"
            )
        assert caught.value.exit_code == 2
        assert inside(tmp_path / "run") == [".config.yaml.1.tmp"], "what the other one writes was taken away"
    finally:
        process.kill()
        process.communicate()
    Run(tmp_path / "run", seed=0, config_text="a: 1").finish({})


def test_a_finished_a_failed_and_a_forgotten_run_let_go_of_their_folder(tmp_path: Path) -> None:
    def opened(name: str) -> Run:
        return Run(tmp_path / name, seed=0, config_text="a: 1")

    run = opened("failed")
    with pytest.raises(ConfigError, match="another process"):
        opened("failed")
    with pytest.raises(ValueError, match="no"), Loop(run, "test", 1, save=lambda folder: None):
        raise ValueError("no")
    opened("failed").close()
    opened("forgotten")
    opened("forgotten").close()


# --------------------------------------------------------------------------------------------- the best


def best_of(folder: Path) -> tuple[dict[str, float], bytes]:
    assert inside(folder / "best") == ["best.json", "policy"]
    note = json.loads((folder / "best" / "best.json").read_text())
    return note, (folder / "best" / "policy" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("metric", "step"), [("eval", 2), ("-eval", 4)])
def test_the_best_by_a_held_out_metric_is_kept(tmp_path: Path, metric: str, step: int) -> None:
    measured = {1: 0.5, 2: 0.75, 3: float("nan"), 4: 0.25, 5: 0.75, 6: 0.25}
    done = Training(tmp_path, best=metric, measured=measured, schedule=every_step()).run()
    note, weights = best_of(tmp_path)
    assert note == {"step": step, "eval": measured[step]}
    checkpoint = tmp_path / f"checkpoint-{step}" / "policy" / "adapter_model.safetensors"
    assert weights == checkpoint.read_bytes() != done.role["adapter_model.safetensors"]


@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_worse_one_does_not_replace_the_best_after_going_on(tmp_path: Path, at: int) -> None:
    measured = {2: 0.75, 4: 0.5, 6: 0.7}
    whole = Training(tmp_path / "whole", best="eval", measured=measured).run()
    stopped(tmp_path / "cut", at, best="eval", measured=measured)
    assert best_of(tmp_path / "cut")[0] == {"step": 2, "eval": 0.75}
    Training(tmp_path / "cut", best="eval", measured=measured).run()
    assert best_of(tmp_path / "cut") == best_of(whole.folder)


def test_a_better_one_after_going_on_replaces_it(tmp_path: Path) -> None:
    measured = {2: 0.5, 4: 0.6, 6: 0.7}
    stopped(tmp_path, 3, best="eval", measured=measured)
    done = Training(tmp_path, best="eval", measured=measured).run()
    note, weights = best_of(tmp_path)
    assert note == {"step": 6, "eval": 0.7} and weights == done.role["adapter_model.safetensors"]


def test_nothing_is_kept_as_best_where_nothing_is_measured(tmp_path: Path) -> None:
    Training(tmp_path, best="eval").run()
    Training(tmp_path / "b", measured={1: 0.5}).run()
    assert not (tmp_path / "best").exists() and not (tmp_path / "b" / "best").exists()


# --------------------------------------------------------------------------------------------- disks


def fills_up_on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No file of this name reaches the disk."""
    sync = files._sync

    def full(path: Path) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    monkeypatch.setattr(files, "_sync", full)


@pytest.mark.parametrize("name", ["state.pt", "checksums.json", "adapter_model.safetensors", "role.json"])
def test_a_disk_that_is_full_leaves_the_checkpoint_before(
    whole: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    killed(tmp_path, 2)
    with monkeypatch.context() as patch, pytest.raises(DoesNotFitError) as caught:
        fills_up_on(patch, name)
        Training(tmp_path, schedule=Schedule(every_steps=1, keep=1)).run()
    assert "the disk is full; nothing was half-written" in message_of(caught) and caught.value.exit_code == 4
    assert inside(tmp_path) == ["checkpoint-1", "checkpoint-2", "config.yaml", "metrics.jsonl"]
    for path in checkpoints(tmp_path):
        read_checkpoint(path)
    again = Training(tmp_path).run()  # with some space freed
    assert again.steps == [3, 4, 5, 6] and again.role == whole.role and again.rows == whole.rows


def test_a_state_that_is_cut_off_as_it_is_written_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, 2)

    def cut_off(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(DoesNotFitError, match="checkpoint-3: the disk is full"):
        Training(tmp_path, schedule=every_step()).run()
    assert inside(tmp_path) == ["checkpoint-1", "checkpoint-2", "config.yaml", "metrics.jsonl"]


def test_a_folder_that_has_become_read_only_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, 2)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with monkeypatch.context() as patch, pytest.raises(ConfigError) as caught:
        patch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
        Training(tmp_path).run()
    assert message_of(caught) == f"{tmp_path}: cannot be written (Permission denied); choose another --output_dir"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == kept
    assert Training(tmp_path).run().steps == [3, 4, 5, 6]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_to_write_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
            Training(tmp_path).run()
    finally:
        tmp_path.chmod(0o755)
