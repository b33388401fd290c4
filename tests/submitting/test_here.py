"""`--to local`: again after each stop that saved, and never after anything else."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from onebase.cli.main import main
from onebase.submitting.here import keep_running

ROOT = Path(__file__).resolve().parents[2]

STOPS = """
import os, sys
folder = sys.argv[1]
starts = len([name for name in os.listdir(folder) if name.startswith("start")])
open(f"{folder}/start{starts}", "w").close()
codes = sys.argv[2].split(",")
if codes[starts].endswith("+"):
    os.mkdir(f"{folder}/checkpoint-{starts + 1}")
sys.exit(int(codes[starts].rstrip("+")))
"""


@pytest.mark.parametrize(
    ("codes", "starts", "code"),
    [
        ("75+,75+,0", 3, 0),
        ("75+,75,0", 2, 75),  # the second stopped where it began: another start would too
        ("75,0", 1, 75),
        ("3,0", 1, 3),
        ("75+,1,0", 2, 1),
    ],
)
def test_a_run_is_started_again_after_a_stop_that_saved(tmp_path: Path, codes: str, starts: int, code: int) -> None:
    line = [sys.executable, "-I", "-S", "-c", STOPS, str(tmp_path), codes]
    assert keep_running(line, tmp_path, {}) == code
    assert len(list(tmp_path.glob("start*"))) == starts


WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit(75))
open(sys.argv[1] + "/ready", "w").close()
time.sleep(60)
"""


def test_a_stop_that_was_asked_for_is_handed_on_and_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()

    def ask() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        (tmp_path / "checkpoint-2").mkdir()
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=ask)
    thread.start()
    assert keep_running([sys.executable, "-I", "-S", "-c", WAITS, str(tmp_path)], tmp_path, {}) == 75
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_variables_reach_the_process_and_a_killed_one_has_a_shells_code(tmp_path: Path) -> None:
    program = "import os, signal; os.environ['GREETING'] == 'hello' and os.kill(os.getpid(), signal.SIGKILL)"
    assert keep_running([sys.executable, "-I", "-S", "-c", program], tmp_path, {"GREETING": "hello"}) == 137


def test_without_go_the_command_is_printed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "--to", "local", "sft", "sft.yaml", "--max_steps", "3"]
    assert main([*words, "--env", "GREETING=it is I"]) == 0
    assert capsys.readouterr().out == "GREETING='it is I' onebase sft sft.yaml --max_steps 3\n"
    assert main([*words, "--processes-per-node", "2"]) == 0
    assert capsys.readouterr().out == "onebase sft sft.yaml --max_steps 3 --processes 2\n"


@pytest.mark.slow
def test_local_runs_the_verb_and_keeps_its_exit_code(
    work: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["submit", "--to", "local", "sft", "sft.yaml", "--go"]
    assert main(words) == 0
    assert (work / "runs" / "sft" / "policy").is_dir()
    assert main(words) == 2  # it is finished
    assert "error: sft ended with exit code 2" in capfd.readouterr().err
