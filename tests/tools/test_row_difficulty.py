"""`--difficulty ROLE`: a role's own loss on the rows, against what `score` and the log-probs say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from onebase.cli.main import main
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import token_logprobs
from onebase.engines.passes import per_token
from onebase.errors import DataError
from onebase.reading.formats import read_rows
from onebase.recipes.setup.saved import open_saved
from onebase.tools import row_difficulty
from onebase.tools.row_difficulty import difficulties, margins
from tests.recipes.conftest import answered_rows, pair_rows, write_rows


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebase.engines.opening.hardware_dtype", lambda device: torch.float32)


def ranked(losses: list[float]) -> list[float]:
    order = sorted(losses)
    return [order.index(loss) / (len(losses) - 1) for loss in losses]


def test_a_reward_roles_loss_is_that_of_the_best_answer_over_the_worst(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(6))
    rows = read_rows(data)
    assert main(["score", str(reward_role), str(data)]) == 0
    scores = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
    losses = [math.log1p(math.exp(worse - better)) for better, worse in scores]
    assert len(set(losses)) == 6
    found = difficulties(rows, str(reward_role))
    assert [found[row.place] for row in rows] == pytest.approx(ranked(losses))


def test_a_policys_loss_is_the_mean_per_token_of_the_best_answer(sft_role: Path, tmp_path: Path) -> None:
    answered = write_rows(tmp_path / "answers.jsonl", answered_rows(6))
    paired = write_rows(tmp_path / "pairs.jsonl", pair_rows(6))
    rows = read_rows(answered)
    base, chat = open_saved({"policy": (str(sft_role), ("policy",))})
    examples = [chat.encode_example(row) for row in rows]
    logprobs = per_token(
        base, examples, lambda b: {"": token_logprobs(base, b, role="policy")}, budget=TokenBudget(999)
    )[""]
    losses = [-float(own.mean()) for own in logprobs]
    found = difficulties(rows, str(sft_role))
    assert [found[row.place] for row in rows] == pytest.approx(ranked(losses))
    # A pair whose better answer is the same text is as hard, whatever its worse one.
    pairs = difficulties(read_rows(paired), str(sft_role))
    assert list(pairs.values()) == list(found.values())


def test_rows_that_a_role_cannot_judge_are_kept_and_counted(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [*pair_rows(6), *(row | {"tie": True} for row in pair_rows(2))])
    words = ["data", "clean", str(data), "--output", str(tmp_path / "out"), "--difficulty", str(reward_role)]
    assert main([*words, "--filter", "{name: difficulty, low: 0.2, high: 0.8}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["rows"], report["kept"], report["difficulty_not_measured"]) == (8, 6, 2)
    assert "measured the difficulty of 6 of 8 rows" in capsys.readouterr().err
    answers = read_rows(write_rows(tmp_path / "answers.jsonl", answered_rows(3)))
    with pytest.raises(DataError, match="no row's difficulty could be measured; are these samples of these rows?"):
        difficulties(answers, str(reward_role))


def test_torch_is_not_needed_for_samples() -> None:
    assert "torch" not in vars(row_difficulty)


def test_a_reward_role_says_which_verdicts_are_noise(
    reward_role: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pair_rows(12)
    found = margins(read_rows(write_rows(tmp_path / "all.jsonl", rows)), str(reward_role))
    assert main(["score", str(reward_role), str(tmp_path / "all.jsonl")]) == 0
    scores = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
    assert list(found.values()) == pytest.approx([better - worse for better, worse in scores], abs=1e-5)
    # Every verdict as the role has it; then the one it is surest of is turned round.
    right = [
        row if margin > 0 else row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        for row, margin in zip(rows, found.values(), strict=True)
    ]
    surest = max(range(12), key=lambda n: abs(list(found.values())[n]))
    right[surest] |= {"chosen": right[surest]["rejected"], "rejected": right[surest]["chosen"]}
    data = write_rows(tmp_path / "pairs.jsonl", [*right, {**rows[0], "tie": True}])
    words = ["data", "clean", str(data), "--output", str(tmp_path / "out"), "--reward", str(reward_role)]
    assert main([*words, "--filter", "{name: noise, probability: 0.45, share: 0.1}"]) == 0
    (line,) = map(json.loads, (tmp_path / "out" / "dropped" / "pairs.jsonl").read_text().splitlines())
    assert line["place"] == f"{data}:{surest + 1}" and line["reason"] == "the reward role prefers another answer"
    assert line["value"]["margin"] < 0 and line["value"]["probability"] < 0.45
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["noise_not_judged"] == 1 and report["kept"] == 12
    said = capsys.readouterr().err
    assert "judged 12 of 13 rows" in said and "the reward role could not judge 1 row; kept" in said
    answers = read_rows(write_rows(tmp_path / "answers.jsonl", answered_rows(3)))
    with pytest.raises(DataError, match="judges answers that are compared, and no row compares any; take --reward out"):
        margins(answers, str(reward_role))
