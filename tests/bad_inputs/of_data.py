"""Data files: what was found once, every layout with every key damaged, and files that are none."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case, Closed, Fifo, Folder, Link
from tests.bad_inputs.prepared import (
    ANIMALS,
    BEST_OF,
    COMMANDS,
    DPO,
    PPO,
    PRETRAIN,
    REWARD,
    SFT,
    TEXT,
    answered,
    files_for,
    pairs,
    questions,
)  # fmt: skip

COUNTED = r"(?i)(warning|left out|lost|cut|short|drop|dupl|same|equal|not read|ignor|unread).*"


def with_row(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """The rows, the seventh of them with these values; None of a key in `without` takes it out."""
    return [{**row, **values} if number == 6 else row for number, row in enumerate(rows)]


def lines(rows: list[dict[str, Any]], number: int, text: str) -> str:
    """The rows as lines, one of them replaced by a text."""
    found = [json.dumps(row) for row in rows]
    found[number - 1] = text
    return "\n".join(found) + "\n"


def found(name: str, command: str, content: Any, says: str = r"d\.jsonl:7", **more: Any) -> Case:
    return Case(f"data_{name}", command, {"d.jsonl": content}, **{"codes": {3}, "says": says, **more})


def said(word: str) -> dict[str, Any]:
    """Refused with this word, or accepted with a warning that has it."""
    return {"codes": {0, 3}, "says": word, "warns": rf"(?i)(warning|[0-9]+ ).*({word})|({word}).*[0-9]+ row"}


EVAL = "eval fix/base d.jsonl --verifier exact --max-new-tokens 4 --samples 2"


def tasks(count: int = 12) -> list[dict[str, Any]]:
    return [{**row, "gold": f"no {i}"} for i, row in enumerate(questions(count))]


TURNS = [{"role": "user", "content": "Is the cat good?"}, {"role": "assistant", "content": "The cat is good."}]


def talks(count: int = 24) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Is the {ANIMALS[i % 12]} number {i}?"},
                {"role": "assistant", "content": f"The {ANIMALS[i % 12]} is good."},
            ]
        }
        for i in range(count)
    ]


def labelled(count: int = 24, only: bool | None = None) -> list[dict[str, Any]]:
    return [{**row, "label": i % 2 == 0 if only is None else only} for i, row in enumerate(answered(count))]


def _talk(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, **more} for role, content in turns]}


FOUND = [
    found("best-of_surrogate_in_column", BEST_OF, lines(questions(), 7, '{"prompt": "a", "note": "\\ud83d"}')),
    found("ppo_surrogate_in_column", PPO, lines(questions(), 7, '{"prompt": "a", "note": "\\ud83d"}'),
          fine="the column goes to the reward function as it is"),
    found("best-of_surrogate_in_key", BEST_OF, lines(questions(), 7, '{"prompt": "a", "\\ud83d": "x"}')),
    found("reward_margin_bigint", REWARD, with_row(pairs(), margin=10**400), "7.*401 digits"),
    found("reward_margin_5000digits", REWARD, lines(pairs(), 7, '{"prompt": "a", "chosen": "b", "rejected": "c", '
          '"margin": ' + "1" * 5000 + "}")),
    found("ppo_int_5000digits_col", PPO, lines(questions(), 7, '{"prompt": "a", "n": ' + "1" * 5000 + "}")),
    found("ppo_int_5000digits_in_a_list", PPO, lines(questions(), 7, '{"prompt": "a", "n": [' + "1" * 5000 + "]}")),
    Case("data_json_int_5000digits", SFT.replace("d.jsonl", "d.json"),
         {"d.json": '[{"prompt": "a", "completion": "b", "n": ' + "1" * 5000 + "}]"}, {3}, says=r"d\.json"),
    found("reward_grades_bigint", REWARD, [{"instruction": f"a {i}", "output": ["x", "y"], "grades": [10**400, 0]}
          for i in range(12)], r"d\.jsonl:1.*401 digits"),
    found("reward_grades_true", REWARD, [{"instruction": f"a {i}", "output": ["x", "y"], "grades": [True, False]}
          for i in range(12)], r"d\.jsonl:1.*grades"),
    found("sft_dup_keys", SFT, lines(answered(), 7, '{"prompt": "a", "completion": "b", "completion": "c"}'),
          "7.*completion"),
    found("sft_dup_keys_deep", SFT, lines(talks(), 7, '{"messages": [{"role": "user", "content": "a", "content": "b"},'
          ' {"role": "assistant", "content": "c"}]}'), "7.*content"),
    found("ppo_dup_column", PPO, lines(questions(), 7, '{"prompt": "a", "gold": "b", "gold": "c"}'), "7.*gold"),
    found("dpo_kto_onelabel", f"{DPO} --loss kto", labelled(only=True), "label"),
    found("dpo_kto_onelabel_bad", f"{DPO} --loss kto", labelled(only=False), "label"),
    found("dpo_kto_no_label", f"{DPO} --loss kto", answered(), "label"),
    found("dpo_kto_on_pairs", f"{DPO} --loss kto", pairs(), fine="each answer of a pair is one that is labelled"),
    found("dpo_kto_label_text", f"{DPO} --loss kto", with_row(labelled(), label="yes"), "7.*label"),
    found("dpo_on_answers", DPO, answered(), r"d\.jsonl:\d+"),
    found("dpo_on_labels", DPO, labelled(), r"d\.jsonl:\d+|label"),
    found("reward_one_label", REWARD, [{"text": f"a {i}", "label": 1} for i in range(24)], "label"),
    found("best-of_empty_prompt_ppo", BEST_OF, with_row(questions(), prompt=""), **said("empty")),
    found("best-of_ws_prompt_ppo", BEST_OF, with_row(questions(), prompt=" \n\t "), **said("empty")),
    found("ppo_empty_prompt", PPO, with_row(questions(40), prompt=""), **said("empty")),
    found("iterate_empty_prompt", COMMANDS["iterate"], with_row(questions(), prompt=""), **said("empty")),
    found("reward_margin_huge", REWARD, with_row(pairs(), margin=1e300), "7.*margin"),
    found("reward_margin_negative", REWARD, with_row(pairs(), margin=-1), "7.*margin"),
    found("reward_margin_text", REWARD, with_row(pairs(), margin="1"), "7.*margin"),
    found("reward_margin_true", REWARD, with_row(pairs(), margin=True), "7.*margin"),
    found("reward_margin_nan", REWARD, with_row(pairs(), margin=float("nan")), "7.*NaN"),
    found("reward_tie_text", REWARD, with_row(pairs(), tie="no"), "7.*tie"),
    found("sft_msg_toolcalls_lost", SFT, [{"messages": [*row["messages"][:1], {**row["messages"][1], "tool_calls":
          [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]} for row in talks()],
          **said("calls")),
    found("sft_msg_toolcalls_null_content", SFT, [{"messages": [*row["messages"][:1], {"role": "assistant", "content":
          None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, *row["messages"]]} for row in talks()],
          **said("calls|content")),
    found("sft_tools_lost", SFT, [{**row, "tools": [{"type": "function"}]} for row in talks()], **said("tools")),
    found("sft_functions_lost", SFT, [{**row, "functions": [{"name": "f"}]} for row in talks()], **said("tools"),),
    found("sft_tools_no_json", SFT, [{**row, "tools": "[{"} for row in talks()], r"d\.jsonl:1.*'tools'.*not JSON"),
    found("sft_call_no_json", SFT, [{"conversations": [{"from": "human", "value": f"q {n}"}, {"from": "function_call",
          "value": "f(1)"}, {"from": "gpt", "value": "a"}]} for n in range(24)], r"d\.jsonl:1.*not JSON"),
    found("sft_call_by_user", SFT, [{"messages": [{**row["messages"][0], "tool_calls": [{"name": "f"}]},
          row["messages"][1]]} for row in talks()], r"d\.jsonl:1.*only the assistant calls tools"),
    found("sft_no_end_is_learned", f"{SFT} --data.max_completion_tokens 2", answered(), "no answer's end token"),
    found("sft_all_unfinished", SFT, [{**row, "ended": False} for row in answered()], **said("no answer's end token")),
    found("dpo_no_end_is_learned", f"{DPO} --data.max_completion_tokens 3 --data.max_dropped_share 1", pairs(),
          "no better answer's end token|no rows are left"),
    found("sft_streamed_no_end_is_learned", f"{SFT} --data.max_completion_tokens 2 --data.streaming true", answered(),
          "no answer's end token"),
    found("ppo_streaming", f"{PPO} --data.streaming true", questions(), "reads its prompts at once", codes={2}),
    found("stats_columns_no_mapping", "data stats d.jsonl --columns prompt", answered(), "it should map", codes={2}),
    found("stats_columns_no_yaml", "data stats d.jsonl --columns {prompt", answered(), "not valid YAML", codes={2}),
    found("stats_columns_missing_key", "data stats d.jsonl --columns {prompt:text}", answered(), r"no key|should map",
          codes={2, 3}),
    found("show_tools", "data show d.jsonl --model fix/base --chat-template hh", [{**row, "tools": [{"name": "f"}]}
          for row in answered()], r"d\.jsonl:1.*does not write 'f' of the row's tools"),
    found("show_row_beyond", "data show d.jsonl --model fix/base --chat-template hh --row 99", answered(), "24 rows",
          codes={2}),
    found("show_broken_row", "data show d.jsonl --model fix/base --chat-template hh --row 7", lines(answered(), 7, "{"),
          r"d\.jsonl:7"),
    found("sft_msg_two_assistant", SFT, [{"messages": [*row["messages"], row["messages"][1]]} for row in talks()],
          **said("assistant|in a row|alternate|follow")),
    found("sft_msg_system_mid", SFT, [{"messages": [*row["messages"], {"role": "system", "content": "s"},
          *row["messages"]]} for row in talks()], **said("system")),
    found("sft_msg_tool_orphan", SFT, [{"messages": [{"role": "tool", "content": f"{number}"},
          row["messages"][1]]} for number, row in enumerate(talks())], **said("tool")),
    found("sft_msg_role_unknown", SFT, [_talk(("narrator", "a"), ("assistant", "b"))] * 12, r"d\.jsonl:1.*role"),
    found("sft_msg_content_parts", SFT, [{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url":
          "x"}]}, TURNS[1]]}] * 12, r"d\.jsonl:1"),
    found("sft_msg_weight_lost", SFT, [{"messages": [*row["messages"][:1], {**row["messages"][1], "weight": 0}]}
          for row in talks()], **said("weight")),
    found("sft_msg_thinking_lost", SFT, [{"messages": [*row["messages"][:1], {**row["messages"][1],
          "reasoning_content": "hm"}]} for row in talks()], **said("reasoning_content")),
    found("sft_code_beside_text", SFT, [{"text": f"task {i}", "code": f"x = {i}"} for i in range(24)],
          **said("code")),
    found("ppo_options_lost", PPO, [{**row, "A": "one", "B": "two"} for row in questions()],
          fine="columns go to the reward function by name, which takes them"),
    found("sft_options_lost", SFT, [{"question": f"which {i}?", "A": "one", "B": "two", "answer": "A"}
          for i in range(24)], fine="the options end the prompt, and the letter is the answer"),
    found("sft_options_beside_the_answer", SFT, [{"question": f"which {i}?", "option1": "one", "option2": "two",
          "completion": "one"} for i in range(24)], r"d\.jsonl:1.*'option1'.*data\.columns"),
    found("sft_two_answers", SFT, [{"prompt": f"a {i}", "completion": "b", "response": "c"} for i in range(24)],
          r"d\.jsonl:1.*'completion', or by .*'response'.*data\.columns"),
    found("sft_two_conversations", SFT, [{**row, "conversations": [{"from": "human", "value": "other"}]}
          for row in talks()], r"d\.jsonl:1.*'messages', or by 'conversations'.*data\.columns"),
    found("sft_keys_unknown", SFT, [{"frage": f"a {i}", "antwort": "b"} for i in range(24)],
          r"d\.jsonl:1.*frage, antwort.*data\.columns, for a start \{prompt: frage, completion: antwort\}"),
    found("sft_columns_missing", [*SFT.split(), "--data.columns", "{prompt: promt, completion: completion}"],
          answered(),
          r"d\.jsonl:1: there is no key 'promt' to read 'prompt' from; did you mean 'prompt'"),
    found("sft_columns_missing_in_one_row", [*SFT.split(), "--data.columns",
          "{prompt: prompt, completion: completion}"],
          lines(answered(), 7, '{"prompt": "a"}'), r"d\.jsonl:7: there is no key 'completion'"),
    found("sft_columns_template", [*SFT.split(), "--data.columns", '{prompt: "{prompt", completion: completion}'],
          answered(), r"d\.jsonl:1: the template for 'prompt' has a single '\{'"),
    found("sft_columns_text", [*SFT.split(), "--data.columns", "prompt"], answered(), "data.columns", codes={2}),
    found("sft_columns_list", [*SFT.split(), "--data.columns", "[prompt]"], answered(), "data.columns", codes={2}),
    found("sft_columns_empty", [*SFT.split(), "--data.columns", "{}"], answered(), "data.columns", codes={2}),
    found("sft_image_part", SFT, [{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
          {"type": "image_url", "image_url": "x"}]}, TURNS[1]]}] * 12, r"d\.jsonl:1.*'image_url'"),
    found("reward_ranks_of_others", REWARD, [{"prompt": f"a {i}", "responses": ["x", "y"], "ranks": [1]}
          for i in range(12)], r"d\.jsonl:1.*'ranks'"),
    Case("data_sft_hub_without_network", SFT.replace("d.jsonl", "nobody/nothing:train"), {}, {3},
         env={"HF_HUB_OFFLINE": "1"}, limit=20,
         says="nobody/nothing:train is no file here, and the Hugging Face Hub cannot"),
    Case("data_sft_pattern_of_nothing", SFT.replace("d.jsonl", "'*.parquet'"), {}, {3}, says="matches no file"),
    found("sft_choices_lost", SFT, [{"question": f"which {i}?", "choices": ["one", "two"], "completion": "A"}
          for i in range(24)], **said("choices")),
    found("sft_context_lost", SFT, [{"question": f"which {i}?", "context": "long story", "answer": "A"}
          for i in range(24)], **said("context")),
    found("sft_response_key", SFT, [{"prompt": f"a {i}", "response": "b"} for i in range(24)],
    "response|completion|keys",
          fine="where that key is read"),
    Case("data_sft_same_twice", [*SFT.split()[:-1], "[d.jsonl, d.jsonl]"], files_for("sft"), {0, 2, 3},
         says="twice|same", warns="(?i)warning.*(twice|same)"),
    Case("data_sft_same_by_link", [*SFT.split()[:-1], "[d.jsonl, l.jsonl]"], {**files_for("sft"),
         "l.jsonl": Link("d.jsonl")}, {0, 2, 3}, says="twice|same", warns="(?i)warning.*(twice|same)"),
    Case("data_sft_eval_is_train", f"{SFT} --data.eval d.jsonl", files_for("sft"), {0, 2, 3},
         says="eval|same", warns="(?i)warning.*(eval|same|train)"),
    Case("data_sft_eval_rows_of_train", f"{SFT} --data.eval e.jsonl", {**files_for("sft"), "e.jsonl": answered(12)},
         {0, 2, 3}, says="eval|same", warns="(?i)warning.*train.*12"),
    Case("data_sft_second_missing_limit", [*SFT.split()[:-1], "[d.jsonl, nosuch.jsonl]", "--data.limit", "10"],
         files_for("sft"), {3}, says="nosuch.jsonl"),
    Case("data_sft_eval_missing", f"{SFT} --data.eval nosuch.jsonl", files_for("sft"), {3}, says="nosuch.jsonl"),
    Case("data_sft_train_empty_list", [*SFT.split()[:-1], "[]"], {}, {2}, says="data.train"),
    Case("data_ppo_ptx_missing", f"{PPO} --ppo.ptx_data nosuch.txt --ppo.ptx_coefficient 0.1", files_for("ppo"), {3},
         says="nosuch.txt"),
    Case("data_ppo_ptx_empty", f"{PPO} --ppo.ptx_data p.txt --ppo.ptx_coefficient 0.1",
         {**files_for("ppo"), "p.txt": "\n \n"}, {3}, says="p.txt"),
    found("sft_completion_over_context", SFT, with_row(answered(40), completion="The cat is good. " * 60),
          **said("cut|short|completion")),
    found("sft_completion_10_MB", SFT, with_row(answered(40), completion="The cat is good. " * 600_000),
          r"d\.jsonl:7: 'completion' has 10,200,000 characters"),
    found("sft_prompt_10_MB", SFT, with_row(answered(40), prompt="Is the cat good? " * 600_000),
          r"d\.jsonl:7: 'prompt' has 10,200,000 characters"),
    found("score_prompt_over_context", "score fix/run_rm/reward d.jsonl", with_row(pairs(),
          prompt="Is the cat good? " * 60), **said("cut|short|prompt"), writes=()),
    found("score_completion_over_context", "score fix/run_rm/reward d.jsonl", with_row(pairs(),
          chosen="The cat is good. " * 60), **said("cut|short|completion"), writes=()),
    found("dpo_completion_over_context", DPO, with_row(pairs(40), chosen="The cat is good. " * 60),
          **said("cut|short|completion")),
    found("dpo_equal_answers_once_cut", DPO, with_row(pairs(40), chosen="cat " * 200 + "good", rejected="cat " * 200),
          **said("cut|short|equal")),
    found("ppo_prompt_over_context", PPO, with_row(questions(40), prompt="Is the cat good? " * 60),
          **said("cut|short|prompt")),
    found("eval_gold_missing", EVAL, with_row(tasks(), gold=None)),
    found("eval_column_missing", f"{EVAL} --by grade", tasks(), r"d\.jsonl:1.*grade"),
    found("eval_gold_column_missing", f"{EVAL} --gold nosuch", tasks(), r"d\.jsonl:1: there is no column 'nosuch'"),
    found("eval_texts", EVAL, [{"text": "Once."}] * 8, r"d\.jsonl:1.*question"),
    found("eval_choice_unknown", EVAL, [{"question": f"q {i}", "options": ["A)1", "B)2"], "correct": "AF"[i == 6]}
          for i in range(12)], r"d\.jsonl:7.*'correct'"),
    found("eval_box_missing", EVAL.replace("exact", "numeric"),
          [{"problem": f"q {i}", "solution": "So" if i == 6 else "$\\boxed{4}$"} for i in range(12)]),
    found("eval_tests_empty", EVAL, with_row([{"text": "t", "code": "c", "test_list": ["x"]}] * 12, test_list=[])),
    found("eval_nothing_decides", "eval fix/base d.jsonl --verifier answer_format", tasks(), "answer_format",
          codes={2}),
    found("eval_output_folder", f"{EVAL} --output fix", tasks(), "--output", codes={2}),
    Case("data_pretrain_too_short", PRETRAIN, {"d.txt": "a\n"}, {3}, says="d.txt"),
    Case("data_pretrain_one_text", PRETRAIN, {"d.txt": "The cat is good. " * 200}, {3}, says="d.txt|held out"),
]  # fmt: skip

GARBLED: dict[str, bytes] = {
    "empty": b"", "blanks": b" \n\n\t\n", "bom": b"\xef\xbb\xbf", "nul": b"\0" * 100, "utf16": "{}".encode("utf-16"),
    "random": bytes(range(256)) * 8, "half_line": b'{"prompt": "a", "compl', "null": b"null\n", "number": b"3\n",
    "text": b'"a"\n', "list": b"[1, 2]\n", "empty_object": b"{}\n", "empty_list": b"[]\n", "nan": b"NaN\n",
    "list_of_rows": b'[{"prompt": "a", "completion": "b"}]\n', "two_in_a_line": b'{"a": 1}{"a": 2}\n',
    "single_quotes": b"{'prompt': 'a'}\n", "comment": b"# rows\n", "csv": b"prompt,completion\na,b\n",
    "deep": b"[" * 100_000 + b"\n", "deep_objects": b'{"a": ' * 100_000 + b"\n", "html": b"<!DOCTYPE html>\n",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "one_huge_line": b"x" * 5_000_000,
    "latin1": '{"prompt": "café"}\n'.encode("latin-1"), "escape": b'\x1b[31m{"prompt": "a"}\n',
    "bare_surrogate": b'{"prompt": "\xed\xa0\x80", "completion": "b"}\n', "trailing_comma": b'{"prompt": "a",}\n',
    "escape_in_key": b'{"\\u001b[31mprompt": "a", "b": "c"}\n', "key_of_1_MB": b'{"' + b"k" * 1_000_000 + b'": 1}\n',
    "ten_thousand_keys": json.dumps({f"k{i}": i for i in range(10_000)}).encode(),
}  # fmt: skip
_ROWS = "".join(json.dumps(row) + "\n" for row in answered()).encode()
_PACKED = gzip.compress(_ROWS)


def _files() -> Iterator[Case]:
    for name, content in GARBLED.items():
        for suffix in ("jsonl", "json"):
            if name == "list_of_rows":
                continue  # is read by either name
            yield Case(
                f"file_{suffix}_{name}",
                SFT.replace("d.jsonl", f"d.{suffix}"),
                {f"d.{suffix}": content},
                {3},
                says=rf"d\.{suffix}",
            )
    kinds: dict[str, Any] = {
        "gz_cut": ("d.jsonl.gz", _PACKED[: len(_PACKED) // 2]), "gz_flipped": ("d.jsonl.gz", _flip(_PACKED)),
        "gz_plain": ("d.jsonl.gz", _ROWS), "gz_empty": ("d.jsonl.gz", b""), "gz_bz2": ("d.jsonl.gz", bz2.compress(
        _ROWS)),
        "gz_tail": ("d.jsonl.gz", _PACKED + b"garbage"), "gz_of_nothing": ("d.jsonl.gz", gzip.compress(b"")),
        "bz2": ("d.jsonl.bz2", bz2.compress(_ROWS)), "zst": ("d.jsonl.zst", b"\x28\xb5\x2f\xfd"),
        "zip": ("d.zip", b"PK\x03\x04"), "no_suffix": ("data", _ROWS), "pdf": ("d.pdf", b"%PDF-1.4"),
        "parquet_garbage": ("d.parquet", b"PAR1garbagePAR1"), "csv_garbage": ("d.csv", bytes(range(256))),
        "csv_empty": ("d.csv", b""), "tsv_header_only": ("d.tsv", b"prompt\tcompletion\n"), "arrow": ("d.arrow",
        b"ARROW1"),
        "packed_without_suffix": ("d.jsonl", _PACKED), "folder": ("d.jsonl", Folder()), "fifo": ("d.jsonl", Fifo()),
        "unreadable": ("d.jsonl", Closed()), "loop": ("d.jsonl", Link("d.jsonl")), "dangling": ("d.jsonl", Link(
        "nosuch")),
        "folder_of_nothing": ("d", Folder()), "upper": ("D.JSONL", b""), "dots": ("...jsonl", b""),
        "missing": ("d.txt", TEXT), "txt_blanks": ("d.txt", b"\n\n \n"), "txt_binary": ("d.txt", bytes(range(256))),
        "csv_short_row": ("d.csv", b"prompt,completion\na,b\nc\n"),
        "csv_gbk": ("d.csv", "prompt,completion\n问,答\n".encode("gbk")),
        "csv_open_quote": ("d.csv", b'prompt,completion\na,"b\n'),
        "csv_same_names": ("d.csv", b"prompt,prompt\na,b\n"),
        "zst_cut": ("d.jsonl.zst", b"\x28\xb5\x2f\xfd\x04\x58\x01"),
        "xz_cut": ("d.jsonl.xz", lzma.compress(_ROWS)[:-20]),
        "bz2_cut": ("d.jsonl.bz2", bz2.compress(_ROWS)[:-20]),
        "txt_of_rows": ("d.txt", _ROWS),
        "gbk": ("d.jsonl", '{"prompt": "问题", "completion": "答案"}\n'.encode("gbk")),
        "utf16": ("d.jsonl", _ROWS.decode().encode("utf-16")),
        "huge_field": ("d.jsonl", b'{"prompt": "a", "completion": "' + b"x" * 10_000_000 + b'"}\n'),
    }  # fmt: skip
    readable = {
        "bz2": "bzip2 is unpacked",
        "gz_bz2": "the content tells how a file is packed",
        "packed_without_suffix": "the content tells how a file is packed",
        "no_suffix": "the content tells what it is",
    }
    for name, (file, content) in kinds.items():
        wanted = "d.jsonl" if name == "missing" else file
        yield Case(
            f"file_{name}",
            SFT.replace("d.jsonl", wanted),
            {file: content},
            {3},
            says=wanted.replace(".", r"\."),
            fine=readable.get(name, ""),
            limit=20 if name == "fifo" else 60,
        )
    for verb in ("reward", "dpo", "ppo", "best-of", "iterate", "pretrain"):
        for name in ("empty", "utf16", "half_line", "number", "deep"):
            file = "d.txt" if verb == "pretrain" and name in ("empty", "utf16") else "d.jsonl"
            yield Case(
                f"file_{verb}_{name}", COMMANDS[verb].replace("d.txt", file), {file: GARBLED[name]}, {3}, says=file
            )


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def _sharegpt(i: int, **more: Any) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": f"Is it number {i}?"}, {"from": "gpt", "value": "It is."}],
        **more,
    }


LAYOUTS: dict[str, tuple[str, list[dict[str, Any]], tuple[str, ...]]] = {
    "answered": (SFT, answered(), ("prompt", "completion")),
    "system": (SFT, [{**row, "system": "Be good."} for row in answered()], ("system",)),
    "pair": (DPO, pairs(), ("prompt", "chosen", "rejected")),
    "instruction": (SFT, [{"instruction": f"say {i}", "input": "now", "output": "good", "history": [["a", "b"]]}
                          for i in range(24)], ("instruction", "input", "output", "history")),
    "ranked": (REWARD, [{"instruction": f"say {i}", "output": ["good", "bad", "big"], "grades": [2, 1, 0]}
                        for i in range(24)], ("output", "grades")),
    "sharegpt": (SFT, [_sharegpt(i) for i in range(24)], ("conversations",)),
    "messages": (SFT, talks(), ("messages",)),
    "text": (SFT.replace("sft ", "sft --data.train_on all "), [{"text": f"The cat is number {i}."} for i in range(24)],
             ("text",)),
    "transcript": (REWARD, [{"chosen": f"\n\nHuman: {i}?\n\nAssistant: good", "rejected":
                   f"\n\nHuman: {i}?\n\nAssistant: bad"} for i in range(24)], ("chosen", "rejected")),
    "votes": (REWARD, [{"question": f"{i}?", "prediction 1": "a", "prediction 2": "b", "preference": [1]}
                       for i in range(24)], ("question", "prediction 1", "prediction 2", "preference")),
    "steps": (DPO.replace("dpo ", "dpo --loss step_dpo "), [{**row, "initial_reason_steps": "First."}
              for row in pairs()], ("initial_reason_steps",)),
    "kto": (DPO.replace("dpo ", "dpo --loss kto "), labelled(), ("label",)),
    "questions": (PPO, questions(), ("prompt",)),
}  # fmt: skip
DAMAGES: dict[str, Any] = {
    "missing": None, "null": None, "number": 7, "true": True, "list": [1, 2], "empty_list": [], "object": {"a": 1},
    "empty": "", "blanks": " \n\t\u3000", "1_MB": "The cat is good. " * 60_000, "surrogate": "a \ud83d b",
    "nul": "a\0b",
    "escapes": "\x1b[2J\x1b]0;owned\x07 good \x9b31m", "nested": [[["a"]]], "bidi": "\u202egood\u2066",
}  # fmt: skip
OPTIONAL = {"input", "history", "system", "grades", "initial_reason_steps"}
HARMLESS = {
    "nul": "a NUL is a character like others",
    "escapes": "they are text; they only may not reach a terminal",
    "bidi": "they are text",
}


def _row_damages() -> Iterator[Case]:
    for layout, (command, rows, keys) in LAYOUTS.items():
        for key in keys:
            for name, value in DAMAGES.items():
                damaged = [dict(row) for row in rows]
                damaged[6][key] = value
                if name == "missing":
                    del damaged[6][key]
                yield _row_case(f"row_{layout}_{key}_{name}".replace(" ", "_"), command, damaged, key, name)


def _row_case(name: str, command: str, rows: list[dict[str, Any]], key: str, damage: str) -> Case:
    fine, warns = "", ""
    texts = key not in ("grades", "preference", "label", "history", "conversations", "messages")
    if key in OPTIONAL and damage in ("missing", "null", "empty", "empty_list", "blanks"):
        fine = "the key may be left out"
    elif texts and damage in HARMLESS:
        fine = HARMLESS[damage]
    elif key == "instruction" and damage in ("empty", "blanks"):
        fine = "the input asks for itself"
    elif texts and damage in ("empty", "blanks"):
        fine, warns = "one row of many is left out, and counted", COUNTED
    elif texts and damage == "1_MB":
        fine, warns = "what is too long is cut, and counted", COUNTED
    elif key == "label" and damage == "true":
        fine = "a label is true or false"
    if damage not in ("escapes", "1_MB"):
        command += " --dry-run"  # which reads all of it, and costs a tenth of a run
    return Case(
        name, command, {"d.jsonl": rows}, {3}, says=r"d\.jsonl(:7)?|rows cannot be used", fine=fine, warns=warns
    )


CASES = [*FOUND, *_files(), *_row_damages()]
