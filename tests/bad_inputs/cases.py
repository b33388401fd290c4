"""All bad inputs."""

from __future__ import annotations

from tests.bad_inputs import of_config

ALL = [*of_config.CASES]
