"""The flight recorder on hand-written rows: every rule just beyond its threshold, and just within."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onebase.config.files import config_keys
from onebase.config.rft import RFTConfig
from onebase.config.rollouts import PPOConfig
from onebase.reporting.recorder import FlightRecorder
from onebase.reporting.rules import RULES, Finding, findings
from onebase.runs.metrics import MetricsFile

Row = dict[str, Any]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "flight_recorder.md"

HEALTHY: Row = {
    "objective/kl": 2.0,
    "objective/entropy": 1.0,
    "objective/scores": 0.5,
    "completions/mean_length": 10.0,
    "completions/ended": 0.8,
    "completions/score_length_correlation": 0.5,
    "val/explained_variance": 0.5,
    "sampling/logp_difference": 1e-6,
    "policy/ratio": 1.0,
    "policy/clipfrac": 0.05,
    "policy/approxkl": 0.01,
    "groups/without_variance": 0.5,
    "learning_rate": 1e-4,
    "train/optimizer_steps": 8.0,
}


def run(count: int, start: Mapping[str, float] | None = None, **then: float) -> list[Row]:
    """Makes a healthy first rollout and `count` more with these changes; `kl=-1` is short for `objective/kl=-1`."""
    names = {name.rpartition("/")[2]: name for name in (*HEALTHY, "train/refused_steps")}
    changed = {names[name]: value for name, value in then.items()}
    return [{"step": 1, **HEALTHY, **(start or {})}] + [
        {"step": step, **HEALTHY, **changed} for step in range(2, count + 2)
    ]


def rules(rows: list[Row]) -> list[str]:
    return [finding.rule for finding in findings(rows)]


def growing(**more: float) -> list[Row]:
    """Makes rollouts whose lengths and scores rise together."""
    return [
        {"step": i + 1, **HEALTHY, "completions/mean_length": 10.0 + i, "objective/scores": 0.1 * i, **more}
        for i in range(11)
    ]


def evaluated(judge: list[float], score: list[float], error: float = 0.02, name: str = "judge") -> list[Row]:
    """Makes rollouts with an evaluation every other one, the first before training."""
    rising = "eval/score" if name == "judge" else "objective/scores"
    rows: list[Row] = []
    for i, (fallen, risen) in enumerate(zip(judge, score, strict=True)):
        rows += [
            {"step": 2 * i, **HEALTHY, f"eval/{name}": fallen, f"eval/{name}_error": error, rising: risen},
            {"step": 2 * i + 1, **HEALTHY, rising: risen},
        ]
    return rows


BEYOND: dict[str, list[Row]] = {
    "negative_kl": run(4, kl=-0.06),
    "large_kl": run(4, kl=20.1),
    "large_kl, long completions": run(4, {"completions/mean_length": 200.0}, kl=40.1, mean_length=200.0),
    "sampler": run(4, logp_difference=0.051),
    "ratio": run(4, ratio=1.21),
    "ratio, below": run(4, ratio=0.79),
    "clipped": run(4, clipfrac=0.31),
    "still": run(9, clipfrac=0.0, approxkl=9e-7),
    "critic": run(14, explained_variance=0.04),
    "endless": run(4, ended=0.19),
    "length": growing(),
    "short": run(4, mean_length=3.3),
    "entropy": run(4, entropy=0.19),
    "alike": run(4, without_variance=0.91),
    "judge": evaluated([0.6, 0.7, 0.65, 0.64], [0.1, 0.2, 0.3, 0.4]),
    "held_out": evaluated([0.6, 0.7, 0.65, 0.64], [0.1, 0.2, 0.3, 0.4], name="score"),
    "refused": [*run(3), {"step": 5, **HEALTHY, "train/refused_steps": 0.125}],
}
WITHIN: dict[str, list[Row]] = {
    "negative_kl": run(20, kl=-0.04),
    "large_kl": run(20, kl=19.9),
    "large_kl, long completions": run(20, {"completions/mean_length": 200.0}, kl=39.9, mean_length=200.0),
    "sampler": run(20, logp_difference=0.049),
    "ratio": run(20, ratio=1.19),
    "ratio, below": run(20, ratio=0.81),
    "clipped": run(20, clipfrac=0.29),
    "still, slow": run(20, clipfrac=0.0, approxkl=1.1e-6),
    "still, but clipped": run(20, clipfrac=0.01, approxkl=9e-7),
    "still, one step a rollout": run(20, clipfrac=0.0, approxkl=0.0, optimizer_steps=1.0),
    "still, at the end of the schedule": run(20, clipfrac=0.0, approxkl=9e-7, learning_rate=4.9e-5),
    "critic": run(20, explained_variance=0.06),
    "critic, still young": run(14, {"val/explained_variance": -3.0}, explained_variance=0.04)[:14],
    "critic, on its way": [{"step": i + 1, **HEALTHY, "val/explained_variance": 0.1 * i - 3} for i in range(31)],
    "endless": run(20, ended=0.21),
    "endless from the start": run(20, {"completions/ended": 0.19}, ended=0.0),
    "length, a little": growing(**{"completions/mean_length": 14.9}),
    "length, the score stays": growing(**{"objective/scores": 0.5}),
    "length, the score falls": [row | {"objective/scores": -row["objective/scores"]} for row in growing()],
    "length, not what is paid for": growing(**{"completions/score_length_correlation": 0.29}),
    "short": run(20, mean_length=3.4),
    "entropy": run(20, entropy=0.21),
    "alike": run(20, without_variance=0.9),
    "judge, a little": evaluated([0.6, 0.7, 0.67, 0.661], [0.1, 0.2, 0.3, 0.4]),
    "judge, once": evaluated([0.6, 0.7, 0.65, 0.69], [0.1, 0.2, 0.3, 0.4]),
    "judge, the score falls too": evaluated([0.6, 0.7, 0.65, 0.64], [0.1, 0.2, 0.1, 0.1]),
    "judge, wide intervals": evaluated([0.6, 0.7, 0.65, 0.64], [0.1, 0.2, 0.3, 0.4], error=0.03),
    "held_out, a little": evaluated([0.6, 0.7, 0.67, 0.661], [0.1, 0.2, 0.3, 0.4], name="score"),
    "refused": run(20, refused_steps=0.0),
}


@pytest.mark.parametrize("name", BEYOND)
def test_beyond_its_threshold_a_rule_speaks_once(name: str) -> None:
    rows = BEYOND[name]
    assert rules(rows) == [name.partition(",")[0]]
    assert findings(rows)[0].step == {"length": 10, "judge": 6, "held_out": 6}.get(name, rows[-1]["step"])
    if name != "refused":
        longer = [{**rows[-1], "step": rows[-1]["step"] + i} for i in range(1, 40)]
        assert rules([*rows, *longer]) == rules(rows)


@pytest.mark.parametrize("name", WITHIN)
def test_within_its_threshold_a_rule_is_silent(name: str) -> None:
    assert rules(WITHIN[name]) == []


def test_every_rule_is_tried() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert {name.partition(",")[0] for name in BEYOND} == set(names)


def test_one_noisy_rollout_neither_makes_a_rule_speak_nor_keeps_it_silent() -> None:
    spike = run(20)
    for row in spike[5::6]:
        row.update({"objective/kl": 100.0, "policy/ratio": 3.0, "objective/entropy": 0.0, "completions/ended": 0.0})
    assert rules(spike) == []
    sick = run(6, kl=-1.0)
    sick[4]["objective/kl"] = 0.5
    assert [finding.step for finding in findings(sick)] == [6]
    sick[3]["objective/kl"] = 0.5
    assert rules(sick) == []


def test_a_rule_speaks_again_when_it_is_twice_as_bad() -> None:
    rows = run(4, kl=21.0) + [{"step": 6 + i, **HEALTHY, "objective/kl": 41.9 if i < 10 else 42.1} for i in range(20)]
    assert [(finding.step, finding.rule) for finding in findings(rows)] == [(5, "large_kl"), (18, "large_kl")]
    assert "42.1" in findings(rows)[1].en


def test_what_is_missing_or_not_a_number_is_passed_over() -> None:
    rows = run(9, kl=-1.0)
    for row, value in zip(rows[2::3], (None, math.nan, math.inf), strict=False):
        row["objective/kl"] = value
    del rows[4]["objective/kl"]
    assert rules(rows) == ["negative_kl"]
    assert rules([{"step": step} for step in range(1, 30)]) == []
    # While the critic warms up there are no updates of the policy.
    assert rules([{k: v for k, v in row.items() if not k.startswith("policy/")} for row in run(20)]) == []


def test_of_the_first_rollouts_the_findings_are_the_first() -> None:
    rows = run(30, kl=50.0, entropy=0.01, clipfrac=0.6, explained_variance=-1.0, ended=0.0)
    whole = findings(rows)
    assert len(whole) == 5
    for count in range(len(rows)):
        assert findings(rows[:count]) == whole[: len(findings(rows[:count]))]


def test_the_numbers_are_in_both_sentences() -> None:
    (finding,) = findings(run(4, kl=-1.237))
    assert finding.line("en").startswith("rollout 5: the KL to the reference is negative (-1.24 nats")
    assert finding.line("zh").startswith("rollout 5：与参考模型的 KL 为负（每条回答 -1.24 nats）")
    (finding,) = findings(evaluated([0.6, 0.7, 0.65, 0.64], [0.1, 0.2, 0.3, 0.4]))
    for line in (finding.en, finding.zh):
        assert all(number in line for number in ("rollout 2", "0.20", "0.40", "0.70", "0.64"))


@pytest.mark.parametrize("verb", ["ppo", "rft"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_sentence_is_one_and_names_what_to_change_in_both_languages(rule: Any, verb: str) -> None:
    if rule.name == "alike" and verb == "ppo":
        pytest.skip("only rft logs what it looks at")
    known = {key for key, _ in config_keys(PPOConfig if verb == "ppo" else RFTConfig)}
    groups = r"\b(?:ppo|rft|reward|model|generation|optimizer|evaluation)\.\w+"
    en, zh = rule.sentences(verb)
    keys = [set(re.findall(groups, text)) for text in (en, zh)]
    assert keys[0] == keys[1] and keys[0] <= known
    assert keys[0] or "best/" in en
    assert set(re.findall(r"{(\w+)", en)) == set(re.findall(r"{(\w+)", zh))
    assert "; " in en and ". " not in en and "\n" not in en + zh
    assert "；" in zh and "。" not in zh and len(re.findall(r"[\u4e00-\u9fff]", zh)) > 20


def test_the_same_fault_is_told_with_the_keys_of_the_verb() -> None:
    rows = run(4, kl=21.0)
    for verb, other in (("ppo", "rft"), ("rft", "ppo")):
        (finding,) = findings(rows, verb=verb)
        for sentence in (finding.en, finding.zh):
            assert f"{verb}.kl_coefficient" in sentence and f"{other}." not in sentence and "21.0" in sentence


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_table_of_the_documentation_says_the_same(rule: Any) -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith(f"| `{rule.name}` |")]
    assert len(rows) == (1 if rule.rft is None else 2)
    for sentence in (rule.en, rule.zh):
        assert re.sub(r"{[^}]*}", "…", sentence) in rows[0]
    assert rule.rft is None or all(advice in rows[1] for advice in rule.rft)


# ------------------------------------------------------------------------------------------------- in a run's folder


def metrics(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "step"}


def lines(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "findings.jsonl").read_text(encoding="utf-8").splitlines()]


def test_findings_are_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = FlightRecorder(tmp_path, verb="ppo", lang="zh", start={}, done=0)
    found: list[Finding] = []
    for row in run(7, kl=-1.0, entropy=0.1):
        assert (tmp_path / "findings.jsonl").exists() == bool(found)
        found += recorder.look(row["step"], metrics(row))
    assert [finding.rule for finding in found] == ["negative_kl", "entropy"]
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [f"警告：{finding.line('zh')}" for finding in found]
    assert [(line["step"], line["rule"], line["en"], line["zh"]) for line in lines(tmp_path)] == [
        (finding.step, finding.rule, finding.en, finding.zh) for finding in found
    ]


def test_a_run_of_rft_is_advised_with_its_own_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = FlightRecorder(tmp_path, verb="rft", lang="en", start={}, done=0)
    for row in run(4, clipfrac=0.5, without_variance=1.0):
        recorder.look(row["step"], metrics(row))
    assert [line["rule"] for line in lines(tmp_path)] == ["clipped", "alike"]
    said = capsys.readouterr().err
    assert "rft.num_epochs" in said and "rft.dynamic_sampling" in said and "ppo." not in said


def test_a_run_that_goes_on_knows_what_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(30, kl=50.0 / 3, entropy=0.01) + [{**HEALTHY, "step": 32 + i, "objective/kl": 100 / 3} for i in range(9)]

    def flown(folder: Path, done: int) -> list[Row]:
        recorder = FlightRecorder(folder, verb="ppo", lang="en", start={"eval/score": 0.1}, done=done)
        for row in rows[done:]:
            recorder.look(row["step"], metrics(row))
        return lines(folder)

    (tmp_path / "whole").mkdir()
    whole = flown(tmp_path / "whole", 0)
    assert [(line["step"], line["rule"]) for line in whole] == [(5, "entropy"), (35, "large_kl")]
    for done in (1, 4, 5, 20, 34, 35, 40):
        folder = tmp_path / str(done)
        folder.mkdir()
        record = MetricsFile(folder / "metrics.jsonl")
        for row in rows[: done + 2]:  # killed two rollouts after its checkpoint
            record.write(row["step"], metrics(row))
        (folder / "findings.jsonl").write_text((tmp_path / "whole" / "findings.jsonl").read_text(encoding="utf-8"))
        capsys.readouterr()
        assert flown(folder, done) == whole
        said = re.findall(r"warning: rollout (\d+):", capsys.readouterr().err)
        assert [int(step) for step in said] == [line["step"] for line in whole if line["step"] > done]
