"""What the machine has free."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch


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
