"""What is shipped works: the configs, the README's commands, the demo's data and configs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onebase.cli.commands import app
from onebase.config.files import dump_config, load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.demo import demo
from onebase.reading.formats import read_rows

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_is_valid_and_its_comment_names_the_command(path: Path) -> None:
    name = re.escape(str(path.relative_to(ROOT)))
    command = re.search(rf"#   onebase (\w+) {name}", path.read_text(encoding="utf-8"))
    assert command, f"{path}: the first lines say how to run it"
    load_config(VERB_CONFIGS[command[1]], path, [])


def test_the_readme_names_verbs_that_exist() -> None:
    verbs = set(re.findall(r"^onebase ([\w-]+)", README, flags=re.MULTILINE))
    assert verbs and all(verb in app for verb in verbs), verbs


def test_the_readme_config_is_valid(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n# ppo.yaml\n(.*?)```", README, flags=re.DOTALL)
    assert found
    path = tmp_path / "ppo.yaml"
    path.write_text(found[1], encoding="utf-8")
    load_config(VERB_CONFIGS["ppo"], path, [])


def test_files_and_folders_of_the_readme_exist() -> None:
    linked = re.findall(r"\]\(([\w./-]+)\)", README)
    assert linked and all((ROOT / path).exists() for path in linked), linked


def test_the_demo_writes_data_and_configs_that_a_user_could_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.grammar, "pretraining_texts", lambda seed, count: ["The cat eats fish."] * 3)
    demo.write_data(tmp_path / "data", seed=0)
    sizes = {path.name: len(read_rows(path)) for path in sorted((tmp_path / "data").iterdir())}
    assert sizes["pretrain.jsonl"] == 3 and min(sizes.values()) >= 3
    asked = {
        name: {row.messages[0].content for row in read_rows(tmp_path / "data" / f"{name}.jsonl")}
        for name in ("held_out", "prompts", "sft", "preferences")
    }
    assert not asked["held_out"] & (asked["prompts"] | asked["sft"] | asked["preferences"])
    for verb, config in demo.make_configs(tmp_path, seed=0).items():
        path = tmp_path / f"{verb}.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(VERB_CONFIGS[verb], path, []) == config


def test_the_demo_never_writes_over_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert demo.free_folder(tmp_path / "demo") == tmp_path / "demo-3"
