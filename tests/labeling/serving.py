"""A process that has everything imported, and forks servers: each starts in a fraction of a second, and can be killed.

Reads lines from stdin: a project's path. Starts `onebase label serve` for it in a child, and prints the child's number.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from onebase.labeling import run


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run.serve(Path(line.rstrip("\n")))
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
