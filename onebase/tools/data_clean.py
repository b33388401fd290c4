"""`onebase data clean`: writes the rows that filters keep and those they drop apart, unchanged, with the reasons."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from onebase.errors import DataError
from onebase.files import atomic_folder
from onebase.quality.clean import Cleaned, Cleaner
from onebase.quality.options import Filter, described, in_order
from onebase.reading.files import PACKED, SUFFIXES, expand
from onebase.reading.formats import iter_originals, read_files
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import json_shown, number_of, shown
from onebase.tools.tables import print_table


def run(
    *,
    files: Sequence[Path],
    output: Path,
    filters: Sequence[Filter],
    against: Sequence[Path] = (),
    columns: Mapping[str, str] | None = None,
    difficulty: str | None = None,
    reward: str | None = None,
    seed: int = 0,
    as_json: bool = False,
    model: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> None:
    """Cleans the files into `output`: `kept/` and `dropped/`, a file of JSON lines each per file, and `report.json`.

    The files are read twice, once to decide and once to write, so their objects need not fit into memory.

    Args:
        files: files, or folders and patterns that stand for several.
        filters: in any order.
        against: test files, for the filter `leaks`.
        difficulty: a role's folder, or samples that `onebase eval --output` wrote, for the filter `difficulty`.
        reward: a reward role's folder, whose margins the filter `noise` goes by.

    Raises:
        DataError: a row cannot be read, the files change while they are read, or nothing would be kept.
    """
    started = time.monotonic()
    files = [path for name in files for path in expand(name)]
    test_rows = read_files(against, columns=columns) if against else []
    measured: dict[str, float] = {}
    judged: dict[str, float] | None = None
    if difficulty is not None or reward is not None:
        from onebase.tools.row_difficulty import difficulties, margins

        rows = [row for file in files for row in _rows(file, columns)]
        opening: dict[str, Any] = {"model": model, "dtype": dtype, "quantization": quantization, "device": device}
        measured = difficulties(rows, difficulty, **opening) if difficulty is not None else {}
        judged = margins(rows, reward, **opening) if reward is not None else None
    cleaner = Cleaner(filters, test_rows=test_rows, difficulty=measured, margins=judged, seed=seed)
    for file in files:
        for row in _rows(file, columns):
            cleaner.add(row)
        say(f"data clean: read {shown(file)}, {len(cleaner.places)} rows so far")
    cleaned = cleaner.finish()
    if len(cleaned.findings) == cleaned.rows:
        first = next(iter(cleaned.findings.values()))[0]
        raise DataError(
            f"all {cleaned.rows} rows would be dropped, the first by the filter {first.filter} ({first.reason}: "
            f"{shown(first.value, 60)}); loosen the filters"
        )
    report = report_of(cleaned, files, filters)
    with atomic_folder(output) as folder:
        write_apart(files, cleaned, folder, columns)
        (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print(json_shown(report, indent=2))
    else:
        print_report(cleaned, report)
    rate = cleaned.rows / max(time.monotonic() - started, 1e-9)
    say(f"data clean: {cleaned.rows - len(cleaned.findings)} rows kept in {shown(output / 'kept')} ({rate:.0f} rows/s)")


def _rows(file: Path, columns: Mapping[str, str] | None) -> Iterator[Row]:
    return (original.row for original in iter_originals(file, columns=columns))


def write_apart(
    files: Sequence[Path], cleaned: Cleaned, folder: Path, columns: Mapping[str, str] | None = None
) -> None:
    """Writes each file's rows as JSON lines: kept objects as they were, dropped ones under `row`, with why and where.

    Raises:
        DataError: a file has changed since it was read first.
    """
    number = 0
    for file, name in zip(files, output_names(files), strict=True):
        for part in ("kept", "dropped"):
            (folder / part).mkdir(exist_ok=True)
        with (
            open(folder / "kept" / name, "w", encoding="utf-8") as kept,
            open(folder / "dropped" / name, "w", encoding="utf-8") as dropped,
        ):
            for original in iter_originals(file, columns=columns):
                found = cleaned.findings.get(number)
                if found is None:
                    _write(kept, original.values)
                else:
                    first, *others = (asdict(finding) for finding in found)
                    more = {"others": others} if others else {}
                    _write(dropped, {"place": original.row.place, **first, **more, "row": original.values})
                number += 1
    if number != cleaned.rows:
        raise DataError(f"the files had {cleaned.rows} rows when they were judged and {number} now; run it again")


def _write(file: IO[str], value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


def output_names(files: Sequence[Path]) -> list[str]:
    """A name ending in .jsonl for each file, different even if files in different folders are called the same."""
    names: list[str] = []
    for file in files:
        packed = file.with_suffix("") if file.suffix.lower() in PACKED else file
        stem = packed.stem if packed.suffix.lower() in SUFFIXES else packed.name
        numbered = (f"{stem}-{n}.jsonl" if n > 1 else f"{stem}.jsonl" for n in range(1, len(files) + 2))
        names.append(next(name for name in numbered if name not in names))
    return names


def report_of(cleaned: Cleaned, files: Sequence[Path], filters: Sequence[Filter]) -> dict[str, Any]:
    """What `report.json` holds."""
    return {
        "files": [str(file) for file in files],
        "rows": cleaned.rows,
        "kept": cleaned.rows - len(cleaned.findings),
        "filters": [
            {**described(given), "dropped": cleaned.dropped[given.name], "would_drop": cleaned.alone[given.name]}
            for given in in_order(filters)
        ],
        "difficulty_not_measured": cleaned.not_measured,
        "noise_not_judged": cleaned.not_judged,
        "diversity": {"before": asdict(cleaned.before), "after": asdict(cleaned.after)},
    }


def print_report(cleaned: Cleaned, report: dict[str, Any]) -> None:
    """Prints a line per filter, and how diverse the rows were before and are after."""
    lines = [
        [found["name"], f"{found['dropped']:,}", f"{100 * found['dropped'] / max(1, cleaned.rows):.2f} %"]
        for found in report["filters"]
    ]
    kept = report["kept"]
    lines.append(["kept", f"{kept:,}", f"{100 * kept / max(1, cleaned.rows):.2f} %"])
    print_table(("filter", "rows dropped", "of all"), lines)
    print()
    before, after = cleaned.before, cleaned.after
    figures = {
        f"distinct {n}-grams": (before.distinct[f"distinct_{n}"], after.distinct[f"distinct_{n}"]) for n in (1, 2, 3)
    }
    figures["clusters covered"] = (before.covered, after.covered)
    lines = [[name, f"{old:.3f}", f"{new:.3f}"] for name, (old, new) in figures.items()]
    lines.append(["effective clusters", f"{before.effective:.1f} of {before.clusters}", f"{after.effective:.1f}"])
    print_table(("diversity", "all rows", "kept"), lines)
    if cleaned.not_measured:
        say(f"data clean: no difficulty is measured of {number_of(cleaned.not_measured, 'row')}; kept")
    if cleaned.not_judged:
        say(f"data clean: the reward role could not judge {number_of(cleaned.not_judged, 'row')}; kept")
