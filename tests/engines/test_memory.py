from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from weakref import ref

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from onebase.engines.forward import token_logprobs
from onebase.engines.opening import load_base
from onebase.errors import ModelError
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.roles import ScalarRole
from tests.models.test_one_base import FUNCTIONS, base_weights, role_weights, same, some_batch
from tests.tiny_models import add_adapter_role, disturb, save_tiny, tiny_base


def live_bytes() -> int:
    """Of every tensor storage the process holds, each counted once; the compiler's fake tensors hold none."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, Tensor) and not is_fake(thing)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def model_bytes(base: OneBase) -> int:
    """Of the base, its adapters and heads: parameters, buffers and what 4-bit weights carry with them."""
    tensors: list[Tensor] = [*base.model.parameters(), *base.model.buffers()]
    for parameter in base.model.parameters():
        state = getattr(parameter, "quant_state", None)
        tensors += [value for value in vars(state).values() if isinstance(value, Tensor)] if state is not None else []
    tensors += [role.head.weight for role in base.roles.values() if isinstance(role, ScalarRole)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def add_ppo_roles(base: OneBase) -> None:
    lora = lora_config(base.model, r=8, alpha=16)
    base.add_role("policy", adapter=lora, trains=True)
    base.add_role("reference")
    base.add_role("reward", adapter=lora, head=True)
    base.add_role("critic", copy_of="reward", head=True, trains=True)
    for name in base.roles:
        disturb(base, name, size=0.02)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_four_ppo_roles_hold_the_bytes_of_one_base_and_their_adapters(quantization: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(
        tmp_path, "llama", hidden_size=256, intermediate_size=688, num_hidden_layers=4, initializer_range=0.02
    )
    base = load_base(str(folder), dtype="bfloat16", quantization=quantization, device="cpu")
    base_bytes, held = model_bytes(base), live_bytes()
    num_linear = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 688)
    assert base_bytes < (2.3 if quantization == "none" else 0.75) * num_linear  # 2 bytes a weight, or half a byte
    add_ppo_roles(base)
    adapters = sum(p.numel() * p.element_size() for name in base.roles for p in base.parameters(name))
    assert adapters > 0
    assert model_bytes(base) <= 1.25 * (base_bytes + adapters)
    assert live_bytes() - held <= 1.05 * adapters  # and nothing is kept anywhere else in the process
    for name in base.roles:
        outputs = FUNCTIONS[name](base, some_batch(), role=name)
        if base.roles[name].trains:
            outputs.square().sum().backward()
            one_gradient = base.parameters(name)[0].grad
            assert one_gradient is not None and one_gradient.isfinite().all()
        for parameter in base.parameters(name):
            parameter.grad = None
    assert model_bytes(base) <= 1.25 * (base_bytes + adapters)


def test_gradients_through_a_4_bit_base_are_those_of_its_dequantised_weights(tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, "llama", hidden_size=64, intermediate_size=128)
    base = load_base(str(folder), dtype="float32", quantization="nf4", device="cpu")
    assert base.layout == "tree"
    plain = tiny_base("llama", hidden_size=64, intermediate_size=128)
    dequantised = {
        name: bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in base.model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }
    assert len(dequantised) == 14
    with torch.no_grad():
        for name, weight in dequantised.items():
            plain.model.get_parameter(f"{name}.weight").copy_(weight)
    batch = some_batch()
    results = []
    for each in (base, plain):
        add_adapter_role(each, "policy")
        with torch.no_grad():  # as a rollout does before the first step
            token_logprobs(each, batch, role="policy")
        logprobs = token_logprobs(each, batch, role="policy")
        results.append((logprobs, torch.autograd.grad(logprobs.sum() / 8, each.parameters("policy"))))
    (logprobs, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-4)
    assert max(gradient.abs().max().item() for gradient in gradients) > 0.1
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-4)


def test_a_4_bit_base_is_gone_when_the_next_is_loaded(tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    folder = str(save_tiny(tmp_path, "llama"))
    gc.disable()  # as where nothing has asked for a collection between two runs of one process
    try:
        base = load_base(folder, dtype="float32", quantization="nf4", device="cpu")
        layers = [ref(module) for module in base.model.modules() if isinstance(module, bnb.nn.Linear4bit)]
        assert layers
        del base
        load_base(folder, dtype="float32", quantization="nf4", device="cpu")
        assert sum(layer() is not None for layer in layers) == 0
    finally:
        gc.enable()


def test_a_4_bit_base_trains_through_its_adapters_and_keeps_its_bytes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, "llama", hidden_size=64, intermediate_size=128)
    base = load_base(str(folder), dtype="float32", quantization="nf4", device="cpu")
    add_adapter_role(base, "policy", seed=1)
    add_adapter_role(base, "reward", seed=2, head=True)
    base.add_role("base")
    batch = some_batch()
    expected = token_logprobs(base, batch, role="base").detach()
    weights, reward = base_weights(base), role_weights(base, "reward")
    assert any(weight.dtype == torch.uint8 for weight in weights.values())
    losses = []
    for _ in range(5):
        loss = -token_logprobs(base, batch, role="policy").mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in base.parameters("policy"))
        torch.optim.SGD(base.parameters("policy"), lr=0.05).step()
        for parameter in base.parameters("policy"):
            parameter.grad = None
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert same(base_weights(base), weights) and same(role_weights(base, "reward"), reward)
    assert torch.equal(token_logprobs(base, batch, role="base"), expected)
    with pytest.raises(ModelError, match="a quantised base cannot be trained in full"):
        base.train_base("base")


RESIDENT = """
import psutil, sys
from tests.tiny_models import tiny_model, tiny_tokenizer
from onebase.engines.opening import wrap_model
from onebase.models.adapters import lora_config
from tests.engines.test_memory import add_ppo_roles
from tests.tiny_models import tiny_base, add_adapter_role

add_ppo_roles(tiny_base("llama"))  # whatever is imported late is imported now
size = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
            num_key_value_heads=12, initializer_range=0.02)
base = wrap_model(tiny_model("llama", **size), tiny_tokenizer(), layout="tree", fingerprint="large")
size_of_base = sum(parameter.numel() * parameter.element_size() for parameter in base.model.parameters())
before = psutil.Process().memory_info().rss
add_ppo_roles(base)
print(size_of_base, psutil.Process().memory_info().rss - before)
"""


def test_building_four_roles_adds_little_to_the_memory_of_the_process() -> None:
    pytest.importorskip("psutil")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RESIDENT], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    size, added = map(int, result.stdout.split()[-2:])
    assert size > 55e6 * 4
    assert added < 0.25 * size
