from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy
import pytest
import torch

from onebase.config.remedies import with_remedy
from onebase.errors import (
    CheckpointError,
    ConfigError,
    DoesNotFitError,
    Interrupted,
    NonFiniteError,
    OnebaseError,
    Stopped,
)
from onebase.runs.finished import read_run
from onebase.runs.metrics import MetricsFile
from onebase.runs.record import read_metrics
from onebase.training import run as run_module
from onebase.training.loop import Loop
from onebase.training.run import Run
from tests.runs.test_metrics import strictly

TEXT, OTHER = "output_dir: run\nseed: 0\n", "output_dir: run\nseed: 1\n"


def new_run(folder: Path, *, seed: int = 0) -> Run:
    return Run(folder, seed=seed, config_text=TEXT)


def save(folder: Path) -> None:
    (folder / "weights").write_text("all of them")


def one_line(caught: pytest.ExceptionInfo[OnebaseError]) -> str:
    """What a person is told."""
    message = with_remedy(caught.value)
    assert "\n" not in message
    return message


# --------------------------------------------------------------------------------------------------- the folder


def test_a_run_makes_its_folder_and_writes_its_configuration(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs" / "first")
    assert run.folder.is_dir() and not list(run.folder.iterdir())
    run.log(1, {"loss": 2.0})
    assert run.folder == tmp_path / "runs" / "first"
    assert (run.folder / "config.yaml").read_text() == TEXT
    assert strictly((run.folder / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_a_step_is_logged_with_its_seconds_and_its_tokens_per_second(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with Loop(run, "test", 3, save=lambda folder: None) as loop:
        for step in loop:
            time.sleep(0.02 * (step + 1))
            loop.end_step({"num_tokens": 600.0} if step < 2 else {"loss": 1.0})
            time.sleep(0.01)  # between two steps: it belongs to the next
    rows = read_metrics(run.folder / "metrics.jsonl")
    for row, least in zip(rows, (0.02, 0.05, 0.07), strict=True):
        assert least <= row["perf/step_seconds"] < least + 10
    for row in rows[:2]:
        assert row["perf/tokens_per_second"] == pytest.approx(600 / row["perf/step_seconds"])
    assert "perf/tokens_per_second" not in rows[2]


def test_a_finished_run_is_never_written_over(tmp_path: Path) -> None:
    run = new_run(tmp_path / "done")
    run.log(1, {"loss": 2.0})
    run.finish({"verb": "sft"})
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path / "done", seed=1, config_text=OTHER)
    message = one_line(caught)
    assert str(tmp_path / "done") in message and "holds a finished run" in message and "--output_dir" in message
    assert caught.value.exit_code == 2
    assert (tmp_path / "done" / "config.yaml").read_text() == TEXT
    assert (tmp_path / "done" / "metrics.jsonl").read_text() != ""


def test_a_run_that_did_not_finish_can_be_started_again(tmp_path: Path) -> None:
    new_run(tmp_path / "cut").log(1, {"loss": 2.0})
    again = Run(tmp_path / "cut", seed=1, config_text=OTHER)
    assert (again.folder / "config.yaml").read_text() == TEXT, "a start that may still fail took the record away"
    again.log(1, {"loss": 3.0})
    assert (again.folder / "config.yaml").read_text() == OTHER
    assert strictly((again.folder / "metrics.jsonl").read_text()) == {"step": 1, "loss": 3.0}


def test_what_is_no_checkpoint_of_this_kind_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    save(tmp_path / "checkpoint-4")
    with pytest.raises(CheckpointError) as caught:
        new_run(tmp_path)
    assert one_line(caught) == (
        f"{tmp_path}: none of its 1 checkpoint can be read; remove them to start from the beginning, or choose "
        "another --output_dir"
    )
    assert caught.value.exit_code == 2
    assert (tmp_path / "checkpoint-4" / "weights").read_text() == "all of them"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_folder_that_refuses_files_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)$") as caught:
        new_run(tmp_path / "run")
    assert caught.value.remedy == "another-folder"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        new_run(tmp_path / place)
    assert f"{tmp_path / place}: cannot be written" in one_line(caught)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG])
