"""Config files and words of the command line: what was found once, and every key with every kind of wrong value."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from onebase.config.files import config_keys
from onebase.config.verbs import VERB_CONFIGS
from tests.bad_inputs.case import Case, Closed, Fifo, Folder, Link
from tests.bad_inputs.prepared import COMMANDS, DPO, PRETRAIN, SFT, answered, files_for

GOOD = """\
model: {model_name_or_path: fix/base, dtype: float32, chat_template: plain}
output_dir: out
max_steps: 2
batch: {minibatch: 4, microbatch_tokens: 2048}
data: {train: d.jsonl}
"""  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip


def in_file(name: str, text: str | bytes, says: str = r"c\.yaml", whole: bool = False, **more: Any) -> Case:
    """A config file: a good one with more lines, or as a whole another one."""
    files = {"c.yaml": text if whole else f"{GOOD}{text}", "d.jsonl": answered()}
    return Case(f"cfg_{name}", "sft c.yaml", files, **{"says": says, **more})


FOUND = [
    in_file("recursive_anchor", "lora: &a {x: *a}\n"),
    in_file("recursive_list", "lora.target_modules: &a [*a]\n"),
    in_file("alias_bomb", BOMB, lines=None),
    in_file("alias_bomb_in_a_key", BOMB + "lora.target_modules: *i\n", lines=None),
    in_file("alias_bomb_of_mappings", BOMB.replace("[", "{p: ").replace("x, ", "").replace("]", "}"), lines=None),
    in_file("merge_bomb", "lora: {<<: [" + ", ".join(["{r: 4}"] * 50) + "]}\n", lines=None),
    in_file("deep_nest", "x: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n"),
    in_file("deep_list", "x: " + "[" * 5000 + "]" * 5000 + "\n"),
    in_file("tag_int_bad", "seed: !!int abc\n", "seed|line 6"),
    in_file("tag_float_bad", "optimizer.learning_rate: !!float abc\n", "learning_rate|line 6"),
    in_file("tag_bool_bad", "seed: !!bool maybe\n", "seed|line 6"),
    in_file("tag_timestamp_bad", "seed: !!timestamp abc\n", "seed|line 6"),
    in_file("tag_null_bad", "seed: !!null abc\n", "seed|line 6"),
    in_file("tag_binary_bad", "seed: !!binary '###'\n", "seed|line 6"),
    in_file("tag_set", "lora.target_modules: !!set {a, b}\n", "target_modules|line 6"),
    in_file("tag_omap", "lora.target_modules: !!omap [a: 1]\n", "target_modules|line 6"),
    in_file("tag_python", "seed: !!python/object/apply:os.system ['touch owned']\n", "c.yaml"),
    in_file("tag_unknown", "seed: !nosuch 3\n", "seed|line 6"),
    in_file("int_5000_digits", "seed: " + "1" * 5000 + "\n", "seed|line 6"),
    in_file("lora.target_modules=[]", "lora.target_modules: []\n", "lora.target_modules"),
    in_file("lora.target_modules_of_blanks", "lora.target_modules: ['', ' ']\n", "lora.target_modules"),
    in_file("lora.target_modules_unknown", "lora.target_modules: [nosuch]\n", "lora.target_modules|nosuch"),
    in_file("lora.target_modules_regex", "lora.target_modules: '(['\n", r"lora.target_modules|\(\["),
    in_file("lora.layers=9999999999999-9999999999", "lora.layers: 9999999999-9999999999999\n", "lora.layers"),
    in_file("lora.layers=0-9999999999999", "lora.layers: 0-9999999999999\n", "lora.layers"),
    in_file("lora.layers_twice", "lora.layers: [0, 0]\n", "lora.layers", fine="both mean the first layer"),
    in_file("lora.layers_beyond", "lora.layers: [7]\n", "lora.layers"),
    in_file("lora.layers_none", "lora.layers: []\n", "lora.layers"),
    in_file("lora.r_huge", "lora.r: 100000000000\n", "lora.r|memory", codes={2, 4}),
    in_file("lora.r_wider_than_the_base", "lora.r: 3000\n", "lora.r", fine="wasteful, not wrong"),
    in_file("model.device=meta", "model.device: meta\n", "model.device|c.yaml"),
    in_file("model.device_unknown", "model.device: nosuch\n", "model.device"),
    in_file("model.device_cuda_99", "model.device: cuda:99\n", "model.device|cuda:99"),
    in_file("model.device_negative", "model.device: cuda:-1\n", "model.device|cuda:-1"),
    in_file("output_dir='a\\0b'", GOOD.replace(": out", ': "a\\0b"'), "output_dir", whole=True),
    in_file("output_dir=''", GOOD.replace(": out", ": ''"), "output_dir", whole=True),
    in_file("output_dir='  '", GOOD.replace(": out", ": '  '"), "output_dir", whole=True),
    in_file("output_dir_with_escape", GOOD.replace(": out", ': "out\\e[31m"'), "output_dir", whole=True),
    in_file("output_dir_with_newline", GOOD.replace(": out", ': "out\\nx"'), "output_dir", whole=True),
    Case("cfg_long_name", ["sft", "x" * 300 + ".yaml"], says="too long|no config file"),
    Case("cfg_long_path", ["sft", "/".join(["y" * 200] * 30) + ".yaml"], says="too long|no config file"),
    Case("cfg_symlink_loop", "sft l.yaml", {"l.yaml": Link("l.yaml")}, says="l.yaml"),
    Case("cfg_dangling_link", "sft l.yaml", {"l.yaml": Link("nosuch")}, says="l.yaml"),
    Case("cfg_proc_mem", "sft --config /proc/self/mem", says="/proc/self/mem|mem"),
    Case("cfg_fifo", "sft c.yaml", {"c.yaml": Fifo()}, says="c.yaml", limit=20),
    Case("cfg_dev_zero", "sft --config /dev/zero", says="zero", limit=20),
    Case("cfg_folder", "sft c.yaml", {"c.yaml": Folder()}, says="c.yaml"),
    Case("cfg_unreadable", "sft c.yaml", {"c.yaml": Closed(GOOD)}, says="c.yaml"),
    Case("cfg_missing", "sft c.yaml", says="c.yaml"),
    Case("cfg_name_with_nul", ["sft", "c\0.yaml"], says="c"),
    Case("cfg_twice", "sft c.yaml c.yaml", {"c.yaml": GOOD}, says="c.yaml"),
    Case("cfg_and_option", "sft c.yaml --config c.yaml", {"c.yaml": GOOD}, says="c.yaml"),
    in_file("empty", "", whole=True, says="missing", lines=None),
    in_file("list", "- a\n", whole=True),
    in_file("number", "3\n", whole=True),
    in_file("two_documents", "---\nseed: 3\n", "document"),
    in_file("utf16", (GOOD).encode("utf-16"), whole=True),
    in_file("latin1", b"output_dir: caf\xe9\n", whole=True),
    in_file("nul", GOOD + "seed: \0\n", whole=True),
    in_file("tabs", "lora:\n\tr: 3\n"),
    in_file("duplicate_key", "seed: 1\nseed: 2\n", "'seed' is given twice"),
    in_file("duplicate_by_dot", "seed: 1\nlora.r: 2\nlora: {r: 3}\n", "lora.r"),
    in_file("key_is_list", "? [a, b]\n: 3\n", lines=None),
    in_file("key_is_mapping", "? {a: b}\n: 3\n", lines=None),
    in_file("key_is_null", "null: 3\n", lines=None),
    in_file("key_empty", "'': 3\n"),
    in_file("key_dots", "...a: 3\n"),
    in_file("key_with_escape", '"\\e[31mseed": 3\n'),
    in_file("value_with_escape", 'model.layout: "\\e[31mtree"\n', "model.layout"),
    in_file("group_as_value", "lora: 16\n", "lora"),
    in_file("value_as_group", "seed: {a: 3}\n", "seed"),
    in_file("unknown_key", "optimizer.lr: 3\n", "learning_rate"),
    in_file("merge_key", "<<: {seed: 3}\n", lines=None, fine="YAML merges, so it is the same as seed: 3"),
    in_file("seed=true", "seed: true\n", "seed"),
    in_file("max_steps=true", GOOD.replace("max_steps: 2", "max_steps: true"), "max_steps", whole=True),
    in_file("optimizer.learning_rate=true", "optimizer.learning_rate: true\n", "optimizer.learning_rate"),
    in_file("lora.r=true", "lora.r: true\n", "lora.r"),
    in_file("lora.layers=[true]", "lora.layers: [true]\n", "lora.layers"),
    in_file("data.eval_fraction=0.999999999", "data.eval_fraction: 0.999999999\n", "eval_fraction", codes={2, 3}),
    Case("ov_recursive", ["sft", "c.yaml", "--lora", "{x: &a {y: *a}}"], {"c.yaml": GOOD}, says="lora"),
    Case("ov_alias_bomb", ["sft", "c.yaml", "--lora.target_modules", "[" + BOMB.replace("\n", ", ")[:-2] + "]"],
         {"c.yaml": GOOD, "d.jsonl": answered()}, says="target_modules", lines=None),
    Case("ov_bigint", ["sft", "c.yaml", "--seed", "1" * 5000], {"c.yaml": GOOD}, says="seed"),
    Case("ov_bad_tag", ["sft", "c.yaml", "--lora", "{r: !!int abc}"], {"c.yaml": GOOD}, says="lora"),
    Case("ov_deep", ["sft", "c.yaml", "--lora", "{a: " * 3000 + "1" + "}" * 3000], {"c.yaml": GOOD}, says="lora"),
    Case("ov_underscore_num", "sft c.yaml --seed 1_000", {"c.yaml": GOOD, "d.jsonl": answered()}, says="seed"),
    Case("ov_hex_num", "sft c.yaml --seed 0x10", {"c.yaml": GOOD, "d.jsonl": answered()}, says="seed"),
    Case("ov_blank_num", ["sft", "c.yaml", "--seed", " 3 "], {"c.yaml": GOOD, "d.jsonl": answered()},
         says="seed", fine="the blanks say nothing"),
    Case("ov_quoted_num", ["sft", "c.yaml", "--seed", "'3'"], {"c.yaml": GOOD, "d.jsonl": answered()},
         says="seed", fine="a number in quotes is still that number"),
    Case("ov_fullwidth_num", ["sft", "c.yaml", "--seed", "３"], {"c.yaml": GOOD, "d.jsonl": answered()}, says="seed"),
    Case("ov_bool_num", "sft c.yaml --optimizer.learning_rate true", {"c.yaml": GOOD, "d.jsonl": answered()},
         says="learning_rate"),
    Case("ov_no_value", "sft c.yaml --seed", {"c.yaml": GOOD}, says="seed"),
    Case("ov_twice", "sft c.yaml --seed 3 --seed 4", {"c.yaml": GOOD}, says="seed"),
    Case("ov_bare_word", "sft c.yaml seed", {"c.yaml": GOOD}, says="seed"),
    Case("ov_only_dashes", "sft c.yaml -- 3", {"c.yaml": GOOD}),
    Case("ov_empty_key", "sft c.yaml --=3", {"c.yaml": GOOD}),
    Case("ov_empty_word", ["sft", "c.yaml", ""], {"c.yaml": GOOD}),
    Case("ov_surrogate", ["sft", "c.yaml", "--output_dir", "\udcff"], {"c.yaml": GOOD, "d.jsonl": answered()},
         says="output_dir"),
    Case("ov_escape", ["sft", "c.yaml", "--\x1b[31mseed", "3"], {"c.yaml": GOOD}),
    Case("ov_unknown_verb", "stf c.yaml", {"c.yaml": GOOD}, says="stf"),
    Case("ov_escape_verb", ["\x1b[31mx"], says="x"),
    Case("ov_no_verb", [], lines=0, fine="the help is shown"),
    Case("ov_resume_nothing", f"{SFT} --resume", files_for("sft"), says="out"),
    Case("dpo_loss_[0 sigmoid]", [*DPO.split(), "--loss", "0 sigmoid"], files_for("dpo"), says="loss"),
    Case("dpo_loss_[sigmoid + sigmoid]", [*DPO.split(), "--loss", "sigmoid + sigmoid"], files_for("dpo"), says="loss"),
    Case("dpo_loss_[1e400 sigmoid]", [*DPO.split(), "--loss", "1e400 sigmoid"], files_for("dpo"), says="loss"),
    Case("dpo_--preference.label_smoothing_0.3_--loss_ipo", f"{DPO} --preference.label_smoothing 0.3 --loss ipo",
         files_for("dpo"), codes={0, 2}, says="label_smoothing", warns="warning: .*label_smoothing"),
    Case("dpo_--preference.gamma_3_--loss_sigmoid", f"{DPO} --preference.gamma 3 --loss sigmoid",
         files_for("dpo"), codes={0, 2}, says="gamma", warns="warning: .*gamma"),
    Case("pretrain_model_name_or_path_--tiny.hidden_size_64",
         "pretrain --output_dir out --max_steps 2 --batch.minibatch 4 --data.train d.txt --model.model_name_or_path "
         "fix/base --tiny.hidden_size 64", files_for("pretrain"), says="tiny.hidden_size"),
    Case("pretrain_--tiny.hidden_size_1000000000", f"{PRETRAIN} --tiny.hidden_size 1000000000".replace(
        "--tiny.hidden_size 16 ", ""), files_for("pretrain"), codes={2, 4}, says="tiny.hidden_size|memory"),
    Case("pretrain_num_layers_huge", PRETRAIN.replace("num_layers 1", "num_layers 100000000"), files_for("pretrain"),
         codes={2, 4}, says="tiny|memory"),
    Case("pretrain_max_length_1", PRETRAIN.replace("max_length 32", "max_length 1"), files_for("pretrain"),
         codes={2, 3}, says="length|short"),
]  # fmt: skip

LOSSES = ("-1 sigmoid", "nan sigmoid", "inf sigmoid", "sigmoid +", "+ sigmoid", "+", "", " ", "sigmoid - nll",
          "kto + nll", "sigmoid nll", "0.5", "nosuch", "2*nosuch", "1e-400 sigmoid", "0.0 sigmoid + nll",
          "sigmoid +0.1 sigmoid",
          "sigmoid\x1b[31m", "nll + 0 nll", "1_0 sigmoid", "9" * 400 + " sigmoid")  # fmt: skip
FOUND += [
    Case(
        f"dpo_loss_wrong_{number}_{ascii(loss)[:30]}",
        [*DPO.split(), "--loss", loss],
        files_for("dpo"),
        says="loss",
        lines=None,
    )
    for number, loss in enumerate(LOSSES)
]
IDLE = {
    "dpo": ("--preference.desirable_weight 3", "--preference.undesirable_weight 3",
            "--loss kto --preference.max_pairs 3", "--loss orpo --preference.reference live",
            "--loss simpo --reference_role fix/run_sft/policy", "--loss hinge --preference.label_smoothing 0.2"),
    "ppo": ("--ppo.kl_horizon 5000",),
    "iterate": ("--learn sft --preference.beta 3", "--learn sft --loss ipo", "--learn sft --reference kept"),
    "pretrain": ("--model.quantization nf4",),
    "sft": ("--lora.r 0 --lora.alpha 3", "--lora.r 0 --lora.dropout 0.2", "--lora.r 0 --lora.target_modules [q_proj]",
            "--start_from fix/run_sft/policy --lora.r 4", "--optimizer.warmup_steps 50"),
}  # fmt: skip
"""A key that the rest of the command leaves without effect: refused, or said."""
FOUND += [
    Case(f"idle_{verb}_{text.replace('--', '')}", f"{COMMANDS[verb]} {text}", files_for(verb), codes={0, 2},
         says=text.split()[-2].rpartition(".")[2].lstrip("-"), warns="warning: ")
    for verb, texts in IDLE.items() for text in texts
]  # fmt: skip


def numeric(kind: Any) -> bool:
    return any(part in (int, float) for part in _parts(kind))


def _parts(kind: Any) -> list[Any]:
    if hasattr(kind, "__metadata__"):
        return _parts(kind.__origin__)
    if get_origin(kind) in (Union, types.UnionType):
        return [part for choice in get_args(kind) for part in _parts(choice)]
    return [kind]


def keys_of(verb: str) -> dict[str, Any]:
    return {key: field.annotation for key, field in config_keys(VERB_CONFIGS[verb])}


def with_value(verb: str, key: str, value: str) -> list[str]:
    """The verb's working command with one key set, or set otherwise."""
    words = COMMANDS[verb].split()
    if f"--{key}" in words:
        at = words.index(f"--{key}")
        del words[at : at + 2]
    return [*words, f"--{key}={value}", "--dry-run"]


