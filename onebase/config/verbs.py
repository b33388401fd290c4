"""The config model of each verb, by name."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from onebase.config.run import RunConfig
from onebase.verbs import VERBS


def config_class(verb: str) -> type[RunConfig]:
    """The config model of a verb."""
    module, _, name = VERBS[verb].config.partition(":")
    found = getattr(import_module(module), name)
    assert issubclass(found, RunConfig)
    return found


VERB_CONFIGS: dict[str, type[RunConfig]] = {verb: config_class(verb) for verb in VERBS}


def verb_of(keys: Collection[str]) -> str:
    """The verb whose config has these top-level keys; if another version wrote them, the nearest."""
    return min(VERB_CONFIGS, key=lambda verb: len(set(keys) ^ set(VERB_CONFIGS[verb].model_fields)))
