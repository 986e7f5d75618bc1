"""Replay a backbone's forward and backward on a GPU from recordings (CUDA graphs), instead of launching every kernel.

A step of a small model is thousands of short kernels, and to launch them takes a processor several times as long as
the GPU needs to run them. A recording is launched as a whole. It is of fixed shapes and places in memory, so it is made
once for each number of documents and of tokens, rounded up; a batch is copied in, and what is left empty is never read.
"""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bora.errors import first_line

log = logging.getLogger(__name__)

DOCUMENTS, TOKENS = 8, 16  # a recording's numbers are multiples of these
MAX_RECORDINGS = 64

Run = Callable[[Tensor, Tensor], Tensor]  # token ids [R, T], θ [R, P] or [P] → hidden states [R, T, H]


class Recording(NamedTuple):
    """Of one shape. The tensors are where the recording reads and writes.

    Attributes:
        ids, theta: of the forward.
        hidden: its result.
        of_hidden, of_theta: the gradients that go into the backward and come out of it.
    """

    ids: Tensor
    theta: Tensor
    hidden: Tensor
    of_hidden: Tensor
    of_theta: Tensor
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class Recorder:
    """Records `run` where a shape comes for the second time, and replays it from then on.

    Args:
        run: frozen but for θ; it may not wait for the GPU.
    """

    def __init__(self, run: Run):
        self.run = run
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._seen: set[tuple[int, ...]] = set()
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._possible: bool | None = None  # not tried yet
        self._pool: Any = None

    def __call__(self, ids: Tensor, theta: Tensor) -> Tensor:
        """Return run(ids, theta)."""
        documents, tokens = (-(-n // m) * m for n, m in zip(ids.shape, (DOCUMENTS, TOKENS), strict=True))
        shape = (documents, tokens, theta.dim())
        recording = self._recordings.get(shape)
        if recording is None and self._is_worth(shape) and self._is_possible(ids, theta):
            recording = self._recordings[shape] = self._record(documents, tokens, theta)
        return self.run(ids, theta) if recording is None else _Replay.apply(ids, theta, recording)

    def _is_worth(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a shape has come before, while there is room for another recording."""
        came = shape in self._seen
        self._seen.add(shape)
        return came and len(self._recordings) < MAX_RECORDINGS

    def _is_possible(self, ids: Tensor, theta: Tensor) -> bool:
        """Tell whether a recording can be made; found out once, by a forward and a backward."""
        if self._possible is None:
            self._possible = self._can_record(ids, theta.detach())
        return self._possible

    def _can_record(self, ids: Tensor, theta: Tensor) -> bool:
        before = torch.cuda.get_sync_debug_mode()
        theta.requires_grad_()
        self._differentiate(ids, theta)  # what is made once, such as cuBLAS's memory, may wait
        try:
            torch.cuda.set_sync_debug_mode("error")
            self._differentiate(ids, theta)
        except RuntimeError as error:
            log.info("no CUDA graphs: this model waits for the GPU in its forward (%s)", first_line(error))
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return True

    def _differentiate(self, ids: Tensor, theta: Tensor) -> None:
        hidden = self.run(ids, theta)
        torch.autograd.grad(hidden, theta, torch.zeros_like(hidden))

    def _record(self, documents: int, tokens: int, like: Tensor) -> Recording:
        ids = torch.zeros(documents, tokens, dtype=torch.long, device=like.device)
        theta, of_theta = self._theta_buffers(documents, like)
        theta.requires_grad_()
        with _side_stream():
            self._differentiate(ids, theta)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=self._pool):
            hidden = self.run(ids, theta)
        self._pool = self._pool or forward.pool()  # the memory of one recording serves the next
        of_hidden = torch.zeros_like(hidden)
        with torch.cuda.graph(backward, pool=self._pool):
            of_theta.copy_(torch.autograd.grad(hidden, theta, of_hidden)[0])
        return Recording(ids, theta.detach(), hidden.detach(), of_hidden, of_theta, forward, backward)

    def _theta_buffers(self, documents: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """θ and its gradient, in memory that the recordings share, by a power of 2 of documents."""
        rows = 0 if like.dim() == 1 else 1 << (documents - 1).bit_length()
        if rows not in self._buffers:
            shape = (rows, *like.shape[1:]) if rows else like.shape
            self._buffers[rows] = like.new_zeros(shape), like.new_zeros(shape)
        theta, of_theta = (buffer[:documents] if rows else buffer for buffer in self._buffers[rows])
        return theta.detach(), of_theta


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids: Tensor, theta: Tensor, recording: Recording) -> Tensor:
        ctx.recording, ctx.shape = recording, ids.shape
        documents, tokens = ids.shape
        recording.ids[:documents, :tokens].copy_(ids)
        (recording.theta[:documents] if theta.dim() == 2 else recording.theta).copy_(theta)
        recording.forward.replay()
        return recording.hidden[:documents, :tokens].clone()

    @staticmethod
    def backward(ctx, of_hidden: Tensor):
        recording, (documents, tokens) = ctx.recording, ctx.shape
        recording.of_hidden.zero_()
        recording.of_hidden[:documents, :tokens].copy_(of_hidden)
        recording.backward.replay()
        of_theta = recording.of_theta
        # Rows are read before the next replay overwrites them; a single θ's gradient may be kept as it is.
        return None, of_theta[:documents] if of_theta.dim() == 2 else of_theta.clone(), None


@contextmanager
def _side_stream():
    """As recording asks for: what is done for the first time is done on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
