"""`onebase export`: a policy role for another engine or trainer."""

from __future__ import annotations

from pathlib import Path

from onebase.exporting import gguf, ollama, tgi, trainers, vllm
from onebase.exporting.merge import check_place
from onebase.exporting.source import find_source
from onebase.shown import shown


def run(
    *,
    role: str,
    output: Path,
    to: str,
    model: str | None,
    device: str = "auto",
    data: Path | None = None,
    reward: str | None = None,
) -> None:
    """Writes the role for an engine, and prints the command that runs it and what to know.

    Args:
        data: for a trainer, what it trains on.
        reward: for a trainer, a reward role that scores answers.

    Raises:
        ConfigError: `output` is inside the role's or the base's folder.
        ModelError, MissingExtraError, QualityError: as the engine's own `run`.
    """
    source = find_source(role, model=model)
    check_place(output, source)
    if to == "vllm":
        lines = vllm.run(source, output)
    elif to == "tgi":
        lines = tgi.run(source, output)
    elif data is not None:
        lines = trainers.run(source, output, to=to, data=data, reward=reward, device=device)
    else:
        lines = (gguf if to == "gguf" else ollama).run(source, output, device=device)
    for line in lines:
        print(shown(line))
