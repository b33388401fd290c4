"""The configuration of verifiers: which there are, and that their options are the verifiers' own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from onebase.config.files import describe_config, dump_config, load_config
from onebase.config.values import Group
from onebase.config.verifiers import GROUPS, FunctionGroup, LengthGroup, NumericGroup, Verifiers
from onebase.errors import ConfigError
from onebase.verifiers.table import VERIFIERS


class Config(Group):
    verify: Verifiers = []
    """What checks the answers."""


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(Config, path)


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_verifiers_options_and_defaults_are_its_fields(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(VERIFIERS[name])}  # type: ignore[arg-type]
    group = GROUPS[name]
    defaults: dict[str, Any] = {
        field.alias or key: dataclasses.MISSING if field.is_required() else field.default
        for key, field in group.model_fields.items()
        if key not in ("name", "weight")
    }
    fields.pop("allowed", None)  # leave to run code is no option
    assert defaults == fields
    assert all(field.description for key, field in group.model_fields.items() if key != "name")


def test_every_verifier_can_be_configured() -> None:
    assert set(GROUPS) == set(VERIFIERS)


def test_a_name_alone_means_its_defaults_and_one_is_a_list_of_one(tmp_path: Path) -> None:
    assert read(tmp_path, "verify: numeric").verify == [NumericGroup(name="numeric")]
    assert load_config(Config, None, ["--verify", "numeric"]).verify == [NumericGroup(name="numeric")]
    config = read(tmp_path, "verify:\n- numeric\n- {name: length, most: 20, weight: 0.5}\n- rewards.py:polite")
    assert config.verify == [
        NumericGroup(name="numeric"),
        LengthGroup(name="length", most=20, weight=0.5),
        FunctionGroup(name="rewards.py:polite"),
    ]


def test_the_options_make_the_verifier(tmp_path: Path) -> None:
    text = "verify:\n- {name: numeric, tolerance: 0.5, weight: 2}\n- {name: json_schema, schema: {type: object}}"
    numeric, json_schema = read(tmp_path, text).verify
    assert numeric.weight == 2
    assert numeric.options == {"wrong": 0.1, "extract": "auto", "tolerance": 0.5, "units": True}
    assert VERIFIERS["numeric"](**numeric.options).tolerance == 0.5  # type: ignore[attr-defined]
    assert json_schema.options == {"schema": {"type": "object"}}


@pytest.mark.parametrize("name", ["exact", "code", "json_schema", "script", "pattern", "a.b:c"])
def test_what_is_written_down_reads_back(name: str, tmp_path: Path) -> None:
    needed = {"json_schema": "schema: {type: object}", "script": "script: han", "pattern": "pattern: a"}
    config = read(tmp_path, f"verify: [{{name: '{name}', {needed.get(name, 'weight: 1')}}}]")
    assert read(tmp_path, dump_config(config)) == config


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "numerc",
            "there is no verifier 'numerc'; there are exact, numeric, choice, maths, code, pattern, answer_format, "
            "json_schema, length, repetition, script, and Python functions written module:function or "
            "path/to/file.py:function",
        ),
        (
            "[{name: numeric, tol: 1}]",
            "numeric has no option 'tol'; its options are name, weight, wrong, extract, tolerance, units",
        ),
        ("[{name: numeric, tolerance: -1}]", "numeric: tolerance = -1: it should be greater than or equal to 0"),
        ("[{name: numeric, weight: true}]", "numeric: weight = True: it should be a number"),
        (
            "[{extract: all, name: exact}]",
            "exact: extract = all: it should be 'auto', 'tag', 'boxed', 'hash' or 'last'",
        ),
        ("[{name: pattern}]", "pattern needs its option 'pattern'"),
        ("[{name: json_schema}]", "json_schema needs its option 'schema'"),
        ("5", "5 has no name; write a name, or {name: numeric, weight: 1.0}"),
        ("[{weight: 1}]", "{'weight': 1} has no name; write a name, or {name: numeric, weight: 1.0}"),
        (
            "[numeric, {least: 0, most: 0, name: length}]",
            "length: most = 0: it should be greater than or equal to 1; "
            "length: least = 0: it should be greater than or equal to 1",
        ),
        ("[{name: 'f.py:g', times: 2}]", "f.py:g has no option 'times'; its options are name, weight"),
    ],
)
def test_a_wrong_verifier_is_named_in_one_line(written: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"verify: {written}")
    assert str(caught.value) == f"config.yaml: 'verify' = {written}: {message}"


def test_the_help_shows_how_a_verifier_is_written() -> None:
    assert "--verify [name|{name: .., ..}, ...] = []" in describe_config(Config)
