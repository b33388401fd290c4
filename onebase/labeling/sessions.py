"""Who is asking: signed cookies, and the token that every form sends back."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from itsdangerous import BadSignature, URLSafeTimedSerializer

from onebase.errors import ConfigError
from onebase.labels.judged import Person
from onebase.shown import shown

SECONDS = 30 * 24 * 3600
"""How long a session lasts."""


@dataclass(frozen=True, slots=True)
class Session:
    """One visit of somebody, known or not."""

    cookie: str
    token: str
    """What every form sends back while its person is logged in; no page of another site can read it."""
    person: int | None
    number: int = 0
    """The person's own when it began; logging out, a new password and being shut out give them another."""


class Sessions:
    """Makes and reads cookies.

    Args:
        secret: signs them; at least 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._signed = URLSafeTimedSerializer(secret, salt="session")
        # Cookies are shared by all ports of a host: two projects on one machine need two names.
        self.name = f"onebase-label-{hashlib.sha256(secret).hexdigest()[:8]}"

    def visit(self) -> Session:
        """A new session of nobody known."""
        return self._session([secrets.token_urlsafe(16)])

    def enter(self, person: Person) -> Session:
        """A new session of a person."""
        return self._session([person.id, person.session])

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie, None if it is not ours or too old."""
        try:
            said = self._signed.loads(cookie, max_age=SECONDS)
        except BadSignature:
            return None
        # An older version signed other things: whoever has its cookie logs in again.
        of_somebody = len(said) == 2 and all(type(number) is int for number in said)
        return self._session(said, cookie) if of_somebody or len(said) == 1 else None

    def _session(self, said: list[int | str], cookie: str | None = None) -> Session:
        token = self._mac("form", "/".join(map(str, said)))
        cookie = str(self._signed.dumps(said)) if cookie is None else cookie
        if len(said) == 1:
            return Session(cookie, token, None)
        return Session(cookie, token, int(said[0]), int(said[1]))

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}/{text}".encode(), hashlib.sha256).hexdigest()


def secret_in(path: Path) -> bytes:
    """The secret kept in a file that only its owner reads; made if there is none.

    Raises:
        ConfigError: the file cannot be made or read, is open to others, or holds something else.
    """
    try:
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        except FileExistsError:
            pass
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{shown(path)}: others can read this secret; chmod 600 it, or delete it to get another")
        secret = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "it holds no secret"
        raise ConfigError(f"{shown(path)}: {said}; delete the file to get another, which logs everybody out") from None
    if len(secret) < 32:
        raise ConfigError(
            f"{shown(path)}: it holds no secret; delete the file to get another, which logs everybody out"
        )
    return secret
