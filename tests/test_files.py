from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from onebase import files
from onebase.errors import DoesNotFitError
from onebase.files import atomic_folder, settle_leftovers, write_atomically


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def full_disk(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_takes_its_name_only_when_it_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "policy"
    with atomic_folder(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text("a")
        assert not folder.exists() and temporary.parent == folder.parent
    assert tree(tmp_path) == {"deep/policy/inner/a.txt": "a"}


def test_a_new_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    for name in ("old", "new"):
        with atomic_folder(folder) as temporary:
            (temporary / f"{name}.txt").write_text(name)
            if name == "new":
                assert tree(folder) == {"old.txt": "old"}  # until the new one is complete
    assert tree(tmp_path) == {"policy/new.txt": "new"}


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), PermissionError("no")])
def test_a_failure_while_filling_leaves_the_older_folder_and_no_temporary(
    tmp_path: Path, failure: BaseException
) -> None:
    folder = tmp_path / "policy"
    with atomic_folder(folder) as temporary:
        (temporary / "old.txt").write_text("old")
    with pytest.raises(type(failure)), atomic_folder(folder) as temporary:
        (temporary / "new.txt").write_text("new")
        raise failure
    assert tree(tmp_path) == {"policy/old.txt": "old"} and os.listdir(tmp_path) == ["policy"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["disk", "quota", "safetensors"],
)
def test_a_disk_that_fills_while_writing_is_said_in_one_line(tmp_path: Path, failure: Exception) -> None:
    folder = tmp_path / "policy"
    with pytest.raises(DoesNotFitError, match="policy: the disk is full; nothing was half-written") as caught:
        with atomic_folder(folder) as temporary:
            (temporary / "half.txt").write_text("half")
            raise failure
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_torch_save_on_a_full_disk_is_said_in_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.save does not name the cause.
    failure = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    with pytest.raises(RuntimeError, match="unexpected pos"), atomic_folder(tmp_path / "checkpoint"):
        raise failure
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
    with pytest.raises(DoesNotFitError, match="checkpoint: the disk is full"), atomic_folder(tmp_path / "checkpoint"):
        raise failure
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_at_the_sync_leaves_the_older_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "policy"
    with atomic_folder(folder) as temporary:
        (temporary / "old.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DoesNotFitError, match="policy: the disk is full"), atomic_folder(folder) as temporary:
        (temporary / "new.txt").write_text("new")
    assert tree(tmp_path) == {"policy/old.txt": "old"} and os.listdir(tmp_path) == ["policy"]


def test_a_rename_that_fails_puts_the_older_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "policy"
    with atomic_folder(folder) as temporary:
        (temporary / "old.txt").write_text("old")
    rename = Path.rename

    def failing_rename(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(errno.EIO, "the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(OSError, match="the disk is gone"), atomic_folder(folder) as temporary:
        (temporary / "new.txt").write_text("new")
    assert tree(tmp_path) == {"policy/old.txt": "old"} and os.listdir(tmp_path) == ["policy"]


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path: Path) -> None:
    # In containers, runs may share a process id.
    folder = tmp_path / "policy"
    left = tmp_path / f".policy.{os.getpid()}.tmp"
    left.mkdir()
    (left / "half.txt").write_text("half")
    with atomic_folder(folder) as temporary:
        (temporary / "whole.txt").write_text("whole")
    assert tree(tmp_path) == {"policy/whole.txt": "whole"} and os.listdir(tmp_path) == ["policy"]


def test_a_kill_between_the_two_renames_loses_neither_folder(tmp_path: Path) -> None:
    # The older folder was moved aside, and the process died before the new one took its name.
    folder = tmp_path / "policy"
    aside = tmp_path / f".policy.{os.getpid()}.old"
    aside.mkdir()
    (aside / "old.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(folder):
        raise ZeroDivisionError
    assert tree(folder) == {"old.txt": "old"}


STEPS = ("rename", "fsync", "mkdir", "open", "unlink", "rmdir")
"""System calls that write and replace folders."""


class CutShort(BaseException):
    """Like a signal's: not an Exception."""


def cutting(patch: pytest.MonkeyPatch, at: set[int]) -> list[str]:
    """Cuts the work short right after these system calls, counted from 0; returns a growing list of the calls."""
    calls: list[str] = []

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            calls.append(name)
            if len(calls) - 1 in at:
                raise CutShort
            return result

        return step

    for name in STEPS:
        patch.setattr(os, name, watched(name, getattr(os, name)))
    return calls


def replaced_and_cut_short(folder: Path, at: set[int]) -> list[str]:
    """Replaces `policy` with two old files by one with two new files."""
    (folder / "policy" / "deep").mkdir(parents=True)
    (folder / "policy" / "a.txt").write_text("old")
    (folder / "policy" / "deep" / "b.txt").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        calls = cutting(patch, at)
        with suppress(CutShort), atomic_folder(folder / "policy") as temporary:
            os.mkdir(temporary / "deep")
            (temporary / "a.txt").write_text("new")
            (temporary / "deep" / "b.txt").write_text("new")
    return calls


def assert_one_whole_copy(folder: Path) -> None:
    found = tree(folder / "policy")
    assert found.keys() == {"a.txt", "deep/b.txt"} and len(set(found.values())) == 1, found


def test_wherever_a_replacement_is_cut_short_one_copy_is_left_whole(tmp_path: Path) -> None:
    calls = replaced_and_cut_short(tmp_path / "whole", set())
    assert calls.count("rename") == 3 and calls.count("rmdir") == 2 and set(calls) == set(STEPS)
    assert tree(tmp_path / "whole" / "policy") == {"a.txt": "new", "deep/b.txt": "new"}
    for at in range(len(calls)):
        replaced_and_cut_short(tmp_path / str(at), {at})
        settle_leftovers(tmp_path / str(at))  # as the next start does
        assert_one_whole_copy(tmp_path / str(at))
        assert os.listdir(tmp_path / str(at)) == ["policy"]


def test_a_second_cut_while_the_first_is_settled_loses_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # hundreds of folders
    most = len(replaced_and_cut_short(tmp_path / "whole", set()))
    for first in range(most):
        second = first + 1
        while len(replaced_and_cut_short(tmp_path / f"{first}-{second}", {first, second})) > second:
            folder = tmp_path / f"{first}-{second}"
            for at in range(8):  # the next start may be cut short too
                with monkeypatch.context() as patch, suppress(CutShort):
                    cutting(patch, {at})
                    settle_leftovers(folder)
            settle_leftovers(folder)
            assert_one_whole_copy(folder)
            assert os.listdir(folder) == ["policy"]
            second += 1


def test_a_signal_in_any_line_loses_nothing(tmp_path: Path) -> None:
    def trace(at: int) -> Callable[..., Any]:
        lines = [0]

        def in_our_file(frame: FrameType, event: str, _argument: object) -> Any:
            if frame.f_code.co_filename != files.__file__:
                return None
            if event == "line":
                lines[0] += 1
                if lines[0] == at:
                    raise CutShort
            return in_our_file

        return in_our_file

    at, cut = 0, True
    while cut:
        at += 1
        folder, cut = tmp_path / str(at), False
        (folder / "policy" / "deep").mkdir(parents=True)
        for name in ("a.txt", "deep/b.txt"):
            (folder / "policy" / name).write_text("old")
        before = sys.gettrace()
        sys.settrace(trace(at))
        try:
            with atomic_folder(folder / "policy") as temporary:
                (temporary / "deep").mkdir()
                for name in ("a.txt", "deep/b.txt"):
                    (temporary / name).write_text("new")
        except CutShort:
            cut = True
        finally:
            sys.settrace(before)
        settle_leftovers(folder)
        assert_one_whole_copy(folder)
        assert os.listdir(folder) == ["policy"]
    assert at > 40, "no line was tried"


def test_half_of_an_older_folder_never_comes_back(tmp_path: Path) -> None:
    # The process was killed while it removed the old folder, and someone removed the new one.
    whole = len(replaced_and_cut_short(tmp_path / "whole", set()))
    for at in range(whole):
        folder = tmp_path / str(at)
        replaced_and_cut_short(folder, {at})
        shutil.rmtree(folder / "policy", ignore_errors=True)
        settle_leftovers(folder)
        if (folder / "policy").exists():
            assert_one_whole_copy(folder)


def test_hidden_files_of_others_stay_where_they_are(tmp_path: Path) -> None:
    for name in (".mine.old", ".mine.tmp", ".notes.12x.tmp", "policy.12.tmp"):
        (tmp_path / name).write_text("mine")
    settle_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mine.old", ".mine.tmp", ".notes.12x.tmp", "policy.12.tmp"]


def test_files_folders_and_the_folder_above_are_all_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append((path.name, (tmp_path / "run" / "top").exists())))
    with atomic_folder(tmp_path / "run" / "top") as temporary:
        (temporary / "policy").mkdir()
        (temporary / "policy" / "a.txt").write_text("a")
    hidden = f".top.{os.getpid()}.tmp"
    assert sorted(name for name, renamed in synced if not renamed) == [hidden, "a.txt", "policy"]
    assert [name for name, renamed in synced if renamed] == ["run"]
    synced.clear()
    write_atomically(tmp_path / "run" / "b.txt", "b")
    assert [name for name, _ in synced] == [f".b.txt.{os.getpid()}.tmp", "run"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    ],
    ids=["system", "safetensors"],
)
def test_a_file_larger_than_allowed_is_said_in_one_line(tmp_path: Path, failure: Exception) -> None:
    with pytest.raises(DoesNotFitError) as caught, atomic_folder(tmp_path / "policy"):
        raise failure
    assert str(caught.value) == (
        f"{tmp_path / 'policy'}: a file is larger than this process may write (ulimit -f); nothing was half-written. "
        "Raise the limit and run again"
    )
    assert os.listdir(tmp_path) == []


WRITES_TOO_MUCH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from onebase import files
from onebase.errors import DoesNotFitError
from onebase.files import atomic_folder, settle_leftovers, write_atomically

folder, large = Path(sys.argv[1]), torch.zeros(100_000)
def by_torch():
    with atomic_folder(folder / "torch") as temporary:
        torch.save({"a": large}, temporary / "state.pt")
def by_safetensors():
    with atomic_folder(folder / "safetensors") as temporary:
        save_file({"a": large}, temporary / "a.safetensors")
for write in (by_torch, by_safetensors, lambda: write_atomically(folder / "text", "a" * 400_000)):
    try:
        write()
        print("written")
    except DoesNotFitError as error:
        print(error)
"""


def test_the_limit_of_the_shell_on_files_is_met_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    command = f"ulimit -f 100; exec {sys.executable} -c '{WRITES_TOO_MUCH}' {tmp_path}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("a file is larger than this process may write" in line for line in lines), done
    assert os.listdir(tmp_path) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "summary.json"
    write_atomically(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DoesNotFitError, match="summary.json: the disk is full") as caught:
        write_atomically(path, "new")
    assert caught.value.exit_code == 4
    assert path.read_text(encoding="utf-8") == "grün\n" and os.listdir(path.parent) == ["summary.json"]


def test_a_file_that_cannot_be_written_for_another_reason_says_that_reason(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file, no folder")
    with pytest.raises(OSError, match="plain"):
        write_atomically(tmp_path / "plain" / "summary.json", "new")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "policy") as temporary:
            save_file({"a": torch.zeros(1)}, temporary / "a.safetensors")
            (temporary / "b.txt").write_text("b")
            (temporary / "b.txt").chmod(0o600)
        write_atomically(tmp_path / "c.txt", "c")
        assert os.umask(umask) == umask, "the umask of the process was changed"
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 and {path.stat().st_mode & 0o777 for path in files} == {mode}
