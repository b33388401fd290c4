"""Runs that go on from damaged checkpoints, and output folders that hold what is someone else's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Copy, Cut, Fifo, Flip, Folder, Link, damage
from tests.bad_inputs.prepared import COMMANDS, PPO, PRETRAIN, REWARD, SFT, files_for

GO_ON = SFT.replace("--max_steps 2", "--max_steps 4") + " --checkpoint.every_steps 1"
ROLL_ON = PPO.replace("--max_steps 2", "--max_steps 4") + " --checkpoint.every_steps 1"
NEWEST, BEFORE = "out/checkpoint-4", "out/checkpoint-3"
AGAIN = r"(?i)warning.*checkpoint-4.*(before|older|checkpoint-3)|trying the one before"


def going_on(name: str, change: Callable[[Path], None], command: str = GO_ON, **more: Any) -> Case:
    source, verb = ("run_rolls", "ppo") if command.startswith("ppo") else ("run_steps", "sft")
    files = {**files_for(verb), "out": Copy(source)}
    return Case(name, command, files, **{"then": change, "says": "checkpoint|out", "codes": {2}, **more})


def in_both(file: str, change: Any) -> Callable[[Path], None]:
    """The same file of both checkpoints, damaged."""

    def both(folder: Path) -> None:
        for checkpoint in (NEWEST, BEFORE):
            damage(folder / checkpoint / file, change)

    return both


def in_newest(file: str, change: Any) -> Callable[[Path], None]:
    return lambda folder: damage(folder / NEWEST / file, change)


def in_run(file: str, change: Any) -> Callable[[Path], None]:
    return lambda folder: damage(folder / "out" / file, change)


def state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Both checkpoints with another state.pt, their checksums made to fit: only what is in it tells."""

    def rewrite(folder: Path) -> None:
        import torch

        for checkpoint in (NEWEST, BEFORE):
            path = folder / checkpoint / "state.pt"
            found = torch.load(path, weights_only=True)
            torch.save(change(found), path)
            sign(folder / checkpoint)

    return rewrite


def sign(folder: Path) -> None:
    sums = json.loads((folder / "checksums.json").read_text())
    for name in sums:
        sums[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))


