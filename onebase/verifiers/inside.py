"""Runs inside the sandbox, as a script of its own: one process runs the program, another one the tests.

The two share no memory. The tests' process calls the program's functions through a pair of pipes and compares what
comes back; the program's process never sees a test or an expected value, so it cannot claim to have passed one.

What crosses is plain data, by value (None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict;
a subclass comes as its base, so an `__eq__` of its own is lost) or the number of an object that stays where it is.
The tests use such an object as a `Remote`. An operation between a `Remote` and a value of the tests is not forwarded:
an object that answers every comparison with True is unequal to everything but the program's own objects.

The program may ask the tests' process for one thing: to call a function that a test handed it, with values as above. It
gets no class made there and no module: of classes it can name those of plain data and of errors, never `type`.

Only the standard library is imported: there is nothing else in the sandbox.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import itertools
import json
import os
import resource
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MS_RELATIME, _ST_RELATIME, _KEPT_FLAGS = 1 << 21, 4096, 8 | 1024 | 2048  # noexec, noatime, nodiratime
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MAX_FRAME = 1 << 26
_LIBC = ctypes.CDLL(None, use_errno=True)
_ERRORS = {
    kind.__name__: kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)
}
_DATA_CLASSES: dict[str, type] = {
    **{kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset)},
    **{kind.__name__: kind for kind in (dict, range, object)},
    **_ERRORS,
}
"""The classes a program can name to the tests. None makes a class, or an object with methods of the caller's."""


def _read(source: int) -> bytes:
    """One message: eight bytes of length, then as many bytes. Unbuffered, so that nothing of the next one is read."""

    def exactly(count: int) -> bytes:
        parts = []
        while count:
            part = os.read(source, min(count, 1 << 20))
            if not part:
                raise EOFError("the program ended before its tests")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    length = int.from_bytes(exactly(8), "big")
    if length > _MAX_FRAME:
        raise ValueError("a message is too long")
    return exactly(length)


def _write(target: int, message: bytes) -> None:
    rest = memoryview(len(message).to_bytes(8, "big") + message)
    while rest:
        rest = rest[os.write(target, rest) :]


class Peer:
    """One end of the pair of pipes: asks the other side, and serves it while it waits for the answer.

    Without `operations` it is the tests' end, which trusts nothing it reads: it answers only calls of what it has kept.
    """

    def __init__(self, source: int, target: int, operations: dict[str, Callable[..., Any]] | None = None) -> None:
        self.source, self.target, self.operations = source, target, operations
        self.kept: dict[int, object] = {}

    def ask(self, operation: str, *arguments: object) -> Any:
        self._send([operation, self._plain(arguments)])
        while True:
            kind, content = json.loads(_read(self.source))
            if kind == "value":
                return self._object(content)
            if kind == "raised":
                raise _error(*content)
            self._answer(kind, content)

    def serve(self) -> NoReturn:
        while True:
            self._answer(*json.loads(_read(self.source)))

    def _answer(self, operation: str, content: Any) -> None:
        try:
            if self.operations is None:
                result = self._call_of_ours(operation, content)
            else:
                result = self.operations[operation](*self._object(content))
            reply = ["value", self._plain(result)]
        except Exception as error:
            reply = ["raised", [type(error).__name__, str(error)[:200]]]
        self._send(reply)

    def _call_of_ours(self, operation: str, content: Any) -> Any:
        """What the program may ask of the tests: `call`, a function they gave it, a tuple and a dict of arguments."""
        if operation == "call":
            tag, ((owner, number), arguments, named) = content
            function = self.kept[number]
            makes_classes = isinstance(function, type) and issubclass(function, type)
            if tag == "tuple" and owner == "yours" and arguments[0] == "tuple" and named[0] == "dict":
                if callable(function) and not isinstance(function, Remote) and not makes_classes:
                    return function(*self._object(arguments), **self._object(named))
        raise TypeError("only a function of this side can be called")

    def _send(self, message: object) -> None:
        _write(self.target, json.dumps(message).encode())

    def _plain(self, value: object) -> object:
        """What `json` can write: numbers, texts, and [tag, content] for everything else."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Remote):
            return ["yours", object.__getattribute__(value, "number")]
        if isinstance(value, bytes | bytearray):
            return [type(value).__name__, value.decode("latin-1")]
        if isinstance(value, complex):
            return ["complex", [value.real, value.imag]]
        if isinstance(value, dict):
            return ["dict", [[self._plain(key), self._plain(item)] for key, item in value.items()]]
        for kind in (list, tuple, set, frozenset):
            if isinstance(value, kind):
                return [kind.__name__, [self._plain(item) for item in value]]
        if isinstance(value, type) and value in vars(builtins).values():
            return ["class", value.__name__]
        if type(value) is types.ModuleType and value.__name__ in sys.stdlib_module_names:
            return ["module", value.__name__]
        self.kept[id(value)] = value
        return ["mine", id(value)]

    def _object(self, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        tag, inner = content
        if tag == "mine" and type(inner) is int:
            return Remote(self, inner)
        if tag == "yours":
            return self.kept[inner]
        if tag in ("bytes", "bytearray"):
            return (bytes if tag == "bytes" else bytearray)(inner, "latin-1")
        if tag == "complex":
            return complex(*inner)
        if tag == "dict":
            return {self._object(key): self._object(item) for key, item in inner}
        classes = _DATA_CLASSES if self.operations is None else vars(builtins)
        if tag == "class" and isinstance(found := classes.get(inner), type):
            return found
        if tag == "module" and self.operations is not None:
            return importlib.import_module(inner)
        kinds: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
        return kinds[tag](self._object(item) for item in inner)


class Remote:
    """An object that stays in the other process. It is asked only for what needs no value of the tests' to answer."""

    __slots__ = ("peer", "number")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "peer", peer)
        object.__setattr__(self, "number", number)

    def _ask(self, operation: str, *arguments: object) -> Any:
        return object.__getattribute__(self, "peer").ask(operation, self, *arguments)

    def __call__(self, *arguments: object, **named: object) -> Any:
        return Remote._ask(self, "call", arguments, named)

    def __getattribute__(self, name: str) -> Any:
        return type(self) if name == "__class__" else Remote._ask(self, "getattr", name)

    def __setattr__(self, name: str, value: object) -> None:
        Remote._ask(self, "setattr", name, value)

    def __getitem__(self, key: object) -> Any:
        return Remote._ask(self, "getitem", key)

    def __iter__(self) -> Any:
        return iter(Remote._ask(self, "iter"))

    def __len__(self) -> int:
        return int(Remote._ask(self, "len"))

    def __bool__(self) -> bool:
        return bool(Remote._ask(self, "bool"))

    def __str__(self) -> str:
        return str(Remote._ask(self, "str"))

    def __repr__(self) -> str:
        return str(Remote._ask(self, "repr"))

    def __hash__(self) -> int:
        return int(object.__getattribute__(self, "number"))

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and bool(Remote._ask(self, "eq", other))