TRUE = [
    Case(f"true_{verb}_{key}", [verb, "c.yaml", *with_value(verb, key, "0")[1:-2], "--dry-run"],
         {**files_for(verb), "c.yaml": f"{key}: true\n"}, says=rf"c\.yaml: '{key}' = true")
    for verb in VERB_CONFIGS
    for key, kind in keys_of(verb).items()
    if numeric(kind)
]  # fmt: skip
"""`true` is 1 to Python, and a mistake to whoever wrote it."""

ZERO = {
    "seed", "lora.r", "lora.dropout", "data.eval_fraction", "data.max_dropped_share", "optimizer.weight_decay",
    "optimizer.warmup_steps", "ranking.centering_coefficient", "preference.label_smoothing", "preference.gamma",
    "generation.top_k", "ppo.gamma", "ppo.lam", "ppo.clip_low", "ppo.value_coefficient", "ppo.kl_coefficient",
    "ppo.critic_warmup_rollouts", "ppo.score_baseline", "ppo.missing_end_penalty", "ppo.length_penalty",
    "ppo.entropy_coefficient", "ppo.ptx_coefficient", "threads",
}  # fmt: skip
"""Keys for which 0 is a value with a meaning of its own; `threads` may read it as all of them."""
NEEDS_MEMORY = {
    "lora.r",
    "tiny.hidden_size",
    "tiny.num_layers",
    "tiny.max_length",
    "generation.samples_per_prompt",
    "seed",
}
VALUES = {"minus": "-1", "zero": "0", "nan": ".nan", "inf": ".inf", "1e309": "1e309", "empty": "''", "null": "null",
          "list": "[1]", "mapping": "{a: 1}", "text": "abc", "minus_inf": "-.inf", "quoted": "'7'",
          "beyond_64_bits": "99999999999999999999"}  # fmt: skip


