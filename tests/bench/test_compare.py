"""The rows beside the peers: what each side is told to do, and what a row says of its limit. Nothing here is timed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from bench import compare, tables
from bench.compare import NAMES, ROWS, peer_words
from bench.ours import letters
from bench.workload import Workload
from tests.bench.test_report import MACHINE

WORKLOAD = Workload(pairs=96, ppo_batches=3, new_tokens=64)


def row_named(name: str) -> compare.Row:
    return next(row for row in ROWS if row.name == name)


def grpo(completions: int, size: str = "s") -> dict[str, Any]:
    """A measured row: a step of ours takes 2 s, 1 s and 3 s, the peer's 20 s."""
    ours = [
        {"seconds_per_step": step, "generate": step / 2, "samples_per_second": 64 / step, "peak_rss_mb": 1000}
        for step in (2.0, 1.0, 3.0)
    ]
    peer = {"seconds_per_step": 20.0, "samples_per_second": 3.2, "peak_rss_mb": 5000}
    return {
        "stage": "grpo",
        "peer_name": "Peer",
        "precision": "bf16",
        "model": size,
        "completions": completions,
        "counts_first": False,
        "target": {"faster": 5.0, "memory": 0.25},
        **MACHINE,
        "ours": ours,
        "peer": [peer] * 3,
    }


def test_every_row_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == 2 * len(ROWS)
    assert {"grpo bf16", "grpo K=4 bf16", "grpo K=16 bf16", "grpo m bf16", "ppo bf16"} <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grpo", ["trl_grpo.py", "2", "64", "8"]),  # two steps after the warm-up, which its program adds
        ("grpo K=16", ["trl_grpo.py", "2", "64", "16"]),
        ("dpo", ["trl_pairs.py", "dpo", "96"]),
        ("ppo-head", ["trl_classic_ppo.py", "3", "64"]),
        ("ppo", ["trl_last_ppo.py", "3", "64"]),
    ],
)
def test_a_peer_is_told_the_rows_lengths_and_batches(name: str, words: list[str]) -> None:
    assert peer_words(row_named(name), WORKLOAD) == words


def test_a_model_of_another_size_has_a_folder_of_its_own() -> None:
    assert Workload(size="m").folder != WORKLOAD.folder
    assert Workload(size="m").own_folder != WORKLOAD.own_folder


def test_the_reward_is_the_peers(shared: Path) -> None:
    program = ast.parse((shared / "peers" / "trl_grpo.py").read_text())
    own = [node for node in program.body if isinstance(node, ast.FunctionDef) and node.name == "letters"]
    peer: dict[str, Any] = {}
    exec(compile(ast.Module(own, []), "trl_grpo.py", "exec"), peer)
    texts = ["", "aeiou", "Every letter counts, and AEIOU do not.", "中文 é\n"]
    assert letters([""] * len(texts), texts) == peer["letters"](texts)


def test_the_limit_is_what_remains_when_only_decoding_takes_time() -> None:
    of = compare.decoding(grpo(8))
    assert of == {"step": 2.0, "generate": 1.0, "peer": 20.0, "share": 0.5, "limit": 20.0}
    line = compare.line_of("grpo bf16", grpo(8))
    assert line.startswith("grpo bf16: 10.0 [6.67, 20.0] times the samples/s of Peer, 0.20 [0.20, 0.20] its memory")
    assert line.endswith("; decoding is 50% of a step, and alone would be 20.0 times as fast")


def test_the_tables_tell_the_grpo_rows_apart() -> None:
    results = {"rows": {"a": grpo(8), "b": grpo(16), "c": grpo(8, "m")}}
    found = tables.comparison(results, "bf16")
    assert [line.split(" | ")[0] for line in found.splitlines()[2:]] == [
        "| grpo K=8",
        "| grpo K=16",
        "| grpo K=8, model m",
    ]
    assert "| grpo K=16 | bf16 | 2.00 | 1.00 | 50% | 20.00 | 10.0 | 20.0 |" in tables.decoding_within(results)
    assert tables.decoding_within({"rows": {}}) == ""
