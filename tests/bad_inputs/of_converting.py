"""Damaged files for every verb that reads data without training, full disks, and configs of other tools."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case, Closed, Fifo, Folder, Link
from tests.bad_inputs.of_data import lines, with_row
from tests.bad_inputs.prepared import answered, pairs

READING = {
    "convert": "data convert F out.jsonl --to jsonl",
    "split": "data split F --output out",
    "stats": "data stats F",
    "clean": "data clean F --output out",
    "show": "data show F --model fix/base --chat-template hh --row 24",
}
"""F is the file; every command reads at least 24 rows of it."""
_ROWS = "".join(json.dumps(row) + "\n" for row in pairs()).encode()
_PACKED = gzip.compress(_ROWS)
_LONG = "word " * 2_097_152
"""10 MiB."""
DAMAGED: dict[str, tuple[str, Any, str]] = {
    "gz_cut": ("d.jsonl.gz", _PACKED[: len(_PACKED) // 2], r"d\.jsonl\.gz.*(cut|end|gzip|damaged)"),
    "gz_empty": ("d.jsonl.gz", b"", r"d\.jsonl\.gz"),
    "gz_is_text": ("d.jsonl.gz", _ROWS, r"d\.jsonl\.gz is not a complete gzip file"),
    "bz2_cut": ("d.jsonl.bz2", bz2.compress(_ROWS)[:-20], r"d\.jsonl\.bz2"),
    "latin1": ("d.jsonl", lines(pairs(), 7, '{"prompt": "café"}').encode("latin-1"), r"d\.jsonl.*UTF-8"),
    "gbk": ("d.jsonl", lines(pairs(), 7, '{"prompt": "问题问题"}').encode("gbk"), r"d\.jsonl.*(GBK|UTF-8)"),
    "utf16": ("d.jsonl", _ROWS.decode().encode("utf-16"), r"d\.jsonl.*UTF-16"),
    "half_a_row": ("d.jsonl", lines(pairs(), 7, '{"prompt": "a", "chosen'), r"d\.jsonl:7"),
    "no_rejected": ("d.jsonl", lines(pairs(), 7, '{"prompt": "a", "chosen": "b"}'), r"d\.jsonl:7.*rejected"),
    "other_layout": ("d.jsonl", lines(pairs(), 7, '{"messages": [{"role": "user", "content": "a"}]}'), r"d\.jsonl:7"),
    "number": ("d.jsonl", with_row(pairs(), chosen=7), r"d\.jsonl:7.*chosen"),
    "null": ("d.jsonl", with_row(pairs(), chosen=None), r"d\.jsonl:7.*chosen"),
    "list": ("d.jsonl", lines(pairs(), 7, "[1, 2]"), r"d\.jsonl:7"),
    "twice": ("d.jsonl", lines(pairs(), 7, '{"prompt": "a", "prompt": "b", "chosen": "c"}'), ":7.*prompt"),
    "ten_megabytes": ("d.jsonl", with_row(pairs(), prompt=_LONG), r"d\.jsonl:7.*3,000,000 one text"),
    "control_in_key": ("d.jsonl", lines(pairs(), 7, '{"\\u001b[31mprompt": "a"}'), r"d\.jsonl:7"),
    "surrogate": ("d.jsonl", lines(pairs(), 7, '{"prompt": "\\ud83d", "chosen": "b", "rejected": "c"}'), r"l:7"),
    "nul_bytes": ("d.jsonl", b"\0" * 400, r"d\.jsonl"),
    "empty": ("d.jsonl", b"", r"d\.jsonl"),
    "blank_lines": ("d.jsonl", b"\n\n \n", r"d\.jsonl"),
    "empty_folder": ("d", Folder(), "d"),
    "not_readable": ("d.jsonl", Closed(), r"d\.jsonl.*(permission|Permission|read)"),
    "pipe": ("d.jsonl", Fifo(), r"d\.jsonl.*pipe"),
    "dead_link": ("d.jsonl", Link("gone"), r"d\.jsonl"),
    "loop": ("d.jsonl", Link("d.jsonl"), r"d\.jsonl"),
    "unknown_keys": ("d.jsonl", [{"frage": f"a {n}", "antwort": "b"} for n in range(24)], r"d\.jsonl:1.*frage"),
}
FINE: dict[str, tuple[str, Any]] = {
    "bom": ("d.jsonl", b"\xef\xbb\xbf" + _ROWS),
    "crlf": ("d.jsonl", _ROWS.replace(b"\n", b"\r\n")),
    "no_last_line_end": ("d.jsonl", _ROWS.rstrip()),
    "one_list": ("d.json", json.dumps(pairs())),
    "folder": ("d/part.jsonl", _ROWS),
}


def _damaged() -> Iterator[Case]:
    for verb, command in READING.items():
        for name, (file, content, says) in DAMAGED.items():
            yield Case(f"reading_{verb}_{name}", command.replace("F", file), {file: content}, {3}, says)
        for name, (file, content) in FINE.items():
            given = "d" if file.startswith("d/") else file
            yield Case(f"reading_{verb}_{name}", command.replace("F", given), {file: content}, {0}, fine="it is read")


_TALK = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "It rains."}]
_TOOLS = [{"messages": _TALK, "tools": [{"name": "weather"}]}] * 3
CONVERT = "data convert d.jsonl out.jsonl"


def converting(name: str, command: str, says: str, rows: Any = None, code: int = 3, **more: Any) -> Case:
    files = {"d.jsonl": answered() if rows is None else rows, **more.pop("files", {})}
    return Case(f"convert_{name}", command, files, {code}, says, **more)


CONVERTING = [
    converting("no_target", CONVERT, "--to", code=2),
    converting("unknown_target", f"{CONVERT} --to axolotl", "axolotl", code=2),
    converting("suffix", "data convert d.jsonl out.csv --to trl", r"out\.csv: name a \.jsonl file", code=2),
    converting("exists", "data convert d.jsonl d.jsonl --to trl", "exists", code=2, untouched=["d.jsonl"]),
    converting("into_a_file", "data convert d.jsonl d.jsonl/out.jsonl --to trl", "cannot be written", code=2),
    converting("into_a_folder", "data convert d.jsonl out.jsonl --to trl", "exists", code=2,
               files={"out.jsonl": Folder()}),
    converting("tools_to_alpaca", f"{CONVERT} --to alpaca", r"d\.jsonl:1: .*cannot hold tools; .*--drop tools", _TOOLS),
    converting("columns_to_openai", f"{CONVERT} --to openai", r"d\.jsonl:7: .*cannot hold columns",
               with_row(answered(), topic="x")),
    converting("all_dropped", f"{CONVERT} --to openai --drop rows", "can hold none of its 24 rows",
               [{**row, "topic": "x"} for row in answered()]),
    converting("drop_of_nothing", f"{CONVERT} --to trl --drop margn", "", code=0, fine="a line says so",
               warns="nothing to drop in any row: margn"),
    converting("shell_file_too_large", f"{CONVERT} --to trl", r"out\.jsonl: a file is larger", answered(2000), code=4,
               shell="ulimit -f 16; {}"),
    converting("shell_stdout_gone", "data stats d.jsonl --json", "", code=0, shell="{} | true", fine="nobody reads",
               lines=0),
    converting("shell_stdout_full", "data stats d.jsonl --json", "(?i)space|disk|stdout|written", code=4,
               shell="{} >/dev/full"),
    converting("shell_clean_too_large", "data clean d.jsonl --output out", "a file is larger", answered(2000), code=4,
               shell="ulimit -f 16; {}"),
    converting("shell_split_too_large", "data split d.jsonl --output out", "a file is larger", answered(2000), code=4,
               shell="ulimit -f 16; {}"),
]

THEIRS = "model_name_or_path: m\ndataset: d\nlearning_rate: 1e-5\noutput_dir: o\n"
FROM = "config convert theirs.yaml --from trl --stage sft"


def theirs(name: str, content: Any, says: str, command: str = FROM, code: int = 2, **more: Any) -> Case:
    return Case(f"theirs_{name}", command, {"theirs.yaml": content}, {code}, says, **more)


CONFIGS = [
    theirs("good", THEIRS, "", fine="it converts"),
    theirs("bom", "\ufeff" + THEIRS, "", fine="it is read"),
    theirs("crlf", THEIRS.replace("\n", "\r\n"), "", fine="it is read"),
    theirs("empty", "", "key: value"),
    theirs("comment_alone", "# nothing\n", "key: value"),
    theirs("list", "- a\n- b\n", "key: value"),
    theirs("text", "just words\n", "key: value"),
    theirs("broken", "a: [1, 2\nb: 3\n", r"theirs\.yaml"),
    theirs("tab", "a:\n\tb: 1\n", r"theirs\.yaml"),
    theirs("twice", THEIRS + "dataset: e\n", "'dataset' is given twice"),
    theirs("latin1", "model_name_or_path: caf\xe9\n".encode("latin-1"), "(?i)utf-8"),
    theirs("utf16", THEIRS.encode("utf-16"), "(?i)utf"),
    theirs("nul", b"a: \0b\n", r"theirs\.yaml"),
    theirs("python_object", "a: !!python/object/apply:os.system [ls]\n", r"theirs\.yaml"),
    theirs("unknown_anchor", "a: *none\n", r"theirs\.yaml"),
    theirs("long_value", f"model_name_or_path: {'m' * 10_000_000}\ndataset: d\n", "", fine="a long name is a name"),
    theirs("deep", "a: " + "[" * 3000 + "]" * 3000 + "\n", r"theirs\.yaml"),
    theirs("wrong_types", "model_name_or_path: [m]\ndataset: {a: b}\nlearning_rate: fast\n", "", lines=None),
    theirs("folder", Folder(), "no config file"),
    theirs("not_readable", Closed(), "(?i)permission|read"),
    theirs("missing", THEIRS, "no config file", "config convert other.yaml --from trl"),
    theirs("no_tool", THEIRS, "--from", "config convert theirs.yaml"),
    theirs("unknown_tool", THEIRS, "unsloth", "config convert theirs.yaml --from unsloth"),
    theirs("unknown_stage", THEIRS, "stage", "config convert theirs.yaml --from trl --stage sfft"),
    theirs("output_exists", THEIRS, "exists", f"{FROM} --output theirs.yaml", untouched=["theirs.yaml"]),
    theirs("output_in_a_file", THEIRS, "written", f"{FROM} --output theirs.yaml/ours.yaml"),
]

CASES = [*_damaged(), *CONVERTING, *CONFIGS]
