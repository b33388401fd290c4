"""The list of mutants stays valid: the source they replace exists, and their replacement is valid Python."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, objectives
from tests.mutants.mutant import ROOT, Mutant


def test_every_mutant_replaces_a_text_that_stands_once_and_leaves_python() -> None:
    problems = []
    for mutant in MUTANTS:
        try:
            mutant.broken()
        except ValueError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


def test_the_nearest_tests_of_mutants_exist() -> None:
    missing = []
    for test in sorted({test for mutant in MUTANTS for test in mutant.tests.split()}):
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        if f"def {name.partition('[')[0]}(" not in text if name else not text:
            missing.append(test)
    assert not missing


def test_no_two_mutants_share_a_name() -> None:
    assert len({mutant.fault for mutant in MUTANTS}) == len(MUTANTS)


def test_a_text_that_is_gone_or_stands_twice_is_named() -> None:
    first = objectives.MUTANTS[0]
    for text, times in (("no such text", 0), ("@torch.no_grad()", 5)):
        with pytest.raises(ValueError, match=rf"{first.file}: the text of the mutant 'a fault' stands there {times}"):
            Mutant(first.file, text, "", "a fault", "").broken()
    with pytest.raises(ValueError, match="the mutant 'a fault' is no Python: "):
        Mutant(first.file, first.old, "(", "a fault", "").broken()
