"""`onebase runs` on finished, stopped, damaged and running runs; and what runs record for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from onebase.cli.main import main
from onebase.config.files import dump_config
from onebase.config.language import SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.config.rollouts import PPOConfig
from onebase.config.verbs import VERB_CONFIGS, verb_of
from onebase.recipes import dpo, ppo, reward, sft
from onebase.reporting import plots
from onebase.runs.record import read_rows
from onebase.tools import runs
from onebase.training.loop import Loop
from onebase.training.run import Run, Schedule
from tests.recipes.conftest import (
    answered_rows,
    common,
    load,
    metric_rows,
    pair_rows,
    small_ppo,
    write_rows,
)


def sft_text(**more: Any) -> str:
    options = {"output_dir": "runs/x", "model.model_name_or_path": "base", "data.train": "a.jsonl"}
    return dump_config(load(SFTConfig, options, more))


def started(folder: Path, *, text: str | None = None, steps: int = 4, **metrics: float) -> Run:
    """Makes a run with a few steps, whose folder is still locked."""
    run = Run(folder, seed=0, config_text=text or sft_text())
    for step in range(1, steps + 1):
        run.log(step, {"loss": 2.0 / step, **metrics})
    return run


def finished(folder: Path, *, text: str | None = None, **summary: Any) -> Path:
    known = {"verb": "sft", "steps": 4, "eval_loss_before": 2.0, "eval_loss_after": 0.5}
    started(folder, text=text).finish({**known, **summary})
    return folder


def with_checkpoint(folder: Path) -> Path:
    run = Run(folder, seed=0, config_text=sft_text(), schedule=Schedule(every_steps=2))
    with Loop(run, "sft", 10, save=lambda path: (path / "policy").mkdir()) as loop:
        for step in loop:
            if step == 3:
                break
            loop.end_step({"loss": 1.0})
    run.close()
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert main(["runs", *map(str, words)]) == 0
    out = capsys.readouterr().out
    return json.loads(out) if "--json" in words else out


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["runs", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


# ---------------------------------------------------------------------------------------------------------------- ls


def test_every_run_is_listed_with_its_state_the_newest_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "b" / "done")
    with_checkpoint(tmp_path / "can-go-on")
    started(tmp_path / "stopped").close()
    going = started(tmp_path / "best-of-going")
    (tmp_path / "no-run").mkdir()
    for age, name in enumerate(("stopped", "best-of-going", "can-go-on", "b/done")):
        for file in (tmp_path / name).glob("*.*"):
            os.utime(file, (1e9 + age, 1e9 + age))
    found = told(capsys, "ls", tmp_path, "--json")
    assert [(run["run"], run["verb"], run["state"], run["steps"]) for run in found] == [
        ("stopped", "sft", "stopped without a checkpoint", 4),
        ("best-of-going", "sft", "running", 4),
        ("can-go-on", "sft", "checkpoint-2, can resume", 3),
        ("b/done", "sft", "finished", 4),
    ]
    assert found[-1]["result"] == "held-out loss 2 → 0.5 nats per token" and found[0]["result"] == "loss 0.5 in step 4"
    lines = told(capsys, "ls", tmp_path).splitlines()
    assert lines[0].split() == ["run", "verb", "state", "steps", "time", "result"] and len(lines) == 5
    assert lines[-1].split()[:4] == ["b/done", "sft", "finished", "4"]
    going.close()
    states = {run["run"]: run["state"] for run in told(capsys, "ls", tmp_path, "--json")}
    assert states["best-of-going"] == "stopped without a checkpoint"


def test_looking_at_a_run_neither_takes_nor_disturbs_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    for _ in range(2):
        assert told(capsys, "show", run.folder, "--json")["state"] == "running"
        told(capsys, "ls", tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before
    run.log(5, {"loss": 0.1})
    run.close()
    Run(run.folder, seed=0, config_text=sft_text()).close()  # the lock is free


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "fine")
    for name, text in (("cut", "output_dir: [a"), ("foreign", "name: of another program"), ("list", "- 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    finished(tmp_path / "cut-summary")
    (tmp_path / "cut-summary" / "summary.json").write_text('{"verb": "s')
    assert main(["runs", "ls", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "fine" in captured.out and "cut-summary" in captured.out and captured.out.count("\n") == 3
    assert captured.err.count("skipped: ") == 3 and captured.err.count("warning: ") == 1
    assert "not valid YAML" in captured.err and "not valid JSON" in captured.err


JSON_VALUES = ["null", "[]", "[1, 2]", "3", "true", '"text"', "{}", '{"a": {"b": [1]}}', "NaN", "1e999", "[[[]]]"]
DAMAGED_LINES = [
    *JSON_VALUES,
    '{"step": 3, "loss": 1e308}\n{"step": 4, "loss": -1e308}',
    "{",
    '{"step": 1',
    '{"loss": 1.0}',
    '{"step": null, "loss": 1}',
    '{"step": "1", "loss": 1}',
    '{"step": true, "loss": 1}',
    '{"step": 1.5, "loss": 1}',
    '{"step": -1, "loss": 1}',
    '{"step": 9, "loss": "x"}',
    '{"step": 9, "loss": [1]}',
    '{"step": 9, "loss": {}}',
    '{"step": 9, "loss": true}',
    '{"step": 1e30, "loss": 1}',
    '{"step": ' + "9" * 40 + "}",
    "1" * 5000,
    "[" * 50_000,
    '{"a":' * 3000,
    "\x00\x01\x02",
    "\u2028",
]
DAMAGED_SUMMARIES = [
    *JSON_VALUES[:6],
    "",
    "{",
    "1" * 5000,
    "[" * 50_000,
    '{"a":' * 60 + "1" + "}" * 60,
    '{"verb": 3}',
    *(
        f'{{"verb": "ppo", "{key}": {value}}}'
        for key in (
            "seconds",
            "phase_seconds",
            "data",
            "peak_memory_mb",
            "eval_loss_after",
            "eval_accuracy",
            "score_rise",
            "mean_scores",
            "best_score",
            "loss",
        )
        for value in ('"x"', "[]", '[1, "x"]', '{"a": "b"}', "true")
    ),
    '{"score_rise": [1, 2, 3], "kl": "far"}',
    '{"eval_accuracy": 0.5, "eval_accuracy_interval": ["a", "b"]}',
    '{"verb": "ppo", "data": null, "phase_seconds": null}',
    '{"seconds": 1e999}',
    '{"seconds": NaN, "kl": Infinity}',
    '{"steps": ' + "9" * 400 + "}",
]
BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]\n" for i in range(30))
DAMAGED_CONFIGS = [
    "output_dir: x\n" + BOMB,
    "output_dir: x\na: &a [*a]\n",
    "output_dir: x\na: " + "[" * 900,
    "output_dir: x\n1: 2\n",
    "output_dir: x\nlang: [zh]\nppo: 3\n",
    "output_dir: x\nppo: {kl_target: far, max_kl: [1]}\n",
    "output_dir: x\nseed: !!int abc\n",
    "output_dir: x\nseed: " + "1" * 5000,
    "output_dir: x\n? [a]\n: b\n",
    "output_dir: [1]\nd: 2026-01-01\nb: !!binary aGk=\n",
    "\x00",
    '"output_dir": "\\e[31mred"\n',
]
DAMAGE = (
    [("metrics.jsonl", f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 2, "loss": 1.0}}\n') for line in DAMAGED_LINES]
    + [("summary.json", text) for text in DAMAGED_SUMMARIES]
    + [("config.yaml", text) for text in DAMAGED_CONFIGS]
    + [
        (name, text)
        for name in ("best/best.json", "samples.jsonl", "findings.jsonl")
        for text in (
            *JSON_VALUES,
            "{",
            '{"prompt": 3}',
            '{"prompt": "a", "policy": {"score": "<b>"}}',
            '{"step": 1, "en": 2}',
        )
    ]
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("part", range(8))
def test_a_damaged_run_is_named_and_hides_no_other(
    part: int, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(DAMAGE) > 120
    shutil.copytree(whole_run, tmp_path / "fine")
    for number, (name, text) in enumerate(DAMAGE[part::8]):
        run = Path(shutil.copytree(whole_run, tmp_path / f"bad{number}"))
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text, encoding="utf-8")
        capsys.readouterr()
        assert main(["runs", "ls", str(tmp_path)]) == 0, (name, text[:80])
        listed = capsys.readouterr()
        assert "fine" in listed.out and "\x1b" not in listed.out
        whole = name in ("best/best.json", "samples.jsonl", "findings.jsonl")
        told_of = f"bad{number}" in listed.err
        for words in (["show", run], ["show", run, "--json"], ["compare", run, tmp_path / "fine"], ["report", run]):
            code = main(["runs", *map(str, words)])
            shown = capsys.readouterr()
            assert code == (2 if "skipped: " in listed.err and told_of else 0), (words, name, text[:80], shown.err)
            assert "\x1b" not in shown.out and all(len(line) < 600 for line in shown.err.splitlines())
        harmless = text.strip() in ("", "{}") or name == "config.yaml" or whole or not told_of
        assert harmless or str(run / name) in listed.err, (name, text[:80], listed.err)
        shutil.rmtree(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.yaml"])
def test_what_is_no_file_is_named_and_read_never(
    name: str, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, make in enumerate((Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"\xff\xfe\x00garbage"))):
        run = Path(shutil.copytree(whole_run, tmp_path / f"run{number}"))
        (run / name).unlink()
        make(run / name)
    shutil.copytree(whole_run, tmp_path / "fine")
    assert main(["runs", "ls", str(tmp_path)]) == 0
    listed = capsys.readouterr()
    assert "fine" in listed.out
    assert [f"run{number}" in listed.err for number in range(3)] == [name != "config.yaml", True, True]


def test_lines_behind_a_damaged_one_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n\xff\xfe\n{"step": 3}\n[]\n{"step": 4, "loss": 2}\n{"step": 5, "lo')
    assert read_rows(path) == (
        [{"step": 1, "loss": None}, {"step": 3}, {"step": 4, "loss": 2}],
        f"{path}: 2 lines (the first is line 2) are damaged and skipped",
    )
    assert read_rows(tmp_path / "gone") == ([], f"{tmp_path / 'gone'}: cannot be read: No such file or directory")


def test_an_empty_folder_lists_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "ls", tmp_path, "--json") == []


@pytest.mark.parametrize("verb", VERB_CONFIGS)
def test_the_verb_of_a_run_that_is_not_finished_is_known_by_its_keys(verb: str) -> None:
    fields = VERB_CONFIGS[verb].model_fields
    assert verb_of(fields) == verb
    assert verb_of([key for key in fields if key not in ("checkpoint", "report_to")]) == verb, "of an earlier version"


@pytest.mark.parametrize(
    ("summary", "result"),
    [
        ({"eval_loss_after": None, "eval_loss_before": None}, "held-out loss – → – nats per token"),
        ({"eval_accuracy": 0.75, "eval_accuracy_interval": [0.7, 0.8]}, "held-out accuracy 0.750 [0.700, 0.800]"),
        ({"eval_accuracy": None, "eval_accuracy_interval": None}, "held-out accuracy –"),
        ({"score_rise": [-0.5, -1, 0.1], "kl": 2.0}, "held-out score -0.500 [-1.000, 0.100], KL 2 nats per completion"),
        ({"mean_scores": [0.25, None, 0.5]}, "mean score of the samples 0.25 → – → 0.5"),
        ({"best_score": 1.5, "mean_score": 0.5}, "mean score 0.5, of the best 1.5"),
    ],
)
def test_the_result_of_every_verb_is_a_line(
    summary: dict[str, Any], result: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(tmp_path / "run").finish({"verb": "some", **summary})
    assert told(capsys, "show", tmp_path / "run", "--json")["result"] == result


# -------------------------------------------------------------------------------------------------------------- show


def test_show_tells_what_is_not_at_its_default_and_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = sft_text(**{"optimizer.learning_rate": 3e-3, "lora.r": 4})
    folder = finished(tmp_path / "run", text=text, data={"train": 1200, "held_out": 54})
    (folder / "best").mkdir()
    (folder / "best" / "best.json").write_text('{"step": 3, "eval/loss": 0.5}')
    (folder / "failed-in-step-4").mkdir()
    known = told(capsys, "show", folder, "--json")
    assert known["changed"] == {
        "output_dir": "runs/x",
        "model.model_name_or_path": "base",
        "lora.r": 4,
        "data.train": ["a.jsonl"],
        "optimizer.learning_rate": 3e-3,
    }
    assert known["last_metrics"] == {"step": 4, "loss": 0.5} and known["best"] == {"step": 3, "eval/loss": 0.5}
    assert known["summary"]["eval_loss_after"] == 0.5 and known["failed"] == ["failed-in-step-4"]
    shown = told(capsys, "show", folder)
    for line in (
        "state   finished",
        "data    1,200 train, 54 held out",
        "best    step 3, eval/loss 0.5",
        "failed  failed-in-step-4",
    ):
        assert f"  {line}\n" in shown, line
    assert ["lora.r", "4"] in [line.split() for line in shown.splitlines()]
    assert "checkpoints" not in shown
    assert "checkpoint-2" in told(capsys, "show", with_checkpoint(tmp_path / "other"))


# ----------------------------------------------------------------------------------------------------------- compare


def test_compare_tells_the_keys_that_differ_and_the_rest_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finished(tmp_path / "a" / "sft", text=sft_text(seed=1))
    second = finished(tmp_path / "b" / "sft", text=sft_text(**{"lora.r": 4}), eval_loss_after=0.25)
    third = started(tmp_path / "c" / "sft")
    known = told(capsys, "compare", first, second, third.folder, "--json")
    names = ["a/sft", "b/sft", "c/sft"]
    assert known["config"] == {
        "seed": dict(zip(names, (1, 0, 0), strict=True)),
        "lora.r": dict(zip(names, (16, 4, 16), strict=True)),
    }
    assert known["summary"]["eval_loss_after"] == dict(zip(names, (0.5, 0.25, None), strict=True))
    assert known["summary"]["state"]["c/sft"] == "running" and known["last_metrics"]["loss"]["c/sft"] == 0.5
    lines = [line.split() for line in told(capsys, "compare", first, second).splitlines()]
    assert ["lora.r", "16", "4"] in lines and ["eval_loss_after", "0.5", "0.25"] in lines
    assert ["summary", "a/sft", "b/sft"] in lines


# -------------------------------------------------------------------------------------------------- plot and report


def test_one_run_or_several_are_drawn_also_while_they_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    going, done = started(tmp_path / "going"), finished(tmp_path / "done")
    assert told(capsys, "plot", going.folder).strip() == str(going.folder / "plots" / "metrics.png")
    assert told(capsys, "plot", going.folder, done).strip() == str(going.folder / "plots" / "going-done.png")
    told(capsys, "plot", going.folder, done, "--output", tmp_path / "new" / "both.png")
    for path in (
        going.folder / "plots" / "metrics.png",
        going.folder / "plots" / "going-done.png",
        tmp_path / "new" / "both.png",
    ):
        assert imread(path).std() > 0.01


def test_a_report_can_be_written_at_any_time_and_again_with_a_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    going = started(tmp_path / "going", num_tokens=500.0)
    path = going.folder / "report.html"
    assert told(capsys, "report", going.folder).strip() == str(path)
    text = path.read_text(encoding="utf-8")
    assert "sft · running · 4 steps" in text and "cost" not in text
    going.finish({"verb": "sft"})
    told(capsys, "report", going.folder, "--price-per-hour", "1.2")
    text = path.read_text(encoding="utf-8")
    assert "sft · finished · 4 steps" in text and "cost per thousand tokens trained on" in text and "2,000" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "nowhere"], "no folder 'nowhere'; give the folder that runs were written to"),
        (["show", "nowhere"], "nowhere: no run here (config.yaml cannot be read: No such file or directory)"),
        (["ls", "x" * 300], "no folder 'xxx"),
        (["show", "x" * 300], "no run here (config.yaml cannot be read: File name too long)"),
        (["plot", "done", "--output", "x" * 300 + ".png"], "cannot be written (File name too long)"),
        (["plot", "done", "--output", "a\0.png"], "an argument of the command line contains a NUL character"),
        (["show", "."], ".: no run here, but there are runs below: done"),
        (["show", "cut"], "cut/config.yaml: not valid YAML: "),
        (["plot"], "give the folders of 1 run or more"),
        (["plot", "done", "done"], "give the folders of 1 run or more"),
        (["plot", "short"], "short: nothing to draw yet; curves need two steps"),
        (["plot", "done", "--output", "x.jpg"], "--output x.jpg: give the name of a .png file"),
        (["compare", "done"], "give the folders of 2 different runs or more"),
        (["compare", "done", "./done/"], "give the folders of 2 different runs or more"),
        (["report", "done", "--price-per-hour", "-1"], "--price-per-hour -1: a price is 0 or more"),
        (["report", "done", "--price-per-hour", "nan"], "--price-per-hour: nan is not a number"),
        (["report", "full"], "full/report.html: cannot be written (Is a directory)"),
        (["plot", "done", "--output", "short/config.yaml/x.png"], "x.png: cannot be written (File exists)"),
        (["report", "nowhere"], "nowhere: no run here"),
        (["shw", "done"], 'Unknown command "shw". Did you mean "show"?'),
        (["show"], "parameter RUN requires an argument. See 'onebase runs --help'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Path("done"))
    started(Path("short"), steps=1).close()
    (finished(Path("full")) / "report.html").mkdir()
    Path("cut").mkdir()
    Path("cut/config.yaml").write_text("a: [")
    if words == ["show", "."]:
        for name in ("cut/config.yaml", "short/config.yaml", "full/config.yaml"):
            Path(name).unlink()
    assert message in complaint(capsys, *words)


# ----------------------------------------------------------------------------------------------------- how it starts


def test_nothing_imports_torch_and_the_answer_is_there_within_a_second(tmp_path: Path) -> None:
    first, second = finished(tmp_path / "a"), finished(tmp_path / "b")
    program = (
        "import sys; from onebase.cli.main import main\n"
        f"a, b = {str(first)!r}, {str(second)!r}\n"
        f"for line in (['ls', {str(tmp_path)!r}], ['show', a], ['compare', a, b], ['report', a]):\n"
        "    assert main(['runs', *line]) == 0\n"
        "early = {'torch', 'transformers', 'peft', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert main(['runs', 'plot', a]) == 0\n"
        "late = {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'imported: {early | late}' if early | late else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "onebase", "runs", "ls", tmp_path], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1  # the fastest, as other programs can only slow it down


# -------------------------------------------------------------------------------------------------- what runs record


def record_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns a finished run's summary and report, after checking that its phases add up to its time."""
    summary = json.loads((folder / "summary.json").read_text())
    phases = summary["phase_seconds"]
    assert list(phases) == ["set_up", "steps", "end"]
    assert sum(phases.values()) == pytest.approx(summary["seconds"], abs=0.21)
    runs.report(folder)
    return summary, (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_stands_where_its_curves_cannot_be_drawn(
    tmp_path: Path, pictures: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise ValueError("backend 'nosuch' is\nunknown")

    monkeypatch.setattr(plots, "plot_run", fail)
    folder = finished(tmp_path / "run")
    runs.leave_pictures(folder)
    assert capsys.readouterr().err == (
        "warning: sft: no curves or no report: backend 'nosuch' is\\nunknown; the run is complete; run 'onebase runs "
        f"report {folder}' to write the report\n"
    )


def test_the_time_of_a_run_that_goes_on_is_that_of_its_steps(tmp_path: Path) -> None:
    folder = with_checkpoint(tmp_path / "run")
    state = torch.load(folder / "checkpoint-2" / "state.pt")
    torch.save({**state, "seconds": 100.0}, folder / "checkpoint-2" / "state.pt")
    sums = json.loads((folder / "checkpoint-2" / "checksums.json").read_text())
    sums["state.pt"] = hashlib.sha256((folder / "checkpoint-2" / "state.pt").read_bytes()).hexdigest()
    (folder / "checkpoint-2" / "checksums.json").write_text(json.dumps(sums))
    run = Run(folder, seed=0, config_text=sft_text())
    with Loop(run, "sft", 2, save=lambda path: None) as loop:
        assert list(loop) == []
    run.finish({"verb": "sft"})
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["phase_seconds"] == pytest.approx({"set_up": 0, "steps": 100, "end": 0}, abs=0.5)


def test_sft_records_its_data_its_tokens_and_its_time(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "sft.jsonl", answered_rows())
    sft.run(load(SFTConfig, common(base, tmp_path / "run", rows), {"max_steps": 3}))
    summary, text = record_of(tmp_path / "run")
    train, held_out = summary["data"]["train"], summary["data"]["held_out"]
    assert train + held_out == 24 and train > held_out > 0
    assert f"{train} train, {held_out} held out" in text and "tokens trained on" in text
    assert "lora.r<td>" not in text and "max_steps<td>3<td>–" in text  # defaults are not listed


def test_reward_and_dpo_record_the_tokens_they_learn_from(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows())
    few = {"max_steps": 2, "batch.minibatch": 4}
    reward.run(load(RewardConfig, common(base, tmp_path / "reward", rows), few))
    dpo.run(load(DPOConfig, common(base, tmp_path / "dpo", rows), few))
    for name in ("reward", "dpo"):
        summary, text = record_of(tmp_path / name)
        assert sum(summary["data"].values()) == 30 and "tokens trained on" in text
        assert all(row["num_tokens"] > 8 for row in metric_rows(tmp_path / name))
    assert metric_rows(tmp_path / "reward")[0]["num_tokens"] == metric_rows(tmp_path / "dpo")[0]["num_tokens"]


def test_ppo_records_what_it_generated_what_it_trained_on_and_where_the_time_went(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    config: PPOConfig = small_ppo(base, tmp_path / "run", prompts, {"ppo.num_ppo_epochs": 3})
    ppo.train(config)
    summary, text = record_of(tmp_path / "run")
    for row in metric_rows(tmp_path / "run"):
        assert row["completions/num_tokens"] == pytest.approx(8 * row["completions/mean_length"])
        assert row["num_tokens"] == 3 * row["completions/num_tokens"] and row["perf/update_seconds"] > 0
    assert sum(summary["data"].values()) == 16
    for part in ("tokens generated", "updates<td>", "set-up and first evaluation<td>", "before: score", "after: score"):
        assert part in text, part
