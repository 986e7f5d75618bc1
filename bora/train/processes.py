"""Connect the processes of a run that torchrun or srun started, before any work; the first then decides for all.

If Lightning starts the others itself (trainer=ddp on one machine), only the first runs until training begins.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch.distributed as dist
from lightning.fabric.strategies import DDPStrategy

from bora.config.schema import Config
from bora.errors import UserError
from bora.lib.machine import check_launch, device_type, find_launch, require_gpus
from bora.runs.directory import CONFIG, RunDirectory, settings

TIMEOUT = timedelta(minutes=10)  # how long a process waits for another to answer


@contextmanager
def claim_together(
    directory: RunDirectory, cfg: Config, overrides: Sequence[str]
) -> Iterator[tuple[RunDirectory, bool]]:
    """Lock and claim the first process's run directory for all processes that were started together.

    Args:
        overrides: see RunDirectory.claim.

    Yields:
        The run directory, and whether the run has already finished there.

    Raises:
        UserError: raised in every process if one of them cannot take part.
    """
    group = meet(cfg)
    with ExitStack() as stack:
        if group is None:
            stack.enter_context(directory.locked())
            yield directory, directory.claim(cfg, overrides)
            return
        firsts, ours = group.broadcast(settings(cfg)), settings(cfg)
        directory = RunDirectory(Path(group.broadcast(str(directory.path.resolve()))))
        with refuse_together():
            if group.is_global_zero:
                stack.enter_context(directory.locked())
            if others := sorted(key for key in firsts.keys() | ours.keys() if firsts.get(key) != ours.get(key)):
                raise UserError(
                    f"process {group.global_rank} has other settings than the first ({', '.join(others)}); give all "
                    "processes the same"
                )
        with refuse_together():
            finished = directory.claim(cfg, overrides) if group.is_global_zero else False
        with refuse_together():
            if not (directory.path / CONFIG).is_file():
                raise UserError(
                    f"{socket.gethostname()} does not have the run directory {directory.path}; give a hydra.run.dir=… on "
                    "a disk that all the machines share"
                )
        yield directory, group.broadcast(finished)


def meet(cfg: Config) -> L.Fabric | None:
    """Connect this process with the others that torchrun or srun started; return None if it is the only one.

    Raises:
        UserError: their number differs from the config's, or there is no GPU for each.
    """
    launch, trainer = find_launch(), cfg.trainer
    check_launch(launch, trainer.devices, trainer.num_nodes)
    if launch is None or launch.processes == 1:
        return None
    require_gpus(trainer.accelerator, launch.per_node)
    group = L.Fabric(
        accelerator=device_type(trainer.accelerator),
        strategy=DDPStrategy(timeout=TIMEOUT),
        devices=launch.per_node,
        num_nodes=launch.nodes,
    )
    group.launch()
    return group


@contextmanager
def refuse_together() -> Iterator[None]:
    """Raise one process's UserError in all processes."""
    refused: UserError | None = None
    try:
        yield
    except UserError as error:
        refused = error
    of_each: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(of_each, refused)
    for found in of_each:
        if found is not None:
            raise found
