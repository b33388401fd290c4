"""Runs a Python program that nobody has read, and its tests, in as many layers of isolation as the system has.

Each run is two new processes (`inside.py`): the program's, and the tests', which asks the program for values and
compares them. The verdict leaves through a pipe that the program's process does not have.

What each layer holds back:

- **namespaces**, through bubblewrap, else through `unshare`: processes (only its own are visible, and all die with the
  first), network (its own loopback is all there is), mounts (the system's libraries and Python's own folder, read only;
  no /home, /root, /proc or /sys; no devices but null, zero, random and urandom; a /tmp of 16 MB in memory), System V
  and POSIX shared objects, the host's name. Started by another user than root, a user namespace too.
- **seccomp** (libseccomp): every system call outside a list of what ordinary Python needs. No sockets, no new
  processes, no signals, no tracing, no namespaces or mounts, no change of clock, priority, limits or identity. Threads
  are allowed.
- **another user**: started by root, the program runs under a number of its own that no account has. In any case it has
  no capabilities and cannot gain privileges.
- **limits** (rlimit): CPU time, address space of each of the two processes, size of a file, open files, processes, no
  core dumps.
- Always: wall-clock time, an empty environment, isolated Python without `site`, closed stdin, output read to 64 kB and
  the rest thrown away, a session of its own that is killed as a whole.

What no layer holds back: faults of the kernel or the processor; timing and other side channels; the machine's
processor time up to the limit; the number of files in /tmp under bubblewrap (some of the kernel's memory, free again at
the end); and what a program says of its own objects: two of them are equal if it says so.

What remains without a layer:

- Without namespaces the program reads and writes what its user may, which started by root is what everyone may; seccomp
  still keeps it from the network and from other processes. What it leaves in /tmp, /var/tmp, /dev/shm and the folders
  below them is removed once it has ended. Started by another user than root, or without seccomp, a system like this is
  refused.
- Without seccomp, in namespaces, it reaches nothing outside but, on a virtual machine, a vsock of the machine's host.
  It has far more of the kernel before it: io_uring, keys, and, started by root, namespaces of its own; and System V
  shared memory and memory files do not count towards its address space.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from onebase.errors import ConfigError, VerifierError
from onebase.shown import number_of, shown
from onebase.verifiers.left_behind import remove_files_of
from onebase.verifiers.seccomp import compiled_filter

MAX_OUTPUT = 64 * 1024
_MAX_VERDICT = 1 << 22
_FILES_BYTES, _INODES = 16 << 20, 1024
_FIRST_UID, _UIDS = 1_900_000_000, 1 << 20
_INSIDE = Path(__file__).with_name("inside.py")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_WAYS = {"bubblewrap": "bwrap", "unshare": "unshare"}
_TRIES, _RETRY_SECONDS = 3, 60.0
_TRIAL = "import collections, ctypes, datetime, heapq, itertools, math, random, re\ndef two(): return 2"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What running a program against its tests gave."""

    compiled: bool
    """Whether the program is Python."""
    passed: int
    """How many tests passed; of a run cut short, how many until then."""
    reason: str
    """Why the first of the others did not; "" if all passed."""
    output: str
    """What the program printed, at most 64 kB."""
    finished: bool = True
    """Whether it ended in time."""


