"""`onebase runs` on runs whose record is damaged: one of them must not end a listing of all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case, Closed, Copy, Cut, Fifo, Folder, Json
from tests.bad_inputs.case import Link as Linked


def rows(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


METRICS: dict[str, Any] = {
    "garbage": b"\xff\xfe\x00" * 50, "list": rows([1], [2], [3]), "strvals": rows({"step": None, "loss": "x"}, {
    "step": None}),
    "nostep": rows({"loss": 1.0}, {"loss": 2.0}), "empty": "", "blanks": "\n\n", "half": Cut(), "folder": Folder(),
    "closed": lambda path: (path.unlink(), path.write_text(Closed().text), path.chmod(0)), "numbers": rows(1, 2, 3),
    "nulls": rows(None, None), "texts": rows("a", "b"), "negative_step": rows({"step": -5, "loss": 1}, {"step": -4,
    "loss": 2}),
    "text_step": rows({"step": "one", "loss": 1}, {"step": "two", "loss": 2}), "huge_step": rows({"step": 10**400,
    "loss": 1}),
    "nan_step": '{"step": NaN, "loss": 1}\n', "inf": '{"step": 1, "loss": Infinity}\n{"step": 2, "loss": -Infinity}\n',
    "float_step": rows({"step": 1.5, "loss": 1}), "list_values": rows({"step": 1, "loss": [1]}, {"step": 2, "loss": {
    }}),
    "backwards": rows({"step": 5, "loss": 1}, {"step": 1, "loss": 2}), "same": rows({"step": 1, "loss": 1}, {
    "step": 1, "loss": 1}),
    "bool_values": rows({"step": True, "loss": False}),
    "garbled_middle": '{"step": 1, "loss": 1}\n{{{\n{"step": 2, "loss": 2}\n',
    "escape_names": rows({"step": 1, "\x1b[31mloss": 1}, {"step": 2, "\x1b[31mloss": 2}), "nul": "\0" * 500,
    "bigint": '{"step": 1, "loss": ' + "1" * 5000 + "}\n", "deep": "[" * 100_000 + "\n", "fifo": Fifo(),
    "overflow": rows({"step": 1, "loss": 1e308}, {"step": 2, "loss": -1e308}, {"step": 3, "loss": 1e308}),
    "surrogate": '{"step": 1, "\\ud83d": 1}\n{"step": 2, "\\ud83d": 2}\n',
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "list": "[]", "null": "null", "strs": Json({"seconds": "y", "phase_seconds": "x", "data": "z"}), "number": "3",
    "text": '"a"',
    "empty": "", "half": Cut(), "garbage": bytes(range(256)), "folder": Folder(), "empty_object": "{}",
    "verb_number": Json({"verb": 3}),
    "verb_unknown": Json({"verb": "nosuch"}), "seconds_null": Json({"seconds": None}), "seconds_list": Json({
    "seconds": [1]}),
    "seconds_nan": '{"verb": "sft", "seconds": NaN}', "seconds_negative": Json({"seconds": -1e300}),
    "seconds_huge": Json({"seconds": 1e300}), "phases_list": Json({"phase_seconds": [1, 2]}), "phases_text": Json({
    "phase_seconds":
    {"set_up": "x"}}), "data_list": Json({"data": [1]}), "data_text": Json({"data": {"train": "x"}}),
    "data_null": Json({"data": None}),
    "escape": Json({"verb": "\x1b[31msft", "note": "\x1b]0;owned\x07"}), "deep": "[" * 100_000, "fifo": Fifo(),
    "held_out_text": Json({"held_out_loss": "x", "held_out_loss_before": []}), "held_out_null": Json({
    "held_out_loss": None}),
    "numbers_as_text": Json({"steps": "four", "examples": "x"}), "bigint": '{"verb": "sft", "seconds": ' +
    "1" * 5000 + "}",
    "closed": lambda path: (path.unlink(), path.write_text(Closed().text), path.chmod(0)), "html": Json({
    "note": "<script>x</script>"}),
    "surrogate": '{"verb": "sft", "note": "\\ud83d"}',
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "empty": "", "list": "- a\n", "text": "abc\n", "null": "null\n", "garbage": bytes(range(256)), "half": Cut(),
    "folder": Folder(),
    "deep": "x: " + "[" * 5000, "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)), "recursive": "lora: &a {x: *a}\n",
    "tag": "a: !!python/name:os.system\n",
    "bad_tag": "seed: !!int abc\n", "other_keys": "a: 1\nb: {c: 2}\n",
    "groups_as_values": "model: 3\ndata: x\nlora: []\n",
    "number_keys": "1: 2\n3: {4: 5}\n", "null_key": "null: 3\n", "date": "seed: 2026-01-01\n", "fifo": Fifo(),
    "closed": lambda path: (path.unlink(), path.write_text(Closed().text), path.chmod(0)),
    "surrogate": 'a: "\\ud83d"\n',
    "escape": 'output_dir: "\\e[31m"\n', "list_key": "? [a]\n: 3\n", "binary": "a: !!binary aGVsbG8=\n",
    "set": "a: !!set {b, c}\n",
}  # fmt: skip
VERBS = {"ls": "runs ls .", "show": "runs show run", "report": "runs report run", "plot": "runs plot run",
         "compare": "runs compare run fix/run_ppo", "lsjson": "runs ls . --json", "showjson": "runs show run --json",
         "together": "runs plot run fix/run_dpo --output x.png"}  # fmt: skip


def _damaged() -> Iterator[Case]:
    for file, table in {"metrics.jsonl": METRICS, "summary.json": SUMMARY, "config.yaml": CONFIG}.items():
        for name, change in table.items():
            for verb, command in VERBS.items():
                if verb in ("lsjson", "showjson", "together") and file == "config.yaml":
                    continue
                if name == "fifo" and verb not in ("ls", "show"):
                    continue
                yield Case(
                    f"oth_runs_{verb}_{file.split('.')[0]}_{name}",
                    command,
                    {"run": Copy("run_sft", {file: change}), "good": Copy("run_dpo")},
                    {0} if verb.startswith("ls") else {1, 2, 3},
                    says=r"run\b",
                    fine="a listing goes on" if verb.startswith("ls") else "what can be read is shown",
                    limit=15,
                    writes=("run/plots", "run/report.html", "x.png"),
                )


EMPTY = {"e": Folder()}
CASES: list[Case] = [
    *_damaged(),
    Case("oth_runs_ls_missing", "runs ls nope", says="nope"),
    Case("oth_runs_ls_file", "runs ls rew.py", says="rew.py"),
    Case("oth_runs_ls_empty", "runs ls e", EMPTY, {0, 2}, fine="an empty table"),
    Case("oth_runs_ls_loop", "runs ls l", {"l": Linked("l")}, says="l"),
    Case("oth_runs_ls_long", ["runs", "ls", "x" * 300], says="xxx"),
    Case("oth_runs_ls_nul", ["runs", "ls", "a\0b"]),
    Case("oth_runs_ls_empty_name", ["runs", "ls", ""], fine="the working directory"),
    Case("oth_runs_ls_escape", ["runs", "ls", "\x1b[31mx"]),
    Case("oth_runs_ls_link_to_itself", "runs ls .", {"run/up": Linked(".."), "good": Copy("run_sft")},
    fine="not followed"),
    Case("oth_runs_ls_closed_folder", "runs ls .", {"good": Copy("run_sft"), "c/config.yaml": "a: b",
    "shut": lambda path: (
         path.mkdir(), path.chmod(0))}, fine="what cannot be looked into is passed over", codes={0}),
    Case("oth_runs_ls_escape_name", "runs ls .", {"\x1b[31mrun": Copy("run_sft")}, fine="its name is shown without"),
    Case("oth_runs_show_missing", "runs show nope", says="nope"),
    Case("oth_runs_show_empty", "runs show e", EMPTY, says="e"),
    Case("oth_runs_show_file", "runs show rew.py", says="rew.py"),
    Case("oth_runs_show_nul", ["runs", "show", "a\0b"]),
    Case("oth_runs_show_long", ["runs", "show", "x" * 300]),
    Case("oth_runs_show_two", "runs show a b"),
    Case("oth_runs_show_role", "runs show fix/run_sft/policy", says="fix/run_sft/policy"),
    Case("oth_runs_plot_none", "runs plot"),
    Case("oth_runs_plot_missing", "runs plot nope", says="nope"),
    Case("oth_runs_plot_twice", "runs plot fix/run_sft fix/run_sft"),
    Case("oth_runs_plot_output_folder", "runs plot fix/run_sft --output e", EMPTY, says="e|png"),
    Case("oth_runs_plot_output_txt", "runs plot fix/run_sft --output x.txt", says="png"),
    Case("oth_runs_plot_output_nowhere", "runs plot fix/run_sft --output nope/x.png", says="nope",
    fine="the folder is made",
         writes=("nope",)),
    Case("oth_runs_plot_output_proc", "runs plot fix/run_sft --output /proc/x.png", says="/proc/x.png"),
    Case("oth_runs_plot_output_long", ["runs", "plot", "fix/run_sft", "--output", "x" * 300 + ".png"], says="xxx"),
    Case("oth_runs_plot_output_nul", ["runs", "plot", "fix/run_sft", "--output", "a\0.png"]),
    Case("oth_runs_plot_output_loop", "runs plot fix/run_sft --output l.png", {"l.png": Linked("l.png")}, says="l.png"),
    Case("oth_runs_plot_best_of", "runs plot fix/run_best", says="fix/run_best", fine="it has curves"),
    Case("oth_runs_compare_one", "runs compare fix/run_sft"),
    Case("oth_runs_compare_none", "runs compare"),
    Case("oth_runs_compare_same", "runs compare fix/run_sft fix/../fix/run_sft"),
    Case("oth_runs_compare_missing", "runs compare fix/run_sft nope", says="nope"),
    Case("oth_runs_compare_many_missing", "runs compare a b c d", says="a"),
    Case("oth_runs_compare_verbs", "runs compare fix/run_sft fix/run_ppo fix/run_pre fix/run_best fix/run_rm", {}, {0},
         fine="runs of different verbs have keys in common"),
    *(Case(f"oth_runs_report_price_{price}", f"runs report fix/run_sft --price-per-hour={price}", says="price")
      for price in ("-1", "nan", "inf", "abc", "''", "true")),
    Case("oth_runs_report_missing", "runs report nope", says="nope"),
    Case("oth_runs_report_closed", "runs report run", {"run": Copy("run_sft"), "run/report.html": Folder()},
    says="report.html"),
    Case("oth_runs_nosuch", "runs nosuch", says="nosuch"),
    Case("oth_runs_option_unknown", "runs ls --nosuch", says="nosuch"),
]  # fmt: skip
