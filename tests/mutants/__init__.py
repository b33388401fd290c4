"""Faults on purpose: `python -m tests.mutants` puts them into a copy of the package one by one and runs the tests.

The lists are data, a file per part of the package. When a line that a mutant replaces is rewritten, its entry follows:
`tests/test_mutants.py` names the entries whose text is no longer there.
"""

from tests.mutants import (
    convert,
    data,
    deploying,
    exporting,
    gpu,
    labels,
    models,
    objectives,
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
    *objectives.MUTANTS, *data.MUTANTS, *models.MUTANTS, *gpu.MUTANTS, *training.MUTANTS, *recipes.MUTANTS,
    *rft.MUTANTS, *verifiers.MUTANTS, *quality.MUTANTS, *streaming.MUTANTS, *convert.MUTANTS, *serving.MUTANTS,
    *labels.MUTANTS,
    *exporting.MUTANTS, *deploying.MUTANTS,
]  # fmt: skip
