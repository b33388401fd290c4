"""At most `max_pairs` of a list's K (K - 1) / 2 comparisons are learned from at a visit, by the run's seed."""

from __future__ import annotations

import ast
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import onebase
from onebase.config.losses import LOSSES
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.recipes import dpo, reward
from onebase.records import Example
from onebase.training.comparisons import PairTensors, draw_comparisons
from tests.recipes.conftest import Options, common, load, make_base, write_rows

WORDS = "good big bad red old small new".split()
LISTS: list[Options] = [{"instruction": f"Say {n}.", "output": [f"It is {word}." for word in WORDS]} for n in range(4)]
"""Seven answers each, and so 21 comparisons."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("num_answers", range(2, 11))
@pytest.mark.parametrize("max_pairs", [1, 3, 10, 45])
def test_no_more_are_drawn_than_allowed_each_once_and_the_better_first(num_answers: int, max_pairs: int) -> None:
    example = Example([1], [[2]] * num_answers, grades=list(range(num_answers)))
    every = set(combinations(range(num_answers), 2))
    for visit in range(5):
        drawn = draw_comparisons(example, max_pairs=max_pairs, seed=3, visit=(visit, 0))
        assert len(drawn) == min(max_pairs, len(every))
        assert all(pair.better > pair.worse and not pair.tie for pair in drawn)
        assert len({(pair.worse, pair.better) for pair in drawn} & every) == len(drawn)
        assert drawn == draw_comparisons(example, max_pairs=max_pairs, seed=3, visit=(visit, 0))


def test_every_comparison_is_drawn_about_as_often() -> None:
    example = Example([1], [[2]] * 7, grades=[float(n) for n in range(7)])
    counts = Counter(
        pair for visit in range(420) for pair in draw_comparisons(example, max_pairs=10, seed=0, visit=(visit, 0))
    )
    assert len(counts) == 21 and all(abs(count - 200) < 60 for count in counts.values())


def learned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many comparisons of each list every microbatch is trained with, as the tensors are made."""
    seen: list[int] = []
    made = PairTensors.of

    def watched(examples: Any, comparisons: Any, device: Any) -> PairTensors:
        seen.extend(map(len, comparisons))
        return made(examples, comparisons, device)

    monkeypatch.setattr(PairTensors, "of", staticmethod(watched))
    return seen


@pytest.mark.parametrize(("more", "most"), [({}, 10), ({"ranking.max_pairs": 4}, 4), ({"ranking.max_pairs": 30}, 21)])
def test_the_reward_verb_learns_from_no_more(
    more: Options, most: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = learned(monkeypatch)
    data = write_rows(tmp_path / "lists.jsonl", LISTS)
    reward.run(
        load(RewardConfig, common(base, tmp_path / "run", data), {"max_steps": 2, "data.eval_fraction": 0}, more)
    )
    assert set(seen) == {most}


@pytest.mark.parametrize(
    "loss", sorted(name for name, loss in LOSSES.items() if loss.over == "pairs" and name != "step_dpo")
)
def test_every_pairwise_loss_of_dpo_learns_from_no_more(
    loss: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = learned(monkeypatch)
    data = write_rows(tmp_path / "lists.jsonl", LISTS)
    more: Options = {"max_steps": 1, "data.eval_fraction": 0, "loss": loss, "preference.max_pairs": 5, "lora.r": 4}
    dpo.run(load(DPOConfig, common(base, tmp_path / "run", data), more))
    assert set(seen) == {5}


def test_comparisons_of_lists_are_made_nowhere_else() -> None:
    # A new consumer that calls `ranking_pairs` itself would not be limited; evaluations read every comparison.
    calls = {
        f"{path.stem}.{function.name}"
        for path in sorted((Path(onebase.__file__).parent).rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("ranking_pairs", "draw_comparisons")
    }
    learning = {"reward.run", "role_curve.accuracy_after", "dpo.preference_step"}
    assert calls == learning | {"reward.plan", "reward.list_accuracy", "dpo.evaluate", "comparisons.draw_comparisons"}
