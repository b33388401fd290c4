"""`onebase demo --label`: a finished demo's roles go to the page at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebase.demo import label
from onebase.labeling.project import read_project


def test_a_finished_demo_is_not_run_again_and_its_project_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in label.ROLES:
        (tmp_path / name / "policy").mkdir(parents=True)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "stages.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "held_out.jsonl").write_text(json.dumps({"prompt": "Q"}))
    served: list[tuple[Path, bool]] = []
    monkeypatch.setattr(label, "serve", lambda path, *, opens: served.append((path, opens)))
    label.run(output_dir=tmp_path, seed=3)
    ((path, opens),) = served
    assert not opens  # nobody looks at a terminal
    project = read_project(path)
    config = project.config
    found = project.beside([*config.answers.roles, *config.answers.prompts])
    assert len(found) == 5 and all(Path(name).is_absolute() and Path(name).exists() for name in found)
    assert (config.seed, config.port, config.answers.max_tokens) == (3, 0, 40) and "礼貌" in project.rubric
    path.write_text(path.read_text().replace("onebase demo", "Mine"))
    label.run(output_dir=tmp_path, seed=3)
    assert read_project(path).config.name == "Mine"
