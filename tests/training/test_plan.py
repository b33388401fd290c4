from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onebase.engines.opening import load_base
from onebase.errors import ModelError
from onebase.records import Example
from onebase.training.plan import describe_base, describe_steps
from tests.tiny_models import save_tiny, tiny_model


def mebibytes(line: str) -> float:
    found = re.search(r"([\d.]+) MiB", line)
    assert found
    return float(found[1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_parameters_and_context_are_those_of_the_loaded_model(tmp_path: Path, architecture: str) -> None:
    folder = str(save_tiny(tmp_path, architecture, vocab_size=8192))
    plan = describe_base(folder, "none", "float32")
    model = tiny_model(architecture, vocab_size=8192)
    assert plan.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert plan.context == load_base(folder, dtype="float32", device="cpu").context_length
    assert plan.tokenizer.eos_token_id == 2
    base, weights = plan.lines
    assert folder in base and type(model).__name__ in base and f"{plan.num_parameters / 1e6:.1f} M" in base
    assert "float32" in weights and mebibytes(weights) == pytest.approx(plan.num_parameters * 4 / 2**20, abs=0.06)


@pytest.mark.parametrize("tied", [True, False])
def test_the_size_of_4_bit_weights_is_what_loading_takes(tmp_path: Path, tied: bool) -> None:
    pytest.importorskip("bitsandbytes")
    folder = str(
        save_tiny(tmp_path, "llama", hidden_size=256, intermediate_size=688, vocab_size=4096, tie_word_embeddings=tied)
    )
    plan = describe_base(folder, "nf4", "bfloat16")
    model = load_base(folder, dtype="bfloat16", quantization="nf4", device="cpu").model
    tensors: list[Tensor] = list(model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        tensors += [value for value in vars(state).values() if isinstance(value, Tensor)] if state is not None else []
    held = sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    assert mebibytes(plan.lines[1]) == pytest.approx(held / 2**20, rel=0.03) and "nf4" in plan.lines[1]


def test_an_automatic_type_is_named_as_it_will_be(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama")
    loaded = load_base(str(folder), dtype="auto", device="cpu").model.dtype
    if not torch.cuda.is_available():
        assert f"({str(loaded).removeprefix('torch.')})" in describe_base(str(folder), "none", "auto").lines[1]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        describe_base(str(tmp_path / "nothing"), "none", "float32")
    message = str(caught.value)
    assert message == f"{tmp_path / 'nothing'}: no such folder; model.model_name_or_path takes a folder or a hub name"


def test_a_folder_without_a_model_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        describe_base(str(tmp_path), "none", "float32")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no model could be loaded: ") and "\n" not in message
    assert caught.value.exit_code == 2


def test_data_and_steps_are_counted_in_words() -> None:
    train = [Example([1] * 4, [[5] * n, [6]]) for n in (1, 3, 9)] + [Example([1], [[5, 6]], [[True, False]])]
    data, steps = describe_steps(train, train[:1], steps=12, minibatch=16)
    assert "4 examples, 17 counted tokens; 1 held out" in data
    assert "median 8, longest 14" in data
    assert "12 optimizer steps of 4 examples" in steps
