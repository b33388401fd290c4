"""`onebase export --to tgi`: the adapter's folder and the environment that the container of Text Generation Inference
took. The project is archived; its last images still run.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from onebase.exporting.adapters import check_adapter, write_adapter
from onebase.exporting.card import write_card
from onebase.exporting.source import Source
from onebase.files import atomic_folder
from onebase.models.base_config import UNLIMITED, context_length, read_config

IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.5"
ENV_FILE = "tgi.env"
FOR_ANSWERS = 512
"""Tokens kept for an answer in a long context; half of a short one."""
LONGEST = 4096
"""Tokens of prompt and answer together if the base names no limit."""


def run(source: Source, output: Path) -> list[str]:
    """Writes the adapter's folder with `tgi.env`; returns the command that starts the container, and what to know.

    Raises:
        ModelError: the server does not take this adapter.
    """
    check_adapter(source, "TGI")
    command, settings = docker_command(source, output), environment(source)
    with atomic_folder(output) as folder:
        tokenizer = write_adapter(source, folder)
        (folder / ENV_FILE).write_text("".join(f"{key}={value}\n" for key, value in settings.items()), encoding="utf-8")
        path = folder / "tokenizer_config.json"
        entries = json.loads(path.read_text(encoding="utf-8"))
        if tokenizer.chat_template:  # the server reads the template from this file alone
            entries["chat_template"] = tokenizer.chat_template
        path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        end = tokenizer.eos_token
        notes = [
            "TGI is archived and gets no more changes",
            f'every request names the adapter, "adapter_id": "{source.name}", and the end token, "stop": ["{end}"]',
        ]
        if source.quantized:
            notes.append(f"trained on the base {source.trained_on}; QUANTIZE is set accordingly")
        write_card(
            folder, source, form="adapter", dtype=source.stored_dtype, notes=notes, usage=f"```bash\n{command}\n```"
        )
    return [command, *notes]


def environment(source: Source) -> dict[str, str]:
    """The container's variables."""
    local = Path(source.base).is_dir()
    context = context_length(read_config(source.base))
    total = LONGEST if context == UNLIMITED else context
    name = "/base" if local else source.base
    return {
        "HF_MODEL_ID": name,  # read by the images for SageMaker
        "MODEL_ID": name,
        "LORA_ADAPTERS": f"{source.name}=/role",
        **({"QUANTIZE": "bitsandbytes-nf4"} if source.quantized else {"DTYPE": _dtype(source)}),
        "MAX_INPUT_TOKENS": str(total - min(FOR_ANSWERS, total // 2)),
        "MAX_TOTAL_TOKENS": str(total),
        "TOKENIZER_CONFIG_PATH": "/role/tokenizer_config.json",
    }


def _dtype(source: Source) -> str:
    return source.stored_dtype if source.stored_dtype in ("float16", "bfloat16") else "bfloat16"


def docker_command(source: Source, output: Path) -> str:
    """The `docker run` line, with the role's folder (and the base's, if it is local) mounted to be read."""
    folder = output.resolve()
    words = [
        "docker",
        "run",
        "--gpus",
        "all",
        "--shm-size",
        "1g",
        "-p",
        "8080:80",
        "--env-file",
        str(folder / ENV_FILE),
    ]
    words += ["-v", f"{folder}:/role:ro"]
    if Path(source.base).is_dir():
        words += ["-v", f"{Path(source.base).resolve()}:/base:ro"]
    return shlex.join([*words, IMAGE])
