"""`python -m onebase.submitting.launch`: torchrun, with the exit codes of the processes it starts kept.

torchrun itself ends with 1 whatever went wrong, so that whoever started it cannot tell a run that saved and stopped
(75), which goes on when it is started again, from one with a mistake in its config (2), which never will. The
arguments are torchrun's, then the words of `onebase`:

    python -m onebase.submitting.launch --standalone --nproc-per-node 2 sft sft.yaml
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterable, Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser
from torch.distributed.run import run as start

from onebase.errors import ConfigError, Interrupted, Stopped

SAYS_WHY = (ConfigError.exit_code, 3, 4, 5, 6)
"""Exit codes of a mistake that a process found; others only lost it."""


def main(argv: Sequence[str]) -> int:
    """Starts this machine's processes and waits for them; returns the exit code of the run."""
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # the processes say themselves what went wrong
    launcher, words = _split(list(argv))
    try:
        start(get_args_parser().parse_args([*launcher, "-m", "onebase", *words]))
    except ChildFailedError as failure:
        return told([one.exitcode for one in failure.failures.values()])
    except SignalException as stopped:
        # The processes had half a minute to save, as a step may take; what they wrote last is found again.
        return Interrupted.exit_code if stopped.sigval == signal.SIGINT else Stopped.exit_code
    return 0


def told(codes: Iterable[int]) -> int:
    """The exit code of a run of several processes: of a stop, else of a mistake, else of the first to fail."""
    found = [128 - code if code < 0 else code for code in codes if code]  # below zero: killed by that signal
    for code in (Interrupted.exit_code, Stopped.exit_code, *SAYS_WHY):
        if code in found:
            return code
    return found[0] if found else 1


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """torchrun's options, all of which are written `--name value` or `--name`, and the words from the verb on."""
    from onebase.verbs import VERBS

    at = next((i for i, word in enumerate(argv) if word in VERBS), len(argv))
    return argv[:at], argv[at:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
