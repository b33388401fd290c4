"""`onebase export --to ollama`: a Modelfile beside the merged policy, with the template and end tokens of training."""

from __future__ import annotations

import json
from pathlib import Path

from onebase.data.chat import chat_format
from onebase.errors import MissingExtraError
from onebase.exporting.adapters import end_tokens
from onebase.exporting.card import write_card
from onebase.exporting.gguf import find_converter, require_policy, write_gguf
from onebase.exporting.go_template import translate
from onebase.exporting.merge import write_model
from onebase.exporting.source import Source
from onebase.files import atomic_folder
from onebase.models.base_config import UNLIMITED, context_length, read_config
from onebase.models.loading import load_tokenizer

READS = ("llama", "mistral", "mixtral", "gemma", "gemma2", "phi3")
"""Architectures that Ollama imports from safetensors; all others it takes as GGUF."""
LONGEST_CONTEXT = 8192
"""Ollama reserves memory for the whole context; a longer one is left to the user."""


def run(source: Source, output: Path, *, device: str) -> list[str]:
    """Writes the policy as GGUF where llama.cpp's converter is installed, else as safetensors, and a Modelfile.

    Raises:
        MissingExtraError: Ollama cannot import this architecture from safetensors, and there is no converter.
        ModelError, QualityError: as for `gguf` and `merge`.
    """
    require_policy(source, "Ollama")
    converts = True
    try:
        find_converter()
    except MissingExtraError:
        if read_config(source.base).model_type not in READS:
            raise
        converts = False
    with atomic_folder(output) as folder:
        if converts:
            file, written, notes = write_gguf(source, folder, device=device)
            origin = f"./{file.name}"
        else:
            written = write_model(source, folder, max_shard_size="5GB", verify=True, device=device)
            origin, notes = ".", [*written.notes, written.verdict]
        text, lost = modelfile(source, origin)
        (folder / "Modelfile").write_text(text, encoding="utf-8")
        notes = [*notes, *([lost] if lost else [])]
        usage = f"```bash\nollama create {source.name} -f Modelfile\nollama run {source.name}\n```"
        write_card(folder, source, form="ollama", dtype=written.dtype, notes=notes, usage=usage)
    return [f"ollama create {source.name} -f {output / 'Modelfile'}", *notes]


def modelfile(source: Source, origin: str) -> tuple[str, str]:
    """The Modelfile's text, and a line on what of the chat template it lacks ("" if nothing)."""
    tokenizer = load_tokenizer(source.folder)
    template, lost = translate(chat_format(tokenizer))
    lines = [f"FROM {origin}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    for token in end_tokens(source):
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.convert_ids_to_tokens(token), ensure_ascii=False)}")
    context = context_length(read_config(source.base))
    if context < UNLIMITED:
        lines.append(f"PARAMETER num_ctx {min(context, LONGEST_CONTEXT)}")
    return "\n".join(lines) + "\n", lost