def run_tests(
    code: str,
    tests: Sequence[str],
    *,
    setup: str = "",
    preamble: str = "",
    shadowed: Sequence[str] = (),
    timeout: float = 5.0,
    memory_mb: int = 512,
    way: str | None = None,
) -> Outcome:
    """Runs a program, then each of its tests, and returns how many passed.

    Args:
        code: the program, executed once.
        tests: statements, executed one by one in a process of their own; a test that raises has failed.
        setup: statements before the tests, executed both there and, after the program, where the program is.
        preamble: the row's own statements, executed before `setup`, but only where the tests are: its names win.
        shadowed: names of builtins and of the standard library's modules that the program may redefine for the tests
            (`sum`, say, if that is the task).
        timeout: seconds for all of it.
        memory_mb: address space of the program.
        way: how namespaces are made, one of `bubblewrap`, `unshare`, `none`; by default the first that works here.

    Raises:
        VerifierError: the sandbox did not start, or its verdict cannot be read.
        ConfigError: this system has no way to isolate a program.
    """
    way = way or _way()
    uid = _FIRST_UID + secrets.randbelow(_UIDS) if os.geteuid() == 0 else None
    settings = {
        "code": code,
        "setup": setup,
        "binds": _binds() if way == "unshare" else [],
        "size": _FILES_BYTES,
        "inodes": _INODES,
        "uid": uid,
        "limits": _limits(timeout, memory_mb),
        "filter": compiled_filter().hex(),
    }
    asked = {"tests": list(tests), "shadowed": list(shadowed), "preamble": preamble}
    request = _framed(settings) + _framed(asked)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onebase-")) if way == "none" else "/"
        if uid is not None and way == "none":
            os.chown(folder, uid, uid)
            stack.callback(remove_files_of, uid)  # once its processes are gone
        process, verdict, output = stack.enter_context(_started(way, folder))
        finished, reply, printed = _exchange(process, request, verdict, output, timeout)
    text, late = printed.decode("utf-8", "replace"), f"took longer than {timeout:g} s"
    if b"\n" not in reply:
        why = shown(text.strip() or ("it ended at once" if finished else late), 200)
        raise VerifierError(f"the sandbox did not start: {why}")
    compiled, passed, reason = _verdict(reply, len(tests))
    if not finished:
        reason = late
    elif passed < len(tests) and not reason:
        reason = "ended before its tests (out of memory?)"
    return Outcome(compiled, passed, reason, text, finished)


def _verdict(reply: bytes, tests: int) -> tuple[bool, int, str]:
    """The last whole line of the verdict's pipe: whether the program compiles, how many tests passed, why not more."""
    try:
        last = json.loads(reply.decode("ascii").split("\n")[-2])
        compiled, passed, reason = last["compiled"], last["passed"], last["reason"]
    except (ValueError, KeyError, TypeError):
        compiled, passed, reason = False, -1, ""
    if type(passed) is not int or not 0 <= passed <= tests or not isinstance(reason, str):
        raise VerifierError(
            f"the sandbox gave no verdict on {number_of(tests, 'test')}: {shown(repr(reply[-60:]), 90)}"
        )
    return compiled is True, passed, reason


def layers() -> list[str]:
    """Returns the layers that hold on this system, strongest first; each as in this module's description."""
    found = {"bubblewrap": ["namespaces (bubblewrap)"], "unshare": ["namespaces (unshare)"], "none": []}[_way()]
    if compiled_filter():
        found.append("seccomp")
    if os.geteuid() == 0:
        found.append("another user")
    return [*found, "limits"]


def missing_layers() -> list[str]:
    """Returns the layers this system lacks, each with what would bring it; empty if nothing important is missing.

    Raises:
        ConfigError: it lacks so much that no program of a model may run here.
    """
    missing = []
    if _way() == "none":
        missing.append("namespaces: code can read what every user may (install bubblewrap, or allow user namespaces)")
    if not compiled_filter():
        missing.append("seccomp: system calls are not filtered (install libseccomp2)")
    return missing


_lock = threading.Lock()
_works: set[str] = set()
_failed: dict[str, tuple[float, str]] = {}
"""Ways that did not run the trial: when, and why. A failure may pass, so it is believed for a minute alone."""


def _way() -> str:
    """The first way of making namespaces that runs a trial program; `none` where another user and seccomp hold."""
    with _lock:
        for way, tool in _WAYS.items():
            if shutil.which(tool) and _runs(way):
                return way
        if os.geteuid() == 0 and compiled_filter() and _runs("none"):
            return "none"
        why = "; ".join(f"{way}: {reason}" for way, (_, reason) in _failed.items())
        raise ConfigError(
            f"no sandbox starts on this system: {why or 'there is neither bubblewrap nor unshare'}", remedy="no-sandbox"
        )


def _runs(way: str) -> bool:
    """Whether a trial program runs this way: tried a few times, as a busy system can fail one."""
    when, _ = _failed.get(way, (-math.inf, ""))
    if way not in _works and time.monotonic() - when > _RETRY_SECONDS:
        for _ in range(_TRIES):
            try:
                outcome = run_tests(_TRIAL, ["assert two() == 2"], timeout=10.0, way=way)
            except VerifierError as error:
                reason = str(error)
            else:
                if outcome.passed == 1:
                    _works.add(way)
                    break
                reason = f"{outcome.reason} {outcome.output}".strip()
            _failed[way] = (time.monotonic(), shown(reason, 120))
    return way in _works


