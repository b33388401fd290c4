"""Whether processes on one or several machines can train together: tried in under a minute, each fault one sentence.

They meet in the launcher's store, connect to each other, compare what they run on, sum a tensor together, and use one
folder as a run would: one writes and renames, the others read; one holds a lock that the others must not get.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

SECONDS_TO_MEET = 20.0
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_SEE = 8.0
"""How long another machine's file may take to appear: NFS looks into a folder again after some seconds."""
MEBIBYTES, ROUNDS = 16, 5
"""Size of the tensor that is summed, and how often."""
REPLACED = 40
"""Times the file in the shared folder is replaced."""


class Meeting:
    """The processes of one launch, met in its store.

    Raises:
        TimeoutError: the store cannot be reached, or not all processes came; the message says which.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        hosts = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        limit = timedelta(seconds=SECONDS_TO_MEET)
        self.host = socket.gethostname()
        try:
            self.store = distributed.PrefixStore(
                "preflight", distributed.TCPStore(address, port, self.count, hosts, limit, wait_for_workers=False)
            )
            self.store.set_timeout(limit)
        except (RuntimeError, OSError) as error:
            raise TimeoutError(
                f"{self.name} cannot reach {address}:{port}, where the processes meet ({_first_line(error)}); open "
                "this port, and give every machine the same MASTER_ADDR and MASTER_PORT (or rendezvous endpoint)"
            ) from None
        self.tell("here", self.host)
        self.hosts = [self.asked("here", rank) for rank in range(self.count)]

    @property
    def name(self) -> str:
        return f"process {self.rank} ({self.host})"

    def name_of(self, rank: int) -> str:
        return f"process {rank} ({self.hosts[rank]})"

    def tell(self, what: str, value: Any) -> None:
        """Puts this process's answer into the store."""
        self.store.set(f"{what}/{self.rank}", json.dumps(value))

    def asked(self, what: str, rank: int) -> Any:
        """Another process's answer, waiting for it."""
        try:
            return json.loads(self.store.get(f"{what}/{rank}"))
        except RuntimeError:
            raise TimeoutError(
                f"process {rank} of {self.count} did not answer {self.name} within {SECONDS_TO_MEET:.0f} s; look at "
                "what it says, and whether it was started"
            ) from None

    def all(self, what: str, value: Any) -> list[Any]:
        """Everyone's answers, in process order."""
        self.tell(what, value)
        return [self.asked(what, rank) for rank in range(self.count)]


def examine(meeting: Meeting, facts: Mapping[str, str | None], folder: Path) -> dict[str, Any]:
    """Tries everything and returns the findings as plain JSON values, the same in every process.

    Args:
        facts: what has to be the same in every process, by its name; None: not there.
        folder: where runs go; it need not exist yet.

    Raises:
        TimeoutError: a process stopped answering.
    """
    started = time.monotonic()
    found: dict[str, Any] = {"processes": meeting.count, "hosts": meeting.hosts, "facts": dict(facts)}
    problems = _connect(meeting) + _compare(meeting, facts)
    speed, trouble = _sum(meeting)
    problems += trouble + _share(meeting, folder)
    everyones = [problem for some in meeting.all("problems", problems) for problem in some]
    slowest = max(meeting.all("speed", speed), key=lambda one: one.get("milliseconds", 0.0))
    found["all_reduce"] = slowest
    found["folder"] = str(_existing(folder))
    found["seconds"] = max(meeting.all("seconds", round(time.monotonic() - started, 1)))
    found["problems"] = list(dict.fromkeys(everyones))
    meeting.tell("done", True)
    if meeting.rank == 0:  # who may host the store must not leave first
        for rank in range(meeting.count):
            meeting.asked("done", rank)
    return found


def _connect(meeting: Meeting) -> list[str]:
    """Every process connects to every other, on a port that the system chooses, as training does."""
    problems = []
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen(meeting.count)
        places = meeting.all("place", [_own_address(), listening.getsockname()[1]])
        for rank, (address, port) in enumerate(places):
            if rank == meeting.rank:
                continue
            try:
                socket.create_connection((address, port), timeout=SECONDS_TO_CONNECT).close()
            except OSError as error:
                problems.append(
                    f"{meeting.name} cannot connect to {meeting.name_of(rank)} at {address} ({_first_line(error)}); "
                    "processes talk over ports that the system chooses, so open all of them between the machines"
                )
        meeting.all("connected", True)
    return problems