def _error(name: object, text: object) -> Exception:
    """The program's error. StopIteration would end a loop of the tests early, so it comes as Python's own
    generators give it (PEP 479)."""
    kind = _ERRORS.get(str(name), RuntimeError)
    if issubclass(kind, StopIteration | StopAsyncIteration):
        kind = RuntimeError
    return kind(str(text))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, arguments, named: function(*arguments, **named),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda value, key: value[key],
    "iter": list,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "eq": lambda a, b: a == b,
}


def _run_program(peer: Peer, code: str, setup: str) -> NoReturn:
    """The program's process: runs the program, offers its names, and answers calls until the other side is gone."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses and typing look a class's module up
    names = module.__dict__

    compiled: list[types.CodeType] = []

    def translate() -> None:
        compiled.append(compile(code, "<completion>", "exec"))

    def load() -> tuple[dict[str, object], dict[str, str]]:
        exec(compiled[0], names)
        own = {name: value for name, value in names.items() if not name.startswith("__")}
        modules = {name: value.__name__ for name, value in own.items() if type(value) is types.ModuleType}
        return {name: value for name, value in own.items() if name not in modules}, modules

    def prepare() -> None:
        exec(compile(setup, "<setup>", "exec"), names)

    peer.operations = {**_OPERATIONS, "compile": translate, "load": load, "prepare": prepare}
    peer.serve()


def _run_tests(
    peer: Peer, settings: dict[str, Any], tests: dict[str, Any], report: Callable[[bool, int, str], None]
) -> None:
    """The tests' process: every test in turn, in one namespace; reports at the start and after each how many passed."""
    names: dict[str, Any] = {"__name__": "tests"}
    compiled, passed, reason = False, 0, ""
    report(compiled, passed, reason)
    try:
        peer.ask("compile")
        compiled = True
        report(compiled, passed, reason)
        values, modules = peer.ask("load")
        names.update(_offered(values, modules, tests["shadowed"]))
        exec(compile(tests["preamble"], "<preamble>", "exec"), names)
        if settings["setup"]:
            try:
                peer.ask("prepare")
            except Exception:
                pass  # what the tests need of it, they run themselves
            exec(compile(settings["setup"], "<setup>", "exec"), names)
    except Exception as error:
        report(compiled, 0, _in_words(error))
        return
    for test in tests["tests"]:
        try:
            exec(compile(test, "<test>", "exec"), names)
            passed += 1
        except Exception as error:
            reason = reason or _in_words(error)
        report(compiled, passed, reason)


