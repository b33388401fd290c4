"""Folders of roles: what was found once, each file damaged, each entry of role.json and adapter_config.json wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case, Closed, Copy, Cut, Fifo, Flip, Folder, Json
from tests.bad_inputs.of_models import all_nan, another_shape, one_inf, one_less, tensors
from tests.bad_inputs.prepared import BEST_OF, DPO, PPO, REWARD, SFT, files_for

START = f"{SFT} --start_from p"
WITH_REWARD_ROLE = PPO.replace("--reward.callable rew:score", "--reward.role p")
SCORE = "score p d.jsonl"
CHAT = "chat p --once hi --max-new-tokens 4"
NEUTRAL = {"codes": {2}, "says": r"\bp\b"}
WEIGHTS, CARD, ADAPTER = "adapter_model.safetensors", "role.json", "adapter_config.json"


def policy(name: str, command: str, changes: dict[str, Any], **more: Any) -> Case:
    verb = command.split()[0]
    return Case(name, command, {**files_for(verb), "p": Copy("run_sft/policy", changes)}, **{**NEUTRAL, **more})


def reward(name: str, command: str, changes: dict[str, Any], **more: Any) -> Case:
    files = files_for("reward" if command == SCORE else command.split()[0])
    return Case(name, command, {**files, "p": Copy("run_rm/reward", changes)}, **{**NEUTRAL, **more})


def head_nan(found: dict[str, Any]) -> None:
    next(tensor for name, tensor in found.items() if "score" in name).fill_(float("nan"))


def without_head(found: dict[str, Any]) -> None:
    del found[next(name for name in found if "score" in name)]


def wide_head(found: dict[str, Any]) -> None:
    name = next(name for name in found if "score" in name)
    found[name] = found[name].repeat(3, 1)


CASES: list[Case] = [
    policy("role_sft_start_from_r_cfgrneg", START, {ADAPTER: Json({"r": -1})}),
    policy("role_sft_start_from_r_cfgrstr", START, {ADAPTER: Json({"r": "x"})}),
    policy("role_sft_start_from_r_cfgtargets", START, {ADAPTER: Json({"target_modules": ["nosuch"]})}),
    Case("role_sft_start_from_nosuch_dry", f"{SFT} --start_from /nowhere/p --dry-run", files_for("sft"),
         says="/nowhere/p"),
    reward("role_ppo_reward_role_r_stdstr", WITH_REWARD_ROLE, {CARD: Json({"score_std": "x"})}),
    reward("role_ppo_reward_role_r_pool", WITH_REWARD_ROLE, {CARD: Json({"pooling": "max"})}, says="pooling"),
    reward("role_ppo_reward_role_r_stdneg", WITH_REWARD_ROLE, {CARD: Json({"score_std": -1})}, says="score_std"),
    reward("score_r_headnan", SCORE, {WEIGHTS: tensors(head_nan)}, codes={1, 2}, says="(?i)nan|finite"),
    reward("score_r_pool", SCORE, {CARD: Json({"pooling": "max"})}, says="pooling"),
    Case("score_budget0", "score fix/run_rm/reward d.jsonl --microbatch-tokens 0", files_for("reward"),
         says="microbatch"),
    Case("score_budgetneg", "score fix/run_rm/reward d.jsonl --microbatch-tokens -5", files_for("reward"),
         says="microbatch"),
    policy("chat_r_rolequant", CHAT, {CARD: Json({"quantization": "int3"})}, says="quantization"),
    policy("chat_r_nan", CHAT, {WEIGHTS: tensors(all_nan)}, codes={1, 2}, says="(?i)nan|finite"),
    policy("chat_r_rolebase2", CHAT, {CARD: Json({"base": None})}, says="base"),
    policy("chat_r_roledtype2", CHAT, {CARD: Json({"dtype": "float999"})}, says="dtype|float999"),
    policy("role_other_base", START.replace("fix/base", "fix/base2"), {}, says="base"),
    policy("role_more_tokens", START.replace("fix/base", "fix/base_more"), {}, says="base|tokenizer"),
    reward("role_reward_as_policy", START, {}, says="reward"),
    policy("role_policy_as_reward", WITH_REWARD_ROLE, {}, says="policy"),
    policy("role_policy_scored", SCORE, {}, says="policy"),
    reward("role_reward_chatted", CHAT, {}, says="reward"),
    Case("role_run_folder", f"{SFT} --start_from fix/run_sft", files_for("sft"), says="fix/run_sft"),
    Case("role_base_folder", f"{SFT} --start_from fix/base", files_for("sft"), says="fix/base"),
    Case("role_reference_missing", f"{DPO} --reference_role nope", files_for("dpo"), says="nope"),
    Case("role_ppo_start_from_missing", f"{PPO} --start_from nope", files_for("ppo"), says="nope"),
    Case("role_best_of_start_from_missing", f"{BEST_OF} --start_from nope", files_for("ppo"), says="nope"),
]  # fmt: skip

USES = {
    "start": (policy, START), "dry": (policy, f"{START} --dry-run"), "reference": (policy, f"{DPO} --reference_role p"),
    "ppo": (policy, f"{PPO} --start_from p"), "bestof": (policy, f"{BEST_OF} --start_from p"), "chat": (policy, CHAT),
    "rewardstart": (policy, f"{REWARD} --start_from p"), "pporeward": (reward, WITH_REWARD_ROLE),
    "ppodry": (reward, f"{WITH_REWARD_ROLE} --dry-run"), "score": (reward, SCORE),
    "chatreward": (reward, "chat fix/base --reward p --once hi --max-new-tokens 4"),
}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "card_gone": {CARD: None}, "card_half": {CARD: Cut()}, "card_empty": {CARD: ""}, "card_list": {CARD: "[]"},
    "card_null": {CARD: "null"}, "card_binary": {CARD: bytes(range(256))}, "card_folder": {CARD: Folder()},
    "card_deep": {CARD: "[" * 100_000}, "card_escape": {CARD: '{"kind": "\\u001b[31m", "base": "x"}'},
    "card_closed": {CARD: lambda path: (path.unlink(), path.write_text(Closed().text), path.chmod(0))},
    "card_fifo": {CARD: Fifo()}, "adapter_gone": {ADAPTER: None}, "adapter_half": {ADAPTER: Cut()},
    "adapter_list": {ADAPTER: "[]"}, "adapter_empty": {ADAPTER: ""}, "adapter_folder": {ADAPTER: Folder()},
    "weights_gone": {WEIGHTS: None}, "weights_half": {WEIGHTS: Cut()}, "weights_empty": {WEIGHTS: b""},
    "weights_binary": {WEIGHTS: bytes(range(256)) * 40}, "weights_folder": {WEIGHTS: Folder()},
    "weights_fifo": {WEIGHTS: Fifo()}, "weights_pickle": {WEIGHTS: b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00N."},
    "weights_one_less": {WEIGHTS: tensors(one_less)}, "weights_shape": {WEIGHTS: tensors(another_shape)},
    "weights_inf": {WEIGHTS: tensors(one_inf)}, "template_gone": {"chat_template.jinja": None},
    "template_binary": {"chat_template.jinja": bytes(range(256))}, "template_broken": {
    "chat_template.jinja": "{% for %}"},
    "header_huge": {WEIGHTS: b"\xff" * 8 + b"{}"},
}  # fmt: skip
WRONG: dict[str, dict[str, Any]] = {
    CARD: {
        "kind": (None, 3, "nosuch", []), "base": (3, [], ""), "base_fingerprint": (None, 3, "abc"),
        "tokenizer_fingerprint": (None, "abc"), "dtype": (None, 3, "nosuch", "int8", "inf"),
        "quantization": (None, 3, True, "gptq"), "chat_template": (3, [], {}), "chat_template_fingerprint": (None, 3),
        "pooling": (None, 3, "first", []), "score_mean": ("x", [], True, 1e999), "score_std": (0, True, [], 1e999,
        -0.5),
        "nosuch": (3,),
    },
    ADAPTER: {
        "r": (None, 0, 3.5, 10**9, [], True), "lora_alpha": (None, "x", [], -1, 0), "lora_dropout": ("x", 7, -1),
        "target_modules": (None, [], 3, "([", ["lm_head"]), "peft_type": (None, "IA3", "nosuch"), "bias": ("all", 3),
        "use_dora": (True,), "use_rslora": (True, "x"), "layers_to_transform": ([99], "x"),
        "rank_pattern": ({"q_proj": 2}, 3), "alpha_pattern": ([],), "modules_to_save": (["nosuch"], 3),
        "fan_in_fan_out": (True,), "init_lora_weights": ("nosuch",),
    },
}  # fmt: skip
UNREAD = {
    "kind", "nosuch", "chat_template", "lora_dropout", "init_lora_weights", "fan_in_fan_out", "modules_to_save",
    "layers_to_transform", "use_rslora", "lora_alpha", "bias", "rank_pattern", "target_modules",
    "chat_template_fingerprint",
    "score_mean",
}  # fmt: skip
"""Entries of which some values say nothing wrong: 7 as dropout of a role that is only read, another template's name."""


