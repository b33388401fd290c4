"""`onebase data clean`: writes the rows that filters keep and those they drop apart, unchanged, with the reasons."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from onebase.distributed.ray_actors import Cluster, cluster_of
from onebase.errors import DataError
from onebase.files import atomic_folder
from onebase.labels.urls import is_database
from onebase.quality.clean import Cleaned, Cleaner
from onebase.quality.judged import Judge, Judged
from onebase.quality.options import Filter, described, in_order
from onebase.reading.databases import is_server, name_of, stem_of
from onebase.reading.files import PACKED, SUFFIXES, content_hash, expand
from onebase.reading.formats import iter_originals, read_files
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import json_shown, number_of, shown
from onebase.tools.blocks import Computing, KeptBlocks, RowBlocks, digest_of, fingerprint_of
from onebase.tools.row_difficulty import Margins, difficulties_of, margins_of, measure_of
from onebase.tools.tables import print_table

BLOCKS_TOLD = 100
"""Blocks after which a line says how far it is."""


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
    ray: str | None = None,
    actors: int = 1,
) -> None:
    """Cleans the files into `output`: `kept/` and `dropped/`, a file of JSON lines each per file, and `report.json`.

    The files are read twice, once to decide and once to write, so their objects need not fit into memory.

    Args:
        files: files, or folders and patterns that stand for several.
        filters: in any order.
        against: test files, for the filter `leaks`.
        difficulty: a role's folder, or samples that `onebase eval --output` wrote, for the filter `difficulty`.
        reward: a reward role's folder, whose margins the filter `noise` goes by.
        ray: address of a Ray cluster, or `local`, whose actors judge the rows a block at a time; None: this process.

    Raises:
        DataError: a row cannot be read, the files change while they are read, or nothing would be kept.
    """
    started = time.monotonic()
    files = [path for name in files for path in expand(name)]
    opening = {"model": model, "dtype": dtype, "quantization": quantization, "device": device}
    judging = Judging(tuple(filters), tuple(map(str, against)), columns, difficulty, reward, opening)
    blocks = RowBlocks(tuple(map(str, files)), columns)
    cluster = cluster_of(ray, actors, device=device)
    measured: dict[str, float] = {}
    judged: dict[str, float] = {}
    cleaner = Cleaner(filters, difficulty=measured, margins=judged if reward is not None else None, seed=seed)
    elsewhere = None if cluster is None else judged_elsewhere(blocks, judging, output, cluster)
    for number, found in enumerate(elsewhere or map(judging(), blocks), start=1):
        for row in found.rows:
            cleaner.take(row)
        measured.update(found.measured)
        judged.update(found.margins)
        if elsewhere is None and number % BLOCKS_TOLD == 0:
            say(f"data clean: read {number_of(len(cleaner.places), 'row', form=',')} so far")
    if difficulty is not None:
        measured.update(difficulties_of(dict(measured), difficulty, len(cleaner.places)))
    if reward is not None:
        margins_of(judged, reward, len(cleaner.places))
    cleaned = cleaner.finish()
    if len(cleaned.findings) == cleaned.rows:
        first = next(iter(cleaned.findings.values()))[0]
        raise DataError(
            f"all {number_of(cleaned.rows, 'row')} would be dropped, the first by the filter {first.filter} "
            f"({first.reason}: "
            f"{shown(first.value, 60)}); loosen the filters"
        )
    report = report_of(cleaned, files, filters)
    with atomic_folder(output) as folder:
        write_apart(files, cleaned, folder, columns)
        (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if cluster is not None:
        shutil.rmtree(blocks_folder(output), ignore_errors=True)
    if as_json:
        print(json_shown(report, indent=2))
    else:
        print_report(cleaned, report)
    rate = cleaned.rows / max(time.monotonic() - started, 1e-9)
    say(
        f"data clean: {number_of(cleaned.rows - len(cleaned.findings), 'row')} kept in {shown(output / 'kept')} "
        f"({rate:.0f} rows/s)"
    )


@dataclass(frozen=True, slots=True)
class BlockJudged:
    """What was found of a block's rows, each by itself."""

    rows: list[Judged]
    measured: dict[str, float]
    """Losses or shares of wrong samples, by place, for the filter `difficulty`."""
    margins: dict[str, float]

    def lines(self) -> list[str]:
        """As JSON, which `read` gives back."""
        return [json.dumps({"measured": self.measured, "margins": self.margins}), *(row.line() for row in self.rows)]

    @classmethod
    def read(cls, text: str) -> BlockJudged:
        first, *rows = text.split("\n")[:-1]
        return cls([Judged.read(line) for line in rows], **json.loads(first))


