"""The verb `config`: reads other tools' configs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from onebase.cli import modules, preflight
from onebase.errors import ConfigError
from onebase.files import write_atomically
from onebase.shown import shown

config = App(name="config", help="Read configs of other tools.", sort_key=51)


@config.command
def convert(
    file: Path,
    /,
    *,
    from_: Annotated[Literal["trl", "llamafactory", "axolotl"], Parameter(name="--from")],
    stage: str | None = None,
    output: Path | None = None,
) -> None:
    """Convert a config of TRL, LLaMA-Factory or axolotl; prints ours to stdout, and what changed to stderr.

    Args:
        file: The other tool's YAML file.
        from_: The tool.
        stage: For trl, the word after trl (sft, dpo, reward, kto, grpo, rloo), where the keys do not tell it.
        output: The file to write instead of printing; it must not exist.
    """
    if output is not None:
        preflight.check_output(output)
        if os.path.lexists(output):
            raise ConfigError(f"{shown(output, 200)} exists; choose another --output, or remove it first")
    converted = modules.load("onebase.convert.report").convert(from_, file, stage=stage)
    if output is None:
        print(converted.yaml, end="")
        sys.stdout.flush()
    else:
        write_atomically(output, converted.yaml)
    for note in converted.notes:
        print(note.line(), file=sys.stderr)
    print(f"run it with: onebase {converted.verb} {output or 'FILE'} --dry-run", file=sys.stderr)
