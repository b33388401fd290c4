"""Plants faults in generated data and measures how many `onebase data clean` finds: precision and recall per filter.

    python -m bench.planted                      # 10,000 rows, seeds 0 to 4: the table in docs/data.md
    python -m bench.planted --rows 100000 --seeds 1
    python -m bench.planted --sentiment ../shared/data/sentiment/sentence_polarity.jsonl.gz

The texts are words drawn from a Zipf distribution, half of them Chinese. A better answer holds more words of one list,
a worse one more of another, so that a verdict can be told from the wording, though not always. Every fault is planted
in rows of its own; what a filter drops beyond them counts against its precision.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onebase.quality.clean import Cleaner
from onebase.quality.options import FILTERS, Filter
from onebase.reading.formats import read_rows
from onebase.records import Message, Row

SHARES = {
    "encoding": 0.02,
    "repetition": 0.01,
    "equal_answers": 0.01,
    "leaks": 0.02,
    "contradictions": 0.02,
    "consistency": 0.01,
    "duplicates": 0.02,
    "near_duplicates": 0.03,
    "noise": 0.10,
}
"""Of all rows, how many are planted for each filter to find."""
NUM_TEST = 500
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


@dataclass
class Planted:
    """Generated rows, with the numbers of those that each filter should drop."""

    rows: list[Row]
    test: list[Row]
    faults: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in SHARES})


class Writer:
    """Writes texts in one language."""

    def __init__(self, rng: random.Random, *, chinese: bool) -> None:
        self.rng, self.chinese = rng, chinese
        if chinese:
            characters = [chr(code) for code in rng.sample(range(0x4E00, 0x9FA5), 2500)]
            self.words = characters[:1200] + ["".join(rng.choices(characters, k=2)) for _ in range(3000)]
        else:
            self.words = sorted({"".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(5000)})
        rng.shuffle(self.words)
        self.weights = [1 / (n + 10) for n in range(len(self.words))]
        self.good, self.bad = self.words[50:350], self.words[400:700]

    def text(self, least: int, most: int, *, leaning: Sequence[str] = ()) -> str:
        """Some sentences; an eighth of the words are from `leaning`."""
        words = self.rng.choices(self.words, self.weights, k=self.rng.randint(least, most))
        if leaning:
            words = [self.rng.choice(leaning) if self.rng.random() < 1 / 8 else word for word in words]
        return self.joined(words)

    def joined(self, words: Sequence[str]) -> str:
        if self.chinese:
            return "，".join("".join(words[i : i + 8]) for i in range(0, len(words), 8)) + "。"
        return ". ".join(" ".join(words[i : i + 12]).capitalize() for i in range(0, len(words), 12)) + "."

    def edited(self, text: str, share: float) -> str:
        """The text with this share of its words (of its characters in Chinese) replaced, another end and other case."""
        if self.chinese:
            found = [self.rng.choice(self.words)[0] if self.rng.random() < share else c for c in text]
            return "".join(found[:-1]) + "！"
        words = [self.rng.choice(self.words) if self.rng.random() < share else word for word in text.split(" ")]
        return " ".join(words)[:-1].upper() + "!"


def plant(count: int, seed: int) -> Planted:
    """`count` rows with faults in them, and a test file."""
    rng = random.Random(seed)
    writers = [Writer(rng, chinese=chinese) for chinese in (False, True)]
    test = [_row(rng.choice(writers), Planted([], []), prompt=True) for _ in range(NUM_TEST)]
    planted = Planted([], test)
    kinds = [name for name, share in SHARES.items() for _ in range(round(share * count))]
    pairs = {"contradictions", "consistency", "duplicates", "near_duplicates"}
    kinds += ["clean"] * (count - len(kinds) - sum(kind in pairs for kind in kinds))
    rng.shuffle(kinds)
    later: list[tuple[str, Row]] = []
    for kind in kinds:
        writer = rng.choice(writers)
        row = _row(writer, planted, gold=kind == "consistency" or rng.random() < 0.2)
        if kind in pairs:
            planted.rows.append(row)
            later.append((kind, row))
            if kind == "contradictions":
                planted.faults[kind].add(len(planted.rows) - 1)
            if kind == "consistency":
                planted.faults[kind].add(len(planted.rows) - 1)
            continue
        if kind != "clean":
            row = _FAULTS[kind](writer, row, planted)
            planted.faults[kind].add(len(planted.rows))
        planted.rows.append(row)
    rng.shuffle(later)
    for kind, row in later:
        writer = writers[row.messages[0].content[-1] in "。"]
        planted.faults[kind].add(len(planted.rows))
        planted.rows.append(_FAULTS[kind](writer, row, planted))
    numbered = [_placed(row, f"train:{n}") for n, row in enumerate(planted.rows)]
    return Planted(numbered, [_placed(row, f"test:{n}") for n, row in enumerate(test)], planted.faults)


def _row(writer: Writer, planted: Planted, *, gold: bool = False, prompt: bool = False) -> Row:
    messages = (Message("user", writer.text(15, 60)),)
    if prompt:
        return Row(messages)
    answers = (writer.text(20, 90, leaning=writer.good), writer.text(20, 90, leaning=writer.bad))
    columns = {"gold": str(writer.rng.randint(0, 999))} if gold else {}
    return Row(messages, answers, grades=(1.0, 0.0), columns=columns)


def _placed(row: Row, place: str) -> Row:
    return Row(row.messages, row.answers, grades=row.grades, columns=row.columns, place=place)


def _with(row: Row, **changes: Any) -> Row:
    kept: dict[str, Any] = {"messages": row.messages, "answers": row.answers, "columns": row.columns}
    return Row(**{**kept, "grades": row.grades, **changes})


def _broken(writer: Writer, row: Row, planted: Planted) -> Row:
    text = row.answers[0]
    if writer.chinese:
        text = text.encode("utf-8").decode(writer.rng.choice(["gb18030", "cp1252"]), "replace")
    else:
        mark = writer.rng.choice(["â€™", "Ã©tÃ©", "\ufffd", "\x07", "â€œ"])
        at = writer.rng.randrange(len(text))
        text = text[:at] + mark + text[at:]
    return _with(row, answers=(text, row.answers[1]))


def _repeating(writer: Writer, row: Row, planted: Planted) -> Row:
    beginning, loop = writer.text(5, 20), writer.text(3, 12)
    return _with(row, answers=(row.answers[0], beginning + " " + " ".join([loop] * writer.rng.randint(6, 20))))


def _leaked(writer: Writer, row: Row, planted: Planted) -> Row:
    text = writer.rng.choice(planted.test).messages[0].content
    kind = writer.rng.randrange(3)
    if kind == 0:
        return _with(row, messages=(Message("user", text.upper() + "  "),))
    chinese = text[-1] == "。"
    if kind == 1:
        helper = writer if writer.chinese == chinese else Writer(writer.rng, chinese=chinese)
        return _with(row, messages=(Message("user", helper.edited(text, 0.01)),))
    return _with(row, messages=(Message("user", f"{row.messages[0].content} {text} {writer.text(5, 20)}"),))


def _near(writer: Writer, row: Row, planted: Planted) -> Row:
    share = writer.rng.choice([0.0, 0.01, 0.02])
    messages = (Message("user", writer.edited(row.messages[0].content, share)),)
    return _with(row, messages=messages, answers=tuple(writer.edited(answer, share) for answer in row.answers))


_FAULTS: dict[str, Callable[[Writer, Row, Planted], Row]] = {
    "encoding": _broken,
    "repetition": _repeating,
    "equal_answers": lambda writer, row, planted: _with(row, answers=(row.answers[0], row.answers[0] + " ")),
    "leaks": _leaked,
    "contradictions": lambda writer, row, planted: _with(row, answers=row.answers[::-1]),
    "consistency": lambda writer, row, planted: _with(
        row,
        answers=(writer.text(20, 90, leaning=writer.good), writer.text(20, 90, leaning=writer.bad)),
        columns={"gold": row.columns["gold"] + "0"},
    ),
    "duplicates": lambda writer, row, planted: _with(row),
    "near_duplicates": _near,
    "noise": lambda writer, row, planted: _with(row, answers=row.answers[::-1]),
}


@dataclass(frozen=True)
class Found:
    """What one filter found of what was planted for it."""

    planted: int
    dropped: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.dropped if self.dropped else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.planted if self.planted else 1.0


def measure(planted: Planted, names: Sequence[str] = tuple(SHARES)) -> dict[str, Found]:
    """Runs the filters together and compares what each dropped with what was planted for it."""
    chosen: list[Filter] = [FILTERS[name]() for name in names]
    cleaner = Cleaner(chosen, test_rows=planted.test)
    for row in planted.rows:
        cleaner.add(row)
    findings = cleaner.finish().findings
    found = {}
    for name in names:
        dropped = {number for number, why in findings.items() if why[0].filter == name}
        found[name] = Found(len(planted.faults[name]), len(dropped), len(dropped & planted.faults[name]))
    return found


def sentiment(path: Path, seed: int, flipped: float = 0.1) -> tuple[Found, float]:
    """The filter `noise` on sentences labelled good or bad of which a share has the wrong label, and the share of
    all verdicts, flipped ones taken as they were, that the heads agree with."""
    rng = random.Random(seed)
    planted = Planted([], [])
    for n, row in enumerate(read_rows(path)):
        assert row.grades is not None
        wrong = rng.random() < flipped
        if wrong:
            planted.faults["noise"].add(n)
        grades = (1 - row.grades[0] if wrong else row.grades[0],)
        planted.rows.append(Row((), row.answers, grades=grades, place=f"{path}:{n}"))
    return measure(planted, ["noise"])["noise"], flipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sentiment", type=Path)
    given = parser.parse_args()
    runs: list[dict[str, Found]] = []
    for seed in range(given.seeds):
        if given.sentiment:
            runs.append({"noise": sentiment(given.sentiment, seed)[0]})
            continue
        planted = plant(given.rows, seed)
        started = time.process_time()
        runs.append(measure(planted))
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"seed {seed}: {len(planted.rows):,} rows in {seconds:.0f} s of one core, peak memory {peak:.0f} MiB",
            flush=True,
        )
    print("\n| filter | planted | precision | recall |\n| --- | --- | --- | --- |")
    for name in runs[0]:
        every = [run[name] for run in runs]
        spread = [_spread([getattr(found, what) for found in every]) for what in ("precision", "recall")]
        print(f"| {name} | {sum(found.planted for found in every) // len(every):,} | {spread[0]} | {spread[1]} |")


def _spread(values: Sequence[float]) -> str:
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{mean:.3f}" if round(low, 3) == round(high, 3) else f"{mean:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