def _reason(key: str, name: str, kind: Any) -> str:
    if name == "zero" and key in ZERO:
        return "0 has a meaning there"
    if name == "minus" and key == "ppo.score_baseline":
        return "a baseline may be negative"
    if name == "null" and type(None) in _parts(kind):
        return "null has a meaning there"
    if name == "quoted":
        return "a number in quotes is still that number"
    if name == "beyond_64_bits" and key not in NEEDS_MEMORY:
        return "more than there will ever be: no limit"
    return ""


def _numbers() -> Iterator[Case]:
    seen: set[str] = set()
    for verb in ("sft", "dpo", "reward", "ppo", "pretrain", "iterate", "best-of"):
        for key, kind in keys_of(verb).items():
            if not numeric(kind) or key in seen:
                continue
            seen.add(key)
            for name, value in VALUES.items():
                fine = _reason(key, name, kind)
                yield Case(
                    f"num_{verb}_{key}_{name}",
                    with_value(verb, key, value),
                    files_for(verb),
                    {2, 3, 4} if fine or name == "beyond_64_bits" else {2},
                    says="" if fine else key,
                    fine=fine,
                    lines=None if name == "mapping" else 1,
                )


def _choices() -> Iterator[Case]:
    seen: set[str] = set()
    for verb in VERB_CONFIGS:
        for key, kind in keys_of(verb).items():
            choices = [choice for part in _parts(kind) if get_origin(part) is Literal for choice in get_args(part)]
            if key in seen or not (choices or kind is bool):
                continue
            seen.add(key)
            near = str(choices[0]).upper() if choices else "maybe"
            for name, value in {
                "wrong": "nosuch",
                "case": near,
                "number": "7",
                "list": "[a]",
                "mapping": "{a: 1}",
                "blank": "' '",
                "escape": '"\\e[2J"',
            }.items():
                if name != "number" or not numeric(kind):
                    yield Case(f"enum_{verb}_{key}_{name}", with_value(verb, key, value), files_for(verb), says=key)


CASES = [*FOUND, *TRUE, *_numbers(), *_choices()]
