"""`onebase plan scaling` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebase.cli.main import main
from onebase.planning.laws import BESIROGLU


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", "scaling", *words])
    return code, *capsys.readouterr()


def finished_run(folder: Path, parameters: float, tokens: float, *, verb: str = "pretrain") -> Path:
    """A run's folder as `pretrain` leaves it, with the loss of a known law."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"output_dir: {folder}\n")
    rows = [{"step": step, "num_tokens": tokens / 4} for step in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss = BESIROGLU.loss(parameters, tokens)
    summary = {"verb": verb, "steps": 4, "parameters": int(parameters), "eval_loss_after": loss}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def finished_runs(tmp_path: Path) -> list[str]:
    sizes = [(n, d) for n in (1e6, 4e6, 1e7) for d in (1e7, 5e7, 2e8, 1e9)]
    return [str(finished_run(tmp_path / f"run-{i}", n, d)) for i, (n, d) in enumerate(sizes)]


def test_the_four_questions_are_answered_with_their_range(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys)
    assert code == 0
    assert "how much data for a model of 10 B parameters:\n  203 B [203 B, 422 B] tokens" in out
    assert "how large a model for 1 T tokens:\n  53.6 B" in out
    assert "what to train in 30 days on 100 A100:" in out and "3.23e+22 FLOP: 40% of 100 x 312 TFLOP/s" in out
    assert "what going from 10 B to 100 B parameters brings:\n  0.172 [" in out


def test_the_page_on_planning_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = asked(capsys)
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    assert f"```\n{out}```" in page


def test_amounts_may_be_written_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("7B", "7e9", "7000m"):
        _, out, _ = asked(capsys, "--data-for", text, "--json")
        assert json.loads(out)[0]["question"] == "how much data for a model of 7 B parameters"


def test_use_makes_the_best_model_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = asked(capsys, "--answers", "2T", "--json")
    *_, last = json.loads(out)
    assert last["figure"] < 10e9 and "saves 33% of the compute of training and use" in last["more"][0]


def test_a_law_is_fitted_to_runs_and_drawn(
    finished_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "law.png"
    words = ["--fit", *finished_runs, "--parameters", "20M", "--tokens", "2B", "--plot", str(picture)]
    code, out, _ = asked(capsys, *words)
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    assert "20 M parameters on 2 B tokens: loss" in out
    assert "this extrapolates: 2 times the most parameters of any run and 2 times the most tokens of any run" in out
    _, out, _ = asked(capsys, *words[:-2], "--json")
    assert json.loads(out)["prediction"]["loss"] == pytest.approx(BESIROGLU.loss(20e6, 2e9), rel=0.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data-for", "many"], "many is not an amount, such as 10B, 1.4T or 7e9"),
        (["--data-for", "0"], "0 is not an amount, such as 10B, 1.4T or 7e9"),
        (["--machine", "Z80"], "--machine Z80 is not known; choose one of T4, L4, A10G"),
        (["--utilisation", "1.5"], "--utilisation above 0 and at most 1"),
        (["--grow-from", "100B"], "--grow-to should be more than --grow-from"),
        (["--plot", "law.png"], "--plot is of use only with --fit; add the folders of your runs"),
        (["--fit", "nowhere", "--tokens", "1B"], "a prediction needs both --parameters and --tokens"),
        (["--fit", "nowhere"], "nowhere: no run here (config.yaml cannot be read"),
    ],
)
def test_a_mistake_gets_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = asked(capsys, *words)
    assert code == 2 and said in " ".join(err.split())


def test_runs_that_are_no_pretraining_and_too_few_runs_are_refused(
    finished_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = finished_run(tmp_path / "sft", 1e6, 1e7, verb="sft")
    code, _, err = asked(capsys, "--fit", *finished_runs, str(other))
    assert code == 3 and "sft is no finished pretrain run with a held-out loss; name others after --fit" in err
    code, _, err = asked(capsys, "--fit", *finished_runs[:3])
    assert code == 2 and "3 runs are too few for a law with 5 parameters" in err
