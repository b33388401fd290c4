"""The flight recorder: says what the rules find in a run's metrics, as the run of ppo or rft goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onebase.files import write_atomically
from onebase.processes import ALONE, Group
from onebase.reporting.rules import Finding, look
from onebase.runs.metrics import plain
from onebase.runs.progress import say
from onebase.runs.record import read_metrics


class FlightRecorder:
    """Prints a run's findings to stderr as they come up, and keeps them in `findings.jsonl`.

    Args:
        verb: ppo or rft, whose keys the advice names.
        lang: en or zh; the file has both.
        start: held-out figures measured before training.
        done: steps done before a resume; they are read from `metrics.jsonl`, and their findings are not printed again.
    """

    def __init__(
        self, folder: Path, *, verb: str, lang: str, start: Mapping[str, float], done: int, group: Group = ALONE
    ) -> None:
        self._path, self._verb, self._lang, self._group = folder / "findings.jsonl", verb, lang, group
        self._rows: list[Mapping[str, Any]] = [{"step": 0, **start}]
        self._said: dict[str, float] = {}
        self._found: list[Finding] = []
        for row in read_metrics(folder / "metrics.jsonl") if done else []:
            if row["step"] <= done:
                self._add(row)
        if self._found or self._path.exists():
            self._write()

    def look(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """Returns and prints what is new with this rollout."""
        row = {"step": step, **{name: plain(value) for name, value in metrics.items()}}  # as a resumed run will read it
        found = self._group.from_main(lambda: self._add(row))
        for finding in found:
            say(f"{'警告：' if self._lang == 'zh' else 'warning: '}{finding.line(self._lang)}")
        if found:
            self._write()
        return found

    def _add(self, row: Mapping[str, Any]) -> list[Finding]:
        self._rows.append(row)
        found = look(self._rows, self._said, verb=self._verb)
        self._found += found
        return found

    def _write(self) -> None:
        lines = [json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in self._found]
        write_atomically(self._path, "".join(lines))
