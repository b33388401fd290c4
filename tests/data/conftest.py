"""Real tokenizers, unpacked from the folder of real data."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

CONFIGS = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer"},
    # Its own configuration is not among the data; EleutherAI's names this token for all three.
    "gpt_neox_20b with an end": {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": "<|endoftext|>"},
}


@pytest.fixture
def real(shared: Path, tmp_path: Path) -> Callable[[str], PreTrainedTokenizerBase]:
    """Loads a tokenizer of `../shared` by name; its folder is the test's `tmp_path`."""

    def load(name: str) -> PreTrainedTokenizerBase:
        if name == "stories260K":
            return AutoTokenizer.from_pretrained(shared / "models/stories260K/hf")
        for path in (shared / "data/tokenizers" / name.split()[0]).iterdir():
            if path.suffix == ".gz":
                (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
            else:
                shutil.copy(path, tmp_path)
        if name in CONFIGS:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIGS[name]))
        return AutoTokenizer.from_pretrained(tmp_path)

    return load
