"""The shape of the code: which way imports point, and how much there is to read."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = [
    {"start", "__main__"},
    {"cli"},
    {"demo"},
    {"serving", "deploying", "submitting", "labeling"},
    {"web"},
    {"recipes", "tools", "plans", "convert", "exporting", "active_learning"},
    {"evaluation", "planning"},
    {"rollouts"},
    {"training", "rewards"},
    {"sampling"},
    {"engines"},
    {"models", "data", "quality", "streaming"},
    {"reading"},
    {"labels"},
    {"asking", "reporting"},
    {"runs"},
    {"objectives", "records", "verifiers"},
    {"config"},
    {"verbs"},
    {"distributed"},
    {"errors", "files", "processes", "seeds", "shown", "transfer", "__init__"},
]
"""Top to bottom: a part imports from its layer and those below; of two parts in a layer, one may import the other."""
LAYER_OF = {part: number for number, layer in enumerate(LAYERS) for part in layer}

SHARED_BY_RECIPES = "onebase.recipes.setup"
"""Beside the recipes, as they read configurations: how a run is set up, no loop and no loss."""
MAY_IMPORT_RECIPES = {
    # A round is two runs of verbs that stand alone.
    "onebase.recipes.iterate": {f"onebase.recipes.{verb}" for verb in ("best_of", "dpo", "sft")},
}
MAX_FUNCTION_LINES = 80
BUDGETS = {
    "active_learning": 920,
    "cli": 1540,
    "config": 2010,
    "convert": 1400,
    "data": 1950,
    "demo": 640,
    "deploying": 260,
    "distributed": 590,
    "engines": 2050,
    "evaluation": 330,
    "exporting": 1500,
    "labeling": 2250,
    "labels": 1050,
    "models": 1250,
    "objectives": 800,
    "planning": 2130,
    "plans": 1320,
    "quality": 1780,
    "reading": 2300,
    "recipes": 3320,
    "reporting": 860,
    "rewards": 700,
    "rollouts": 390,
    "runs": 520,
    "sampling": 820,
    "serving": 1380,
    "streaming": 470,
    "submitting": 630,
    "tools": 1750,
    "training": 1150,
    "verifiers": 1880,
    "web": 110,
}
"""Lines of code a room may have. Blank lines, comments and docstrings make a file longer, not harder to read. A room
that outgrows its budget holds a second idea: split it, or raise the budget and say why in docs/architecture.md."""
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "onebase").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports_of(module: str) -> Iterator[str]:
    """Every module named by an import, inside functions too; the full name where it is one of ours."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: write the import in full, 'from onebase. ...'"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def own_imports(module: str) -> set[str]:
    return {name for name in imports_of(module) if name.split(".")[0] == "onebase"}


def part_of(module: str) -> str:
    """`onebase.data.tree` is in part `data`; the package itself in part `__init__`."""
    return (module.split(".") + ["__init__"])[1]


def lines_of_code(module: str) -> int:
    text = MODULES[module].read_text(encoding="utf-8")
    said = {
        line
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for n, line in lines if n not in said and line.strip() and not line.strip().startswith("#"))


def test_every_part_of_the_package_has_a_layer() -> None:
    homeless = {part_of(name) for name in MODULES} - set(LAYER_OF)
    assert not homeless, f"{homeless}: put them in LAYERS, or in a folder that is there"


def test_imports_point_downwards() -> None:
    upward = [
        f"{module} imports {name}"
        for module in MODULES
        for name in own_imports(module)
        if LAYER_OF[part_of(name)] < LAYER_OF[part_of(module)]
    ]
    assert not upward


def test_parts_of_one_layer_do_not_import_each_other() -> None:
    edges = {(part_of(module), part_of(name)) for module in MODULES for name in own_imports(module)}
    mutual = {(a, b) for a, b in edges if a < b and (b, a) in edges}
    assert not mutual


def test_objectives_import_torch_alone() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    foreign = [
        f"{module} imports {name}"
        for module in MODULES
        if part_of(module) == "objectives"
        for name in imports_of(module)
        if name.split(".")[0] not in allowed and not name.startswith("onebase.objectives")
    ]
    assert not foreign


def test_nothing_below_the_recipes_sees_a_config() -> None:
    above = {"active_learning", "cli", "config", "convert", "demo", "deploying"}
    above |= {"exporting", "labeling", "plans", "recipes", "serving", "submitting", "tools"}
    seeing = [
        f"{module} imports {name}"
        for module in MODULES
        if part_of(module) not in above
        for name in own_imports(module)
        if part_of(name) == "config"
    ]
    assert not seeing


def test_recipes_do_not_import_each_other_but_for_the_rounds() -> None:
    mixed = [
        f"{module} imports {name}"
        for module in MODULES
        if part_of(module) == "recipes"
        for name in own_imports(module) - {module, "onebase.recipes"}
        if part_of(name) == "recipes"
        and not name.startswith(SHARED_BY_RECIPES)
        and name not in MAY_IMPORT_RECIPES.get(module, set())
    ]
    assert not mixed


def test_no_function_is_over_80_lines() -> None:
    long = [
        f"{module}.{node.name}: {(node.end_lineno or node.lineno) - node.lineno + 1} lines"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long


def test_modules_are_named_for_what_they_do() -> None:
    nameless = [name for name in MODULES if EMPTY_NAMES & {word for p in name.split(".") for word in p.split("_")}]
    assert not nameless


def test_every_room_keeps_its_budget() -> None:
    lines: dict[str, int] = dict.fromkeys(BUDGETS, 0)
    for name in MODULES:
        if part_of(name) in lines:
            lines[part_of(name)] += lines_of_code(name)
    over = {room: f"{count} of {BUDGETS[room]}" for room, count in lines.items() if count > BUDGETS[room]}
    assert not over


def test_every_room_has_a_budget() -> None:
    rooms = {part_of(name) for name in MODULES if (ROOT / "onebase" / part_of(name)).is_dir()}
    assert rooms == set(BUDGETS)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module: str) -> None:
    assert importlib.import_module(module).__name__ == module
