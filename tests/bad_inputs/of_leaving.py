"""`merge`, `export`, `push`, `serve` and `deploy render`: damaged roles and bases, wrong options, wrong serve.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Closed, Copy, Cut, Fifo, Folder, Json, Link
from tests.bad_inputs.of_models import all_nan, another_shape, one_less, tensors
from tests.bad_inputs.of_roles import ADAPTER, CARD, FILES, WEIGHTS, head_nan, wide_head, without_head

MERGE = "merge p out"
VLLM = "export p out --to vllm"
TGI = "export p out --to tgi"
SERVE = "serve p --port 0 --device cpu --threads 1"
CONFIG = "serve --config serve.yaml"
RENDER = "deploy render serve.yaml --target docker --into out"
PUSH = "push p someone/model --yes"
GOOD = "roles: {helpful: p}\n"
POLICY, REWARD, BASE = Copy("run_sft/policy"), Copy("run_rm/reward"), Copy("base")


def leaving(name: str, command: str, says: str = "", code: int = 2, p: Any = POLICY, **more: Any) -> Case:
    """A case with the role `p`; further files come as `files`."""
    files = {**({} if p is None else {"p": p}), **more.pop("files", {})}
    return Case(f"leave_{name}", command, files, {code}, says, **more)


def config(name: str, text: Any, says: str, command: str = CONFIG, **more: Any) -> Case:
    return leaving(f"yaml_{name}", command, says, files={"serve.yaml": text, **more.pop("files", {})}, **more)


def pickled_base(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def tied_away(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


OPTIONS = [
    leaving("merge_no_words", "merge", "(?i)role", p=None),
    leaving("merge_one_word", "merge p", "(?i)output"),
    leaving("merge_three_words", "merge p out more", "more"),
    leaving("merge_unknown_option", "merge p out --verfy", "verfy"),
    leaving("merge_missing", "merge nope out", "nope: no such folder", p=None),
    leaving("merge_empty_name", ["merge", "", "out"], "", p=None),
    leaving("merge_blank_name", ["merge", " ", "out"], "", p=None),
    leaving("merge_control_name", ["merge", "\x1b[31mp", "out"], "no such folder", p=None),
    leaving("merge_long_name", ["merge", "p" * 5000, "out"], "", p=None),
    leaving("merge_a_file", "merge p out", r"\bp\b", p="not a folder"),
    leaving("merge_empty_folder", "merge p out", r"\bp\b", p=Folder()),
    leaving("merge_run_folder", "merge fix/run_sft out", "fix/run_sft", p=None),
    leaving("merge_hub_name", "merge some/where out", "some/where", p=None),
    leaving("merge_data_file", "merge d.jsonl out", r"d\.jsonl", p=None, files={"d.jsonl": [{"prompt": "a"}]}),
    leaving("merge_dead_link", "merge p out", r"\bp\b", p=Link("gone")),
    leaving("merge_loop", "merge p out", r"\bp\b", p=Link("p")),
    leaving("merge_pipe", "merge p out", r"\bp\b", p=Fifo()),
    leaving("merge_output_file", "merge p taken", "taken is a file", files={"taken": "x"}, untouched=["taken"]),
    leaving("merge_output_full", "merge p taken", "taken is not empty", files={"taken/x": "x"}, untouched=["taken"]),
    leaving("merge_output_in_a_file", "merge p taken/out", "taken/out: cannot be written", files={"taken": "x"}),
    leaving("merge_output_dead_link", "merge p l", r"\bl\b", files={"l": Link("gone")}, untouched=["l"]),
    leaving("merge_output_is_the_role", "merge p p", r"\bp is not empty", untouched=["p"]),
    leaving("merge_output_in_the_role", "merge p p/out", r"inside .*\bp\b", untouched=["p"]),
    leaving("merge_output_in_the_base", "merge p b/out --model b", r"inside .*\bb\b", files={"b": BASE},
            untouched=["b"]),
    leaving("merge_output_empty_name", ["merge", "p", ""], "not empty|OUTPUT|output"),
    leaving("merge_output_closed", "merge p closed/out", "closed/out: cannot be written",
            files={"closed": lambda path: (path.mkdir(), path.chmod(0o500))}),
    leaving("merge_output_long", ["merge", "p", "o" * 300], "cannot be written .File name too long"),
    *(leaving(f"merge_shards_{size}", ["merge", "p", "out", f"--max-shard-size={size}"], "--max-shard-size is")
      for size in ("5", "GB", "-5GB", "0GB", "5 GB", "1.5GB", "5gb", "99999999999GB", "五GB", "")),
    leaving("merge_device", f"{MERGE} --device abacus", "--device is abacus"),
    leaving("merge_device_gone", f"{MERGE} --device cuda:99", "cuda:99"),
    leaving("merge_device_empty", ["merge", "p", "out", "--device", ""], "--device is"),
    leaving("merge_model_missing", f"{MERGE} --model nope", "nope"),
    leaving("merge_model_empty", [*MERGE.split(), "--model", ""], "--model is empty"),
    leaving("merge_model_is_a_role", f"{MERGE} --model fix/run_rm/reward", "fix/run_rm/reward"),
    leaving("merge_model_is_a_file", f"{MERGE} --model d.txt", r"d\.txt", files={"d.txt": "x"}),
    leaving("merge_model_other", f"{MERGE} --model fix/base2", r"\bp\b.*base"),
    leaving("merge_model_more_tokens", f"{MERGE} --model fix/base_more", r"\bp\b"),
    leaving("merge_model_bert", f"{MERGE} --model fix/m_bert", "fix/m_bert|BertForMaskedLM"),
    leaving("merge_full_with_model", "merge fix/run_pre/model out --model fix/base", "leave --model out", p=None),
    leaving("merge_classifier_of_three", "merge fix/m_seqcls3 out", "fix/m_seqcls3", p=None),
    leaving("merge_encoder", "merge fix/m_bertmodel out", "fix/m_bertmodel", p=None),
    leaving("merge_t5", "merge fix/m_t5 out", "fix/m_t5", p=None),
    leaving("merge_file_too_large", MERGE, "out", 4, shell="ulimit -f 16; {}"),
    leaving("merge_stdout_full", MERGE, "(?i)space|disk|stdout|written", 4, shell="{} >/dev/full"),
    leaving("export_no_target", "export p out", "--to"),
    leaving("export_unknown_target", "export p out --to onnx", "onnx"),
    leaving("export_empty_target", ["export", "p", "out", "--to", ""], "--to"),
    leaving("export_two_targets", "export p out --to vllm,tgi", "--to"),
    leaving("export_missing", "export nope out --to vllm", "nope: no such folder", p=None),
    leaving("export_output_file", "export p taken --to tgi", "taken is a file", files={"taken": "x"}),
    leaving("export_output_full", "export p taken --to vllm", "taken is not empty", files={"taken/x": "x"}),
    leaving("export_output_in_the_role", "export p p/out --to vllm", r"inside .*\bp\b", untouched=["p"]),
    leaving("export_output_in_a_file", "export p taken/out --to vllm", "cannot be written", files={"taken": "x"}),
    *(leaving(f"export_reward_{to}", f"export p out --to {to}", r"\bp\b.*(policy|reward)", p=REWARD)
      for to in ("vllm", "tgi", "gguf", "ollama")),
    leaving("export_device", f"{VLLM} --device abacus", "--device is abacus"),
    leaving("export_model_missing", f"{VLLM} --model nope", "nope"),
    leaving("export_model_other", f"{VLLM} --model fix/base2", r"\bp\b.*base"),
    leaving("export_verify", f"{VLLM} --verify", "verify"),
    leaving("export_hub_name", "export some/where out --to vllm", "some/where", p=None),
    leaving("export_rank_limit", VLLM, "rank|256", p=Copy("run_sft/policy", {ADAPTER: Json({"r": 512})})),
    leaving("push_no_words", "push", "(?i)folder", p=None),
    leaving("push_no_name", "push p", "(?i)name"),
    *(leaving(f"push_name_{number}", ["push", "p", name, "--yes"], "is no repository; write it as owner/name")
      for number, name in enumerate(("model", "a/b/c", "/b", "a/", "a b/c", "../x", ".hidden/x", "a/ü", "", " ",
                                     "a/\x1b", "https://hub/a/b", "a/" + "b" * 97, "a\\b", "~/p"))),
    leaving("push_missing", "push nope someone/model", "nope: no such folder", p=None),
    leaving("push_a_file", PUSH, "p: no such folder", p="x"),
    leaving("push_empty", PUSH, "p: holds no model", p=Folder()),
    leaving("push_run_folder", "push fix/run_sft someone/model --yes", "fix/run_sft: holds no model", p=None),
    leaving("push_offline", PUSH, "HF_HUB_OFFLINE is set"),
    leaving("push_pickle", PUSH, r"p/more\.bin: a pickled file", files={"p/more.bin": b"\x80\x04N."}),
    leaving("push_pickle_below", PUSH, r"p/a/b\.pkl: a pickled file", files={"p/a/b.pkl": b"\x80\x04N."}),
    leaving("push_link", PUSH, "p/secret: not a regular file", files={"p/secret": Link("/etc/passwd")}),
    leaving("push_linked_weights", PUSH, "p/w.safetensors: not a regular", files={"p/w.safetensors": Link("gone")}),
    leaving("push_pipe", PUSH, "p/pipe: not a regular file", files={"p/pipe": Fifo()}),
    leaving("push_unknown_option", f"{PUSH} --private", "private"),
    leaving("push_card_list", PUSH, r"\bp\b", p=Copy("run_sft/policy", {CARD: "[]", "README.md": None})),
    leaving("push_card_half", PUSH, r"\bp\b", p=Copy("run_sft/policy", {CARD: Cut()})),
    leaving("push_card_binary", PUSH, r"\bp\b", p=Copy("run_sft/policy", {CARD: bytes(range(256))})),
    leaving("push_adapter_list", PUSH, "adapter_config", p=Copy("run_sft/policy", {ADAPTER: "[]"})),
    leaving("push_adapter_gone", PUSH, "adapter_config", p=Copy("run_sft/policy", {ADAPTER: None})),
    leaving("push_base_gone", PUSH, "nope", p=Copy("run_sft/policy", {CARD: Json({"base": "/nope"})})),
]  # fmt: skip

SERVING = [
    leaving("serve_nothing", "serve", "nothing to serve", p=None),
    leaving("serve_missing", "serve nope", "nope: no such folder", p=None),
    leaving("serve_one_missing", "serve p nope", "nope: no such folder"),
    leaving("serve_empty_name", ["serve", ""], "", p=None),
    leaving("serve_control_name", ["serve", "\x1b[31m"], "contains control characters", p=None),
    leaving("serve_a_file", "serve p", r"\bp\b", p="x"),
    leaving("serve_empty_folder", "serve p", r"\bp\b", p=Folder()),
    leaving("serve_run_folder", "serve fix/run_sft", "fix/run_sft", p=None),
    leaving("serve_other_base", "serve p --model fix/base2 --port 0", r"\bp\b.*base"),
    leaving("serve_two_bases", "serve p q --port 0", "q: made on another base",
            files={"q": Copy("run_rm/reward", {CARD: Json({"base_fingerprint": "0" * 16})})}),
    leaving("serve_encoder", "serve --model fix/m_bert --port 0", "fix/m_bert|Bert", p=None),
    leaving("serve_t5", "serve --model fix/m_t5 --port 0", "fix/m_t5|T5", p=None),
    leaving("serve_model_missing", "serve --model nope", "nope", p=None),
    leaving("serve_model_empty", ["serve", "--model", ""], "model", p=None),
    leaving("serve_model_file", "serve --model d.txt", r"d\.txt", p=None, files={"d.txt": "x"}),
    leaving("serve_full_and_role", "serve fix/run_pre/model p --port 0", r"fix/run_pre/model|\bp\b"),
    *(leaving(f"serve_port_{port}", ["serve", "p", f"--port={port}"], "port")
      for port in ("-1", "65536", "99999999999999999999", "abc", "", "80.5", "1e3", "nan", "0x50", "٨٠")),
    *(leaving(f"serve_threads_{threads}", ["serve", "p", "--threads", threads], "threads")
      for threads in ("0", "-1", "many", "1.5", "9" * 40)),
    *(leaving(f"serve_price_{price}", ["serve", "p", "--price-per-hour", price], "price")
      for price in ("0", "-1", "nan", "inf", "1e999", "free", "")),
    *(leaving(f"serve_host_{number}", ["serve", "p", "--port", "0", "--api-key", "k", "--host", host], says)
      for number, (host, says) in enumerate({
          "no.such.host.invalid": "cannot listen on no.such.host.invalid", "": "host", " ": "host",
          "256.256.256.256": "256.256.256.256", "http://127.0.0.1": "http://127.0.0.1", "203.0.113.7": "203.0.113.7",
          "a" * 300: "aaa", "\x1b[31m": "host|listen", "ü.invalid": "listen",
      }.items())),
    leaving("serve_open_to_all", "serve p --host 0.0.0.0 --port 0", "0.0.0.0 can be reached from other machines"),
    leaving("serve_open_to_all_six", "serve p --host :: --port 0", ":: can be reached from other machines"),
    leaving("serve_low_port", "serve p --port 1", "cannot listen on 127.0.0.1, port 1"),
    leaving("serve_key_blank", ["serve", "p", "--api-key", " "], "--api-key is blank"),
    leaving("serve_key_empty", ["serve", "p", "--api-key", ""], "--api-key is blank"),
    leaving("serve_key_variable", SERVE, "ONEBASE_API_KEY is blank", env={"ONEBASE_API_KEY": "\t"}),
    leaving("serve_dtype", f"{SERVE} --dtype float8", "float8"),
    leaving("serve_dtype_float16", f"{SERVE} --dtype float16", "float16"),
    leaving("serve_quantization", f"{SERVE} --quantization int8", "int8"),
    leaving("serve_device", "serve p --device abacus", "abacus"),
    leaving("serve_device_gone", "serve p --device cuda:99 --port 0", "cuda:99"),
    leaving("serve_unknown_option", "serve p --prot 80", "prot"),
    leaving("serve_config_missing", "serve --config nope.yaml", "nope.yaml"),
    leaving("serve_config_folder", "serve --config p", r"\bp\b"),
    leaving("serve_config_twice", "serve --config a.yaml --config b.yaml", "config|a.yaml"),
]  # fmt: skip

YAML: dict[str, tuple[Any, str]] = {
    "empty": ("", "nothing to serve"),
    "comment_alone": ("# nothing\n", "nothing to serve"),
    "list": ("- a\n", r"serve\.yaml"),
    "text": ("helpful\n", r"serve\.yaml"),
    "broken": ("roles: {a: p\nport: 1\n", r"serve\.yaml"),
    "tab": ("roles:\n\ta: p\n", r"serve\.yaml"),
    "twice": ("roles: {a: p}\nroles: {b: p}\n", "'roles' is given twice"),
    "name_twice": ("roles: {a: p, a: q}\n", "'a' is given twice"),
    "latin1": ("roles: {caf\xe9: p}\n".encode("latin-1"), "(?i)utf-8"),
    "utf16": (GOOD.encode("utf-16"), "(?i)utf"),
    "nul": (b"roles: {a: \0}\n", r"serve\.yaml"),
    "python_object": ("roles: !!python/object/apply:os.system [ls]\n", r"serve\.yaml"),
    "unknown_anchor": ("roles: *none\n", r"serve\.yaml"),
    "deep": ("roles: " + "[" * 3000 + "]" * 3000 + "\n", r"serve\.yaml"),
    "closed": (Closed(), "(?i)permission|read"),
    "pipe": (Fifo(), r"serve\.yaml"),
    "folder": (Folder(), r"serve\.yaml"),
    "dead_link": (Link("gone"), r"serve\.yaml"),
    "unknown_key": (GOOD + "prot: 1\n", "'prot' is unknown; did you mean 'port'"),
    "key_in_file": (GOOD + "api_key: x\n", "'api_key' is unknown"),
    "roles_list": ("roles: [p]\n", "'roles' = .*names and folders"),
    "roles_text": ("roles: p\n", "'roles' = p.*names and folders"),
    "roles_number": ("roles: 3\n", "'roles' = 3.*names and folders"),
    "roles_null": ("roles: null\n", "roles"),
    "name_of_the_base": ("roles: {base: p}\n", "'base' is the name of the base"),
    "name_with_a_space": ("roles: {'a b': p}\n", "'a b' cannot be a role's name"),
    "name_with_a_slash": ("roles: {a/b: p}\n", "'a/b' cannot be a role's name"),
    "name_empty": ("roles: {'': p}\n", "'' cannot be a role's name"),
    "name_long": (f"roles: {{{'a' * 65}: p}}\n", "cannot be a role's name"),
    "name_chinese": ("roles: {助手: p}\n", "'助手' cannot be a role's name"),
    "name_control": ('roles: {"\\e[31m": p}\n', "cannot be a role's name"),
    "name_dots": ("roles: {..: p}\n", r"'\.\.' cannot be a role's name"),
    "role_list": ("roles: {a: [p]}\n", "'a' should be a folder"),
    "role_null": ("roles: {a: null}\n", "'a' should be a folder"),
    "role_number": ("roles: {a: 3}\n", "'a' should be a folder"),
    "role_empty": ("roles: {a: ''}\n", "'a'"),
    "role_without_a_folder": ("roles: {a: {temperature: 1}}\n", "'a' has no folder; add role: FOLDER"),
    "role_key": ("roles: {a: {role: p, temprature: 1}}\n", "'a' has an unknown key 'temprature'; did you mean"),
    "role_missing": ("roles: {a: nope}\n", "nope: no such folder"),
    **{f"role_{key}_{value}": (f"roles: {{a: {{role: p, {key}: {value}}}}}\n", f"'a': {key} = ")
       for key, values in {
           "temperature": ("-1", ".nan", ".inf", "hot", "[1]", "true", "null"),
           "top_p": ("0", "1.5", "-1", ".nan", "x"), "top_k": ("-1", "1.5", "x", "true"),
           "max_tokens": ("0", "-1", "1.5", "x", "[]"), "system": ("''", "[]"),
       }.items() for value in values},
    **{f"{key}_{value}": (f"{GOOD}{key}: {value}\n", f"'{key}' = ")
       for key, values in {
           "port": ("-1", "65536", "x", "1.5", "null", "true"), "host": ("''", "[a]", "null"),
           "threads": ("0", "x", "1.5"), "device": ("abacus", "3", "null"), "dtype": ("int8", "3"),
           "quantization": ("int8", "true"), "price_per_hour": ("0", "-1", ".inf", "x"), "limits": ("3", "[]"),
           "allow_role_changes": ("maybe", "3", "null"),
       }.items() for value in values},
    **{f"limits_{key}_{value}": (f"{GOOD}limits: {{{key}: {value}}}\n", f"'limits.{key}' = ")
       for key, values in {
           "request_bytes": ("0", "-1", "x", "null"), "queue": ("0", "1.5"), "tokens": ("1", "x"), "rows": ("0", "x"),
           "seconds": ("0", ".nan", ".inf", "x"),
       }.items() for value in values},
    "limits_unknown": (GOOD + "limits: {quee: 3}\n", "'limits.quee' is unknown; did you mean"),
}  # fmt: skip
"""What is wrong with a serve.yaml, whoever reads it."""

CONFIGS = [
    *(config(name, text, says) for name, (text, says) in YAML.items()),
    *(config(f"render_{name}", *YAML[name], RENDER) for name in (
        "empty", "list", "broken", "twice", "utf16", "closed", "pipe", "folder", "dead_link", "unknown_key",
        "key_in_file", "roles_list", "role_missing", "port_-1", "limits_queue_0", "name_control")),
    config("reward_with_a_temperature", "roles: {judge: {role: p, temperature: 0.5}}\nport: 0\n",
           "'judge' is a reward role", p=REWARD),
    config("same_folder_of_another_base", "roles: {a: p}\nmodel: fix/base2\nport: 0\n", r"\bp\b.*base"),
]  # fmt: skip

RENDERING = [
    leaving("render_no_words", "deploy render", "(?i)config", p=None),
    leaving("render_no_target", "deploy render serve.yaml --into out", "--target", files={"serve.yaml": GOOD}),
    leaving("render_no_place", "deploy render serve.yaml --target docker", "--into", files={"serve.yaml": GOOD}),
    leaving("render_unknown_target", "deploy render serve.yaml --target heroku --into out", "heroku",
            files={"serve.yaml": GOOD}),
    leaving("render_no_verb", "deploy", "", p=None, fine="the help of the verbs below it"),
    leaving("render_unknown_verb", "deploy send", "send", p=None),
    leaving("render_missing", "deploy render nope.yaml --target docker --into out", r"nope\.yaml", p=None),
    leaving("render_into_a_file", f"{RENDER}/x --write", "cannot be written", files={"serve.yaml": GOOD, "out": "x"}),
    leaving("render_into_file", RENDER, "out is a file", files={"serve.yaml": GOOD, "out": "x"}, untouched=["out"]),
    leaving("render_into_dead_link", RENDER, "out is a file", files={"serve.yaml": GOOD, "out": Link("gone")}),
    leaving("render_onto_itself", "deploy render serve.yaml --target docker --into . --write",
            "serve.yaml would be replaced", files={"serve.yaml": GOOD}, untouched=["serve.yaml"]),
    leaving("render_closed_place", "deploy render serve.yaml --target docker --into closed/out --write",
            "closed/out: cannot be written",
            files={"serve.yaml": GOOD, "closed": lambda path: (path.mkdir(), path.chmod(0o500))}),
    leaving("render_role_changes", RENDER, "allow_role_changes is true",
            files={"serve.yaml": GOOD + "allow_role_changes: true\n"}),
    leaving("render_two_models", RENDER, "a.*two models|two models",
            files={"serve.yaml": "roles: {a: fix/run_pre/model}\nmodel: fix/base\n"}),
    leaving("render_linked_weights", RENDER, "is a link out of its folder",
            files={"serve.yaml": GOOD, "p/more.safetensors": Link("/etc/hostname")}),
    *(leaving(f"render_differs_{name}", f"{RENDER} --write", f"{name} is there with other contents; add --force",
              files={"serve.yaml": GOOD, f"out/{name}": "mine"}, untouched=["out"])
      for name in ("Dockerfile", "compose.yaml", "serve.yaml", "COMMANDS.txt")),
    leaving("render_a_folder_there", f"{RENDER} --write --force", "out/Dockerfile is a folder",
            files={"serve.yaml": GOOD, "out/Dockerfile/x": "x"}, untouched=["out"]),
    leaving("render_base_gone", RENDER, "nope", p=Copy("run_sft/policy", {CARD: Json({"base": "/nope"})}),
            files={"serve.yaml": GOOD}),
    *(leaving(f"render_{target}_no_role", f"deploy render serve.yaml --target {target} --into out", "nope",
              files={"serve.yaml": "roles: {a: nope}\n"}) for target in ("systemd", "skypilot", "sagemaker")),
]  # fmt: skip

USES = {
    "merge": (MERGE, POLICY, {}),
    "mergereward": (f"{MERGE} --no-verify", REWARD, {}),
    "vllm": (VLLM, POLICY, {}),
    "tgi": (TGI, POLICY, {}),
    "serve": (SERVE, POLICY, {}),
    "servereward": (SERVE, REWARD, {}),
    "render": (RENDER, POLICY, {"serve.yaml": GOOD}),
}
"""What a damaged role is put through."""
SWAPPED: dict[str, dict[str, Any]] = {
    "nan": {WEIGHTS: tensors(all_nan)},
    "card_other_fingerprint": {CARD: Json({"base_fingerprint": "0" * 16})},
    "card_other_tokenizer": {CARD: Json({"tokenizer_fingerprint": "0" * 16})},
    "card_kind": {CARD: Json({"kind": "critic"})},
    "card_dtype": {CARD: Json({"dtype": "nosuch"})},
    "card_quantization": {CARD: Json({"quantization": "gptq"})},
    "card_base": {CARD: Json({"base": "/nope"})},
    "card_pooling": {CARD: Json({"pooling": "first"})},
    "rank_zero": {ADAPTER: Json({"r": 0})},
    "rank_text": {ADAPTER: Json({"r": "x"})},
    "alpha_text": {ADAPTER: Json({"lora_alpha": "x"})},
    "no_targets": {ADAPTER: Json({"target_modules": None})},
    "kind_of_adapter": {ADAPTER: Json({"peft_type": "IA3"})},
}
HEADS: dict[str, dict[str, Any]] = {
    "no_head": {WEIGHTS: tensors(without_head)},
    "wide_head": {WEIGHTS: tensors(wide_head)},
    "head_nan": {WEIGHTS: tensors(head_nan)},
}


RENDERED = {
    "adapter_gone": "",
    "weights_gone": "",
    **dict.fromkeys(
        ("adapter_half", "weights_half", "template_broken", "card_other_fingerprint", "card_other_tokenizer"),
        "the card alone is read; the rest where the role is served",
    ),
}
"""What `deploy render` is given: it reads no weights."""
FEW = ("card_half", "adapter_half", "weights_gone", "weights_shape", "card_base", "rank_zero")
"""For what goes the same way as another use."""


def _damaged() -> Iterator[Case]:
    for use, (command, role, files) in USES.items():
        found = {**FILES, **SWAPPED}
        if use in ("mergereward", "servereward", "tgi"):
            found = {name: found[name] for name in FEW} | (HEADS if use != "tgi" else {})
        for name, changes in found.items():
            if use == "render" and not name.startswith("card") and name not in RENDERED:
                continue
            fine = RENDERED.get(name, "") if use == "render" else ""
            yield leaving(
                f"{use}_{name}", command, r"\bp\b", p=Copy(role.source, changes), files=files, fine=fine, limit=30
            )


BASES: dict[str, dict[str, Any]] = {
    "config_gone": {"config.json": None},
    "config_half": {"config.json": Cut()},
    "config_list": {"config.json": "[]"},
    "weights_gone": {"model.safetensors": None},
    "weights_half": {"model.safetensors": Cut()},
    "weights_empty": {"model.safetensors": b""},
    "weights_one_less": {"model.safetensors": tensors(one_less)},
    "weights_shape": {"model.safetensors": tensors(another_shape)},
    "weights_nan": {"model.safetensors": tensors(all_nan)},
    "pickled": {".": pickled_base},
    "tokenizer_gone": {".": tied_away},
    "tokenizer_half": {"tokenizer.json": Cut()},
}
ON_BASES = {
    "merge": f"{MERGE} --model b",
    "serve": f"{SERVE} --model b",
    "serve_alone": "serve --model b --port 0",
}


def _on_bases() -> Iterator[Case]:
    for use, command in ON_BASES.items():
        for name, changes in BASES.items():
            yield leaving(f"{use}_base_{name}", command, r"\bb\b", files={"b": Copy("base", changes)}, limit=30)


CASES = [*OPTIONS, *SERVING, *CONFIGS, *RENDERING, *_damaged(), *_on_bases()]
