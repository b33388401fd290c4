"""`onebase data clean`, `split` and `stats`: wrong files, folders, filters and sources of difficulty."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs.case import Case, Fifo, Folder
from tests.bad_inputs.prepared import answered, pairs

CLEAN = "data clean d.jsonl --output out"
SPLIT = "data split d.jsonl --output out"
STATS = "data stats d.jsonl"


def of(
    name: str, command: Any, says: str, files: dict[str, Any] | None = None, code: int = 2, **more: Any
) -> Case:
    return Case(f"quality_{name}", command, {"d.jsonl": pairs(), **(files or {})}, codes={code}, says=says, **more)


CASES = [
    of("no_files", "data clean --output out", "at least one data file"),
    of("no_output", "data clean d.jsonl", "--output"),
    of("missing_file", "data clean e.jsonl --output out", "does not exist", code=3),
    of("file_is_a_pipe", "data stats p.jsonl", "pipe", {"p.jsonl": Fifo()}, code=3),
    of("file_named_twice", "data clean d.jsonl ./d.jsonl --output out", "same file", code=3),
    of("bad_row", CLEAN, r"d\.jsonl:3", {"d.jsonl": [*pairs(2), {"prompt": "?", "chosen": 1, "rejected": ""}]}, code=3),
    of("output_is_a_file", "data clean d.jsonl --output d.jsonl", "is a file"),
    of("output_not_empty", "data clean d.jsonl --output full", "not empty", {"full/x": "x"}, untouched=["full/x"]),
    of("output_in_a_file", "data clean d.jsonl --output d.jsonl/out", "cannot be written"),
    of("output_empty_folder", "data clean d.jsonl --output out", "", {"out": Folder()}, fine="an empty folder is new"),
    of("unknown_filter", f"{CLEAN} --filter near_duplicate", "did you mean near_duplicates"),
    of("filter_without_a_name", [*CLEAN.split(), "--filter", "{similarity: 0.5}"], "no filter"),
    of("filter_is_not_yaml", [*CLEAN.split(), "--filter", "{name: length,, }"], "not valid YAML"),
    of("filter_with_a_list", [*CLEAN.split(), "--filter", "{name: [length]}"], "no filter"),
    of("filter_option_unknown", [*CLEAN.split(), "--filter", "{name: length, longest: 3}"], "length: longest"),
    of("filter_option_text", [*CLEAN.split(), "--filter", "{name: length, most: many}"], "length: most"),
    of("filter_option_true", [*CLEAN.split(), "--filter", "{name: length, most: true}"], "length: most"),
    of("filter_option_nan", [*CLEAN.split(), "--filter", "{name: near_duplicates, similarity: .nan}"], "similarity"),
    of("filter_option_out_of_range", [*CLEAN.split(), "--filter", "{name: noise, share: 0}"], "noise: share"),
    of("filter_script_unknown", [*CLEAN.split(), "--filter", "{name: script, script: english}"], "script: script"),
    of("filter_given_twice", f"{CLEAN} --filter length --filter length", "given twice"),
    of("leaks_against_nothing", f"{CLEAN} --filter leaks", "add --against"),
    of("leaks_against_no_file", f"{CLEAN} --against t.jsonl", "does not exist", code=3),
    of("difficulty_of_nothing", f"{CLEAN} --filter difficulty", "add --difficulty"),
    of("difficulty_no_such_role", f"{CLEAN} --difficulty runs/none", "none"),
    of("difficulty_of_other_rows", f"{CLEAN} --difficulty s.jsonl", "could be measured",
       {"s.jsonl": [{"prompt": "Who?", "right": True}]}, code=3),
    of("difficulty_no_samples", f"{CLEAN} --difficulty d.jsonl", r"d\.jsonl:1: a sample has", code=3),
    of("all_rows_would_go", [*CLEAN.split(), "--filter", "{name: length, least: 9999}"], "loosen", code=3),
    of("seed_negative", f"{CLEAN} --seed -1", "--seed"),
    of("seed_fraction", f"{CLEAN} --seed 1.5", "whole number"),
    of("device_unknown", f"{CLEAN} --device gpu", "--device"),
    of("split_share_1", f"{SPLIT} --test 1", "--test"),
    of("split_share_text", f"{SPLIT} --test some", "number"),
    of("split_one_prompt", SPLIT, "all alike", {"d.jsonl": [answered(1)[0]] * 3}, code=3),
    of("split_into_files", "data split d.jsonl --output full", "not empty", {"full/x": ""}, untouched=["full/x"]),
    of("stats_no_files", "data stats", "at least one data file"),
    of("stats_no_tokenizer", f"{STATS} --model none", "none"),
    of("stats_template_alone", f"{STATS} --chat-template hh", "--model"),
    of("stats_plots_in_a_file", f"{STATS} --plots d.jsonl", "--plots"),
]