def _own_address() -> str:
    """The address under which the others see this machine: the one it has towards where they meet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        try:
            towards.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))  # sends nothing
            return str(towards.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _compare(meeting: Meeting, facts: Mapping[str, str | None]) -> list[str]:
    """What this process has other than the first one."""
    first = meeting.all("facts", dict(facts))[0]
    problems = []
    for name in [*first, *(name for name in facts if name not in first)]:
        theirs, own = first.get(name), facts.get(name)
        if theirs != own:
            mine, firsts = ("lacks it" if value is None else f"has {value}" for value in (own, theirs))
            problems.append(f"{name}: {meeting.name} {mine}, and {meeting.name_of(0)} {firsts}; make them the same")
    return problems


def _sum(meeting: Meeting) -> tuple[dict[str, float], list[str]]:
    """Joins as training does, sums a tensor and takes the time."""
    on_gpu = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    if on_gpu and local >= torch.cuda.device_count():
        return {}, [
            f"{meeting.name} has no GPU of its own: its machine has {torch.cuda.device_count()}; start fewer there"
        ]
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=distributed.PrefixStore("group", meeting.store),
            rank=meeting.rank,
            world_size=meeting.count,
            timeout=timedelta(seconds=SECONDS_TO_MEET),
        )
        small = torch.ones(1, device=device)
        distributed.all_reduce(small)
        total = float(small)
        seconds, wait = _seconds(torch.zeros(MEBIBYTES * 2**20 // 4, device=device)), _seconds(small.zero_())
    except (RuntimeError, ValueError) as error:
        return {}, [
            f"{meeting.name} cannot sum a tensor with the others ({_first_line(error)}); if a machine has several "
            "network interfaces, name the one to use in GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        ]
    finally:
        with suppress(RuntimeError, ValueError, AssertionError):
            distributed.destroy_process_group()
    problems = []
    if total != meeting.count:
        problems = [f"{meeting.name} got {total:g} as the sum of {meeting.count} ones; look at drivers and network"]
    per_second = MEBIBYTES * 2**20 / seconds / 1e9
    return {"gigabytes_per_second": round(per_second, 3), "milliseconds": round(1000 * wait, 3)}, problems


def _seconds(tensor: torch.Tensor) -> float:
    """Seconds that one sum of a tensor takes; the first of them also makes the connections."""
    distributed.all_reduce(tensor)
    taken = []
    for _ in range(ROUNDS):
        _wait(tensor)
        began = time.perf_counter()
        distributed.all_reduce(tensor)
        _wait(tensor)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[ROUNDS // 2]


def _wait(tensor: torch.Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    there = folder.absolute()
    while not there.is_dir():
        there = there.parent
    return there


def _share(meeting: Meeting, folder: Path) -> list[str]:
    """Uses the folder of the runs as a run would."""
    there = _existing(folder)
    token = meeting.all("token", uuid.uuid4().hex)[0]
    tried, problems = there / f".onebase-doctor-{token}", list[str]()
    try:
        if meeting.rank == 0:
            try:
                tried.mkdir()
                _replace(tried / "value", 0)
            except OSError as error:
                problems.append(f"{meeting.name} cannot write to '{there}' ({error.strerror}); make it writable")
        written = meeting.all("written", not problems)[0]
        if not written:
            return problems
        sees = meeting.rank == 0 or _appears(tried / "value")
        if not sees:
            problems.append(
                f"{meeting.name} does not see what {meeting.name_of(0)} writes: its '{there}' is another folder; mount "
                "one file system on all machines, at the same place"
            )
        if all(meeting.all("sees", sees)):
            problems += _replace_often(meeting, tried) + _lock(meeting, tried)
    finally:
        meeting.all("left", True)
        if meeting.rank == 0:
            shutil.rmtree(tried, ignore_errors=True)
    return problems


def _appears(path: Path) -> bool:
    end = time.monotonic() + SECONDS_TO_SEE
    while time.monotonic() < end:
        if path.is_file():
            return True
        time.sleep(0.1)
    return False


def _replace(path: Path, number: int) -> None:
    temporary = path.with_name("value.tmp")
    with temporary.open("w") as file:
        file.write(f"{number}\n" * 2000)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _replace_often(meeting: Meeting, folder: Path) -> list[str]:
    """The first process replaces a file again and again; the others find it whole whenever they look."""
    problems: list[str] = []
    if meeting.rank == 0:
        for number in range(1, REPLACED + 1):
            _replace(folder / "value", number)
        meeting.store.set("replaced", "1")
    else:
        while True:
            last = meeting.store.check(["replaced"])
            try:
                lines = (folder / "value").read_text().splitlines()
                fault = "" if len(lines) == 2000 and len(set(lines)) == 1 else "a file half-written"
            except OSError as error:
                fault = f"no file ({error.strerror})"
            if fault:
                problems = [
                    f"{meeting.name} found {fault} while {meeting.name_of(0)} replaced it: renaming is not atomic in "
                    f"'{folder.parent}'; put the runs on another file system"
                ]
            if last or fault:
                break
    meeting.all("replaced by all", True)
    return problems


def _lock(meeting: Meeting, folder: Path) -> list[str]:
    """While the first process holds a lock, as on a run's folder, nobody else gets it."""
    problems: list[str] = []
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        held = True
        if meeting.rank == 0:
            held = _locked(descriptor)
            if not held:
                problems = [f"{meeting.name} cannot lock '{folder.parent}'; put the runs on a file system with locks"]
        if meeting.all("held", held)[0] and meeting.rank != 0 and _locked(descriptor):
            problems = [
                f"{meeting.name} got a lock that {meeting.name_of(0)} holds in '{folder.parent}', so two runs could "
                "write to one folder; mount it so that flock holds across machines"
            ]
        meeting.all("tried to lock", True)
    finally:
        os.close(descriptor)
    return problems


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
