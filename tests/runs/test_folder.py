from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.config.remedies import with_remedy
from onebase.errors import CheckpointError, ConfigError
from onebase.runs.folder import asks_for_more, check_folder
from onebase.training.run import Run

CONFIG = """output_dir: run
seed: 0
max_steps: 4
start_from: null
optimizer: {num_epochs: 1}
model: {model_name_or_path: base, device: auto}
data: {train: [a.jsonl]}
"""
OTHER_VERB = CONFIG + "reward: {}\n"


def changed(**values: object) -> str:
    return CONFIG + "".join(f"{key}: {value}\n" for key, value in values.items())


def everything(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refusal(folder: Path, text: str = CONFIG, kind: type[ConfigError | CheckpointError] = ConfigError) -> str:
    """Returns the error message, after checking that nothing was touched."""
    before = everything(folder.parent)
    for refuse in (lambda: check_folder(folder, text), lambda: Run(folder, seed=0, config_text=text)):
        with pytest.raises(kind) as caught:
            refuse()
        assert everything(folder.parent) == before and "\n" not in str(caught.value) and caught.value.exit_code == 2
    return with_remedy(caught.value)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def make(path: Path) -> None:
    """Makes a file, or a folder with a file if the name has no suffix."""
    if path.suffix:
        path.write_text("of others")
    else:
        path.mkdir()
        (path / "adapter_model.safetensors").write_text("of others")


@pytest.mark.parametrize(
    "name",
    [
        "policy",
        "critic",
        "reward",
        "model",
        "best",
        "plots",
        "round-1",
        "failed-in-step-3",
        "config.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "pairs.jsonl",
        "report.html",
    ],
)
def test_what_others_left_is_refused_and_not_touched(run: Path, name: str) -> None:
    make(run / name)
    assert refusal(run) == (
        f"{run} holds {name}, and not from this verb's run; choose another --output_dir, or remove that folder first"
    )


def test_files_that_no_run_writes_are_in_nobodys_way(run: Path) -> None:
    for name in ("notes.txt", "data.jsonl", "checkpoints", "policy-of-mine"):
        make(run / name)
    check_folder(run, CONFIG)


def test_an_unfinished_run_of_another_verb_is_refused(run: Path) -> None:
    Run(run, seed=0, config_text=OTHER_VERB).log(1, {"loss": 1.0})
    assert "run holds config.yaml, metrics.jsonl, and not from this verb's run" in refusal(run)
    check_folder(run, OTHER_VERB)


def test_a_first_try_without_roles_gives_way_to_another_configuration(run: Path) -> None:
    Run(run, seed=0, config_text=CONFIG).log(1, {"loss": 1.0})
    check_folder(run, CONFIG.replace("seed: 0", "seed: 1"))


def test_roles_of_an_unfinished_run_are_not_mixed_with_those_of_another_configuration(run: Path) -> None:
    Run(run, seed=0, config_text=CONFIG).log(1, {"loss": 1.0})
    make(run / "policy")
    other = CONFIG.replace("seed: 0", "seed: 1").replace("max_steps: 4", "max_steps: 9")
    message = refusal(run, other, CheckpointError)
    assert message.startswith(f"{run} was written with another configuration: seed differ; resume with ")
    check_folder(run, CONFIG.replace("max_steps: 4", "max_steps: 9").replace("device: auto", "device: cpu"))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("start_from", "start_from: {}/policy"),
        ("model.model_name_or_path", "model: {{model_name_or_path: {}/model}}"),
        ("model.model_name_or_path", "model: {{model_name_or_path: {}}}"),
        ("reward.role", "reward: {{role: {}/checkpoint-4/reward}}"),
        ("data.train", "data: {{train: [a.jsonl, {}/best.jsonl]}}"),
    ],
)
def test_what_a_run_would_write_over_is_not_read_by_it(run: Path, key: str, text: str) -> None:
    (run / "data").mkdir()
    found = refusal(run, CONFIG + text.format(run) + "\n")
    assert found.startswith(f"'{key}' = {run}") and f"is in the run's own folder {run}, where it would be" in found


def test_inputs_beside_what_a_run_writes_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(run, CONFIG + f"data: {{train: [{run}/data/a.jsonl]}}\nstart_from: {run.parent}/before/policy\n")
    (run.parent / "link").symlink_to(run)
    with pytest.raises(ConfigError, match="'start_from' = .*link/policy is in the run's own folder"):
        check_folder(run, CONFIG + f"start_from: {run.parent}/link/policy\n")
    monkeypatch.chdir(run.parent)
    with pytest.raises(ConfigError, match="'start_from' = run/policy is in the run's own folder run, where"):
        check_folder(Path("run"), CONFIG + "start_from: run/policy\n")


def a_loop(place: Path) -> Path:
    (place / "loop").symlink_to(place / "loop")
    return place / "loop" / "run"


PLACES: list[tuple[Callable[[Path], Path], str, str]] = [
    (lambda place: place, "output_dir: '  '\n", "the folder that the run writes to has no name; name it in output"),
    (lambda place: Path("a\0b"), "", r"the run's folder 'a\x00b' has a zero character"),
    (lambda place: Path(__file__), "", "cannot be written (it is a file); choose another --output_dir"),
    (lambda place: Path(__file__) / "below", "", "cannot be written (Not a directory)"),
    (a_loop, "", "cannot be written (Too many levels of symbolic links)"),
    (lambda place: place / ("x" * 300), "", "cannot be written (File name too long)"),
]


@pytest.mark.parametrize(("place", "more", "message"), PLACES)
def test_a_place_that_cannot_be_a_folder_is_one_line(
    tmp_path: Path, place: Callable[[Path], Path], more: str, message: str
) -> None:
    folder = place(tmp_path)
    for refuse in (lambda: check_folder(folder, CONFIG + more), lambda: Run(folder, seed=0, config_text=CONFIG + more)):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert message in with_remedy(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "more"),
    [
        (CONFIG, False),
        (changed(seed=1), False),
        (changed(max_steps=8), True),
        (changed(max_steps="null"), True),
        (changed(max_steps=3), False),
        (changed(max_steps=8, seed=1), False),
        (changed(max_steps=8, output_dir="elsewhere"), True),
        (changed(optimizer="{num_epochs: 9}"), True),
        (changed(rounds=9), True),
    ],
)
def test_a_finished_run_is_made_longer_and_never_anything_else(run: Path, text: str, more: bool) -> None:
    done = Run(run, seed=0, config_text=CONFIG)
    done.log(1, {"loss": 1.0})
    done.finish({})
    assert asks_for_more(run, text) == more
    if more:
        check_folder(run, text)
    else:
        message = refusal(run, text)
        assert message.startswith(f"{run} holds a finished run; choose another --output_dir")
        assert message.endswith("raise max_steps or optimizer.num_epochs and leave everything else as it was")


def test_a_run_without_its_last_checkpoint_cannot_be_made_longer(run: Path) -> None:
    done = Run(run, seed=0, config_text=CONFIG)
    done.log(1, {"loss": 1.0})
    done.finish({})
    with pytest.raises(ConfigError, match="holds a finished run without its last checkpoint, so it cannot be"):
        Run(run, seed=0, config_text=changed(max_steps=8))
    assert (run / "summary.json").exists()


def test_the_folder_is_looked_at_without_torch() -> None:
    code = "import sys; from onebase.runs.folder import check_folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
