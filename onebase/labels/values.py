"""Values as every database keeps them: moments in UTC, texts without zero bytes, and hashes."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime


def moment_of(given: datetime | None) -> datetime:
    """A moment in UTC; now, if none is given."""
    return datetime.now(UTC) if given is None else given.astimezone(UTC)


def hashed(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def plain(text: str) -> str:
    """A text that every database keeps: without zero bytes and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