@dataclass(frozen=True)
class Judging:
    """Opens what judges the rows of a block, each by itself."""

    filters: tuple[Filter, ...]
    against: tuple[str, ...]
    columns: Mapping[str, str] | None
    difficulty: str | None
    reward: str | None
    opening: Mapping[str, Any]

    def __call__(self) -> Callable[[Sequence[Row]], BlockJudged]:
        test_rows = read_files(self.against, columns=self.columns) if self.against else []
        judge = Judge(self.filters, test_rows=test_rows, claims=self.reward is None)
        measure = measure_of(self.difficulty, self.opening) if self.difficulty is not None else nothing
        margins = Margins(self.reward, self.opening) if self.reward is not None else nothing
        return lambda rows: BlockJudged([judge(row) for row in rows], measure(rows), margins(rows))

    def job(self) -> dict[str, Any]:
        """What the lines of a block depend on besides its rows."""
        roles = {name: source for name, source in (("difficulty", self.difficulty), ("reward", self.reward)) if source}
        return {
            "filters": [described(given) for given in in_order(self.filters)],
            "against": [content_hash(path) for name in self.against for path in expand(name)],
            **{name: content_of(Path(source)) for name, source in roles.items()},
            **self.opening,
        }


def nothing(rows: Sequence[Row]) -> dict[str, float]:
    """Measures no row."""
    return {}


def content_of(source: Path) -> str:
    """A hash over a file, or the files of a folder; the name of what is neither here."""
    if source.is_file():
        return content_hash(source)
    return fingerprint_of(source) if source.is_dir() else str(source)


def judged_elsewhere(blocks: RowBlocks, judging: Judging, output: Path, cluster: Cluster) -> Iterator[BlockJudged]:
    """Has actors judge the blocks, and yields what they found in the rows' order.

    Finished blocks are kept beside the output until it is there: the same command goes on from them.
    """
    digests = [digest_of(block) for block in blocks]
    kept = KeptBlocks(blocks_folder(output), digests, judging.job())
    missing = kept.missing()
    if len(missing) < len(digests):
        say(f"data clean: {len(digests) - len(missing)} of {len(digests)} blocks are there already")
    found = Computing(blocks, LinesOf(judging)).over(digests, missing, cluster)
    for done, (number, lines) in enumerate(found, start=1):
        kept.keep(number, lines)
        say(f"data clean: judged {done} of {number_of(len(missing), 'block')}")
    yield from (BlockJudged.read(kept.text(number)) for number in range(len(digests)))


@dataclass(frozen=True)
class LinesOf:
    """Opens what makes a block's lines."""

    judging: Judging

    def __call__(self) -> Callable[[Sequence[Row]], list[str]]:
        judge = self.judging()
        return lambda rows: judge(rows).lines()


def blocks_folder(output: Path) -> Path:
    """Where finished blocks are kept while there is no output yet."""
    return output.with_name(f"{output.name}.blocks")


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
        raise DataError(
            f"the files had {number_of(cleaned.rows, 'row')} when they were judged and {number} now; run it again"
        )


def _write(file: IO[str], value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


def output_names(files: Sequence[Path]) -> list[str]:
    """A name ending in .jsonl for each file, different even if files in different folders are called the same."""
    names: list[str] = []
    for file in files:
        if is_server(file) or is_database(file):
            stem = stem_of(file)
        else:
            packed = file.with_suffix("") if file.suffix.lower() in PACKED else file
            stem = packed.stem if packed.suffix.lower() in SUFFIXES else packed.name
        numbered = (f"{stem}-{n}.jsonl" if n > 1 else f"{stem}.jsonl" for n in range(1, len(files) + 2))
        names.append(next(name for name in numbered if name not in names))
    return names


def report_of(cleaned: Cleaned, files: Sequence[Path], filters: Sequence[Filter]) -> dict[str, Any]:
    """What `report.json` holds."""
    return {
        "files": [name_of(file) for file in files],
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
