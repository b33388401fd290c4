"""What the machine has, and how it is best used."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil
import torch
from torch import Tensor


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; on CPU, within the limit of the container too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        statistics = Path("/sys/fs/cgroup/memory.stat")
        # Files read a while ago count as used, and are given up when memory is wanted.
        lines = statistics.read_text().splitlines() if statistics.is_file() else []
        reclaimable = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, int(text) - int(used.read_text()) + reclaimable)
    return max(free, 0)


def usual_size(count: int) -> int:
    """The next of the sizes that batches are padded to: 8 in each power of two, multiples of 16 at least.

    The matrix products of a CPU (oneDNN) are compiled for every new shape, which takes several times as long as running
    them: shapes that come again cost less than the padding, 6 % on average.
    """
    step = max(16, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def is_mapped_from_file(tensor: Tensor) -> bool:
    """Whether a tensor's memory is pages of a file; where the system does not say, it may be."""
    maps = Path("/proc/self/maps")
    if tensor.device.type != "cpu":
        return False
    if not maps.is_file():
        return True
    for line in maps.read_text().splitlines():  # 7f00-7f10 r--p 00000000 fe:00 1234   /a/file
        fields = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in fields[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return fields[4] != "0"  # the file's number
    return True


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next tensors, where it is glibc; elsewhere nothing.

    It gives large blocks back to the system at once, which takes and clears them page by page when the next tensor asks
    for as much: between two optimizer steps the same gigabyte went back and forth. The peak is the same.
    """
    mmap_threshold, trim_threshold, most = -3, -1, 2**31 - 1
    if sys.platform == "linux":
        try:
            c_library = ctypes.CDLL("libc.so.6")
            c_library.mallopt(mmap_threshold, 2**30)
            c_library.mallopt(trim_threshold, most)
        except (OSError, AttributeError):  # another C library
            return
