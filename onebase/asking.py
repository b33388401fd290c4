"""Asks a program elsewhere over HTTP: connections that are kept, time limits, and another try after a failure.

What may pass is tried again: a connection that is refused or dropped, an answer that is late, cut short or not JSON,
status 408, 425, 429 and 5xx, and what a caller's `read` finds unusable. Any other status is a refusal, which
a second try would not change.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from onebase.errors import ConfigError, OnebaseError, UnansweredError
from onebase.runs.progress import say
from onebase.shown import shown

Result = TypeVar("Result")
WAITS = (0.0, 1.0, 4.0, 15.0, 60.0)
"""Seconds before each further try. The first comes at once: a server may close a connection that was idle."""
PASSING = (408, 425, 429, 499)
"""Statuses below 500 that another try may not meet."""
MOST_BYTES = 1 << 28
"""An answer longer than this is not read."""


class Unusable(Exception):
    """An answer that is not what was asked for; raised by `read`, and tried again."""


class Refused(OnebaseError):
    """The other program answered that it will not do this.

    Args:
        status: the HTTP status.
        said: its own words.
    """

    def __init__(self, fact: str = "", *, status: int = 0, said: str = "", remedy: str = "", **facts: object) -> None:
        super().__init__(fact, remedy=remedy, **facts)
        self.status, self.said = status, said


class Elsewhere:
    """A program at a URL, asked from any number of threads.

    Args:
        url: `http://host:port` or `https://...`, with a path if there is one; without a user, a query or a fragment.
        who: what messages call it, before the URL.
        key: sent as `Authorization: Bearer KEY`; never shown.
        seconds: how long one answer may take.
        remedy: what to do if it does not answer.

    Raises:
        ConfigError: the URL is not one, or holds more than a place.
    """

    def __init__(self, url: str, *, who: str, key: str | None = None, seconds: float = 600.0, remedy: str = "") -> None:
        self.url = url.rstrip("/")
        self.who = f"{who} at {shown(self.url, 200)}"
        self.seconds = seconds
        self._key, self._remedy = key, remedy
        self._place = urlsplit(self.url)
        if problem := problem_of(url):
            raise ConfigError(f"{who}: {problem}")
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        read: Callable[[Any], Result],
        seconds: float | None = None,
        waits: Sequence[float] | None = None,
    ) -> Result:
        """What `read` makes of the answer, which is JSON or, if it does not say so, text.

        Args:
            path: after the URL.
            body: sent by POST as JSON; None: a GET.
            read: raises `Unusable` for an answer that is not what was asked for.
            waits: seconds before each further try; None: the usual ones.

        Raises:
            Refused: it will not do this. UnansweredError: every try failed.
        """
        # Not ASCII-escaped: other languages' texts would be several times as long.
        sent = (
            None if body is None else json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        )
        failure = ""
        waits = WAITS if waits is None else waits
        for number, wait in enumerate([0.0, *waits]):
            if number > 1:  # the first repetition is usual and not worth a line
                say(f"warning: {self.who}: {failure}; trying again in {wait:g} s")
            time.sleep(wait)
            try:
                status, answer = self._asked(path, sent, seconds or self.seconds)
                if status >= 500 or status in PASSING:
                    failure = f"status {status}: {_said(answer)}"
                elif status >= 400:
                    said = _said(answer)
                    raise Refused(f"{self.who} answered {status}: {said}", status=status, said=said)
                else:
                    return read(answer)
            except Unusable as error:
                failure = str(error)
            except TimeoutError:
                failure = f"no answer within {seconds or self.seconds:g} seconds"
            except (OSError, http.client.HTTPException) as error:
                failure = _in_words(error)
        tries = f" ({len(waits) + 1} tries)" if waits else ""
        raise UnansweredError(f"{self.who}: {failure}{tries}", remedy=self._remedy)

    def _asked(self, path: str, sent: bytes | None, seconds: float) -> tuple[int, Any]:
        """One try: the status, and the answer as JSON or text."""
        deadline = time.monotonic() + seconds
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        with self._lock:
            connection = self._idle.pop() if self._idle else self._connection()
        try:
            connection.timeout = seconds
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            method = "GET" if sent is None else "POST"
            if sent is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, self._place.path + path, body=sent, headers=headers)
            response = connection.getresponse()
            parts, size = [], 0
            while part := response.read1(1 << 20):
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    raise Unusable(f"an answer of more than {MOST_BYTES >> 20} MiB")
                if time.monotonic() > deadline:  # a byte now and then would keep the socket's own limit away
                    raise TimeoutError
            if response.length:  # the connection ended before what was announced
                raise http.client.IncompleteRead(b"", response.length)
            response.close()  # `read1` does not notice that it has read everything, and the connection would stay busy
            data = b"".join(parts)
            is_json = "json" in (response.getheader("Content-Type") or "json")
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        if response.status >= 400 or not is_json or not data:
            return response.status, data.decode("utf-8", "replace")
        try:
            return response.status, json.loads(data)
        except (ValueError, RecursionError):
            raise Unusable(f"an answer that is not JSON: {_said(data.decode('utf-8', 'replace'))}") from None

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._place.scheme == "https" else http.client.HTTPConnection
        return kind(str(self._place.hostname), self._place.port, timeout=self.seconds)

    def close(self) -> None:
        """Closes the connections that are kept."""
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()


def problem_of(url: str) -> str | None:
    """What is wrong with a URL as a program's place; None if nothing is."""
    try:
        place = urlsplit(url)
        port = place.port
    except ValueError as error:
        return f"{shown(url, 200)} is not a URL ({shown(error, 80)})"
    if place.scheme not in ("http", "https") or not place.hostname or any(sign in url for sign in " \t\r\n"):
        return f"{shown(url, 200)} is not a URL; it should begin with http:// or https://, and a host"
    if port == 0:
        return f"{shown(url, 200)}: there is no port 0"
    if place.username is not None or place.query or place.fragment:
        # Not shown: it may hold a secret, and would then stand in configs and logs.
        return "a URL with a user, a query or a fragment; give the place alone, and a key by an environment variable"
    return None


def in_parallel(calls: Sequence[Callable[[], Result]], *, at_once: int) -> list[Result]:
    """The results of all calls in order, each made in a thread; after an error no further call is begun.

    Raises:
        The first error, once no call is running.
    """
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []
    places, lock = iter(range(len(calls))), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                place = None if errors else next(places, None)
            if place is None:
                return
            try:
                results[place] = calls[place]()
            except BaseException as error:  # passed to the waiting thread
                with lock:
                    errors.append(error)

    # Daemons, so that a second Ctrl-C does not wait for them.
    threads = [threading.Thread(target=work, daemon=True, name="asking") for _ in range(min(at_once, len(calls)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)  # short waits, so that Ctrl-C gets through
    if errors:
        raise errors[0]
    return results


def _said(answer: Any) -> str:
    """The other program's words in one line: the message of an error in OpenAI's shape, or how the text begins."""
    try:
        found = json.loads(answer) if isinstance(answer, str) else answer
        if isinstance(found, dict):
            found = found.get("error", found)
            answer = found.get("message", answer) if isinstance(found, dict) else found
    except (ValueError, RecursionError):
        pass
    return shown(" ".join(str(answer).split()), 300) or "(nothing)"


def _in_words(error: Exception) -> str:
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead | ConnectionResetError):
        return "the connection was dropped"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused: nothing listens there"
    if isinstance(error, OSError) and error.strerror:
        return shown(error.strerror, 200)
    return shown(f"{type(error).__name__}: {error}", 200)
