"""A working folder with a base, rows and a config, as `onebase submit` finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.conftest import answered_rows, make_base, write_rows

SFT = """\
output_dir: runs/sft
model: {model_name_or_path: base, chat_template: plain}
data: {train: rows.jsonl}
max_steps: 4
"""


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("submitting") / "base")


@pytest.fixture
def work(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are run in."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "base").symlink_to(tiny_base)
    write_rows(folder / "rows.jsonl", answered_rows(24))
    (folder / "sft.yaml").write_text(SFT)
    monkeypatch.chdir(folder)
    return folder
