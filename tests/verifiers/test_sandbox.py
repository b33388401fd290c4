"""The sandbox: programs run, and what tries to leave it, to exhaust it or to forge a verdict does not."""

from __future__ import annotations

import ast
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from onebase.config.remedies import with_remedy
from onebase.errors import ConfigError, VerifierError
from onebase.verifiers import left_behind, sandbox
from onebase.verifiers.sandbox import MAX_OUTPUT, layers, missing_layers, run_tests
from onebase.verifiers.seccomp import compiled_filter
from tests.verifiers.escapes import ATTACKS, EXHAUSTING, FORGERIES, NEED_SECCOMP, PRELUDE

ROOT = Path(__file__).resolve().parents[2]
SLACK = 3.0
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(params=["bubblewrap", *(pytest.param(way, marks=pytest.mark.slow) for way in ("unshare", "none"))])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of making namespaces; skipped where the system does not have it."""
    tool = {"bubblewrap": "bwrap", "unshare": "unshare", "none": "true"}[request.param]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if request.param == "none" and os.path.exists(SYSTEM_PYTHON):
        # Without namespaces another user has to be able to read Python's folder.
        monkeypatch.setattr(sys, "executable", SYSTEM_PYTHON)
    if run_tests("def two(): return 2", ["assert two() == 2"], way=request.param, timeout=30).passed != 1:
        pytest.skip(f"a program does not run with {request.param}")
    return str(request.param)


class Host:
    """What a program could reach on this side: a file, sockets, a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o777)
        self.canary = folder / "canary"
        self.canary.write_text("untouched")
        self.canary.chmod(0o666)
        self.tcp, self.udp, self.unix = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(1)
        self.tcp.bind(("127.0.0.1", 0))
        self.udp.bind(("127.0.0.1", 0))
        self.unix.bind(str(folder / "unix"))
        (folder / "unix").chmod(0o777)
        for listener in (self.tcp, self.unix):
            listener.listen()
        for listener in (self.tcp, self.udp, self.unix):
            listener.setblocking(False)
        self.process = subprocess.Popen(["sleep", "600"])

    def filled(self, body: str) -> str:
        values = {
            "canary": self.canary,
            "folder": self.folder,
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "unix": self.folder / "unix",
            "pid": self.process.pid,
            "repository": ROOT,
            "root": os.geteuid() == 0,
        }
        for name, value in values.items():
            body = body.replace(f"{{{name}}}", str(value))
        return body

    def assert_untouched(self) -> None:
        assert self.canary.read_text() == "untouched"
        assert sorted(path.name for path in self.folder.iterdir()) == ["canary", "unix"]
        assert self.process.poll() is None
        for listener in (self.tcp, self.unix):
            with pytest.raises(BlockingIOError):
                listener.accept()
        with pytest.raises(BlockingIOError):
            self.udp.recv(9)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for listener in (self.tcp, self.udp, self.unix):
            listener.close()


@pytest.fixture
def host() -> Iterator[Host]:
    # Not tmp_path: pytest's folders are closed to other users, which would hold a program back by itself.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        found = Host(Path(folder))
        yield found
        found.close()


def attack(body: str) -> str:
    """A program that says whether it tried, and whether it succeeded."""
    lines = body.split("\n")
    indented = "\n    ".join(lines)
    return (
        f"{PRELUDE}\ndef attack():\n    {indented}\n"
        "def f(x):\n    return x\n"
        "print('TRIED', flush=True)\n"
        "try:\n    success = attack()\n"
        "except BaseException as error:\n    success = None\n    print(type(error).__name__, error)\n"
        "print('BROKE ' + 'OUT' if success else 'HELD', flush=True)\n"
    )


def processes_of(uid: int) -> int:
    """Processes started by this one, and those of the user that the sandbox's programs are run as."""
    count = len(psutil.Process().children(recursive=True))
    for process in psutil.process_iter(["uids"]):
        count += os.geteuid() == 0 and process.info["uids"] is not None and process.info["uids"].real == uid
    return count


def test_there_are_over_sixty_attacks_each_with_a_name_of_its_own() -> None:
    names = [name for name, *_ in ATTACKS] + [name for name, _ in EXHAUSTING]
    assert len(names) >= 60 and len(set(names)) == len(names)


