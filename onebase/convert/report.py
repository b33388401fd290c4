"""Converts one file: reads it, lets its tool's module take its keys, and returns our YAML with the notes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onebase.convert import axolotl, llamafactory, trl
from onebase.convert.conversion import Conversion, Note, read_theirs
from onebase.errors import ConfigError
from onebase.shown import shown

TOOLS = {
    "trl": ("TRL", trl.convert),
    "llamafactory": ("LLaMA-Factory", llamafactory.convert),
    "axolotl": ("axolotl", axolotl.convert),
}


@dataclass(frozen=True, slots=True)
class Converted:
    """Our config and what became of theirs."""

    verb: str
    yaml: str
    """The file to write, notes included as comments."""
    notes: tuple[Note, ...]


def convert(tool: str, path: Path, *, stage: str | None = None) -> Converted:
    """Reads another tool's YAML file as a config of one of our verbs.

    Args:
        tool: `trl`, `llamafactory` or `axolotl`.
        stage: the stage, where the file does not say it (TRL).

    Raises:
        ConfigError: the file cannot be read, or something is missing that only a person can add.
    """
    name, read = TOOLS[tool]
    conversion = Conversion(name, read_theirs(path), path.parent)
    try:
        read(conversion, stage)
        conversion.finish()
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        # Each tool checks its own values; here it is enough to say that one of them cannot be meant.
        said = shown(f"{type(error).__name__}: {error}", 200)
        raise ConfigError(f"{shown(path.name, 100)}: a value is of another kind than {name} takes ({said})") from error
    except ConfigError as error:
        raise ConfigError("\n".join(f"{shown(path.name, 100)}: {line}" for line in str(error).splitlines())) from None
    return Converted(conversion.verb, conversion.yaml(), tuple(conversion.notes))
