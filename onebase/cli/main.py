"""Runs one command line and returns its exit code. Nothing in this room imports torch; the verb's recipe does.

Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 bad data, 4 does not fit (memory or disk), 5 a quality gate failed,
6 a missing extra, 75 stopped after saving, 130 interrupted, 141 the reader of our output went away.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from cyclopts import CycloptsError

from onebase.cli import failures, streams, training
from onebase.cli.commands import app
from onebase.errors import ConfigError, Interrupted, Stopped
from onebase.processes import end_with_launcher
from onebase.shown import shown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code. A failure prints one line per problem to stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    training.run_folder = None
    groups = (["runs"], ["config"], ["data"], ["deploy"], ["label"])
    verb = " ".join(word for word in words[: 2 if words[:1] in groups else 1] if not word.startswith("-"))
    streams.open_streams()
    if any("\0" in word for word in words):
        failures.say("an argument of the command line contains a NUL character; take it out")
        return ConfigError.exit_code
    try:
        # During its steps a run has its own handler, which saves first; before and after there is nothing to save.
        signal.signal(signal.SIGTERM, _stop)
    except ValueError:
        pass  # not the main thread, which alone receives signals
    try:
        end_with_launcher()
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        if isinstance(code, int):  # of the processes that it started
            return code
        return 0 if words else 2  # without a verb the help is printed, but a script should notice
    except CycloptsError as error:
        known = f" {words[0]}" if words and words[0] in app else ""
        failures.say(f"{shown(' '.join(str(error).split()), 500)} See 'onebase{known} --help'.")
        return ConfigError.exit_code
    except KeyboardInterrupt:
        failures.say("interrupted")
        return Interrupted.exit_code
    except _StopNow:
        failures.say("stopped; run the same command to start again, or to resume from the last checkpoint")
        return Stopped.exit_code
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:  # also sys.exit in a reward function: its 0 would look like success
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            return 141  # by rich, which printed the help and has closed stdout
        return failures.told(error, shown(verb, 40), training.run_folder)
    finally:
        if sys.stdout.closed:  # by a reward function, say; Python would complain when flushing it at exit
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class _StopNow(BaseException):
    """Not an Exception: libraries that try several things catch those, and the run would continue."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _StopNow
