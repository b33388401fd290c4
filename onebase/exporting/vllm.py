"""`onebase export --to vllm`: the adapter's folder, and the command with which vLLM serves it on its base."""

from __future__ import annotations

import shlex
from pathlib import Path

from onebase.errors import ModelError
from onebase.exporting.adapters import check_adapter, rank_of, write_adapter
from onebase.exporting.card import write_card
from onebase.exporting.source import Source
from onebase.files import atomic_folder
from onebase.shown import shown

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be (`MaxLoRARanks` in vLLM's configuration)."""
FORMATS = ("bfloat16", "float16")
"""Number formats of vLLM's LoRA kernels."""


def run(source: Source, output: Path) -> list[str]:
    """Writes the adapter's folder; returns the command that serves it, and what differs from training.

    Raises:
        ModelError: vLLM does not take this adapter.
    """
    check_adapter(source, "vLLM")
    limit = next((rank for rank in RANKS if rank >= rank_of(source)), None)
    if limit is None:
        raise ModelError(
            f"{shown(source.folder)}: its rank is {rank_of(source)}, and vLLM takes at most {RANKS[-1]}; make it a "
            "plain model with onebase merge"
        )
    dtype = source.stored_dtype if source.stored_dtype in FORMATS else FORMATS[0]
    command = serve_command(source, output, rank=limit, dtype=dtype)
    notes = _notes(source, dtype)
    with atomic_folder(output) as folder:
        write_adapter(source, folder)
        write_card(folder, source, form="adapter", dtype=dtype, notes=notes, usage=_usage(source, command))
    return [command, *notes]


def serve_command(source: Source, output: Path, *, rank: int, dtype: str) -> str:
    """The `vllm serve` line: the base, with the role's tokenizer, template and end tokens, and the adapter by name."""
    folder = str(output.resolve())
    base = str(Path(source.base).resolve()) if Path(source.base).is_dir() else source.base
    words = ["vllm", "serve", base, "--dtype", dtype, "--tokenizer", folder, "--generation-config", folder]
    words += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{source.name}={folder}"]
    return shlex.join(words)


def _notes(source: Source, dtype: str) -> list[str]:
    assert source.card is not None
    if source.quantized:
        return [
            f"trained on the base {source.trained_on}; the command runs it in {dtype}, which changes answers a little. "
            "Add --quantization bitsandbytes to run it in 4 bits"
        ]
    if source.card.dtype != dtype:
        return [f"trained on the base in {source.card.dtype}; the command runs it in {dtype}, as vLLM's adapters need"]
    return []


def _usage(source: Source, command: str) -> str:
    return (
        f"```bash\n{command}\n```\n\nThe adapter answers as the model `{source.name}`, the base under its own name. "
        "In the command, put this folder and the base where they are on your machine."
    )
