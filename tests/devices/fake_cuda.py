"""A GPU that computes nothing: every tensor on it has a shape, a number format and a device, and no numbers.

Tensors on the CPU stay real, so whatever the host decides (how trees are laid, which rows have ended) is decided as in
earnest. An operation that mixes devices fails as it would on a GPU, and whatever makes the host wait for the device is
noted with its place: reading a number, copying a tensor back, sending one that is not pinned.
"""

from __future__ import annotations

import ctypes
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onebase.engines import captured, flex

PACKAGE = Path(__file__).parents[2] / "onebase"
GPU_MEMORY = 80 << 30


def load_guard(folder: Path) -> None:
    """Compiles and loads `cuda_guard.cpp` into this process. Needs a C++ compiler, takes some seconds.

    Raises:
        FileNotFoundError, subprocess.CalledProcessError: there is no compiler, or it fails.
    """
    root, library = Path(torch.__file__).parent, folder / "cuda_guard.so"
    source = Path(__file__).with_name("cuda_guard.cpp")
    command = ["c++", "-std=c++20", "-shared", "-fPIC", f"-I{root}/include", str(source)]
    links = [f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib", "-o", str(library)]
    subprocess.run([*command, *links], check=True, capture_output=True, text=True)
    ctypes.CDLL(str(library))


class FakeCuda(TorchDispatchMode):
    """While in force, the device `cuda` exists. `waits` counts what made the host wait, by place."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> FakeCuda:
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = kwargs.get("device")
        to_gpu = device is not None and torch.device(device).type == "cuda"
        on_gpu = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if func is torch.ops.aten._local_scalar_dense.default and on_gpu:
            self._note("reads a number")
            return args[0].dtype.is_floating_point * 1.0 or 1
        if func is torch.ops.aten._to_copy.default and on_gpu and device is not None and not to_gpu:
            self._note("copies back")
            with unset_fake_temporarily():
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        sent = func is torch.ops.aten._to_copy.default and to_gpu and not on_gpu
        if sent and args[0].numel() and not kwargs.get("non_blocking"):
            self._note("sends without pinning")
        if not on_gpu and not to_gpu:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
        place = f"{Path(frames[-1].filename).relative_to(PACKAGE)}: {frames[-1].name}" if frames else "the test itself"
        self.waits[f"{place} {what}"] += 1


@contextmanager
def fake_cuda(patch: Callable[[Any, str, Any], None]) -> Iterator[FakeCuda]:
    """Puts a `FakeCuda` in force, with stand-ins for what asks the driver.

    Args:
        patch: sets an attribute (`pytest.MonkeyPatch.setattr`, or `setattr` in a process of its own).
    """
    patch(Tensor, "pin_memory", lambda tensor: tensor)
    patch(torch.cuda, "mem_get_info", lambda device: (GPU_MEMORY, GPU_MEMORY))
    patch(torch.cuda, "memory_reserved", lambda device: 0)
    patch(torch.cuda, "memory_allocated", lambda device: 0)
    # The kernel is compiled for a real device; its uncompiled form has the same shapes.
    patch(flex, "_compiled", lambda function: function)
    patch(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    patch(torch.cuda, "graph_pool_handle", lambda: None)
    patch(captured, "RUNS_BEFORE_RECORDING", 1 << 30)
    with FakeCuda() as mode:
        yield mode


def move(module: nn.Module) -> None:
    """Replaces a module's parameters and buffers, made on the device `meta`, by fake ones on the GPU."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(there, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
