"""`onebase plan`: seconds, money and energy of a run, and measuring this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onebase.cli.main import main
from onebase.planning import probe
from onebase.planning.calibration import here, read_kept
from onebase.planning.work import KINDS
from onebase.reporting.page import write_report
from onebase.runs.record import read_metrics
from tests.tiny_models import save_tiny


@pytest.fixture
def config(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "base", "llama")
    rows = [{"prompt": f"{i} " + "ab" * (1 + i % 5), "completion": "cd" * (1 + i % 3)} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": str(tmp_path / "base"), "chat_template": "plain"},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "batch": {"minibatch": 4},
        "max_steps": 5,
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_plan_adds_up_and_prices_what_it_adds(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "sft", str(config), "--price-per-hour", "7.2", "--watts", "500")
    seconds = found["seconds"]
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"))
    assert found["cost"]["total"] == pytest.approx(seconds["total"] * 0.002)
    assert found["cost"]["per_sample"] == pytest.approx(found["cost"]["total"] / found["samples"])
    assert sum(part["total"] for part in found["cost_by_phase"].values()) == pytest.approx(found["cost"]["total"])
    assert found["kwh"] == pytest.approx(seconds["total"] * 500 / 3.6e6)
    assert found["samples"] == 5 * 4 and found["rates"] == "data sheet"


def test_the_table_has_every_phase_and_says_where_its_rates_are_from(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "sft", str(config), "--hardware", "h100", "--price-per-hour", "2"]) == 0
    told = capsys.readouterr().out
    for word in ("starting, loading the base", "update", "evaluations", "per 1,000 tokens", "a sample", "700 W"):
        assert word in told
    assert "rates: H100, data sheet" in told and "corrected" not in told
    assert not re.search(r"\d+e-\d+ (a sample|for a thousand)", told)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "plan what? name a verb and its config, or --calibrate; the verbs are pretrain, sft"),
        (["cook"], "plan what? name a verb and its config"),
        (["--calibrate", "sft"], "--calibrate measures this machine and plans nothing; leave the rest out"),
        (["sft", "CONFIG", "--hardware", "Z80"], "--hardware Z80 is not known; choose one of T4, L4, A10G"),
        (["sft", "CONFIG", "--price-per-hour", "-1"], "--price-per-hour is -1; it should be above 0, or left out"),
        (["sft", "CONFIG", "--watts", "0"], "--watts is 0; it should be above 0, or left out"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    words: list[str], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(str(config) if word == "CONFIG" else word for word in words)]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_run_says_in_its_third_step_how_far_it_is_from_its_plan_and_the_next_plan_counts_with_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    assert main(["sft", str(config)]) == 0
    said = capfd.readouterr().err
    assert len(re.findall(r"sft: planned \S+ s a step and \d+ MB, measured ", said)) == 1
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    told = [[name for name in row if name.startswith("perf/planned/")] for row in rows]
    assert [bool(names) for names in told] == [False, False, True, False, False]
    kept = read_kept(here("cpu").key)["observed"]
    assert [each["phase"] for each in kept] == ["update", "memory"]
    assert "First steps and their plan" in write_report(tmp_path / "run", {}).read_text(encoding="utf-8")
    assert main(["plan", "sft", str(config)]) == 0
    out = capfd.readouterr().out
    assert "earlier runs like it on this machine took" in out


def test_a_base_that_cannot_be_planned_trains_as_ever_and_says_so_once(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "bloom", "bloom")
    assert main(["sft", str(config), f"model.model_name_or_path={tmp_path / 'bloom'}", "max_steps=3"]) == 0
    said = capfd.readouterr().err
    assert said.count("the first steps are not compared with a plan") == 1 and "bloom" in said
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 3 and not any(name.startswith("perf/planned/") for row in rows for name in row)


def test_the_plan_changes_no_byte_of_what_is_trained(config: Path, tmp_path: Path) -> None:
    from onebase.config.files import load_config
    from onebase.config.language import SFTConfig
    from onebase.recipes import sft

    assert main(["sft", str(config), f"output_dir={tmp_path / 'watched'}"]) == 0
    sft.run(load_config(SFTConfig, config, [f"output_dir={tmp_path / 'alone'}"]))
    one, other = (tmp_path / name for name in ("watched", "alone"))
    for name in ("policy/adapter_model.safetensors", "samples.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(run / "metrics.jsonl")]
        for run in (one, other)
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_this_machine_is_measured_and_plans_go_by_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "SECONDS", 0.0)  # the first pass of every kind alone
    assert main(["plan", "--calibrate"]) == 0
    told = capsys.readouterr()
    assert "matrix product, float32" in told.out and "decode, " in told.out and f"kept in {tmp_path}" in told.out
    assert "the larger models are left out" in told.err
    rates = read_kept(here("cpu").key)["rates"]
    assert set(rates["rates"]) == set(KINDS) and all(spread["passes"] >= 1 for spread in rates["spread"].values())
    assert planned(capsys, "sft", str(config))["rates"].startswith("measured ")
