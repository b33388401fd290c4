"""`onebase plan preferences`: reward roles trained on subsets, and the curve through their accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from onebase.active_learning.curve import curve_through
from onebase.cli.main import main
from tests.recipes.conftest import ANIMALS, pair_rows, write_rows


def written(folder: Path, base: Path, data: str, **more: Any) -> Path:
    config = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(base), "dtype": "float32", "chat_template": "hh"},
        "lora": {"r": 4},
        "data": {"train": data, "eval_fraction": 0.25},
        "optimizer": {"learning_rate": 5e-3},
        "batch": {"minibatch": 8, "microbatch_tokens": 2048},
        **more,
    }
    path = folder / "reward.yaml"
    path.write_text(json.dumps(config))
    return path


def by_a_secret_order(count: int) -> list[dict[str, str]]:
    """Pairs of animals, of which the later one in a shuffled list is chosen: what has to be learned one by one."""
    generator = numpy.random.default_rng(0)
    order = generator.permutation(ANIMALS).tolist()
    drawn = [sorted(generator.choice(len(ANIMALS), 2, replace=False).tolist()) for _ in range(count)]
    return [
        {"prompt": f"Which one, number {n}?", "chosen": f"The {order[more]}.", "rejected": f"The {order[less]}."}
        for n, (less, more) in enumerate(drawn)
    ]


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["plan", "preferences", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


def test_a_role_learns_more_from_more_pairs_and_nothing_is_left_behind(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", by_a_secret_order(160))
    path = written(tmp_path, base, str(data), optimizer={"learning_rate": 5e-3, "num_epochs": 2})
    code, out, err = asked(capsys, path, "--seeds", 2, "--json", "--plot", tmp_path / "curve.png")
    found = json.loads(out)
    points = found["curve"]
    accuracy = [point["accuracy"]["mean"] for point in points]
    assert code == 0 and len(points) >= 4 and points[-1]["rankings"] == found["rankings"] > 100
    assert accuracy[-1] > max(0.7, accuracy[0]) and found["held_out_prompts"] >= 20
    assert [point["rankings"] for point in found["ahead"]] == [2 * found["rankings"], 4 * found["rankings"]]
    assert found["human_ceiling"] is None and found["forecast"]["says"].startswith("another 200 rankings buy about ")
    assert "about 5" in err and "times the work of `onebase reward`" in err
    assert not (tmp_path / "run").exists() and (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_rankings_of_several_people_give_the_ceiling_and_few_rankings_a_warning(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sqlalchemy", reason="the database needs onebase[label]")
    from onebase.cli.label_next import next_
    from tests.active_learning.test_rounds import candidate, rank_all

    url = str(tmp_path / "label.db")
    next_(url, write_rows(tmp_path / "candidates.jsonl", [candidate(n) for n in range(60)]), num=50)
    rank_all(url, ("Ann", "Bo"))
    code, out, _ = asked(capsys, written(tmp_path, base, url, max_steps=1), "--seeds", 1)
    assert code == 0
    assert "human ceiling: people agree on 100.0 [100.0, 100.0] % of pairs" in out
    assert "another 200 rankings buy about" in out and "warning: that more than doubles the rankings" in out
    assert "with 4 times as many about" in out


def test_a_planted_curve_comes_back() -> None:
    """Answers that are right with the probability of a known law: its limit and its gain lie inside their intervals."""
    sizes, prompts, inside = numpy.array([25.0, 50, 100, 200, 400]), 400, []
    for seed in range(20):
        generator = numpy.random.default_rng(seed)
        chance = 0.85 - 1.2 * sizes**-0.5
        rights = (generator.random((5, 4, prompts)) < chance[:, None, None]).astype(float)
        curve = curve_through(sizes, rights, count=400, another=200, generator=generator)
        gain = 1.2 * (400**-0.5 - 600**-0.5)
        inside += [curve.limit.low <= 0.85 <= curve.limit.high, curve.gain.low <= gain <= curve.gain.high]
        assert curve.ahead[0].accuracy.mean == pytest.approx(curve.points[-1].accuracy.mean, abs=0.1)
    assert sum(inside) >= 34  # of 40


@pytest.mark.parametrize(
    ("more", "words", "exit_code", "said"),
    [
        ({}, [], 3, "lists to train on and"),
        ({}, ["--seeds", "0"], 2, "--seeds is 0; it should be at least 1"),
        ({"lora": {"r": 0}}, [], 2, "'lora.r' = 0 trains the base itself, which every subset needs anew"),
        ({"lara": {}}, [], 2, "lara"),
    ],
)
def test_a_mistake_gets_a_line(
    more: dict[str, Any],
    words: list[str],
    exit_code: int,
    said: str,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    code, _, err = asked(capsys, written(tmp_path, base, str(data), **more), *words)
    assert (code, said in err) == (exit_code, True), err