def _offered(values: dict[str, Any], modules: dict[str, str], shadowed: Sequence[str]) -> dict[str, Any]:
    """The program's names as the tests see them; modules are the standard library's own.

    A program's name hides a builtin or a module only if it is `shadowed`: otherwise a program with a `set`, an `abs` or
    a `math` of its own would take part in the comparison.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        taken = name.startswith("__") or hasattr(builtins, name) or name in sys.stdlib_module_names
        if name in shadowed or not taken:
            found[name] = value
    for name, module in modules.items():
        own = name if name in sys.stdlib_module_names else module
        if own in sys.stdlib_module_names and not hasattr(builtins, name) and not name.startswith("__"):
            found[name] = importlib.import_module(own)
    return found


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")[:200]


def _call(name: str, *arguments: Any) -> None:
    """A system call through libc; raises OSError."""
    words = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    if getattr(_LIBC, name)(*words) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _enter_root(binds: Sequence[str], size: int, inodes: int) -> None:
    """Makes an empty root with `binds` in it, read only, and a small /tmp, and leaves the old one for good.

    Needs a mount namespace of its own. The new root is mounted on /proc, a folder that is everywhere and not needed.
    """
    root = "/proc"

    def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        texts = [text.encode() if text is not None else None for text in (source, target, kind)]
        _call("mount", *texts, flags, options.encode() if options is not None else None)

    mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m,nr_inodes=512")
    for bind in binds:
        target = root + bind
        if os.path.islink(bind):
            os.symlink(os.readlink(bind), target)
            continue
        os.makedirs(target if os.path.isdir(bind) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(bind):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(bind, target, None, _MS_BIND | _MS_REC)
        has = os.statvfs(target).f_flag
        flags = has & _KEPT_FLAGS | (_MS_RELATIME if has & _ST_RELATIME else 0) | _MS_NOSUID
        device = 0 if bind.startswith("/dev/") else _MS_NODEV | _MS_RDONLY
        mount(None, target, None, _MS_BIND | _MS_REMOUNT | flags | device)
    os.mkdir(f"{root}/tmp")
    mount("tmpfs", f"{root}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=1777,size={size},nr_inodes={inodes}")
    mount(None, root, None, _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(root)
    _call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _call("umount2", b".", 2)
    os.chdir("/tmp")


def _drop_privileges(uid: int | None) -> None:
    """Becomes an unprivileged user where we are root, and gives every capability away."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_PDEATHSIG, 9, 0, 0, 0)
    # No other process of this user may read our memory, trace us or open our files through /proc.
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _confine(limits: dict[str, int], program: bytes) -> None:
    """Sets the limits of the process and the filter of its system calls. Neither can be taken back."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    if program:
        instructions = ctypes.create_string_buffer(program, len(program))

        class Filter(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

        filter_ = Filter(len(program) // 8, ctypes.addressof(instructions))
        _call("prctl", _PR_SET_SECCOMP, 2, ctypes.byref(filter_), 0, 0)


def _close_all_but(*kept: int, beyond: int) -> None:
    """Closes every descriptor from 3 on but these; at least up to `beyond`, which may lie above today's limit."""
    end = max(beyond, *kept, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) + 1
    edges = [2, *sorted(kept), end]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)


def main() -> NoReturn:
    verdict = int(sys.argv.pop())
    settings = json.loads(_read(0))
    if settings["binds"]:
        _enter_root(settings["binds"], settings["size"], settings["inodes"])
    _drop_privileges(settings["uid"])
    sys.set_int_max_str_digits(0)
    program = bytes.fromhex(settings["filter"])
    to_program, to_tests = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        empty, end = os.pipe()
        os.dup2(empty, 0)
        _close_all_but(to_program[0], to_tests[1], beyond=verdict)
        _call("prctl", _PR_SET_PDEATHSIG, 9, 0, 0, 0)
        _confine(settings["limits"], program)
        try:
            _run_program(Peer(to_program[0], to_tests[1], {}), settings["code"], settings["setup"])
        finally:
            os._exit(1)
    os.close(to_program[0])
    os.close(to_tests[1])
    _confine(settings["limits"], program)
    tests = json.loads(_read(0))  # only now, in this process alone
    peer = Peer(to_tests[0], to_program[1])

    def report(compiled: bool, passed: int, reason: str) -> None:
        line = json.dumps({"compiled": compiled, "passed": passed, "reason": reason})
        os.write(verdict, f"{line}\n".encode())

    _run_tests(peer, settings, tests, report)
    os._exit(0)  # the program's process dies with this one


if __name__ == "__main__":
    main()
