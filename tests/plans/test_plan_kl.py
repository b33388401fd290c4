"""`onebase plan kl` as a user calls it, on runs whose truth is planted and on runs that were trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest

from onebase.cli.main import main
from onebase.planning.overoptimization import best_of_kl, gain

KLS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
PEAK = math.exp(2 * (1.0 / 0.5 - 1))
"""Of alpha = 1, beta = 0.5: 7.39 nats."""


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["plan", "kl", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


def trained(
    folder: Path, *, verb: str = "ppo", judge: bool = True, kls: tuple[float, ...] = KLS, **config: Any
) -> Path:
    """A run's folder as ppo leaves it, whose judge follows a known law while its reward only rises."""
    folder.mkdir(parents=True)
    config = {"output_dir": str(folder), "start_from": "runs/sft/policy", **config}
    (folder / "config.yaml").write_text(json.dumps(config))
    rows: list[dict[str, float]] = []
    for step, kl in enumerate(kls, start=1):
        judged = {"eval/judge": 0.5 + gain(kl, 1.0, 0.5, "rl")} if judge else {}
        row = {"step": 5 * step, "objective/kl": kl, "objective/scores": math.sqrt(kl)}
        rows.append({**row, **({"eval/kl": kl, "eval/score": math.sqrt(kl), **judged} if judge else {})})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    last = rows[-1]
    summary = {"verb": verb, "rollouts": last["step"], "score_before": 0.0, "score_after": last["objective/scores"]}
    if judge:
        summary |= {"judge_before": 0.5, "judge_after": last["eval/judge"], "kl": last["eval/kl"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def sampled(folder: Path, *, judged: bool = True, prompts: int = 400, samples: int = 16) -> Path:
    """A best-of run whose judge likes what the reward likes, but for the very best of it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"output_dir": str(folder)}))
    (folder / "summary.json").write_text(json.dumps({"verb": "best-of"}))
    scores = numpy.random.default_rng(0).normal(size=(prompts, samples))
    rows = [
        {"scores": own.tolist(), **({"judged": (own - 0.6 * numpy.maximum(own, 0) ** 2).tolist()} if judged else {})}
        for own in scores
    ]
    (folder / "best.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_peak_of_a_planted_law_is_found_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, trained(tmp_path / "ppo"))
    assert code == 0
    assert "judge = 0.500 + d (1.000 - 0.500 log d), d = sqrt(KL)" in out
    assert f"highest at KL {PEAK:.2f} [{PEAK:.2f}, {PEAK:.2f}] nats per completion: {PEAK**0.5 / 2:.3f} above" in out
    assert out.endswith("set ppo.kl_budget: 7.38; ppo was past it at rollout 25\n")
    assert "warning" not in out


def test_runs_from_one_start_are_fitted_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [trained(tmp_path / name, kls=kls) for name, kls in (("a", (0.5, 1.0)), ("b", (6.0, 12.0)))]
    code, out, _ = asked(capsys, "--json", *parts)
    (report,) = json.loads(out)
    assert code == 0 and report["law"]["kl"] == pytest.approx(PEAK) and len(report["points"]) == 6


def test_a_peak_that_was_not_reached_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, trained(tmp_path / "short", kls=(0.2, 0.5, 1.0, 2.0)))
    assert code == 0 and "warning: that lies beyond KL 2.00, the most that was measured" in out
    assert out.endswith("set ppo.kl_budget: 2\n")


def test_rft_has_no_budget_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = asked(capsys, trained(tmp_path / "rft", verb="rft"))
    assert (
        "stop there with max_steps, or hold it with a larger rft.kl_coefficient; rft was past it at rollout 25" in out
    )


def test_without_a_judge_nothing_is_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, trained(tmp_path / "ppo", judge=False))
    assert code == 0 and "says nothing about over-optimisation" in out and "highest" not in out
    assert "set evaluation.judge, and evaluation.every_steps" in out
    code, out, _ = asked(capsys, sampled(tmp_path / "best", judged=False, prompts=5))
    assert code == 0 and "says nothing about over-optimisation" in out and "set judge" in out


def test_the_best_of_n_has_a_peak_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, "--json", sampled(tmp_path / "best"))
    (report,) = json.loads(out)
    best = max(report["points"], key=lambda point: point["judge"])
    assert code == 0 and [point["kl"] for point in report["points"][:2]] == [0.0, best_of_kl(2)]
    assert 1 < best["step"] < 8
    law = report["law"]
    assert law["low"] < law["kl"] < law["high"] and law["kl"] == pytest.approx(best_of_kl(best["step"]), abs=0.2)
    _, out, _ = asked(capsys, tmp_path / "best")
    suggested = int(out.rpartition("set generation.samples_per_prompt: ")[2])
    assert abs(suggested - best["step"]) <= 1


def test_a_mistake_gets_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppo = trained(tmp_path / "ppo")
    other = trained(tmp_path / "other", start_from="runs/dpo/policy")
    sft = trained(tmp_path / "sft", verb="sft")
    few = trained(tmp_path / "few", kls=(1.0, 2.0))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text(json.dumps({"output_dir": str(bare)}))
    (bare / "summary.json").write_text(json.dumps({"verb": "rft"}))
    torn = sampled(tmp_path / "torn", prompts=2)
    (torn / "best.jsonl").write_text('{"scores": [1, 2]}\n{"scores": [1]}\n')
    for words, exit_code, said in (
        (["nowhere"], 2, "nowhere: no run here"),
        ([sft], 3, "sft is no finished run of ppo, rft or best-of; name one that is"),
        ([ppo, other], 2, "a law holds for one: name them apart"),
        ([few], 2, "are too few to fit; at least 4 are needed, and 3 such; lower evaluation.every_steps, or name more"),
        ([bare], 3, "bare: no KL was measured; rft keeps a reference only with rft.kl_coefficient above 0"),
        ([torn], 3, "best.jsonl: not the scored samples of a best-of run"),
        ([sampled(tmp_path / "two", samples=2, prompts=3)], 2, "raise generation.samples_per_prompt"),
    ):
        code, _, err = asked(capsys, *words)
        assert (code, said in err) == (exit_code, True), (words, err)
