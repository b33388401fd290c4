"""Folders of base models: config, weights, tokenizer and chat template, each wrong in its own way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Copy, Cut, Flip, Folder, Json
from tests.bad_inputs.prepared import PPO, PRETRAIN, SFT, answered, files_for

ON_M = SFT.replace("fix/base", "m")
OWN_TEMPLATE = ON_M.replace("--model.chat_template plain ", "")


def model(name: str, changes: dict[str, Any], says: str = r"\bm\b", **more: Any) -> list[Case]:
    """The folder as it is trained on, and under --dry-run, which has to notice the same."""
    files = {"m": Copy("base", changes), "d.jsonl": answered()}
    return [
        Case(f"model_{name}", ON_M, files, **{"says": says, **more}),
        Case(f"model_dry_{name}", f"{ON_M} --dry-run", files, **{"says": says, **more}),
    ]


def template(name: str, text: Any, says: str = "template", **more: Any) -> Case:
    """A tokenizer's own chat template."""
    files = {"m": Copy("base", {"tokenizer_config.json": Json({"chat_template": text})}), "d.jsonl": answered()}
    return Case(f"model_m_tpl_{name}", f"{OWN_TEMPLATE} --dry-run", files, {2, 3}, **{"says": says, **more})


def config(**values: Any) -> dict[str, Any]:
    return {"config.json": Json(values)}


