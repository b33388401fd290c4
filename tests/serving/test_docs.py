"""The curl lines of docs/serving.md and of the README, executed as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.config.files import load_config
from onebase.config.serving import ServeConfig
from tests.serving.conftest import Served

ROOT = Path(__file__).resolve().parents[2]
DOCS, README = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/serving.md", "README.md"))
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def curl_lines(text: str) -> list[str]:
    return re.findall(r"^curl (?:.*\\\n)*.*$", text, re.MULTILINE)


def answered(line: str, served: Served) -> str:
    """What a curl line prints, sent to this server instead."""
    command = line.replace("http://127.0.0.1:8000", served.url).replace(
        "curl ", "curl -sS --fail-with-body -H 'Authorization: Bearer x' "
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_curl
def test_the_curl_lines_get_answers(folders: dict[str, str], start: Callable[..., Served]) -> None:
    lines = curl_lines(DOCS)
    assert len(lines) == 7
    served = start(folders["helpful"], folders["judge"], env={"ONEBASE_API_KEY": "x"})
    found = [answered(line, served) for line in lines]
    served.stop()
    answers: list[Any] = [json.loads(text) for n, text in enumerate(found) if n not in (2, 6)]
    models, chat, complete, score, compare = answers
    assert [model["id"] for model in models["data"]] == ["base", "helpful"]
    assert chat["choices"][0]["finish_reason"] in ("stop", "length") and chat["model"] == "helpful"
    assert found[2].startswith("data: {") and found[2].endswith("data: [DONE]\n\n")
    assert len(complete["choices"]) == 2 and complete["choices"][0]["logprobs"]["tokens"]
    assert sorted(item["rank"] for item in score["data"]) == [1, 2]
    assert [item["model"] for item in compare["data"]] == ["helpful", "base"] and compare["data"][0]["score"]
    assert 'onebase_tokens_total{kind="completion",model="helpful"}' in found[6]


@needs_curl
def test_the_curl_lines_of_the_readme_get_answers_of_the_roles_it_serves(
    folders: dict[str, str], start: Callable[..., Served], tmp_path: Path
) -> None:
    named = re.findall(r"^onebase serve (\S+) (\S+) #", README, re.MULTILINE)
    assert named == [("runs/dpo/policy", "runs/reward/reward")] and len(curl_lines(README)) == 2
    for folder, role in zip(named[0], ("helpful", "judge"), strict=True):
        (tmp_path / folder).parent.mkdir(parents=True)
        (tmp_path / folder).symlink_to(folders[role])
    served = start(*(str(tmp_path / folder) for folder in named[0]), env={"ONEBASE_API_KEY": "x"})
    chat, score = (json.loads(answered(line, served)) for line in curl_lines(README))
    served.stop()
    assert chat["model"] == "dpo" and chat["choices"][0]["finish_reason"] in ("stop", "length")
    assert score["model"] == "reward" and sorted(item["rank"] for item in score["data"]) == [1, 2]


def test_the_config_in_the_docs_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "serve.yaml").write_text(text)
    config = load_config(ServeConfig, tmp_path / "serve.yaml")
    assert config.roles["helpful"].max_tokens == 400 and config.roles["judge"].samples_as_usual
    documented = set(re.findall(r"^ *(\w+):", text, re.MULTILINE)) | {"dtype", "quantization", "device", "threads"}
    assert documented >= {*ServeConfig.model_fields, *type(config.limits).model_fields}
    assert config.limits == type(config.limits)(tokens=4096, rows=64)
