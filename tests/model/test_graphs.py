"""Recorded graphs, tested without a GPU: with a stand-in for CUDA's graphs, a replay reads no padding and nothing of
the previous batch."""

import pytest
import torch

from bora.model import graphs
from bora.model.backbone import Backbone
from bora.model.graphs import Recorder, Recording
from tests.conftest import tiny_opt
from tests.model.test_architectures import tiny


class Replayed:
    def __init__(self, replay):
        self.replay = replay


class OnTheCPU(Recorder):
    """A recorder that runs again what a recording would replay, in the same memory."""

    def _record(self, documents, tokens, like):
        ids = torch.zeros(documents, tokens, dtype=torch.long)
        theta, of_theta = self._theta_buffers(documents, like)
        hidden = self.run(ids, theta)
        of_hidden, graph = torch.zeros_like(hidden), {}

        def forward():
            graph["theta"] = theta.clone().requires_grad_()
            with torch.enable_grad():
                graph["hidden"] = self.run(ids, graph["theta"])
            hidden.copy_(graph["hidden"].detach())

        def backward():
            of_theta.copy_(*torch.autograd.grad(graph["hidden"], graph["theta"], of_hidden))

        return Recording(ids, theta, hidden, of_hidden, of_theta, Replayed(forward), Replayed(backward))


@pytest.mark.parametrize("shared", [False, True])
def test_a_replay_equals_an_eager_run(shared):
    torch.manual_seed(0)
    backbone = Backbone(tiny_opt(), rank=2)
    recorder, n_eager = OnTheCPU(backbone._run), 0
    for documents, tokens in [(19, 20), (17, 30), (3, 17), (18, 31), (3, 30), (40, 3), (33, 1)]:
        ids = torch.randint(1, 60, (documents, tokens))
        shape = (backbone.layout.n_parameters,) if shared else (documents, backbone.layout.n_parameters)
        theta, found = torch.randn(shape) * 0.1, []
        weights = torch.randn(documents, tokens, 1)
        for run in (backbone._run, recorder):
            leaf = theta.clone().requires_grad_()
            hidden = run(ids, leaf)
            n_eager += run is recorder and type(hidden.grad_fn).__name__ != "_ReplayBackward"
            found.append((hidden.detach(), *torch.autograd.grad((hidden * weights).sum(), leaf)))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert n_eager == 3  # the first run of each rounded shape
    # Three documents are not padded to eight.
    assert recorder._recordings.keys() == {(*shape, theta.dim()) for shape in ((20, 32), (3, 32), (40, 16))}


def test_a_backward_must_come_before_the_next_forward():
    backbone = Backbone(tiny_opt(), rank=2)
    recorder, ids = OnTheCPU(backbone._run), torch.ones(2, 8, dtype=torch.long)
    theta = torch.zeros(2, backbone.layout.n_parameters, requires_grad=True)
    hidden = [recorder(ids, theta) for _ in range(3)]
    with pytest.raises(RuntimeError, match="another forward"):
        hidden[1].sum().backward()
    hidden[2].sum().backward()


def test_no_more_positions_are_recorded_than_the_model_has():
    backbone = Backbone(tiny("gpt2", n_positions=20), rank=2)
    recorder = OnTheCPU(backbone._run, backbone._recorder.max_tokens)
    for _ in range(2):
        recorder(torch.ones(2, 20, dtype=torch.long), torch.zeros(2, backbone.layout.n_parameters).double())
    assert recorder._recordings.keys() == {(2, 20, 2)}


def test_both_stages_of_a_learned_tau_have_recordings(monkeypatch):
    monkeypatch.setattr(graphs, "MAX_RECORDINGS", 1)
    backbone = Backbone(tiny_opt(), rank=2)
    recorder, P = OnTheCPU(backbone._run), backbone.layout.n_parameters
    for theta in (torch.zeros(P), torch.zeros(2, P)):
        for width in (8, 8, 17, 17):
            recorder(torch.ones(2, width, dtype=torch.long), theta)
    assert recorder._recordings.keys() == {(2, 16, 1), (2, 16, 2)}


def test_recordings_are_dropped_when_the_weights_move():
    backbone = Backbone(tiny_opt(), rank=2)
    backbone._recorder = OnTheCPU(backbone._run)
    for _ in range(2):
        backbone._recorder(torch.ones(2, 8, dtype=torch.long), torch.zeros(2, backbone.layout.n_parameters))
    assert len(backbone._recorder._recordings) == 1
    backbone.double()
    assert backbone._recorder._recordings == {}