def _limits(timeout: float, memory_mb: int) -> dict[str, int]:
    return {
        "CPU": math.ceil(timeout) + 1,
        "AS": memory_mb << 20,
        "FSIZE": _FILES_BYTES,
        "NOFILE": 64,
        "CORE": 0,
        # The filter lets threads pass and no process; without it nothing may be started.
        "NPROC": 32 if compiled_filter() else 0,
    }


def _binds() -> list[str]:
    """What Python's standard library needs of the host's files."""
    libraries = sorted(str(path) for path in Path("/").glob("lib*"))
    wanted = ["/usr", *libraries, "/etc/ld.so.cache", *_DEVICES]
    prefix = os.path.realpath(sys.base_prefix)
    if not prefix.startswith("/usr"):
        wanted.append(prefix)
    return [path for path in wanted if os.path.exists(path)]


def _command(way: str, verdict: int) -> list[str]:
    python = [os.path.realpath(sys.executable), "-I", "-S", "-B"]
    root = os.geteuid() == 0
    if way == "none":
        return [*python, str(_INSIDE), str(verdict)]
    if way == "unshare":
        user = [] if root else ["--user", "--map-root-user"]
        spaces = ["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
        return ["unshare", *user, *spaces, *python, str(_INSIDE), str(verdict)]
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    # Root becomes another user inside, which takes two capabilities; anyone else gets a user namespace.
    user = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else ["--unshare-user", "--disable-userns"]
    mounts = []
    for path in _binds():
        if os.path.islink(path):
            mounts += ["--symlink", os.readlink(path), path]
        else:
            # On its own bubblewrap would make the folders above private to root.
            for above in reversed(Path(path).parents[:-1]):
                mounts += ["--perms", "0755", "--dir", str(above)]
            mounts += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    mounts += [
        "--ro-bind",
        str(_INSIDE),
        "/inside.py",
        "--perms",
        "1777",
        "--size",
        str(_FILES_BYTES),
        "--tmpfs",
        "/tmp",
    ]
    mounts += ["--remount-ro", "/", "--chdir", "/tmp"]
    inside = [*python, "/inside.py", str(verdict)]
    return ["bwrap", "--die-with-parent", "--new-session", *spaces, *user, *mounts, *inside]


@contextmanager
def _started(way: str, folder: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """The process, its verdict's pipe and its output's; on leaving, its whole session is killed and reaped."""
    verdict, verdict_end = os.pipe()
    output, output_end = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                _command(way, verdict_end),
                stdin=subprocess.PIPE,
                stdout=output_end,
                stderr=output_end,
                pass_fds=(verdict_end,),
                cwd=folder,
                env={"PATH": os.environ.get("PATH", os.defpath)} if way != "none" else {},
                start_new_session=True,
            )
        except OSError as error:
            raise VerifierError(f"the sandbox does not start: {shown(error, 200)}") from error
        finally:
            os.close(verdict_end)
            os.close(output_end)
        try:
            yield process, verdict, output
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    finally:
        os.close(verdict)
        os.close(output)


def _exchange(
    process: subprocess.Popen[bytes], request: bytes, verdict: int, output: int, timeout: float
) -> tuple[bool, bytes, bytes]:
    """Sends the request and reads the verdict and the output until the verdict's pipe closes or time is up."""
    assert process.stdin is not None
    stdin = process.stdin.fileno()
    os.set_blocking(stdin, False)
    rest, deadline = memoryview(request), time.monotonic() + timeout
    found = {verdict: bytearray(), output: bytearray()}
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(verdict, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fd == stdin:
                    try:
                        rest = rest[os.write(stdin, rest) :]
                    except BrokenPipeError:
                        rest = memoryview(b"")
                    if not rest:
                        selector.unregister(stdin)
                    continue
                part = os.read(key.fd, 65536)
                kept = found[key.fd]
                kept += part[: (_MAX_VERDICT if key.fd == verdict else MAX_OUTPUT) - len(kept)]
                if not part:
                    selector.unregister(key.fd)
                    if key.fd == verdict:
                        found[output] += _what_is_there(output, MAX_OUTPUT - len(found[output]))
                        return True, bytes(found[verdict]), bytes(found[output])
    return False, bytes(found[verdict]), bytes(found[output])


def _what_is_there(source: int, most: int) -> bytes:
    """What a pipe holds now: why a sandbox did not start, say, may be there only just before the verdict's end."""
    os.set_blocking(source, False)
    try:
        return os.read(source, most)
    except BlockingIOError:
        return b""


def _framed(message: object) -> bytes:
    text = json.dumps(message).encode()
    return len(text).to_bytes(8, "big") + text
