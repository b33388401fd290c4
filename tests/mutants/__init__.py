"""Faults on purpose: `python -m tests.mutants` puts them into a copy of the package one by one and runs the tests.

The lists are data, a file per part of the package. When a line that a mutant replaces is rewritten, its entry follows:
`tests/test_mutants.py` names the entries whose text is no longer there.
"""

from tests.mutants import (
    active_learning,
    convert,
    data,
    deploying,
    distributed,
    exporting,
    gpu,
    labeling,
    labels,
    laws,
    models,
    objectives,
    planned_memory,
    planning,
    quality,
    recipes,
    rft,
    serving,
    streaming,
    training,
    verifiers,
)
from tests.mutants.mutant import Mutant

MUTANTS: list[Mutant] = [
    *active_learning.MUTANTS, *convert.MUTANTS, *data.MUTANTS, *deploying.MUTANTS, *distributed.MUTANTS,
    *exporting.MUTANTS, *gpu.MUTANTS, *labeling.MUTANTS, *labels.MUTANTS, *laws.MUTANTS, *models.MUTANTS,
    *objectives.MUTANTS, *planned_memory.MUTANTS, *planning.MUTANTS, *quality.MUTANTS, *recipes.MUTANTS,
    *rft.MUTANTS, *serving.MUTANTS, *streaming.MUTANTS, *training.MUTANTS, *verifiers.MUTANTS,
]  # fmt: skip