def test_a_place_that_cannot_be_written_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # As root, which tests may run as, no folder of this machine refuses.
    def refuse(path: Path, *args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError) as caught:
        new_run(tmp_path / "run")
    message = one_line(caught)
    assert f"cannot be written ({os.strerror(number)}); choose another --output_dir" in message
    assert caught.value.exit_code == 2


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        new_run(tmp_path / ("x" * 300))


def test_a_full_disk_keeps_its_own_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise DoesNotFitError(f"{path}: the disk is full")

    monkeypatch.setattr(run_module, "write_atomically", full)
    with pytest.raises(DoesNotFitError, match="the disk is full"):
        new_run(tmp_path / "run").log(1, {"loss": 2.0})


def test_the_seed_fixes_every_source_of_random_numbers(tmp_path: Path) -> None:
    def draws(name: str, seed: int) -> tuple[float, float, float]:
        new_run(tmp_path / name, seed=seed)
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    first, again, other = draws("a", 7), draws("b", 7), draws("c", 2**40 + 8)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


# --------------------------------------------------------------------------------------------------- the summary


def test_the_summary_marks_the_end_and_says_how_long_it_took(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.finish({"verb": "sft", "name": "漢字"})
    text = (run.folder / "summary.json").read_text(encoding="utf-8")
    summary = strictly(text)
    assert summary["verb"] == "sft" and summary["name"] == "漢字" and "漢字" in text
    seconds = summary["seconds"]
    assert seconds is not None and 0 <= seconds <= run.seconds + 0.1


def test_the_summary_is_json_though_a_figure_is_not_finite(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.finish({"eval_loss": float("nan"), "rise": [0.5, float("inf"), -1], "deep": {"x": float("-inf"), "y": (1, 2)}})
    summary = strictly((run.folder / "summary.json").read_text())
    assert summary["eval_loss"] is None and summary["rise"] == [0.5, None, -1]
    assert summary["deep"] == {"x": None, "y": [1, 2]}


def test_a_summary_that_fails_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path / "run")
    run.log(1, {"loss": 2.0})
    with pytest.raises(TypeError):
        run.finish({"verb": object()})

    def cut(path: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(OSError, match="Input/output error"):
            run.finish({"verb": "sft"})
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "metrics.jsonl"]
    run.finish({"verb": "sft"})
    assert json.loads((run.folder / "summary.json").read_text())["verb"] == "sft"


# --------------------------------------------------------------------------------------------------- being stopped


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def take_steps(
    run: Run,
    total: int = 5,
    *,
    signals: dict[int, list[int]] | None = None,
    fail: int | None = None,
    error: Exception | None = None,
    save: Callable[[Path], None] = save,
) -> list[int]:
    """Runs the loop; returns the steps done, counted from 1.

    Args:
        signals: step -> those that come in the middle of it.
        fail: the step that raises `error`.
    """
    done: list[int] = []
    with Loop(run, "test", total, save=save) as loop:
        for step in loop:
            for number in (signals or {}).get(step + 1, []):
                os.kill(os.getpid(), number)
            if step + 1 == fail:
                raise error or ValueError("the step failed")
            done.append(step + 1)
            loop.end_step({"loss": 2.0 / (step + 1)})
            assert loop.done == step + 1
    return done


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("number", "kind", "exit_code"), [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Stopped, 75)]
)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_signal_takes_effect_after_the_step_and_after_saving(
    tmp_path: Path, number: int, kind: type[Interrupted | Stopped], exit_code: int, at: int
) -> None:
    run, before = new_run(tmp_path / "run"), handlers()
    with pytest.raises(kind) as caught:
        take_steps(run, signals={at: [number]})
    steps = [row["step"] for row in read_metrics(run.folder / "metrics.jsonl")]
    assert steps == list(range(1, at + 1))
    assert caught.value.exit_code == exit_code
    checkpoint = run.folder / f"checkpoint-{at}"
    assert (checkpoint / "weights").read_text() == "all of them"
    assert one_line(caught) == f"stopped after step {at} and saved {checkpoint}; run the same command to resume"
    assert handlers() == before
    assert not (run.folder / "summary.json").exists()
    # Even while the error is still held, the next run has the folder, and does what is left.
    assert take_steps(new_run(tmp_path / "run")) == list(range(at + 1, 6))


