"""`onebase data stats`: what files hold, as a table, as JSON, and as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onebase.quality.statistics import Statistics, Tokens, overlaps, statistics
from onebase.reading.databases import name_of
from onebase.reading.formats import iter_originals
from onebase.records import Row
from onebase.reporting.intervals import Interval
from onebase.runs.progress import say
from onebase.shown import json_shown, number_of, shown
from onebase.tools.data_clean import output_names
from onebase.tools.tables import print_table


def run(
    *,
    files: Sequence[Path],
    model: str | None = None,
    chat_template: str | None = None,
    columns: Mapping[str, str] | None = None,
    as_json: bool = False,
    plots: Path | None = None,
) -> None:
    """Prints the figures of each file, a column per file, and how many prompts they share.

    Raises:
        DataError: a row cannot be read, or the template refuses it.
        ModelError: `model` has no tokenizer.
    """
    count = _counter(model, chat_template) if model is not None else lambda row: None
    found = [statistics(name_of(file), _rows(file, columns, count)) for file in files]
    shared = overlaps(found)
    if as_json:
        overlap = [{"files": list(pair), "prompts": number} for pair, number in shared.items()]
        print(json_shown({"files": [figures(own) for own in found], "prompts_in_both": overlap}, indent=2))
    else:
        print_figures(found)
        for (a, b), number in shared.items():
            if number:
                print(f"\nBoth in {shown(a)} and in {shown(b)}: {number_of(number, 'prompt')}.")
        if shared and not any(shared.values()):
            print("\nNo prompt is in two of the files.")
    if plots is not None:
        from onebase.quality.pictures import draw

        for own, name in zip(found, output_names(files), strict=True):
            path = draw(own, plots / Path(name).with_suffix(".png"))
            say(f"data stats: drew {shown(path)}")


def _rows(
    file: Path, columns: Mapping[str, str] | None, count: Callable[[Row], Tokens | None]
) -> Iterator[tuple[Row, Mapping[str, Any], Tokens | None]]:
    for original in iter_originals(file, columns=columns):
        yield original.row, original.values, count(original.row)


def _counter(model: str, template: str | None) -> Callable[[Row], Tokens | None]:
    """Counts a row's tokens as training sees them, in this tokenizer and template."""
    # transformers takes seconds to import, which files without a tokenizer need not wait for.
    from onebase.data.chat import chat_format
    from onebase.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    if template is None and tokenizer.chat_template is None:
        template = "plain"
        say("data stats: this tokenizer has no chat template: tokens are counted without turn marks (template plain)")
    chat = chat_format(tokenizer, template)

    def count(row: Row) -> Tokens:
        if not row.answers:
            return Tokens(len(chat.encode_prompt(row.messages, prefix=row.prefix, place=row.place)), ())
        example = chat.encode_example(row)
        return Tokens(len(example.prompt_ids), tuple(map(len, example.completions)))

    return count


def figures(found: Statistics) -> dict[str, Any]:
    """One file's figures for JSON."""
    bias = found.bias
    return {
        "file": found.name,
        "rows": found.rows,
        "kinds": dict(found.kinds),
        "messages_per_prompt": {str(count): rows for count, rows in sorted(found.turns.items())},
        "answers_per_row": {str(count): rows for count, rows in sorted(found.answers.items())},
        "scripts": dict(found.scripts.most_common()),
        "lengths": {what: {f"{p}%": v for p, v in points.items()} for what, points in found.quantiles.items()},
        "fits": {str(budget): share for budget, share in found.fits.items()},
        "duplicates": found.duplicates,
        "near_duplicates": found.near_duplicates,
        "different_prompts": len(found.prompts),
        "same_prompt": found.same_prompt,
        "labels": {f"{label:g}": rows for label, rows in sorted(found.labels.items())},
        "compared": {"pairs": found.compared, "ties": found.ties},
        "length_bias": bias
        and {"rows": bias.rows, "longer": asdict(bias.longer), "characters": asdict(bias.characters)},
        "diversity": found.diversity and asdict(found.diversity),
        "agreement": {name: asdict(interval) for name, interval in found.agreement.items()},
    }


def print_figures(files: Sequence[Statistics]) -> None:
    """Prints a line per figure and a column per file; figures that no file has are left out."""
    columns = [_as_texts(found) for found in files]
    names = list(dict.fromkeys(name for column in columns for name in column))
    print_table(
        ("", *(Path(found.name).name for found in files)),
        [[name, *(column.get(name, "-") for column in columns)] for name in names],
    )


def _as_texts(found: Statistics) -> dict[str, str]:
    texts = {"rows": f"{found.rows:,}", "kind": _counted(found.kinds), "script": _counted(found.scripts)}
    texts["messages per prompt"] = _spread(found.turns)
    texts["answers per row"] = _spread(found.answers)
    for what, points in found.quantiles.items():
        texts[f"{what} (5, 50, 95, 100 %)"] = " · ".join(f"{points[percent]:,}" for percent in (5, 50, 95, 100))
    for budget, share in found.fits.items():
        texts[f"rows that fit {number_of(budget, 'token', form=',')}"] = f"{share:.1%}"
        if share == 1:
            break
    texts["duplicates, near-duplicates"] = f"{found.duplicates:,}, {found.near_duplicates:,}"
    texts["different prompts"] = f"{len(found.prompts):,}"
    if found.same_prompt["prompts"]:
        texts["prompts in several rows"] = f"{found.same_prompt['prompts']:,.0f}"
        texts["  similarity of their answers"] = f"{found.same_prompt['similarity']:.2f}"
    if found.labels:
        texts["labels"] = _counted({f"{label:g}": rows for label, rows in sorted(found.labels.items())})
    if found.compared:
        texts["compared pairs, ties"] = f"{found.compared:,}, {found.ties:,}"
    if found.bias:
        texts["better answer is longer"] = _percent(found.bias.longer)
        texts["  by characters"] = found.bias.characters.text(1)
    if found.diversity:
        distinct = found.diversity.distinct
        texts["distinct 1-, 2-, 3-grams"] = ", ".join(f"{distinct[f'distinct_{n}']:.3f}" for n in (1, 2, 3))
        texts["effective clusters"] = f"{found.diversity.effective:.1f} of {found.diversity.clusters}"
    for name, interval in found.agreement.items():
        texts[name.replace("_", " ")] = interval.text(3)
    return {name: text for name, text in texts.items() if text}


def _percent(interval: Interval) -> str:
    return f"{interval.mean:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _counted(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: -item[1])
    if len(most) == 1:
        return most[0][0]
    more = f", and {len(most) - 4} others" if len(most) > 4 else ""
    return ", ".join(f"{name} {count:,}" for name, count in most[:4]) + more


def _spread(counts: Mapping[int, int]) -> str:
    """The counts from least to most; the ends alone if there are many."""
    if len(counts) > 6:
        return f"{min(counts)} to {max(counts)}, most often {max(counts, key=lambda n: (counts[n], -n))}"
    return ", ".join(
        f"{number} ({rows:,})" if len(counts) > 1 else str(number) for number, rows in sorted(counts.items())
    )
