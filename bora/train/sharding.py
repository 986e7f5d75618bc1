"""Shard a backbone that does not fit on one device: divide its blocks' weights among the processes.

Each process holds a share of every block and gathers a block while it runs it (torch's FSDP2). The adapters,
which are trained, are replicated as without sharding (DDP), and so are the embeddings, the last norm and the
output layer. Checkpoints and results are those of one process.
"""

from typing import cast

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from bora.errors import UserError
from bora.model.backbone import blocks
from bora.train.module import TrainingModule


class ShardedBackbone(DDPStrategy):
    """Lightning's DDP, with the backbone's blocks sharded over the processes (trainer=fsdp)."""

    def setup(self, trainer: L.Trainer) -> None:
        module = cast(TrainingModule, self.lightning_module)
        decoder = module.model.backbone.decoder
        if not isinstance(decoder, FSDPModule):  # setup is called for each of fit, validate and test
            shard(decoder, init_device_mesh(self.root_device.type, (self.world_size,)))
            # Each process has a different part of these, so they are neither broadcast nor compared.
            module._ddp_params_and_buffers_to_ignore = [
                *getattr(module, "_ddp_params_and_buffers_to_ignore", ()),
                *(name for name, _ in module.named_parameters() if name.startswith("model.backbone.")),
            ]
        super().setup(trainer)


def shard(decoder: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the weights of the decoder's blocks among the processes of a mesh, in place.

    Args:
        decoder: a frozen transformers model without its output layer.

    Raises:
        UserError: a block's weights have several dtypes, as quantised ones do.
    """
    for block in blocks(decoder):
        dtypes = {str(p.dtype).removeprefix("torch.") for p in block.parameters()}
        if len(dtypes) > 1:
            raise UserError(
                f"trainer=fsdp: a block's weights have several dtypes ({', '.join(sorted(dtypes))}), which "
                "cannot be sharded together; use a model of one dtype, not quantised"
            )
        fully_shard(block, mesh=mesh)
    rest = {p for p in decoder.parameters() if not isinstance(p, DTensor)}
    # The decoder itself has nothing to shard, but knows the blocks' order, and so prefetches the next one.
    fully_shard(decoder, mesh=mesh, ignored_params=rest)