def test_a_second_ctrl_c_takes_effect_at_once(tmp_path: Path) -> None:
    run, before = new_run(tmp_path / "run"), handlers()
    reached = []
    with pytest.raises(KeyboardInterrupt), Loop(run, "test", 5, save=save) as loop:
        loop.end_step({"loss": 1.0})
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]
    assert handlers() == before
    assert inside(run.folder) == ["config.yaml", "metrics.jsonl"]


def test_ctrl_c_after_sigterm_still_saves(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(Interrupted):
        take_steps(run, signals={1: [signal.SIGTERM, signal.SIGINT]})
    assert (run.folder / "checkpoint-1").is_dir()


def test_nothing_is_saved_and_the_handlers_go_back_where_nobody_stops_it(tmp_path: Path) -> None:
    run, before = new_run(tmp_path / "run"), handlers()
    with Loop(run, "test", 1, save=save) as loop:
        assert handlers() != before
        loop.end_step({"loss": 1.0})
    assert handlers() == before
    run.close()
    again = new_run(tmp_path / "run")
    with pytest.raises(ValueError, match="the step failed"):
        take_steps(again, fail=1)
    assert handlers() == before
    assert inside(run.folder) == ["config.yaml", "metrics.jsonl"]


def test_a_step_that_fails_leaves_the_roles_of_the_last_one_that_did_not(tmp_path: Path) -> None:
    run, before = new_run(tmp_path / "run"), handlers()
    with pytest.raises(ValueError, match="the step failed"):
        take_steps(run, fail=3)
    assert inside(run.folder) == ["checkpoint-2", "config.yaml", "metrics.jsonl"] and handlers() == before
    assert (run.folder / "checkpoint-2" / "weights").read_text() == "all of them"
    assert take_steps(new_run(tmp_path / "run")) == [3, 4, 5]


def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(NonFiniteError, match="NaN"):
        take_steps(run, fail=2, error=NonFiniteError("NaN"))
    assert inside(run.folder) == ["config.yaml", "metrics.jsonl"]


def full(folder: Path) -> None:
    (folder / "half").write_text("of them")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_save_that_fails_is_said_rather_than_the_stop(tmp_path: Path) -> None:
    run, before = new_run(tmp_path / "run"), handlers()
    with pytest.raises(DoesNotFitError, match="checkpoint-2: the disk is full"):
        take_steps(run, signals={2: [signal.SIGTERM]}, save=full)
    assert handlers() == before
    assert inside(run.folder) == ["config.yaml", "metrics.jsonl"]


def test_a_step_that_fails_is_said_though_the_save_fails_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(ValueError, match="the step failed"):
        take_steps(run, fail=3, save=full)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "is lost: " in warnings[0] and "checkpoint-2: the disk is full" in warnings[0]
    assert inside(run.folder) == ["config.yaml", "metrics.jsonl"]


def test_a_record_that_cannot_be_written_makes_no_checkpoint_that_knows_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "run")

    def fail_at_step_3(file: MetricsFile, step: int, values: Mapping[str, float]) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, step, values)

    write = MetricsFile.write
    monkeypatch.setattr(MetricsFile, "write", fail_at_step_3)
    with pytest.raises(DoesNotFitError, match="metrics.jsonl: the disk is full"):
        take_steps(run)
    assert inside(run.folder) == ["checkpoint-2", "config.yaml", "metrics.jsonl"]


