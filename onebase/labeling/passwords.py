"""Passwords, hashed by Argon2, and how often somebody may try one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

FEWEST = 10
"""Characters of a password."""
MOST = 256
SECONDS = 600.0
"""Within which attempts are counted."""
OF_ONE_NAME = 10
OF_ONE_ADDRESS = 50


class Passwords:
    """Makes and checks hashes, two at a time: each takes 64 MiB."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._turns = threading.Semaphore(2)
        self._nobody = self._hasher.hash("nobody's password")

    def hash(self, password: str) -> str:
        """The hash to keep."""
        with self._turns:
            return self._hasher.hash(password)

    def is_right(self, kept: str | None, password: str) -> bool:
        """Whether a password is the one whose hash is kept; with none it takes as long, and is not."""
        with self._turns:
            try:
                self._hasher.verify(self._nobody if kept is None else kept, password[: MOST + 1])
            except (VerificationError, InvalidHashError):
                return False
        return kept is not None


class Limiter:
    """Counts attempts by key, and refuses one that comes too often.

    Args:
        clock: in seconds; for tests.
    """

    def __init__(
        self, most: int, *, seconds: float = SECONDS, keys: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds, self._keys, self._clock = most, seconds, keys, clock
        self._attempts: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, key: str) -> bool:
        """Counts an attempt; False if there were too many before it."""
        now = self._clock()
        with self._lock:
            attempts = self._attempts.setdefault(key, deque())
            self._attempts.move_to_end(key)
            while len(self._attempts) > self._keys:
                self._attempts.popitem(last=False)
            while attempts and attempts[0] <= now - self._seconds:
                attempts.popleft()
            if len(attempts) >= self._most:
                return False
            attempts.append(now)
            return True

    def forget(self, key: str) -> None:
        """An attempt was right: the ones before it do not count any more."""
        with self._lock:
            self._attempts.pop(key, None)
