"""A PostgreSQL server for tests, from the distribution's binaries, in a folder of its own and on a socket in it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

USER, PASSWORD = "onebase", "of the tests"


def binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`: the newest that Debian installed, or that of the path; None if none is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A running server; `stop` removes it."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._databases = 0
        # Not pytest's folder: PostgreSQL refuses root, and root's folders are closed to everybody else. A socket's path
        # has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self.folder, user)
            self._as = ["runuser", "-u", user, "--"]
        secret = self.folder / "password"
        secret.write_text(PASSWORD + "\n", encoding="utf-8")
        secret.chmod(0o644)
        self._call("initdb", "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses= -k {self.folder} -c fsync=on"
        self._call("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def halt(self, mode: str = "fast") -> None:
        """Stops it; `immediate` is as if it crashed."""
        self._call("pg_ctl", "stop", "-w", "-m", mode)

    def stop(self) -> None:
        self.halt("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str, password: str = PASSWORD) -> str:
        return f"postgresql://{USER}:{password.replace(' ', '%20')}@/{name}?host={self.folder}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        self._databases += 1
        name = f"label{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._programs / program), "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert done.returncode == 0, f"{program}: {done.stderr.decode()}"
