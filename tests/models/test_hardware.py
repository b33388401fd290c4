"""What the machine's memory does between tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROOM_BETWEEN_TENSORS = """
import torch
from onebase.models.hardware import keep_freed_memory, return_freed_memory

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) // 1024

keep_freed_memory()
tensors = [torch.ones(1 << 18) for _ in range(200)]
del tensors[::2]
before = held()
return_freed_memory()
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps freed memory this way")
def test_room_between_tensors_is_returned_to_the_system() -> None:
    ended = subprocess.run([sys.executable, "-c", ROOM_BETWEEN_TENSORS], capture_output=True, text=True, check=True)
    assert 90 <= int(ended.stdout) <= 110  # MiB, of 100 tensors of 1 MiB
