"""All bad inputs."""

from __future__ import annotations

from tests.bad_inputs import (
    of_config,
    of_converting,
    of_data,
    of_leaving,
    of_models,
    of_processes,
    of_quality,
    of_records,
    of_rewards,
    of_roles,
    of_runs,
    of_words,
)

_TABLES = (
    of_config,
    of_converting,
    of_data,
    of_leaving,
    of_models,
    of_roles,
    of_rewards,
    of_runs,
    of_records,
    of_processes,
    of_quality,
    of_words,
)
ALL = [case for table in _TABLES for case in table.CASES]
