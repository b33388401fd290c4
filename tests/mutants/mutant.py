"""What a mutant is: a fault put into the source on purpose, which a test has to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: a text that stands exactly once in a file, and what replaces it."""

    file: str
    """From the root of the repository."""
    old: str
    new: str
    fault: str
    """What is wrong with it then, in one line; no two mutants share it."""
    tests: str
    """The tests that should notice: files or node ids, with blanks between them, that take a few seconds."""
    harmless: str = ""
    """Why it changes no result, for one that no test can notice; empty for all others."""

    def broken(self, root: Path = ROOT) -> str:
        """The file's text with the fault in it, below `root`.

        Raises:
            ValueError: the text to replace stands there never, or more than once; or the new text is no Python.
        """
        source = (root / self.file).read_text(encoding="utf-8")
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.file}: the text of the mutant '{self.fault}' stands there {source.count(self.old)} times "
                f"instead of once: {self.old!r}"
            )
        broken = source.replace(self.old, self.new)
        try:
            compile(broken, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.file}: the mutant '{self.fault}' is no Python: {error}") from None
        return broken
