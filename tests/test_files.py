from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from onebase.errors import DoesNotFitError
from onebase.files import atomic_folder, write_atomically


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
    # In a container every run may have the same process id.
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