def _damaged() -> Iterator[Case]:
    for use, (kind, command) in USES.items():
        writes = ("out", "reference-logprobs")
        for name, changes in FILES.items():
            fine = "the weights are looked at as the run begins" if "dry" in use and name == "weights_inf" else ""
            if name.startswith("template") and use not in ("chat", "score", "chatreward"):
                fine = "the run's own template counts"
            if name == "template_gone":
                fine = "the template's name may be enough"
            if use in ("dry", "ppodry") and name in ("weights_one_less", "weights_shape"):
                fine = "only the base that is loaded can tell"
            if use == "chatreward" and name.startswith(("template", "card_gone")):
                continue
            yield kind(f"role_{use}_{name}", command, changes, codes={1, 2}, fine=fine, limit=30, writes=writes)
    for file, entries in WRONG.items():
        for entry, values in entries.items():
            for value in values:
                for use in ("start", "score") if file == CARD else ("start",):
                    kind, command = USES[use]
                    fine = "read nowhere, or a value as good as another" if entry in UNREAD else ""
                    if use == "start" and entry in ("dtype", "quantization", "pooling", "score_std", "base"):
                        fine = "of no matter to a policy that goes on from it"
                    if value is None and entry in ("quantization", "pooling", "dtype"):
                        fine = ""
                    yield kind(
                        f"role_{use}_{file.split('.')[0]}_{entry}={value}",
                        command,
                        {file: Json({entry: value})},
                        codes={1, 2, 4},
                        fine=fine,
                    )
        for entry in entries:
            kind, command = USES["score"]
            fine = (
                "it has a default"
                if file == ADAPTER or entry not in ("kind", "base", "base_fingerprint", "tokenizer_fingerprint")
                else ""
            )
            yield kind(
                f"role_score_{file.split('.')[0]}_without_{entry}",
                command,
                {file: Json(without=[entry])},
                codes={1, 2},
                fine=fine,
                says="template" if "template" in entry else r"\bp\b",
            )
    for name, changes in {
        "other_file": {
            WEIGHTS: lambda path: path.write_bytes((path.parents[1] / "fix/run_sft/policy" / WEIGHTS).read_bytes())
        },
        "no_head": {WEIGHTS: tensors(without_head)},
        "wide_head": {WEIGHTS: tensors(wide_head)},
        "head_nan": {WEIGHTS: tensors(head_nan)},
        "flip_card": {CARD: Flip()},
    }.items():
        for use in ("pporeward", "score"):
            kind, command = USES[use]
            yield kind(
                f"role_{use}_swapped_{name}",
                command,
                changes,
                codes={1, 2},
                fine="one other character may be no mistake" if name == "flip_card" else "",
            )


CASES += _damaged()