def test_the_seconds_of_a_run_leave_out_the_time_it_stood_still(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run._started -= 1000  # as if it had run that long
    with pytest.raises(Stopped):
        take_steps(run, signals={2: [signal.SIGTERM]})
    again = new_run(tmp_path / "run")
    take_steps(again)
    again.finish({})
    assert 1000 <= json.loads((run.folder / "summary.json").read_text())["seconds"] < 1060


def test_a_stopped_run_has_its_seconds_in_the_record_and_goes_on_counting(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run._started -= 1000
    with pytest.raises(Stopped):
        take_steps(run, signals={2: [signal.SIGTERM]})
    assert 1000 <= read_run(run.folder).seconds < 1060
    with pytest.raises(Stopped):
        take_steps(new_run(tmp_path / "run"), signals={4: [signal.SIGTERM]})
    times = [row["perf/seconds"] for row in read_metrics(run.folder / "metrics.jsonl")]
    assert len(times) == 4 and times == sorted(times) and 1000 <= read_run(run.folder).seconds < 1060


# ------------------------------------------------------------------------------------------------- being answered


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (signal.SIGINT, "stopping after this step; press Ctrl-C again to stop now"),
        (signal.SIGTERM, "stopping after this step"),
    ],
)
def test_a_signal_is_answered_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int, answer: str
) -> None:
    run, said = new_run(tmp_path / "run"), []
    with pytest.raises((Interrupted, Stopped)), Loop(run, "test", 2, save=save) as loop:
        os.kill(os.getpid(), number)
        said.append(capfd.readouterr().err.split("\n"))
        os.kill(os.getpid(), signal.SIGTERM)  # it is said once
        said.append(capfd.readouterr().err)
        loop.end_step({"loss": 1.0})
    assert answer in said[0] and said[1] == ""


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Stopped)])
def test_behind_the_last_step_a_signal_ends_the_evaluation_at_once_and_nothing_is_lost(
    tmp_path: Path, number: int, kind: type[Exception]
) -> None:
    run, before, reached = new_run(tmp_path / "run"), handlers(), []
    with pytest.raises(kind) as caught, Loop(run, "test", 1, save=save) as loop:
        loop.end_step({"loss": 1.0})
        loop.end_steps()
        checkpoint = run.folder / "checkpoint-1"
        assert (checkpoint / "weights").exists()
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except Exception:  # as libraries do that try one thing and then another
            reached.append("swallowed")
    assert one_line(caught) == f"stopped after step 1 and saved {checkpoint}; run the same command to resume"
    assert not reached and handlers() == before
    assert take_steps(new_run(tmp_path / "run"), 1) == []


def test_a_signal_in_the_last_step_is_not_forgotten_behind_it(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(Stopped, match="stopped after step 1"), Loop(run, "test", 1, save=save) as loop:
        loop.end_step({"loss": 1.0})
        os.kill(os.getpid(), signal.SIGTERM)
        loop.end_steps()
        raise AssertionError("the evaluation began")


def test_a_last_checkpoint_that_does_not_fit_costs_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run")
    with Loop(run, "test", 1, save=full) as loop:
        loop.end_step({"loss": 1.0})
        loop.end_steps()
    assert "checkpoint-1: the disk is full" in capsys.readouterr().err
    run.finish({})
    assert inside(run.folder) == ["config.yaml", "metrics.jsonl", "summary.json"]


def test_a_folder_that_goes_away_is_said_in_one_line(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(OnebaseError) as caught, Loop(run, "test", 2, save=save) as loop:
        shutil.rmtree(run.folder)
        loop.end_step({"loss": 1.0})
    assert str(caught.value) == (
        f"{run.folder / 'metrics.jsonl'}: cannot be written (No such file or directory); keep the run's folder in "
        "place and writable"
    )
    assert caught.value.exit_code == 1 and not run.folder.exists()


def test_a_folder_that_became_a_file_is_one_line(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.folder.rmdir()
    run.folder.write_text("not a folder any more")
    with pytest.raises(OnebaseError) as caught:
        run.open_record()
    assert one_line(caught).startswith(f"{run.folder}: cannot be written (Not a directory); keep the run's folder")
    run.close()
