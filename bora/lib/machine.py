"""This machine: its memory, its GPUs, and which of several processes this one is.

Functions import torch when they need it, since it takes seconds and every command imports this module.
"""

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from bora.errors import UserError

if TYPE_CHECKING:
    import torch

# Set by what starts several processes of a run: torchrun, Lightning, SLURM. In Lightning's order.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Return whether this process writes and prints, as rank 0 or the only one."""
    distributed = sys.modules.get("torch.distributed")  # without torch, the process is in no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


class Launch(NamedTuple):
    """The processes that torchrun or srun started together.

    Attributes:
        by: torchrun | srun.
        nodes: number of machines.
        per_node: number of processes on each.
    """

    by: str
    nodes: int
    per_node: int

    @property
    def processes(self) -> int:
        return self.nodes * self.per_node


def find_launch() -> Launch | None:
    """Read from the environment how torchrun or srun started this process; None if neither did.

    If SLURM_NTASKS is set, Lightning starts no processes itself, except in an interactive job. A batch script without
    srun therefore has only this process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", int(os.environ["WORLD_SIZE"]) // per_node, per_node)
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes, tasks = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("NODES", "TASKS"))
        return Launch("srun", nodes, tasks // nodes)
    return None


def check_launch(launch: Launch | None, devices: int | str, num_nodes: int) -> None:
    """Raise a UserError unless a run was started with the number of machines and processes that it asks for.

    Args:
        devices, num_nodes: as in Lightning's Trainer.
    """
    if launch is None:
        if num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes={num_nodes}: start the run on every machine, with torchrun or srun, or with "
                "bora run -m sweep=submitit; see docs/devices.md"
            )
        rank = next((f"{name}={os.environ[name]}" for name in RANKS if name in os.environ), "=0")
        if devices == 1 and not rank.endswith("=0"):
            raise UserError(
                f"{rank} is set, as for one of several processes, but the run has only one; start it by torchrun with "
                "trainer=ddp, or unset it"
            )
    elif launch.nodes != num_nodes or devices not in ("auto", launch.per_node):
        raise UserError(
            f"trainer.num_nodes={num_nodes} trainer.devices={devices}, but {launch.by} has started {launch.nodes} × "
            f"{launch.per_node} (machines × processes on each); make them equal"
        )
    elif launch.by == "srun" and launch.processes > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(f"srun: give --ntasks-per-node={launch.per_node} instead of --ntasks")


def require_gpus(accelerator: str, devices: int | str) -> None:
    """Raise a UserError unless this machine has the GPUs that a run asks for; arguments as in Lightning's Trainer."""
    if accelerator not in ("gpu", "cuda"):
        return
    import torch

    found = torch.cuda.device_count()
    if found == 0:
        raise UserError(f"trainer.accelerator={accelerator}: torch sees no GPU on this machine; give trainer=cpu")
    if isinstance(devices, int) and devices > found:
        raise UserError(f"trainer.devices={devices}: torch sees {found} GPU(s) on this machine; give at most that many")


def device_type(accelerator: str) -> str:
    """Return the device type, cuda or cpu, for Lightning's name of an accelerator.

    Lightning's own auto would choose a Mac's GPU, which lacks float64, the dtype of sums.
    """
    import torch

    found = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    return "cuda" if found else "cpu"


def free_memory(device: str) -> int | None:
    """Return the free bytes of the fullest GPU, or for cpu of the machine; None without a GPU."""
    if device == "cpu":
        return psutil.virtual_memory().available
    import torch

    return min((torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), default=None)


def wait(device: "torch.device") -> None:
    """Wait for a GPU's queued work, so that time can be measured."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def reset_peak_memory() -> None:
    """Start a new measurement of the peak memory, if the system can."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():  # Linux
        clear.write_text("5")


def peak_memory(device: str) -> int:
    """Return the peak since `reset_peak_memory`, in bytes: of the GPU, or of the whole process with its libraries."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/clear_refs").exists():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status["VmHWM"].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
