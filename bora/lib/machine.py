"""This machine: its memory, and which of several processes this one is.

torch takes seconds to import, and every command imports this: it is imported where it is used.
"""

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bora.errors import UserError

if TYPE_CHECKING:
    import torch

# Set by those who start several processes of a run: torchrun, Lightning, SLURM. In Lightning's order.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Tell whether this process writes and prints for all that train together; true for a single one."""
    distributed = sys.modules.get("torch.distributed")  # a process without torch is in no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def require_gpus(accelerator: str, devices: int | str) -> None:
    """Check that this machine has the GPUs that a run asks for.

    Args:
        accelerator, devices: by Lightning's names.

    Raises:
        UserError: it has none, or too few.
    """
    if accelerator not in ("gpu", "cuda"):
        return
    import torch

    found = torch.cuda.device_count()
    if found == 0:
        raise UserError(f"trainer.accelerator={accelerator}: torch sees no GPU on this machine; give trainer=cpu")
    if isinstance(devices, int) and devices > found:
        raise UserError(f"trainer.devices={devices}: torch sees {found} GPU on this machine; give at most that many")


def free_memory(gpu: bool) -> int | None:
    """Return the free bytes of the fullest GPU, or of the machine; None where there is no GPU."""
    if not gpu:
        return psutil.virtual_memory().available
    import torch

    return min((torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), default=None)


def wait(device: "torch.device") -> None:
    """Wait until a GPU has done what it was given; before a clock is read."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def reset_peak_memory() -> None:
    """Start a new measurement of the peak memory, where the system can."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():  # Linux
        clear.write_text("5")


def peak_memory(device: str) -> int:
    """Return the peak since then, in bytes: of the GPU, or of the whole process with its libraries."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/clear_refs").exists():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
