"""Runs a case in a process of its own and tells how it ended.

The process is forked from one that has imported everything, so that a case takes tenths of a second; it has its own
working directory, streams, time limit and memory limit, and no rights that a user would not have.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from onebase.verbs import VERBS
from tests.bad_inputs.case import GOOD_REWARD, Case, lay_out

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 6 << 30
"""Bytes of address space a case may take: what asks for everything gets no more."""
LONGEST_LINE = 1_500
"""Characters of an error line, beside what was on the command line itself."""
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters that a terminal would obey."""
BASH_SAYS = re.compile(r"\[\d+\][+-]? +(Exit|Done|Interrupt|Terminated)")
"""Of a job in the background."""
TOOLS = ("score", "evaluate", "chat", "doctor")
LEAVING = ("exporting.merge", "exporting.export", "exporting.push", "deploying.render", "serving.run")
UNEXPECTED = re.compile(r"please report (it|them) with the command|^error: unexpected ")
"""Of the last resort, which is for what nobody thought of; a case has been thought of."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    code: int | None
    """None: it did not, and was killed."""
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Ending:
    """A case's result."""

    kind: str
    """ok, traceback, unexpected, hang, silent, wrong code, wrong message, not one line, litter, raw text."""
    why: str
    ended: Ended


def warm_up() -> None:
    """Imports what a run imports, so that the forked processes have it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for module in (*(verb.recipe for verb in VERBS.values()), *(f"onebase.tools.{name}" for name in TOOLS)):
        import_module(module)
    for name in (*(f"onebase.{name}" for name in LEAVING), "onebase.tools.runs", "onebase.reporting.plots",
                 "onebase.reporting.panels", "transformers.models.llama.modeling_llama",
                 "peft.tuners.lora"):  # fmt: skip
        import_module(name)


def ending_of(case: Case, folder: Path, prepared: Path) -> Ending:
    """Lays a case out in an empty folder, runs it and looks at what it left."""
    folder.mkdir(parents=True)
    (folder / "fix").symlink_to(prepared)
    for name, content in {"rew.py": GOOD_REWARD, **case.files}.items():
        lay_out(folder / name, content, prepared)
    for words in case.first:
        ended = forked(lambda words=words: command(words.split()), folder, limit=case.limit)  # type: ignore[misc]
        if ended.code != 0:
            return Ending("wrong code", f"'{words}', which comes first, ended with {ended.code}", ended)
    if case.then is not None:
        case.then(folder)
    kept, fixed = _tree(folder), _tree(prepared)
    if case.shell:
        ended = in_a_shell(case, folder)
    else:
        ended = forked(lambda: command(case.words), folder, limit=case.limit, stdin=case.stdin, env=dict(case.env))
    wrong = _what_is_wrong(case, ended) or _litter(case, folder, kept) or (
        ("litter", "the prepared folders were changed") if _tree(prepared) != fixed else None)  # fmt: skip
    return Ending(*(wrong or ("ok", "")), ended)


def _what_is_wrong(case: Case, ended: Ended) -> tuple[str, str] | None:
    lines = [line for line in ended.err.splitlines() if line.strip() and not BASH_SAYS.match(line)]
    errors = [line for line in lines if line.startswith("error: ")]
    if ended.code is None:
        return "hang", f"did not end within {case.limit:g} s"
    if "Traceback (most recent call last)" in ended.err:
        return "traceback", lines[-2] if len(lines) > 1 and errors else lines[-1]
    if errors and UNEXPECTED.search(errors[-1]):
        return "unexpected", errors[-1]
    right = set(case.codes) | ({0} if case.fine else set())
    if ended.code not in right:
        return ("silent" if ended.code == 0 else "wrong code"), f"exit {ended.code}, not one of {sorted(right)}"
    if raw := RAW.search(ended.out + ended.err):
        return "raw text", f"the control character {raw[0]!r} reaches the terminal"
    if ended.code == 0:
        if case.warns and not re.search(case.warns, ended.err):
            return "silent", f"accepted without the words {case.warns!r}"
        return ("wrong message", "exit 0 with an error line") if errors else None
    if case.lines == 0:
        return ("wrong message", "an error line where none is needed") if errors else None
    if not errors or lines[-len(errors) :] != errors or (case.lines is not None and len(errors) != case.lines):
        return "not one line", f"{len(errors)} error lines, {case.lines or 'some'} at the end of stderr are needed"
    if max(map(len, errors)) > LONGEST_LINE + max(map(len, case.words), default=0):
        return "not one line", f"an error line of {max(map(len, errors))} characters"
    if case.says and not any(re.search(case.says, line) for line in errors):
        return "wrong message", f"no error line matches {case.says!r}"
    return None


def _litter(case: Case, folder: Path, before: dict[str, tuple[int, ...]]) -> tuple[str, str] | None:
    after = _tree(folder)
    half = [name for name in after if name.endswith((".tmp", ".old")) and name not in before]
    if half:
        return "litter", f"left half-written: {', '.join(half[:3])}"
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    outside = [name for name in changed if not name.startswith(tuple(case.writes))]
    if outside:
        return "litter", f"written outside the output folder: {', '.join(outside[:3])}"
    touched = [name for name in changed if name.startswith(tuple(case.untouched))] if case.untouched else []
    return ("litter", f"changed what was there before: {', '.join(touched[:3])}") if touched else None


def _tree(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file below a folder with what changes when it is written to; links are not followed."""
    found: dict[str, tuple[int, ...]] = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            about = os.lstat(path)
            is_folder = name in folders and not os.path.islink(path)
            found[os.path.relpath(path, folder)] = () if is_folder else (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


def command(words: Sequence[str]) -> int:
    from onebase.cli.main import main
    from onebase.tools import runs

    runs.leave_pictures = lambda folder: None  # type: ignore[assignment]  # drawing takes longer than training here
    return main(list(words))


def forked(
    call: Callable[[], int], folder: Path, *, limit: float, stdin: bytes = b"", env: dict[str, str] | None = None
) -> Ended:
    """Calls a function as a process of its own would: its streams, its exit code, and what Python does at the end."""
    streams = [folder.with_name(f"{folder.name}.{name}") for name in ("in", "out", "err")]
    streams[0].write_bytes(stdin)
    sys.stdout.flush(), sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setsid()
            _become(folder, streams, env or {})
            code = _exit_code(call)
        finally:
            os._exit(code)
    code = _wait(process, limit)
    out, err = (path.read_bytes().decode("utf-8", "backslashreplace") for path in streams[1:])
    return Ended(code, out, err)


def _become(folder: Path, streams: list[Path], env: dict[str, str]) -> None:
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, (path, mode) in enumerate(zip(streams, modes, strict=True)):
        os.dup2(os.open(path, mode), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace",
                                  write_through=True)  # fmt: skip
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())] + [str(ROOT)]
    sys.dont_write_bytecode = True
    sys.argv = ["onebase"]
    os.environ.update(env)
    os.environ.pop("PYTEST_XDIST_WORKER", None)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _give_up_rights()


