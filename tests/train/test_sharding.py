"""A sharded backbone: which weights are divided, and what is refused. tests/train/test_ddp.py trains one."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.train.sharding import blocks, shard
from tests.conftest import tiny_opt


@pytest.fixture
def mesh():
    """Make a mesh of four processes, of which only one exists."""
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


def test_each_process_holds_its_share_of_the_blocks_and_all_other_weights(mesh):
    model = tiny_opt()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    shard(Backbone(model).decoder, mesh)
    for name, p in model.named_parameters():
        assert isinstance(p, DTensor) == (".layers." in name)
        assert not p.requires_grad
        if isinstance(p, DTensor):
            assert p.to_local().numel() * 4 == sizes[name]


def test_a_quantised_block_is_refused(mesh):
    backbone = Backbone(tiny_opt())
    blocks(backbone.decoder)[1].fc1.to(torch.float16)
    with pytest.raises(UserError, match=r"block's weights have several dtypes \(float16, float32\)"):
        shard(backbone.decoder, mesh)
