"""The launcher: `--processes` and several machines, mostly with programs that take no time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from onebase import processes
from onebase.cli.main import main
from tests.distributed.ranks import ROOT, free_port
from tests.distributed.test_verbs import largest_difference
from tests.recipes.conftest import Options, answered_rows, common, make_base, metric_rows, words, write_rows

PROGRAM = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
def end(code, said=""):
    print(said, file=sys.stderr) if said else None
    sys.exit(code)
"""
STARTER = (
    "import sys, json; from onebase.distributed import launch; sys.exit(launch.run(json.loads(sys.argv[1]), {count}))"
)
SAVING = """
def save(number, frame):
    time.sleep(0.5 * rank)
    end({signal.SIGINT: 130, signal.SIGTERM: 75}[number])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
open(os.environ["READY"] + str(rank), "w").close()
time.sleep(60)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", *processes.PLACES)}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def launch(body: str, count: int = 2, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM + body]
    return subprocess.Popen(
        [sys.executable, "-c", STARTER.format(count=count), json.dumps(command)],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WORLD_SIZE", *processes.PLACES):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("end(0)", 0, []),
        ("end(3, 'error: row 7 is broken')", 3, ["error: row 7 is broken"]),
        ("end(5 if rank else 0, 'error: of the second' if rank else '')", 5, ["error: process 1 of 2: of the second"]),
        (
            "os.kill(os.getpid(), 9) if rank else end(1, 'error: the other is gone')",
            137,
            [
                "error: the other is gone",
                "error: process 1 of 2 was killed by SIGKILL; run the same command to resume from the last checkpoint",
            ],
        ),
    ],
    ids=["all well", "all find the same", "one fails", "one is killed"],
)
def test_the_exit_code_is_that_of_the_process_that_failed_first(
    body: str, code: int, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    from onebase.distributed import launch

    around = dict(os.environ)
    body = PROGRAM + "time.sleep(0 if rank else 0.5)\n" * ("kill" in body) + body
    assert launch.run([sys.executable, "-S", "-c", body], 2) == code
    assert capfd.readouterr().err.splitlines() == said
    assert os.environ == around


def test_words_reach_the_processes_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    from onebase.distributed import launch

    words_ = ["$$a", "${local_rank}", "two words", "--x='1'"]
    body = "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.argv[1:])"
    assert launch.run([sys.executable, "-S", "-c", body, *words_], 2, environment={"OMP_NUM_THREADS": "3"}) == 0
    assert capfd.readouterr().out == f"3 {words_}\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 75)])
def test_a_signal_reaches_all_and_all_may_take_their_time(tmp_path: Path, number: int, code: int) -> None:
    running = launch(SAVING, READY=f"{tmp_path}/")
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, running)
    time.sleep(0.5)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (code, "")


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    body = "from onebase.processes import LAUNCHER, end_with_launcher\n"
    body += "end_with_launcher()\nassert LAUNCHER not in os.environ\n"
    body += "open(os.environ['READY'] + str(os.getpid()), 'w').close()\ntime.sleep(60)"
    running = launch(body, READY=f"{tmp_path}/")
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, running)
    running.kill()
    running.communicate(timeout=30)
    end = time.monotonic() + 20
    while any(_runs(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def onebase(words_: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "onebase", *words_],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(pid) for pid in listed)


@pytest.mark.slow
def test_a_run_survives_the_kill_of_one_process_and_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows(14))
    more: Options = {
        "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "constant",
        "batch.minibatch": 5,
        "lora.r": 4,
        "checkpoint.every_steps": 20,
        "max_steps": 100000,
    }
    asked = words(common(base, tmp_path / "run", rows), more)
    killed = onebase(["sft", *asked, "--processes", "2"])
    wait_for(lambda: any((tmp_path / "run").glob("checkpoint-*")), killed)
    os.kill(children(killed)[-1], signal.SIGKILL)
    at = time.monotonic()
    _, said = killed.communicate(timeout=60)
    assert killed.returncode == 137 and time.monotonic() - at < 30
    assert "process 1 of 2 was killed by SIGKILL; run the same command to resume" in said, said

    again = onebase(["sft", *asked, "--processes", "2"])
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = max(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*"))
    wait_for(lambda: len(metric_rows(tmp_path / "run")) > before + 25 if metrics.exists() else False, again)
    again.send_signal(signal.SIGTERM)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 75, said
    assert f"found checkpoint-{before}, resuming" in said and "run the same command to resume" in said
    assert said.count("error: stopped after step") == 1, "the first process alone speaks"

    done = len(metric_rows(tmp_path / "run"))
    capsys.readouterr()
    more["max_steps"] = done + 2
    assert main(["sft", *words(common(base, tmp_path / "run", rows), more)]) == 0
    assert f"found checkpoint-{done}, resuming" in capsys.readouterr().err
    assert [row["step"] for row in metric_rows(tmp_path / "run")] == list(range(1, done + 3))
    assert main(["sft", *words(common(base, tmp_path / "whole", rows), more)]) == 0
    assert largest_difference(tmp_path / "run", tmp_path / "whole") < 5e-3  # rounding, after many steps
    ends = [metric_rows(tmp_path / name)[-1]["loss"] for name in ("run", "whole")]
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def machines(body: str, *numbers: int, seconds: int = 60) -> list[tuple[int, str]]:
    """Launchers of one process each that meet, as two machines would start them: their codes and what they said."""
    program = (
        "import sys; from onebase.distributed import launch; "
        f"launch.SECONDS_TO_MEET = launch.SECONDS_TO_REACH = {seconds}; "
        f"meeting = launch.Meeting(2, '127.0.0.1:{free_port()}', 'x'); "
        "sys.exit(launch.run([sys.executable, '-S', '-c', sys.argv[1]], 1, meeting=meeting))"
    )
    line = [sys.executable, "-c", program, PROGRAM + body]
    running = [
        subprocess.Popen([*line], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) for _ in numbers
    ]
    said = [one.communicate(timeout=120)[1] for one in running]
    return [(one.returncode, text) for one, text in zip(running, said, strict=True)]


def test_machines_that_meet_number_their_processes_and_keep_their_codes() -> None:
    body = "end(3, 'error: row 7 of ' + os.environ['WORLD_SIZE']) if rank else os.kill(os.getpid(), 9)"
    found = sorted(machines(body, 0, 1))
    killed = "error: process 0 of 2 was killed by SIGKILL; run the same command to resume from the last checkpoint\n"
    assert found == [(3, "error: row 7 of 2\n"), (137, killed)]


def test_a_machine_that_does_not_come_is_one_line() -> None:
    ((code, said),) = machines("end(0)", 0, seconds=2)
    assert code == 1 and said.startswith("error: the machines did not meet at 127.0.0.1:") and said.count("\n") == 1
    assert said.endswith("; see that all name it and can reach it\n")


def test_several_machines_need_a_place_and_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    from onebase.distributed import launch

    with pytest.raises(SystemExit) as ended:
        launch.main(["--machines", "2", "--processes", "1", "--meet", "h:1", "sft", "a.yaml", "--name", "x"])
    assert ended.value.code == 2
    assert "several machines need a place to meet and a name of this start" in capsys.readouterr().err


@pytest.mark.slow
def test_two_machines_share_a_run_and_a_mistake_keeps_its_code(tmp_path: Path) -> None:
    base, rows = make_base(tmp_path / "base"), write_rows(tmp_path / "rows.jsonl", answered_rows(14))

    def together(asked: Options) -> list[int]:
        place = ["--machines", "2", "--processes", "1", "--meet", f"127.0.0.1:{free_port()}", "--name", "x"]
        line = [sys.executable, "-m", "onebase.distributed.launch", *place, "sft"]
        line += words(common(base, tmp_path / "run", rows), {"max_steps": 2, "lora.r": 4}, asked)
        both = [
            subprocess.Popen(line, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        said = [one.communicate(timeout=400)[1] for one in both]
        assert not any("Traceback" in text for text in said), said
        return [one.returncode for one in both]

    assert together({}) == [0, 0]
    assert (tmp_path / "run" / "policy").is_dir()
    assert 2 in together({"optimizer.learning_rate": -1.0})


def test_of_several_codes_that_of_the_process_that_says_why_counts(capfd: pytest.CaptureFixture[str]) -> None:
    from onebase.distributed import launch

    body = PROGRAM + "time.sleep(rank)\nend(3, 'error: row 7') if rank else end(1, 'error: the other is gone')"
    assert launch.run([sys.executable, "-S", "-c", body], 2) == 3
    assert capfd.readouterr().err.splitlines() == ["error: the other is gone", "error: process 1 of 2: row 7"]


@pytest.mark.parametrize(
    ("words_", "message"),
    [
        (["sft", "--processes", "0"], "--processes is 0; it should be at least 1, or left out"),
        (["doctor", "--distributed", "--processes", "1"], "--processes is 1; it should be at least 2, or left out"),
        (["doctor", "--processes", "2"], "--processes goes with --distributed; add that, or leave it out"),
        (["doctor", "--config", "a.yaml"], "--config goes with --distributed; add that, or leave it out"),
    ],
)
def test_a_number_of_processes_that_makes_no_sense_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words_: list[str], message: str
) -> None:
    if words_[0] == "sft":
        rows = write_rows(tmp_path / "rows.jsonl", answered_rows(4))
        words_ = [*words_, *words(common(make_base(tmp_path / "base"), tmp_path / "run", rows))]
    assert main(words_) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


def test_a_launched_process_starts_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows(4))
    asked = words(common(make_base(tmp_path / "base"), tmp_path / "run", rows))
    assert main(["sft", *asked, "--processes", "2"]) == 2
    assert "a launcher has started this one as one of several; leave one out" in capsys.readouterr().err


def test_each_process_needs_a_gpu_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows(4))
    asked = words(common(make_base(tmp_path / "base"), tmp_path / "run", rows))
    assert main(["sft", *asked, "--processes", "2"]) == 2
    assert "this machine has 1 GPUs, and each process needs its own; start fewer" in capsys.readouterr().err
