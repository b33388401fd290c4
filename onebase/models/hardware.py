"""What the machine offers, and how to use it well."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import psutil
import torch
from torch import Tensor


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; on CPU, also within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        statistics = Path("/sys/fs/cgroup/memory.stat")
        # Files read a while ago count as used, but the system drops them when memory is needed.
        lines = statistics.read_text().splitlines() if statistics.is_file() else []
        reclaimable = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, int(text) - int(used.read_text()) + reclaimable)
    return max(free, 0)


def usual_size(count: int) -> int:
    """The next larger size that batches are padded to: 8 per power of two, at least multiples of 16.

    CPU matrix products (oneDNN) are compiled for every new shape, which takes several times as long as running them:
    repeating shapes saves more than the padding costs, 6 % on average.
    """
    step = max(16, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def is_mapped_from_file(tensor: Tensor) -> bool:
    """Whether a tensor's memory is mapped from a file; True where the system does not say."""
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
    """Makes glibc keep freed memory for the next tensors; does nothing with another C library.

    By default glibc returns large blocks to the system at once, which hands and clears them page by page for the next
    tensor: the same gigabyte went back and forth between two optimizer steps. The peak is the same.
    """
    mmap_threshold, trim_threshold, most = -3, -1, 2**31 - 1
    if sys.platform == "linux":
        try:
            c_library = ctypes.CDLL("libc.so.6")
            c_library.mallopt(mmap_threshold, 2**30)
            c_library.mallopt(trim_threshold, most)
        except (OSError, AttributeError):  # another C library
            return


def return_freed_memory() -> None:
    """Makes glibc return to the system what is free now, as once after loading; does nothing with another C library.

    While weights are laid together, the room of those that were moved stays with the process, in blocks too small for
    most tensors to come: half as much again as the base itself.
    """
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MiB: on the GPU if there is one, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
