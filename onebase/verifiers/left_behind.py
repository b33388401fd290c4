"""Removes what a program leaves on the disk that ran under a user's number of its own, but in nobody's namespace."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

WRITABLE = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")
"""Folders in which every user may make files."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_files_of(uid: int) -> None:
    """Removes every file and folder of a user from the folders where all users may write, and from those below them
    that this user could write to. Links are removed, never followed. The user's processes have ended."""
    places = {os.path.realpath(place) for place in (tempfile.gettempdir(), *WRITABLE) if os.path.isdir(place)}
    for place in sorted(places):
        _look_through(Path(place), uid)


def _look_through(folder: Path, uid: int) -> None:
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:  # gone, or another's link
        return
    try:
        for name in os.listdir(descriptor):
            try:
                about = os.lstat(name, dir_fd=descriptor)
                if about.st_uid == uid:
                    remove(name, descriptor)
                elif about.st_mode & 0o170002 == 0o040002:  # another user's folder in which everyone may write
                    _look_through(folder / name, uid)
            except OSError:
                continue  # its owner removed it meanwhile, or it is none of this user's
    finally:
        os.close(descriptor)


def remove(name: str, at: int) -> None:
    """Removes a file or a folder with all that is in it, however deep: folders within folders are first moved up."""
    try:
        os.unlink(name, dir_fd=at)
        return
    except IsADirectoryError:
        top = os.open(name, _FOLDER, dir_fd=at)
    try:
        while entries := os.listdir(top):
            for entry in entries:
                _flatten(entry, top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=at)


def _flatten(name: str, top: int) -> None:
    """Removes an entry of a folder; the folders in it come into that folder instead, under names of their own."""
    try:
        os.unlink(name, dir_fd=top)
        return
    except IsADirectoryError:
        inner = os.open(name, _FOLDER, dir_fd=top)
    try:
        for entry in os.listdir(inner):
            try:
                os.unlink(entry, dir_fd=inner)
            except IsADirectoryError:
                os.rename(entry, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
