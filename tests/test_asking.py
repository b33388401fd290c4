"""Asking a program elsewhere: what the other tests do not meet."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from onebase.asking import Unusable, in_parallel, problem_of
from onebase.errors import ConfigError
from onebase.sampling.command import Started


@pytest.mark.parametrize("url", ["http://h", "https://h:8000", "http://127.0.0.1:1/path", "http://[::1]:8000"])
def test_a_place_is_a_place(url: str) -> None:
    assert problem_of(url) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("h:8000", "should begin with http://"),
        ("http://h:0", "there is no port 0"),
        ("http://h:99999", "is not a URL"),
        ("http://me:word@h", "a key by an environment variable"),
    ],
)
def test_what_is_no_place_is_told(url: str, said: str) -> None:
    assert said in str(problem_of(url)) and "word" not in str(problem_of(url))


def test_results_come_in_order_and_calls_run_together() -> None:
    both = threading.Barrier(2, timeout=20)

    def call(n: int) -> int:
        both.wait()
        time.sleep(0.01 * (2 - n))
        return n

    assert in_parallel([lambda: call(0), lambda: call(1)], at_once=2) == [0, 1]
    assert in_parallel([], at_once=4) == []


def test_after_an_error_no_call_is_begun() -> None:
    begun = []

    def call(n: int) -> None:
        begun.append(n)
        raise Unusable(f"call {n}")

    with pytest.raises(Unusable, match="call 0"):
        in_parallel([lambda n=n: call(n) for n in range(5)], at_once=1)  # type: ignore[misc]
    assert begun == [0]


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    for command, said in (("no-such-program --now", "No such file"), ("sh 'unclosed", "No closing quotation")):
        with pytest.raises(ConfigError, match=said):
            Started(command, answers=lambda: True, log=tmp_path / "log")


def test_a_program_that_never_answers_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sleep 60: did not answer within 0.3 seconds"):
        Started("sleep 60", answers=lambda: False, log=tmp_path / "log", seconds=0.3)


def test_a_program_is_stopped_and_its_words_are_kept(tmp_path: Path) -> None:
    command = "sh -c 'echo $GREETING; sleep 60'"
    log = tmp_path / "deep" / "log"
    started = Started(
        command, answers=lambda: log.read_text() != "", log=log, environment={"GREETING": "hello"}, seconds=30
    )
    started.stop()
    assert log.read_text() == "hello\n"
    assert started._process.poll() is not None
