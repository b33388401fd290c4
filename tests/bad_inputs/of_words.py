"""score, chat, demo and doctor: paths and numbers of every kind, and what is typed to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case, Closed, Copy, Fifo, Folder, Json, Link
from tests.bad_inputs.of_models import all_nan, tensors
from tests.bad_inputs.prepared import COMMANDS, files_for, pairs

CHAT = "chat fix/run_sft/policy --max-new-tokens 4"
SCORE = "score fix/run_rm/reward d.jsonl"

PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "missing": ("nope", {}), "deep_missing": ("nope/nope/nope", {}), "folder": ("e", {"e": Folder()}), "file": ("f", {
    "f": "x"}),
    "fifo": ("p", {"p": Fifo()}), "closed": ("c", {"c": Closed()}), "nul": ("a\0b", {}), "long": ("x" * 300, {}),
    "deep": ("/".join(["y" * 200] * 30), {}), "loop": ("l", {"l": Link("l")}), "dangling": ("l", {"l": Link(
    "nowhere")}),
    "dev_null": ("/dev/null", {}), "dev_zero": ("/dev/zero", {}), "proc_mem": ("/proc/self/mem", {}), "empty": ("", {}),
    "blank": (" ", {}), "surrogate": ("\udcff", {}), "escape": ("\x1b[31mx", {}), "dots": ("...", {}), "tilde": (
    "~nosuch", {}),
    "url": ("https://example.com/x", {}), "newline": ("a\nerror: fake", {}), "dash": ("-", {}),
}  # fmt: skip
PATH_KEYS = {
    "sft": ("data.train", "data.eval", "start_from", "model.model_name_or_path", "model.chat_template", "output_dir"),
    "dpo": ("reference_role",),
    "ppo": ("start_from", "reward.role", "reward.model", "ppo.ptx_data"),
    "pretrain": ("tiny.tokenizer",),
}


def _paths() -> Iterator[Case]:
    for verb, key in [(verb, key) for verb, keys in PATH_KEYS.items() for key in keys]:
        for name, (value, files) in PATHS.items():
            words = COMMANDS[verb].split()
            for gone in (
                f"--{key}",
                *(["--reward.callable"] if key.startswith("reward.") else []),
                *(["--tiny.vocab_size"] if key == "tiny.tokenizer" else []),
            ):
                if gone in words:
                    del words[words.index(gone) : words.index(gone) + 2]
            more = [] if key != "ppo.ptx_data" else ["--ppo.ptx_coefficient", "0.1"]
            quoted = (
                '"' + value.replace("\\", "\\\\").replace("\0", "\\0").replace("\x1b", "\\e").replace("\n", "\\n") + '"'
            )
            if name == "surrogate":
                quoted = value
            fine = ""
            if key == "output_dir" and name in ("missing", "deep_missing", "folder", "dots", "tilde", "dash", "url"):
                fine = "a folder may be called so"
            yield Case(
                f"path_{verb}_{key}_{name}",
                [*words, *more, f"--{key}={quoted}"],
                {**files_for(verb), **files},
                {2, 3},
                fine=fine,
                lines=None if name == "surrogate" else 1,
                limit=40,
                writes=("out", "e", "nope", "...", "~nosuch", "-", "https:") if fine else ("out",),
            )
    commands = {
        "config": (["sft", "--config", "@"], ()), "score_role": (["score", "@", "d.jsonl"], ()),
        "score_file": (["score", "fix/run_rm/reward", "@"], ()), "score_model": (["score", "fix/run_rm/reward",
        "d.jsonl", "--model",
        "@"], ()), "chat_role": (["chat", "@", "--once", "hi"], ()), "chat_reward": (["chat", "fix/run_sft/policy",
        "--once", "hi",
        "--reward", "@"], ()), "chat_model": (["chat", "fix/run_sft/policy", "--once", "hi", "--model", "@"], ()),
        "chat_compare": (["chat", "--compare", "fix/run_sft/policy", "@", "--once", "hi"], ()),
        "deploy": (["deploy", "render", "@", "--target", "docker", "--into", "dd", "--write"], ()),
        "runs_ls": (["runs", "ls", "@"], ("folder", "empty")), "runs_show": (["runs", "show", "@"], ()),
        "runs_plot": (["runs", "plot", "@"], ()), "runs_report": (["runs", "report", "@"], ()),
        "doctor": (["doctor", "--output-dir", "@"], ("missing", "deep_missing", "folder", "tilde", "dots", "empty",
        "blank", "url",
        "escape", "newline", "dash", "surrogate", "dangling")),
    }  # fmt: skip
    for verb, (words, right) in commands.items():
        for name, (value, files) in PATHS.items():
            yield Case(
                f"path_{verb}_{name}",
                [value if word == "@" else word for word in words],
                {"d.jsonl": pairs(), **files},
                {1, 2, 3},
                fine="nothing is wrong with it" if name in right else "",
                limit=40,
                writes=(),
            )


def _numbers() -> Iterator[Case]:
    wrong = ("-1", "0", "nan", "inf", "1e309", "", "abc", "1.5", "true", "[1]", "99999999999999999999", "1_0", "0x10")
    fine = {
        "--max-new-tokens": {"99999999999999999999"}, "--temperature": {"0", "1.5", "99999999999999999999"},
        "--seed": {"0"},
        "--microbatch-tokens": {"99999999999999999999"},
    }  # fmt: skip
    for option, right in fine.items():
        command = SCORE if option == "--microbatch-tokens" else "chat fix/run_sft/policy --once hi"
        for value in wrong:
            yield Case(
                f"word_{option[2:]}_{value}",
                [*command.split(), f"{option}={value}"],
                {"d.jsonl": pairs()},
                {2},
                fine="a value as good as another" if value in right else "",
            )
    for value in ("-1", "nan", "abc", "", "4294967296", "1e5", "true", "1.5", "99999999999999999999"):
        yield Case(f"oth_demo_seed_{value}", ["demo", f"--seed={value}", "--output-dir", "dd"], says="seed", writes=())


TYPED = {
    "invalid_utf8": b"hi \xff\n\n", "nul": b"a\0b\n\n", "escapes": b"\x1b[31mhi\x1b[A\n\n",
    "long": b"cat " * 5000 + b"\n\n",
    "blank": b"   \n", "nothing": b"", "no_newline": b"hi", "new": b"/new\n/new\nhi\n",
    "unknown_command": b"/nosuch\n\n",
    "cr": b"hi\r\n\r\n", "many": b"hi\n" * 12, "surrogate": b"\xed\xa0\x80\n\n", "bom": b"\xef\xbb\xbfhi\n\n",
}  # fmt: skip


def _chats() -> Iterator[Case]:
    yield Case(
        "oth_chat_once_invalid_utf8", [*CHAT.split(), "--once", "hi \udcff"], says="once|UTF-8|character|surrogate"
    )
    yield Case(
        "oth_chat_stdin_invalid",
        CHAT,
        stdin=b"hi \xff\n\n",
        codes={2, 3},
        says="UTF-8|input|stdin",
        fine="what cannot be read is asked for again",
    )
    for name, text in TYPED.items():
        yield Case(
            f"oth_chat_types_{name}", CHAT, stdin=text, codes={0, 2, 3}, fine="a person types all sorts of things"
        )
    yield Case("oth_chat_base_bert", "chat fix/m_bert --once a", says="m_bert")
    yield Case("oth_chat_base_bertmodel", "chat fix/m_bertmodel --once a", says="m_bertmodel")
    yield Case("oth_chat_base_seqcls", "chat fix/m_seqcls_untied --once a", says="m_seqcls")
    yield Case("oth_chat_base_t5", "chat fix/m_t5 --once a", says="m_t5")
    yield Case(
        "oth_chat_m_nan",
        "chat m --once a --max-new-tokens 4",
        {"m": Copy("base", {"model.safetensors": tensors(all_nan)})},
        {1, 2},
        says="(?i)nan|finite",
    )
    for name, text in {"empty": "", "blank": " ", "nul": "a\0b", "long": "cat " * 5000, "escape": "\x1b[31mhi"}.items():
        yield Case(
            f"oth_chat_once_{name}",
            [*CHAT.split(), "--once", text],
            codes={2, 3},
            fine="it is text" if name in ("nul", "escape") else "",
        )
    yield Case("oth_chat_nothing", "chat", says="role|compare")
    yield Case("oth_chat_both", "chat fix/run_sft/policy --compare fix/run_sft/policy fix/run_dpo/policy --once a")
    yield Case("oth_chat_compare_one", "chat --compare fix/run_sft/policy --once a")
    yield Case(
        "oth_chat_compare_same",
        "chat --compare fix/run_sft/policy fix/run_sft/policy --once a",
        fine="both answer alike",
        codes={0, 2},
    )
    yield Case("oth_chat_compare_bases", "chat --compare fix/base fix/base2 --once a", says="base2")
    yield Case("oth_chat_other_model", "chat fix/run_sft/policy --model fix/base2 --once a", says="base")
    yield Case(
        "oth_chat_base_gone",
        "chat p --once a",
        {"p": Copy("run_sft/policy", {"role.json": Json({"base": "/nowhere/base"})})},
        says="/nowhere/base",
    )
    yield Case(
        "oth_chat_base_relative",
        "chat p --once a",
        {"p": Copy("run_sft/policy", {"role.json": Json({"base": "nosuch-org/nosuch"})})},
        says="nosuch-org/nosuch",
    )
    yield Case("oth_chat_config_only", "chat m --once a", {"m/config.json": "{}"}, says=r"\bm\b")
    yield Case("oth_score_policy_file", "score fix/run_rm/reward fix/base", says="fix/base", codes={2, 3})
    yield Case("oth_score_questions", SCORE, files_for("ppo"), {3}, says="d.jsonl:1")
    yield Case("oth_score_role_run", "score fix/run_rm d.jsonl", {"d.jsonl": pairs()}, says="fix/run_rm")
    yield Case("oth_score_other_model", f"{SCORE} --model fix/base2", {"d.jsonl": pairs()}, says="base")
    yield Case("oth_score_no_file", "score fix/run_rm/reward")
    wild = [{**row, "chosen": f"\x1b[2J\x9b31m good {i}"} for i, row in enumerate(pairs())]
    yield Case(
        "oth_score_escapes",
        f"{SCORE} --rank",
        {"d.jsonl": wild},
        {0},
        fine="the text is shown without what a terminal obeys",
    )
    yield Case("oth_score_unknown_option", f"{SCORE} --nosuch", {"d.jsonl": pairs()}, says="nosuch")
    yield Case("oth_demo_seed_neg", "demo --seed -1 --output-dir dd", says="seed")
    yield Case("oth_demo_proc", "demo --output-dir /proc/x", says="/proc/x", limit=20)
    yield Case("oth_demo_below_file", "demo --output-dir f/x", {"f": "x"}, says="f", limit=20)
    yield Case("oth_demo_long", ["demo", "--output-dir", "x" * 300], says="xxx", limit=20)
    yield Case("oth_demo_nul", ["demo", "--output-dir", "a\0b"], limit=20)
    yield Case("oth_demo_empty", ["demo", "--output-dir", ""], limit=20)
    yield Case(
        "oth_demo_closed",
        "demo --output-dir shut/x",
        {"shut": lambda path: (path.mkdir(), path.chmod(0o500))},
        says="shut",
        limit=20,
    )
    yield Case("oth_demo_loop", "demo --output-dir l", {"l": Link("l")}, says="l", limit=20)
    yield Case("oth_demo_word", "demo nosuch", says="nosuch")
    yield Case("oth_doctor_out_long", ["doctor", "--output-dir", "x" * 300], {}, {1, 2}, says="xxx|long")
    yield Case("oth_doctor_out_nul", ["doctor", "--output-dir", "a\0b"], {}, {1, 2})
    yield Case("oth_doctor_out_file", "doctor --output-dir f", {"f": "x"}, {1, 2}, says="f")
    yield Case(
        "oth_doctor_out_closed",
        "doctor --output-dir shut/x",
        {"shut": lambda path: (path.mkdir(), path.chmod(0o500))},
        {1, 2},
        says="shut",
    )
    yield Case("oth_doctor_word", "doctor nosuch", says="nosuch")


CASES = [*_paths(), *_numbers(), *_chats()]