@pytest.mark.parametrize("name", [name for name, *_ in ATTACKS])
def test_an_attack_is_held_back(name: str, way: str, host: Host) -> None:
    holds, body = next((holds, body) for n, holds, body in ATTACKS if n == name)
    if way == "none" and holds != "anywhere":
        pytest.skip(f"nothing but namespaces keeps a program from {holds}")
    if way == "none" and not compiled_filter():
        pytest.skip("libseccomp is not installed")
    outcome = run_tests(attack(host.filled(body)), ["assert f(1) == 1"], way=way)
    assert "TRIED" in outcome.output
    assert "BROKE OUT" not in outcome.output, outcome.output
    host.assert_untouched()


@pytest.mark.parametrize("name", [name for name, *_ in ATTACKS if name not in NEED_SECCOMP])
def test_an_attack_is_held_back_by_namespaces_alone(name: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    if not layers()[0].startswith("namespaces"):
        pytest.skip("neither bubblewrap nor unshare makes namespaces here")
    monkeypatch.setattr(sandbox, "compiled_filter", lambda: b"")
    outcome = run_tests(attack(host.filled(next(body for n, _, body in ATTACKS if n == name))), ["assert f(1) == 1"])
    assert "TRIED" in outcome.output
    assert "BROKE OUT" not in outcome.output, outcome.output
    host.assert_untouched()


HARMLESS = ["tcp to the host", "udp to the host", "unix socket of the host", "reading a host file", "the environment",
            "starting a program", "forking", "home folders", "the repository", "own root through proc",
            "arguments of processes", "leaving the session", "memory outside the limit", "socket pair"]  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_the_same_attack_succeeds_outside(name: str, host: Host) -> None:
    body = next(body for n, _, body in ATTACKS if n == name)
    command = [sys.executable, "-c", attack(host.filled(body))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "BROKE OUT" in found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize("name", [name for name, _ in EXHAUSTING])
def test_a_program_that_uses_something_up_ends_in_time_and_leaves_nothing(
    name: str, way: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = 1_800_000_000 + os.getpid()
    monkeypatch.setattr(sandbox, "_FIRST_UID", uid)
    monkeypatch.setattr(sandbox, "_UIDS", 1)
    code = next(code for n, code in EXHAUSTING if n == name)
    before, start = processes_of(uid), time.monotonic()
    outcome = run_tests(f"{code}\n", ["assert f(1) == 1"], way=way, timeout=1.0, memory_mb=256)
    assert time.monotonic() - start < 1.0 + SLACK
    assert outcome.passed == 0 and outcome.reason
    assert len(outcome.output.encode()) <= MAX_OUTPUT * 3  # a byte that is no UTF-8 becomes three
    deadline = time.monotonic() + SLACK
    while processes_of(uid) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(uid) <= before
    host.assert_untouched()


@pytest.mark.parametrize("name", [name for name, _ in FORGERIES])
def test_a_forged_verdict_does_not_count(name: str, way: str) -> None:
    code = next(code for n, code in FORGERIES if n == name)
    number = random.Random().randrange(10**8, 10**9)
    test = f"'secret-{number}'\nassert f(lambda *a: a[0](*a[1]) if len(a) > 1 else a) == {number}"
    outcome = run_tests(code, [test], way=way, timeout=3.0)
    assert outcome.passed == 0 and outcome.reason


def test_functions_of_the_program_do_not_take_part_in_the_comparison() -> None:
    code = (
        "class Any:\n    def __eq__(self, other): return True\nset = abs = sorted = lambda *a: Any()\nf = lambda x: [x]"
    )
    tests = ["assert set(f(1)) == {2}", "assert sorted(f(2)) == [1]", "assert abs(f(3)[0]) == 4", "assert f(4) == [4]"]
    assert run_tests(code, tests).passed == 1
    assert run_tests(code, tests, shadowed=["set"]).passed == 1


def test_a_module_named_by_a_test_is_the_real_one() -> None:
    code = "import math\nmath.isclose = lambda *a, **k: True\nf = lambda x: x"
    assert run_tests(code, ["assert math.isclose(f(1.0), 2.0)", "assert math.isclose(f(1.0), 1.0)"]).passed == 1


@pytest.mark.parametrize(
    "code",
    [
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\nf = lambda x: x",
        "import operator as math\nmath.isclose = lambda *a, **k: True\nf = lambda x: x",
    ],
)
def test_nothing_of_the_program_passes_for_a_module(code: str) -> None:
    test = "import cmath\nassert math.isclose(f(1.0), 2.0)"
    assert run_tests(code, [test]).passed == 0
    assert run_tests(code.replace("math", "maths", 1), [test]).passed == 0


def test_a_function_named_like_a_module_may_be_called() -> None:
    code = "def copy(x): return [x]"
    assert run_tests(code, ["assert copy(1) == [1]"]).passed == 0
    assert run_tests(code, ["assert copy(1) == [1]"], shadowed=["copy"]).passed == 1


def test_an_end_of_iteration_does_not_end_the_tests_loop() -> None:
    outcome = run_tests("def f(x): raise StopIteration(x)", ["assert all(map(lambda x: f(x) == 2 * x, [1, 2]))"])
    assert (outcome.passed, outcome.reason) == (0, "RuntimeError: 1")


def test_no_function_that_makes_classes_is_called_for_the_program() -> None:
    code = "def f(meta): return meta('E', (), {'__eq__': lambda *a: True})"
    outcome = run_tests(code, ["import abc\nassert f(abc.ABCMeta) is None"])
    assert (outcome.passed, outcome.reason) == (0, "TypeError: only a function of this side can be called")


def test_the_verdict_is_out_of_reach_where_many_files_are_open(way: str) -> None:
    code = (
        "import os, sys\nprint(sys.argv, flush=True)\nfor n in range(4096):\n"
        "    try:\n        os.fstat(n)\n        print(n, flush=True)\n"
        "    except OSError:\n        pass\nf = lambda x: 0"
    )
    with ExitStack() as stack:
        highest = [stack.enter_context(open(os.devnull)).fileno() for _ in range(130)][-1]
        outcome = run_tests(code, ["assert f(7) == 7"], way=way)
    arguments, *found = outcome.output.splitlines()
    _, *told = ast.literal_eval(arguments)  # the first is the path of a file
    assert highest > 128 and not any(character.isdigit() for character in "".join(told))
    assert found[:3] == ["0", "1", "2"] and len(found) == 5  # beside these, its pipes from and to the tests


@pytest.mark.parametrize(
    "reply",
    [
        b'{"compiled": true, "passed": 3, "reason": ""}\n',
        b'{"compiled": true, "passed": -1, "reason": ""}\n',
        b'{"compiled": true, "passed": true, "reason": ""}\n',
        b'{"compiled": true}\n',
        b"7\n",
        b"\xff\n",
    ],
)
def test_a_verdict_that_cannot_be_is_refused(reply: bytes) -> None:
    with pytest.raises(VerifierError, match="^the sandbox gave no verdict on 2 tests: b'"):
        sandbox._verdict(reply, 2)
    assert sandbox._verdict(b'{"compiled": true, "passed": 2, "reason": "x"}\nhalf a', 2) == (True, 2, "x")


def test_the_rows_own_statements_win_where_the_tests_are() -> None:
    code = "def double(x): return 0\ndef inner(): return double(4)\ndef f(x): return x"
    preamble, tests = "def double(x): return 2 * x", ["assert double(f(1)) == 2", "assert inner() == 0"]
    assert run_tests(code, tests, preamble=preamble).passed == 2
    assert run_tests(code, tests).passed == 1


def test_values_of_every_plain_type_come_back_as_they_are(way: str) -> None:
    values = ["None", "True", "-5", "10 ** 5000", "1.5", "1j", "'\\ud800'", "b'\\xff'", "[1, [2]]", "(1, (2,))",
              "{1, 2}",
              "frozenset({(1, 2)})", "{(1, 2): [3], 'a': {}}", "set()", "bytearray(b'x')", "int"]  # fmt: skip
    tests = [f"assert f({value}) == {value} and type(f({value})) is type({value})" for value in values]
    outcome = run_tests("def f(x):\n    return x", tests, way=way)
    assert (outcome.passed, outcome.reason) == (len(values), "")


def test_objects_of_the_program_work_in_setup_and_tests() -> None:
    code = (
        "class Node:\n    def __init__(self, value): self.value, self.left = value, None\n"
        "    def __eq__(self, other): return self.value == other.value\n"
        "def depth(node): return 1 + depth(node.left) if node else 0\n"
        "def count():\n    yield from range(3)\n"
        "def fail(): raise KeyError('k')\n"
        "def apply(function, x): return function(x) + 1"
    )
    setup = "root = Node(1)\nroot.left = Node(2)"
    tests = [
        "assert depth(root) == 2",
        "assert root.left.value == 2",
        "assert Node(1) == root and Node(2) != root",
        "assert list(count()) == [0, 1, 2]",
        "try:\n    fail()\nexcept KeyError:\n    pass\nelse:\n    assert False",
        "assert apply(lambda x: 10 * x, 2) == 21",
        "assert callable(depth) and bool(root)",
    ]
    outcome = run_tests(code, tests, setup=setup)
    assert (outcome.passed, outcome.reason) == (len(tests), "")


def test_tests_before_a_hanging_one_count() -> None:
    code = "def f(x):\n    while x: pass\n    return 0"
    outcome = run_tests(code, ["assert f(0) == 0", "assert f(1) == 0", "assert f(0) == 0"], timeout=1.0)
    assert (outcome.compiled, outcome.passed, outcome.reason) == (True, 1, "took longer than 1 s")


def test_output_is_cut_and_text_that_does_not_compile_is_named() -> None:
    outcome = run_tests("print('x' * 200_000)\ndef f(): return 1", ["assert f() == 1"])
    assert outcome.passed == 1 and len(outcome.output) == MAX_OUTPUT
    outcome = run_tests("def f(:", ["assert f() == 1"])
    assert not outcome.compiled and "SyntaxError" in outcome.reason


def test_the_layers_of_this_system_are_named() -> None:
    assert layers()[-1] == "limits"
    assert bool(compiled_filter()) == ("seccomp" in layers())
    assert bool(missing_layers()) == (not compiled_filter() or not layers()[0].startswith("namespaces"))


def test_missing_layers_are_named_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_way", lambda: "none")
    monkeypatch.setattr(sandbox, "compiled_filter", lambda: b"")
    assert missing_layers() == [
        "namespaces: code can read what every user may (install bubblewrap, or allow user namespaces)",
        "seccomp: system calls are not filtered (install libseccomp2)",
    ]


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has started no sandbox yet."""
    monkeypatch.setattr(sandbox, "_works", set())
    monkeypatch.setattr(sandbox, "_failed", {})


@pytest.mark.usefixtures("untried")
def test_without_a_way_to_start_python_the_sandbox_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_INSIDE", Path("/nonexistent.py"))
    with pytest.raises(ConfigError, match="^no sandbox starts on this system: .*nonexistent") as caught:
        run_tests("", ["assert True"])
    assert with_remedy(caught.value).endswith(
        "; install bubblewrap, or allow user namespaces and Python's own folder to be read"
    )


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("lacking", ["root", "seccomp"])
def test_without_namespaces_it_takes_another_user_and_seccomp(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if lacking == "root" else 0)
    monkeypatch.setattr(sandbox, "compiled_filter", lambda: b"" if lacking == "seccomp" else b"filter")
    for ask in (missing_layers, lambda: run_tests("f = 1", ["assert f"])):
        with pytest.raises(ConfigError, match="^no sandbox starts on this system: there is neither bubblewrap nor "):
            ask()


@pytest.mark.usefixtures("untried")
def test_another_user_and_seccomp_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0 or not compiled_filter() or not os.path.exists(SYSTEM_PYTHON):
        pytest.skip("this takes root, libseccomp and a Python that everyone may run")
    monkeypatch.setattr(sys, "executable", SYSTEM_PYTHON)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run_tests("f = 1", ["assert f"]).passed == 1
    assert layers() == ["seccomp", "another user", "limits"] and len(missing_layers()) == 1


@pytest.mark.usefixtures("untried")
def test_a_failure_that_passes_downgrades_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    if not layers()[0].startswith("namespaces"):
        pytest.skip("neither bubblewrap nor unshare makes namespaces here")
    real, way, failures = sandbox._command, sandbox._way(), [1]

    def command(way: str, verdict: int) -> list[str]:
        return ["/bin/false"] if failures and failures.pop() else real(way, verdict)

    monkeypatch.setattr(sandbox, "_works", set())
    monkeypatch.setattr(sandbox, "_command", command)
    assert sandbox._way() == way  # the second try works
    sandbox._works.clear()
    failures += [1] * 99
    with pytest.raises(ConfigError, match="bubblewrap: the sandbox did not start: it ended at once"):
        sandbox._way()
    failures.clear()
    with pytest.raises(ConfigError):
        sandbox._way()  # for a minute the failure is believed
    monkeypatch.setattr(sandbox, "_RETRY_SECONDS", -1.0)
    assert sandbox._way() == way


def test_a_sandbox_that_does_not_start_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    for script, why in (("echo 'no room' >&2; exit 1", "no room"), ("", "it ended at once")):
        monkeypatch.setattr(sandbox, "_command", lambda way, verdict, script=script: ["/bin/sh", "-c", script])
        with pytest.raises(VerifierError, match=f"^the sandbox did not start: {why}$"):
            run_tests("f = 1", ["assert f"], way="none")
    monkeypatch.setattr(sandbox, "_command", lambda way, verdict: ["sleep", "9"])
    with pytest.raises(VerifierError, match="^the sandbox did not start: took longer than 0.3 s$"):
        run_tests("f = 1", ["assert f"], way="none", timeout=0.3)


def test_a_sandbox_whose_command_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_command", lambda way, verdict: ["/nonexistent/bwrap"])
    with pytest.raises(VerifierError, match="^the sandbox does not start: .*nonexistent"):
        run_tests("", ["assert True"], way="none")


def test_no_descriptor_and_no_process_is_left_behind() -> None:
    run_tests("f = 1", ["assert f"])
    before = sorted(os.listdir("/proc/self/fd"))
    for code in ("f = 1", "while True: pass", "def f(:", "import os; os._exit(3)"):
        run_tests(code, ["assert f"], timeout=0.5)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


LEAVES = """
import os
def leave(folders):
    for folder in folders:
        made = folder + "/left-by-a-program"
        os.makedirs(made + "/locked")
        open(made + "/locked/file", "w").write("x")
        os.symlink(folders[0] + "/kept", made + "/link")
        os.chmod(made + "/locked", 0)
        open(folder + "/left-beside", "w").write("x")
    os.chdir(made)
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")
    return os.getuid()
"""


@pytest.mark.skipif(os.geteuid() != 0 or not compiled_filter(), reason="only root without namespaces runs programs so")
def test_what_a_program_leaves_where_everyone_may_write_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.path.exists(SYSTEM_PYTHON):
        monkeypatch.setattr(sys, "executable", SYSTEM_PYTHON)
    with ExitStack() as stack:
        folders = []
        for place in ("/tmp", "/var/tmp", "/dev/shm"):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="open-", dir=place))
            os.chmod(folder, 0o777)
            Path(folder, "kept").write_text("another user's")
            folders.append(folder)
        uids = {place: {path.lstat().st_uid for path in Path(place).iterdir()} for place in ("/tmp", "/dev/shm")}
        outcome = run_tests(LEAVES, [f"assert leave({folders!r}) >= {sandbox._FIRST_UID}"], way="none", timeout=30)
        assert (outcome.passed, outcome.reason) == (1, "")
        for folder in folders:
            assert os.listdir(folder) == ["kept"] and Path(folder, "kept").read_text() == "another user's"
        for place, before in uids.items():
            new = {path.lstat().st_uid for path in Path(place).iterdir()} - before
            assert not [uid for uid in new if uid >= sandbox._FIRST_UID]


def test_a_file_that_is_no_longer_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("x")
    (tmp_path / "link").symlink_to("gone")
    monkeypatch.setattr(left_behind, "WRITABLE", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    listdir = os.listdir
    monkeypatch.setattr(left_behind.os, "listdir", lambda place: [*listdir(place), "gone"])
    left_behind.remove_files_of(os.getuid() + 1)
    assert sorted(listdir(tmp_path)) == ["link", "mine"]
    left_behind.remove_files_of(os.getuid())
    assert listdir(tmp_path) == []
