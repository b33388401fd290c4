"""What names a database of judgements: a URL, or the path of an SQLite file. Needs the standard library alone."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

SUFFIXES = (".db", ".sqlite", ".sqlite3")
"""What the name of an SQLite file ends in, where a path may name other files too."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(r"([?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def is_database(name: str | Path) -> bool:
    """Whether a name stands for a database, rather than for a file of another kind or a dataset."""
    text = str(name)
    return bool(_URL.match(text)) or text.lower().endswith(SUFFIXES)


def database_url(name: str | Path, folder: Path | None = None) -> str:
    """The URL of a database that a URL or a path names; a relative path of an SQLite file starts at `folder`."""
    text = str(name)
    if not _URL.match(text):
        return f"sqlite:///{(folder or Path()) / Path(text).expanduser()}"
    if folder is None or not text.startswith("sqlite"):
        return text
    kind, path = text.split("://", 1)
    path = path.removeprefix("/")
    return text if not path or path.startswith("/") else f"{kind}:///{folder / path}"


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite database, None for a database on a server."""
    if not url.startswith("sqlite"):
        return None
    return Path(unquote(url.split("://", 1)[1].removeprefix("/").partition("?")[0]))


def shown_url(url: str | Path) -> str:
    """The URL as it may be printed: without its password."""
    text = str(url)
    if not _URL.match(text):
        return text
    kind, rest = text.split("://", 1)
    # To the last `@` before the path: a password with an `@` of its own is not half shown.
    server, slash, path = rest.partition("/")
    if "@" in path.partition("?")[0]:  # a password with a slash that was not escaped
        server, slash, path = rest.rpartition("@")[0] + "@", "", rest.rpartition("@")[2]
    user, at, host = server.rpartition("@")
    name, colon, _ = user.partition(":")
    return _SECRET.sub(r"\1***", f"{kind}://{name}{':***' if colon else ''}{at}{host}{slash}{path}")