def tensors(change: Any) -> Any:
    """Rewrites a safetensors file with `change(tensors)` done to its tensors."""

    def rewrite(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        found = load_file(path)
        change(found)
        save_file(found, path, metadata={"format": "pt"})

    return rewrite


def all_nan(found: dict[str, Any]) -> None:
    for tensor in found.values():
        tensor.fill_(float("nan"))


def one_inf(found: dict[str, Any]) -> None:
    found[sorted(found)[-1]].view(-1)[0] = float("inf")


def one_less(found: dict[str, Any]) -> None:
    del found[sorted(found)[-1]]


def another_shape(found: dict[str, Any]) -> None:
    name = sorted(found)[-1]
    found[name] = found[name].repeat(2, *[1] * (found[name].dim() - 1))


def integers(found: dict[str, Any]) -> None:
    for name in found:
        found[name] = found[name].int()


def larger_tokenizer(path: Path) -> bytes:
    """The tokenizer of another base with more entries than this one has rows."""
    return (path.parents[1] / "fix" / "base_more" / path.name).read_bytes()


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
NESTED += "{% endfor %}" * 3
TEMPLATES: dict[str, Any] = {
    "type": "{{ messages + 1 }}", "div": "{{ 1 / 0 }}", "include": '{% include "x" %}', "num": 5,
    "rec": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "mem": "{{ 'a' * 100000000000 }}",
    "loop": "{% for i in range(1000000000) %}x{% endfor %}", "nested_loops": NESTED, "list": ["a"], "true": True,
    "syntax": "{% for %}", "unclosed": "{% if true %}", "undefined": "{{ nosuch.deep.er }}",
    "import": '{% import "os" as os %}',
    "raise": "{{ raise_exception('no') }}", "raise_escape": "{{ raise_exception('\x1b[31mno\nerror: fake') }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "empty": "", "blank": " ", "constant": "always the same",
    "power": "{{ 10 ** 10 ** 8 }}", "attribute": "{{ messages[0].content.nosuch() }}", "format": "{{ '%s%s' % 1 }}",
    "index": "{{ messages[99].content }}",
    "no_user": "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}"
    "{% endif %}{% endfor %}", "encode": "{{ '\\ud83d' }}", "repeat": "{{ ('%0999999999d' % 1) | length }}",
    "last_alone": "{{ messages[-1].content }}", "random": "{{ range(1000000) | random }}",
    "now": "{{ strftime_now('%f') }}",
}  # fmt: skip

CASES: list[Case] = [
    *model("m_config_heads", config(num_attention_heads=3)),
    *model("m_config_neg", config(hidden_size=-64)),
    *model("m_config_str", config(num_hidden_layers="two")),
    *model("m_config_ctx1", config(max_position_embeddings=1)),
    *model("m_config_ctx0", config(max_position_embeddings=0)),
    *model("m_config_ctx_neg", config(max_position_embeddings=-5)),
    *model("m_config_layers0", config(num_hidden_layers=0)),
    *model("m_config_fewerlayers", config(num_hidden_layers=1), "layer|unused|weights|tensor"),
    *model("m_config_morelayers", config(num_hidden_layers=3), "layer|missing|weights|tensor"),
    *model("m_config_gptq", config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantiz|gptq",
           codes={2, 6}),
    *model("m_config_quant_unknown", config(quantization_config={"quant_method": "nosuch"}), "quantiz|nosuch",
           codes={2, 6}),
    *model("m_config_type_unknown", config(model_type="nosuch", architectures=["NoSuch"]), "nosuch|NoSuch"),
    *model("m_config_no_type", {"config.json": Json(without=["model_type"])}),
    *model("m_config_vocab", config(vocab_size=7), "vocab|token"),
    *model("m_config_vocab_huge", config(vocab_size=10**15), "vocab|memory|m", codes={2, 4}),
    *model("m_config_hidden_huge", config(hidden_size=10**7), "m", codes={2, 4}),
    *model("m_config_rope", config(rope_parameters={"rope_type": "nosuch"}), "rope|nosuch"),
    *model("m_config_act", config(hidden_act="nosuch"), "hidden_act|nosuch"),
    *model("m_config_nan", {"config.json": '{"model_type": "llama", "rms_norm_eps": NaN, "hidden_size": 32}'}),
    *model("m_config_list", {"config.json": "[]"}),
    *model("m_config_half", {"config.json": Cut()}),
    *model("m_config_empty", {"config.json": ""}),
    *model("m_config_binary", {"config.json": bytes(range(256))}),
    *model("m_config_folder", {"config.json": Folder()}),
    *model("m_config_deep", {"config.json": "[" * 100_000}),
    *model("m_config_gone", {"config.json": None}),
    *model("m_weights_gone", {"model.safetensors": None}),
    *model("m_tokenizer_gone", {"tokenizer.json": None, "tokenizer_config.json": None}, "tokenizer"),
    *model("m_tokenizer_half", {"tokenizer.json": Cut()}, "tokenizer|m"),
    *model("m_tokenizer_flip", {"tokenizer.json": Flip()}, "tokenizer|m", fine="one other character may be a word"),
    *model("m_tokenizer_binary", {"tokenizer.json": bytes(range(256))}, "tokenizer|m"),
    *model("m_tokenizer_list", {"tokenizer.json": "[]"}, "tokenizer|m"),
    *model("m_eosunknown", {"tokenizer_config.json": Json({"eos_token": "<nosuch>"})}, "eos|end|<nosuch>|token"),
    *model("m_eosgone", {"tokenizer_config.json": Json(without=["eos_token"])}, "eos|end"),
    *model("m_eos_number", {"tokenizer_config.json": Json({"eos_token": 7})}, "eos|end|token"),
    *model("m_code", {"config.json": Json({"auto_map": {"AutoModelForCausalLM": "code.M", "AutoConfig": "code.C"},
           "model_type": "mine"}), "code.py": "open('owned', 'w')\n"}, "code|m", stdin=b"y\n" * 50),
    *model("m_code_tokenizer", {"tokenizer_config.json": Json({"auto_map": {"AutoTokenizer": ["code.T", None]},
           "tokenizer_class": "T"}), "code.py": "open('owned', 'w')\n"}, "code|m", stdin=b"y\n" * 50,
           fine="the fast tokenizer is read, and the folder's code is not"),
]  # fmt: skip
CASES += [
    case for case in (
        *model("m_weights_half", {"model.safetensors": Cut()}),
        *model("m_weights_empty", {"model.safetensors": b""}),
        *model("m_weights_binary", {"model.safetensors": bytes(range(256)) * 9}),
        *model("m_weights_folder", {"model.safetensors": Folder()}),
        *model("m_weights_nan", {"model.safetensors": tensors(all_nan)}, "NaN|nan|finite", codes={1, 2}),
        *model("m_weights_inf", {"model.safetensors": tensors(one_inf)}, "NaN|inf|finite", codes={1, 2}),
        *model("m_weights_one_less", {"model.safetensors": tensors(one_less)}, "missing|weights|tensor|m"),
        *model("m_weights_shape", {"model.safetensors": tensors(another_shape)}, "shape|size|m"),
        *model("m_weights_int", {"model.safetensors": tensors(integers)}, "int|dtype|m",
               fine="whole numbers are numbers"),
    ) if "dry" not in case.name or "half" in case.name or "folder" in case.name
]  # fmt: skip
"""What only reading the weights can show is no matter of --dry-run."""
CASES += [
    Case(f"model_{dry}{name}", f"{SFT.replace('fix/base', f'fix/{name}')} {'--dry-run' if dry else ''}",
         files_for("sft"), says=name)
    for name in ("m_bert", "m_bertmodel", "m_seqcls_untied", "m_seqcls_tied", "m_seqcls3", "m_t5") for dry in ("",
    "dry_")
]  # fmt: skip
CASES += [
    *model("m_wrongtok", {"tokenizer.json": lambda path: path.write_bytes(larger_tokenizer(path))}, "token|vocab"),
]  # fmt: skip
_THEIR_CHOICE = ("now", "constant", "no_user", "last_alone")
CASES += [
    template(name, text, limit=30, fine="it renders; what it leaves out is its author's choice" if name in _THEIR_CHOICE
             else "") for name, text in TEMPLATES.items()
]  # fmt: skip


def _paths() -> Iterator[Case]:
    for name, text in TEMPLATES.items():
        if isinstance(text, str) and name in ("type", "div", "rec", "mem", "nested_loops", "syntax", "empty", "class"):
            yield Case(
                f"model_tpl_file_{name}",
                SFT.replace("template plain", "template t.jinja"),
                {**files_for("sft"), "t.jinja": text},
                {2, 3},
                says="t.jinja|template",
                limit=30,
            )
    for name, content in {"binary": bytes(range(256)), "utf16": "{{ 1 }}".encode("utf-16"), "folder": Folder()}.items():
        yield Case(
            f"model_tpl_file_{name}",
            SFT.replace("template plain", "template t.jinja"),
            {**files_for("sft"), "t.jinja": content},
            says="t.jinja",
        )
    for name, value in {
        "missing": "./nope",
        "file": "d.jsonl",
        "empty_folder": "e",
        "hub": "nosuch-org/nosuch-model",
        "blank": "' '",
        "empty": "''",
        "dots": "..",
        "url": "https://example.com/x",
    }.items():
        yield Case(
            f"model_path_{name}",
            SFT.replace("fix/base", value),
            {**files_for("sft"), "e": Folder()},
            says="model",
            limit=40,
        )
    for name, value in {"binary": bytes(range(256)), "list": "[]", "cut": Cut()}.items():
        yield Case(
            f"model_pretrain_tokenizer_{name}",
            PRETRAIN.replace("--tiny.vocab_size 300", "--tiny.tokenizer t"),
            {**files_for("pretrain"), "t": Copy("base", {"tokenizer.json": value})},
            says="t",
        )
    rm = PPO.replace("--reward.callable rew:score", "--reward.model m")
    kinds: dict[str, Any] = {
        "rm_cfgheads": Copy("m_seqcls_untied", config(num_attention_heads=3)),
        "rm_three_labels": Copy("m_seqcls3"), "rm_language_model": Copy("base"),
        "rm_half": Copy("m_seqcls_untied", {"model.safetensors": Cut()}), "rm_empty": Folder(),
        "rm_no_tokenizer": Copy("m_seqcls_untied", {"tokenizer.json": None, "tokenizer_config.json": None}),
        "rm_role": Copy("run_rm/reward"), "rm_no_pad": Copy("m_seqcls_untied", {"config.json": Json(
            {"pad_token_id": None}), "tokenizer_config.json": Json(without=["pad_token"])}),
        "rm_no_head": Copy("m_seqcls_untied", {"model.safetensors": tensors(lambda found: found.pop("score.weight"))}),
        "rm_head_nan": Copy("m_seqcls_untied", {"model.safetensors": tensors(
            lambda found: found["score.weight"].fill_(float("nan")))}),
        "rm_config_list": Copy("m_seqcls_untied", {"config.json": "[]"}),
        "rm_code": Copy("m_seqcls_untied", {"config.json": Json({"model_type": "mine", "auto_map": {"AutoConfig": "c.C",
                        "AutoModelForSequenceClassification": "c.M"}}), "c.py": "open('owned', 'w')\n"}),
    }  # fmt: skip
    for name, content in kinds.items():
        for dry in ("", " --dry-run"):
            if dry and name in ("rm_half", "rm_head_nan", "rm_no_head"):
                continue
            yield Case(
                name + ("_dry" if dry else ""),
                rm + dry,
                {**files_for("ppo"), "m": content},
                {1, 2},
                says=r"\bm\b",
                fine="padding is by our own" if name == "rm_no_pad" else "",
                stdin=b"y\n" * 50,
            )
    yield Case("rm_missing", rm.replace("--reward.model m", "--reward.model nope"), files_for("ppo"), says="nope")


CASES += _paths()