class Evil:
    """What a pickle may do as it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda found: {key: value for key, value in found.items() if key not in keys}


def _checkpoints() -> Iterator[Case]:
    yield going_on("ck_evil_pickle", state(lambda found: {**found, "x": Evil()}), untouched=("owned",))
    yield going_on("ck_state_nokey", state(without("config")))
    yield going_on("ck_state_list", state(lambda found: [1, 2]))
    yield going_on("ck_state_other_version", state(lambda found: {**found, "weights": {"other": 1}}))
    yield going_on(
        "ck_metrics_garbage",
        in_run("metrics.jsonl", b"\xff\xfe\x00" * 30),
        codes={1, 2},
        says="metrics.jsonl",
        warns="metrics.jsonl",
        fine="it is made anew, and said",
    )
    yield going_on("ck_metrics_dir", in_run("metrics.jsonl", Folder()), codes={1, 2}, says="metrics.jsonl")
    yield going_on("ck_metrics_gone", in_run("metrics.jsonl", None), fine="the steps go on; the record begins here")
    for kind in ("", "roll_"):
        command = ROLL_ON if kind else GO_ON
        for key in ("config", "step", "seconds", "update", "weights", "random", "parts", "inputs"):
            yield going_on(
                f"ck_{kind}state_without_{key}",
                state(without(key)),
                command,
                fine="there may be no such entry" if key not in ("config", "step", "weights") else "",
            )
        for value in (None, 3, "x", [], {}, float("nan"), -1):
            for key in ("step", "config", "weights", "update"):
                harmless = "as if it had not begun to train" if (key, value) == ("update", None) else ""
                yield going_on(
                    f"ck_{kind}state_{key}={value!r}",
                    state(lambda found, key=key, value=value: {**found, key: value}),
                    command,
                    fine=harmless or ("a step that is a number" if (key, value) == ("step", 3) else ""),
                )
    yield going_on("ck_weights_nan", state(_nan_weights), codes={1, 2}, says="(?i)nan|finite|checkpoint")
    yield going_on("ck_state_none", state(lambda found: None))
    for file in (
        "state.pt",
        "checksums.json",
        "policy/adapter_model.safetensors",
        "policy/adapter_config.json",
        "policy/role.json",
    ):
        for name, change in {
            "gone": None,
            "half": Cut(),
            "flipped": Flip(),
            "empty": b"",
            "binary": bytes(range(256)),
            "folder": Folder(),
            "fifo": Fifo(),
        }.items():
            short = f"{file.replace('/', '.')}_{name}"
            yield going_on(
                f"ck_newest_{short}",
                in_newest(file, change),
                codes={0},
                warns=AGAIN,
                fine="the checkpoint before is whole",
                limit=30,
            )
            yield going_on(f"ck_both_{short}", in_both(file, change), limit=30, untouched=("out/checkpoint-",))
    for name, text in {
        "list": "[]",
        "null": "null",
        "number": "3",
        "empty_object": "{}",
        "list_value": '{"state.pt": []}',
        "outside": '{"../../d.jsonl": "x"}',
        "absolute": '{"/etc/passwd": "x"}',
        "deep": "[" * 100_000,
    }.items():
        yield going_on(f"ck_sums_{name}", in_both("checksums.json", text))
    yield going_on("ck_config_changed", in_run("config.yaml", "a: b\n"), fine="the checkpoint holds its own")
    yield going_on("ck_config_garbage", in_run("config.yaml", bytes(range(256))), fine="the checkpoint holds its own")
    yield going_on("ck_config_dir", in_run("config.yaml", Folder()), codes={1, 2}, says="config.yaml")
    for number, more in enumerate(
        (
            "--seed 3",
            "--lora.r 4",
            "--optimizer.learning_rate 1e-3",
            "--batch.minibatch 8",
            "--data.eval_fraction 0.3",
            "--lora.layers [0]",
        )
    ):
        words = GO_ON.replace("--batch.minibatch 4 ", "") if "minibatch" in more else GO_ON
        yield going_on(
            f"ck_other_key_{number}",
            lambda folder: None,
            f"{words} {more}",
            untouched=("out/checkpoint-",),
            says=more.split()[0][2:],
        )
    yield going_on(
        "ck_other_data",
        lambda folder: (
            (folder / "d.jsonl").write_text((folder / "d.jsonl").read_text().replace("good", "bad")) and None
        ),
        untouched=("out/checkpoint-",),
        says="data",
    )
    yield going_on(
        "ck_other_base",
        lambda folder: None,
        GO_ON.replace("fix/base", "fix/base2"),
        says="base|model",
        untouched=("out/checkpoint-",),
    )
    yield going_on(
        "ck_other_verb",
        lambda folder: None,
        REWARD.replace("--data", "--checkpoint.every_steps 1 --data"),
        says="out|checkpoint",
        untouched=("out",),
        codes={2, 3},
    )
    yield going_on(
        "ck_names",
        lambda folder: (
            [
                (folder / "out" / name).mkdir()
                for name in ("checkpoint-", "checkpoint-x", "checkpoint--1", "checkpoint-99999999999999999999")
            ]
            and None
        ),
        codes={0, 2},
        warns=".",
        fine="what is no checkpoint is passed over",
    )
    yield going_on(
        "ck_is_a_link",
        lambda folder: (folder / NEWEST).rename(folder / "elsewhere") and (folder / NEWEST).symlink_to("../elsewhere"),
        fine="it is followed",
        writes=("out", "elsewhere"),
    )


def _nan_weights(found: dict[str, Any]) -> dict[str, Any]:
    def walk(value: Any) -> None:
        if hasattr(value, "fill_") and value.is_floating_point():
            value.fill_(float("nan"))
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(part)

    walk(found["weights"])
    return found


def _outputs() -> Iterator[Case]:
    full = "--lora.r 0"
    yield Case(
        "out_other_verb_leftover",
        REWARD,
        {**files_for("reward"), "out": Copy("run_sft", {"summary.json": None})},
        says="out",
        untouched=("out",),
    )
    yield Case(
        "out_overwrites_base",
        f"{SFT.replace('fix/base', 'out/model')} {full}",
        {**files_for("sft"), "out/model": Copy("base")},
        says="out",
        untouched=("out/model",),
    )
    yield Case(
        "out_overwrites_start",
        f"{SFT} --start_from out/policy",
        {**files_for("sft"), "out/policy": Copy("run_sft/policy")},
        says="out",
        untouched=("out/policy",),
    )
    yield Case(
        "out_overwrites_reward",
        PPO.replace("--reward.callable rew:score", "--reward.role out/reward"),
        {**files_for("ppo"), "out/reward": Copy("run_rm/reward")},
        says="out",
        untouched=("out/reward",),
    )
    yield Case(
        "out_overwrites_reference",
        f"{COMMANDS['dpo']} --reference_role out/policy",
        {**files_for("dpo"), "out/policy": Copy("run_sft/policy")},
        says="out",
        untouched=("out/policy",),
    )
    yield Case(
        "out_holds_base_by_link",
        f"{SFT.replace('fix/base', 'l')} {full}",
        {**files_for("sft"), "out/model": Copy("base"), "l": Link("out/model")},
        says="out|model",
        untouched=("out/model",),
    )
    yield Case(
        "out_is_base",
        SFT.replace("--output_dir out", "--output_dir b").replace("fix/base", "b"),
        {**files_for("sft"), "b": Copy("base")},
        says="b",
        untouched=("b",),
        writes=("b",),
    )
    yield Case(
        "out_is_above_base",
        f"{SFT.replace('--output_dir out', '--output_dir .').replace('fix/base', 'policy')}",
        {**files_for("sft"), "policy": Copy("base")},
        untouched=("policy",),
        writes=("",),
    )
    yield Case(
        "out_holds_data",
        SFT.replace("d.jsonl", "out/metrics.jsonl"),
        {"out/metrics.jsonl": files_for("sft")["d.jsonl"]},
        {2, 3},
        untouched=("out/metrics.jsonl",),
    )
    yield Case(
        "out_holds_data_as_config",
        PRETRAIN.replace("d.txt", "out/summary.json"),
        {"out/summary.json": '[{"text": "a b c"}, {"text": "d e f"}]'},
        {2, 3},
        untouched=("out/summary.json",),
    )
    for verb, name in {
        "sft": "policy",
        "reward": "reward",
        "dpo": "policy",
        "ppo": "policy",
        "pretrain": "model",
    }.items():
        for kind, content in {
            "theirs": {f"out/{name}/notes.txt": "mine"},
            "file": {f"out/{name}": "mine"},
            "link": {f"out/{name}": Link("../elsewhere"), "elsewhere/notes.txt": "mine"},
        }.items():
            yield Case(
                f"out_{verb}_{name}_{kind}",
                COMMANDS[verb],
                {**files_for(verb), **content},
                says=f"out|{name}",
                untouched=(f"out/{name}", "elsewhere"),
                writes=("out", "elsewhere", "reference"),
            )
    for name in ("config.yaml", "metrics.jsonl", "plots", "report.html", "best"):
        for kind, content in {"file": "mine", "folder": Folder()}.items():
            yield Case(
                f"out_{name}_{kind}",
                SFT,
                {**files_for("sft"), f"out/{name}": content},
                {1, 2},
                says="out",
                fine="nothing of it is lost" if name in ("plots", "report.html", "best") else "",
                untouched=(f"out/{name}",),
            )
    for kind, content in {
        "file": "mine",
        "fifo": Fifo(),
        "loop": Link("out"),
        "dangling": Link("nowhere/deep"),
    }.items():
        yield Case(
            f"out_is_{kind}", SFT, {**files_for("sft"), "out": content}, says="out", untouched=("out",), limit=30
        )
    for verb in ("sft", "reward", "dpo", "ppo", "pretrain", "best-of", "iterate"):
        yield Case(
            f"out_finished_{verb}",
            COMMANDS[verb],
            {**files_for(verb), "out": Copy("run_sft")},
            says="out",
            untouched=("out",),
        )
        yield Case(
            f"out_below_a_file_{verb}",
            COMMANDS[verb].replace("_dir out", "_dir d.txt/x"),
            {**files_for(verb), "d.txt": "The cat is good.\n\nThe dog is bad.\n"},
            says="d.txt",
            untouched=("d.txt",),
        )
        yield Case(
            f"out_below_a_file_dry_{verb}",
            COMMANDS[verb].replace("_dir out", "_dir d.txt/x") + " --dry-run",
            {**files_for(verb), "d.txt": "The cat is good.\n\nThe dog is bad.\n"},
            says="d.txt",
            untouched=("d.txt",),
        )
    for name, path in {
        "proc": "/proc/x",
        "dev_null": "/dev/null",
        "long": "x" * 300,
        "deep": "/".join(["y" * 200] * 30),
        "sys": "/sys/kernel/x",
        "empty": "''",
        "blank": "' '",
        "root_only": "closed/x",
    }.items():
        for dry in ("", "_dry"):
            yield Case(
                f"out_path_{name}{dry}",
                SFT.replace("--output_dir out", f"--output_dir {path}") + (" --dry-run" if dry else ""),
                {**files_for("sft"), "closed": closed},
                says="output_dir|cannot|" + path[:9].strip("'"),
                writes=(),
            )
    for verb in ("dpo", "best-of", "iterate", "ppo"):
        yield Case(
            f"out_dry_writes_nothing_{verb}",
            f"{COMMANDS[verb]} --dry-run",
            files_for(verb),
            {0},
            writes=(),
            fine="a plan, and nothing written",
        )
    yield Case(
        "out_reference_cache_unwritable",
        COMMANDS["dpo"].replace("_dir out", "_dir closed/out"),
        {**files_for("dpo"), "closed": half_closed},
        {1, 2},
        says="closed",
        writes=("closed/out",),
        fine="it is kept elsewhere",
    )
    yield Case(
        "out_reference_cache_is_file",
        COMMANDS["dpo"],
        {**files_for("dpo"), "reference-logprobs": "mine"},
        {1, 2},
        says="reference-logprobs",
        untouched=("reference-logprobs",),
        fine="it is kept elsewhere",
    )
    for number, change in enumerate((b"", bytes(range(256)), Cut(), Flip(), Folder())):
        yield Case(
            f"out_reference_cache_damaged_{number}",
            COMMANDS["dpo"],
            files_for("dpo"),
            {1, 2},
            first=(COMMANDS["dpo"].replace("_dir out", "_dir out1"),),
            then=_damage_cache(change),
            says="reference",
            fine="it is computed anew",
            writes=("out", "reference-logprobs"),
        )


def closed(path: Path) -> None:
    path.mkdir()
    path.chmod(0o500)


def half_closed(path: Path) -> None:
    (path / "out").mkdir(parents=True)
    path.chmod(0o500)


def _damage_cache(change: Any) -> Callable[[Path], None]:
    def all_of_it(folder: Path) -> None:
        for path in sorted(folder.glob("reference-logprobs/*/*")):
            damage(path, change)

    return all_of_it


CASES = [*_checkpoints(), *_outputs()]
