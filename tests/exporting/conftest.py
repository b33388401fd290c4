"""Bases of three families in three number formats, with a policy and a reward role on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from onebase.data.chat import chat_format
from onebase.engines.opening import load_base
from onebase.models.role_files import save_role
from tests.tiny_models import add_adapter_role, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Made:
    """Folders of a base and of the roles on it."""

    base: Path
    policy: Path
    reward: Path


Make = Callable[..., Made]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a base stored in a number format, and roles trained on it, perhaps in 4 bits; each once."""
    made: dict[tuple[str, str, str], Made] = {}

    def of(architecture: str = "llama", stored: str = "float32", quantization: str = "none") -> Made:
        key = (architecture, stored, quantization)
        if key not in made:
            made[key] = _make(tmp_path_factory.mktemp("-".join(key)), *key)
        return made[key]

    return of


def _make(folder: Path, architecture: str, stored: str, quantization: str) -> Made:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    found = Made(folder / "base", folder / "policy", folder / "reward")
    wide = {"hidden_size": 64} if quantization == "nf4" and architecture != "gpt2" else {}
    tiny_model(architecture, **wide).to(getattr(torch, stored)).save_pretrained(found.base)
    tiny_tokenizer().save_pretrained(found.base)
    base = load_base(str(found.base), dtype=stored, quantization=quantization, device="cpu")
    add_adapter_role(base, "policy", seed=1)
    add_adapter_role(base, "reward", seed=2, head=True)
    save_role(base, "policy", found.policy, kind="policy", chat=chat_format(base.tokenizer, "chatml"))
    save_role(base, "reward", found.reward, kind="reward", chat=chat_format(base.tokenizer, "chatml"))
    return found


def role_on(base_folder: Path, folder: Path) -> Path:
    """A policy on any base, stored in float32, whose adapter changes a little."""
    base = load_base(str(base_folder), dtype="float32", device="cpu")
    add_adapter_role(base, "policy", seed=1)
    with torch.no_grad():
        for parameter in base.parameters("policy"):
            parameter.mul_(0.3)
    save_role(base, "policy", folder, kind="policy")
    return folder
