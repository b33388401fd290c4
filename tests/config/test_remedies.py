"""Errors below the recipes state facts and name remedies; the words for keys and flags are in one table."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from pydantic import BaseModel

import onebase.errors
from onebase.cli.failures import told
from onebase.config.remedies import REMEDIES, with_remedy
from onebase.config.verbs import VERB_CONFIGS
from onebase.errors import ModelError, OnebaseError, PromptTooLongError

ROOT = Path(__file__).parents[2]
ROOMS = (
    "data",
    "engines",
    "models",
    "planning",
    "reading",
    "rewards",
    "runs",
    "sampling",
    "streaming",
    "rollouts",
    "training",
    "verifiers",
)
TREES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for room in ROOMS
    for path in sorted((ROOT / "onebase" / room).glob("*.py"))
}
ERRORS = {name for name, kind in vars(onebase.errors).items() if isinstance(kind, type)}

CALLS_PROGRAMS = "onebase/verifiers/sandbox.py"
"""Names options of other programs."""
READS_CONFIGS = "onebase/runs/folder.py"
"""Compares the configuration of a run with the one its folder keeps, so that it has to know some keys."""
NAMED_BY_CALLERS = {"model.model_name_or_path", "reward.callable", "reward.model"}
"""What a caller says that a name or path came in; these are the defaults of that argument, or given for it."""


def keys_of(model: type[BaseModel], group: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, f"{name}.")
        else:
            yield group + name


KEYS = {key for config in VERB_CONFIGS.values() for key in keys_of(config)}
DOTTED = {key for key in KEYS if "." in key}
MEMBERS = {name for key in KEYS for name in [key.rpartition(".")[2]] if "_" in name}
"""The keys that are no words of English: alone they are keys as well."""


def found_in(text: str, keys: set[str]) -> list[str]:
    """The keys and the flags that a text names."""
    names = "|".join(map(re.escape, sorted(keys, key=len, reverse=True)))
    return re.findall(rf"(?<![\w.])(?:{names})(?!\w)|(?<![\w-])--[a-z]\w*", text)


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def errors_made() -> Iterator[tuple[str, ast.Call]]:
    """Every call below the recipes that makes an error with a remedy, also one that goes through a function."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and any(keyword.arg == "remedy" for keyword in node.keywords):
                yield f"{path}:{node.lineno}", node


def remedies_named() -> dict[str, list[tuple[str, ast.Call]]]:
    named: dict[str, list[tuple[str, ast.Call]]] = {}
    for place, call in errors_made():
        for keyword in call.keywords:
            if keyword.arg == "remedy":
                chosen = [keyword.value.body, keyword.value.orelse] if isinstance(keyword.value, ast.IfExp) else []
                for text in texts(ast.Tuple(chosen or [keyword.value], ast.Load())):
                    named.setdefault(text, []).append((place, call))
    named.pop("", None)
    return named


def test_the_remedies_named_are_those_of_the_table() -> None:
    assert set(remedies_named()) == set(REMEDIES)


def test_an_error_brings_every_value_that_its_remedy_needs() -> None:
    short = [
        f"{place}: {name} needs {field}"
        for name, calls in remedies_named().items()
        for _, field, _, _ in Formatter().parse(REMEDIES[name])
        for place, call in calls
        if field is not None and field not in {keyword.arg for keyword in call.keywords}
    ]
    assert not short


@pytest.mark.parametrize("text", REMEDIES.values())
def test_a_remedy_names_keys_that_there_are(text: str) -> None:
    groups = {key.partition(".")[0] for key in DOTTED}
    for name in re.findall(r"(?<![\w.])[a-z]+\.[a-z_]+(?!\w)", text):
        if name.partition(".")[0] in groups and not name.endswith((".json", ".jinja")):
            assert name in DOTTED


def test_no_error_below_the_recipes_names_a_key_or_a_flag() -> None:
    naming = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
            if made or isinstance(node, ast.Raise):
                naming += [f"{path}:{node.lineno}: {text}" for text in texts(node) if found_in(text, DOTTED | MEMBERS)]
    assert not naming


def test_nothing_else_below_the_recipes_names_a_key_by_its_group() -> None:
    naming = []
    for path, tree in TREES.items():
        said = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                if (
                    found_in(node.value, DOTTED)
                    and node.value not in NAMED_BY_CALLERS
                    and path not in (READS_CONFIGS, CALLS_PROGRAMS)
                ):
                    naming.append(f"{path}:{node.lineno}: {node.value}")
    assert not naming


def test_the_line_has_the_fact_and_the_remedy() -> None:
    error = ModelError("the tokenizer has no chat template", remedy="no-template", names="plain, hh")
    assert str(error) == "the tokenizer has no chat template"
    assert with_remedy(error) == (
        "the tokenizer has no chat template; set model.chat_template to one of plain, hh, or to the path of a .jinja "
        "file"
    )
    assert with_remedy(ModelError("{braces} stay")) == "{braces} stay"


def test_the_command_line_tells_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(PromptTooLongError("d.jsonl:7: 300 tokens", remedy="context-exceeded"), "ppo", None) == 3
    assert capsys.readouterr().err == (
        "error: d.jsonl:7: 300 tokens; lower generation.max_new_tokens or data.max_prompt_tokens\n"
    )


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_crosses_processes_whole(name: str) -> None:
    error: OnebaseError = vars(onebase.errors)[name]("what happened", remedy="paused", checkpoint="checkpoint-3")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(same) is type(error)
        assert (str(same), same.remedy, same.facts) == ("what happened", "paused", {"checkpoint": "checkpoint-3"})
