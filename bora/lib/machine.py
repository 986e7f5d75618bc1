"""This machine: processors, memory, GPUs, and which of several processes this one is."""

import gc
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

# Set by those who start several processes of a run: torchrun, Lightning, SLURM. In Lightning's order.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Tell whether this process writes and prints for all that train together; true for a single one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Return total and free memory, in bytes."""
    found = psutil.virtual_memory()
    return found.total, found.available


def gpus() -> list[dict[str, Any]]:
    """List the CUDA devices: name, memory and free (bytes), and whether it computes in bfloat16."""
    found = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        with torch.cuda.device(i):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append({"name": torch.cuda.get_device_name(i), "memory": total, "free": free, "bfloat16": bfloat16})
    return found


def reset_peak_memory() -> None:
    """Start a new measurement of the peak memory, where the system can."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():  # Linux
        clear.write_text("5")


def peak_memory(device: str) -> int:
    """Return the peak since then, in bytes: of the GPU, or of the whole process with its libraries."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/clear_refs").exists():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_disk(path: Path) -> int:
    """Return the bytes free at a folder that exists or will be made."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