def _give_up_rights() -> None:
    """Root reads what nobody may read; without its capabilities it is a user who owns the files."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, none)


def _exit_code(call: Callable[[], int]) -> int:
    try:
        code: object = call()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not (code is None or isinstance(code, int)):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # the interpreter waits for threads as well
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            code = 120
    return int(code or 0) & 255


def _wait(process: int, limit: float) -> int | None:
    descriptor = os.pidfd_open(process)
    try:
        ended = bool(select.select([descriptor], [], [], limit)[0])
        try:
            os.killpg(process, signal.SIGKILL)  # what it started, and itself where it hangs
        except (ProcessLookupError, PermissionError):
            pass
        _, status = os.waitpid(process, 0)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(status) if ended else None


def in_a_shell(case: Case, folder: Path) -> Ended:
    import shlex

    script = case.shell.replace("{}", shlex.join([sys.executable, "-m", "onebase", *case.words]))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **case.env}
    process = subprocess.Popen(["bash", "-c", script], cwd=folder, env=env, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    try:
        out, err = process.communicate(case.stdin, timeout=case.limit)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = None
    return Ended(code, out.decode("utf-8", "backslashreplace"), err.decode("utf-8", "backslashreplace"))


def clear(folder: Path) -> None:
    """Removes what a case left, with its streams."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("in", "out", "err"):
        folder.with_name(f"{folder.name}.{name}").unlink(missing_ok=True)
