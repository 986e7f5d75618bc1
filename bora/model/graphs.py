"""Replay a backbone's forward and backward on a GPU from recordings (CUDA graphs), instead of launching every kernel.

A step of a small model is thousands of short kernels, and launching them takes the CPU several times as long as the GPU
needs to run them. A recording is launched as a whole. Its shapes and addresses are fixed, so there is one for each number
of documents and of tokens, rounded up. A batch is copied into it; results for the empty rest are ignored.
"""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bora.errors import first_line

log = logging.getLogger(__name__)

TOKENS = 16  # a recording's tokens are a multiple of this
MAX_RECORDINGS = 32  # with one θ for each document, and as many with one θ for all

Forward = Callable[[Tensor, Tensor], Tensor]  # token ids [R, T], θ [R, P] or [P] → hidden states [R, T, H]


class Recording(NamedTuple):
    """A recorded forward and backward of one shape, and the tensors that they read and write.

    Attributes:
        input_ids, theta: the forward's inputs.
        hidden: its result.
        of_hidden, of_theta: the gradients that the backward reads and writes.
    """

    input_ids: Tensor
    theta: Tensor
    hidden: Tensor
    of_hidden: Tensor
    of_theta: Tensor
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph


class Recorder:
    """Record `run` the second time a shape occurs, and replay it from then on.

    Each backward must come before the next forward, since all recordings share their memory.

    Args:
        run: the forward, frozen except for θ. If it waits for the GPU, nothing is recorded.
        max_tokens: the number of positions that `run` has; None for no limit.
    """

    def __init__(self, run: Forward, max_tokens: int | None = None):
        self.run, self.max_tokens = run, max_tokens
        self.turn = 0  # number of forwards replayed
        self.forget()

    def forget(self) -> None:
        """Drop all recordings, because the weights whose addresses they hold have moved."""
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._seen: set[tuple[int, ...]] = set()
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._possible = True
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, ids: Tensor, theta: Tensor) -> Tensor:
        """Return run(ids, theta)."""
        documents, tokens = (-(-n // m) * m for n, m in zip(ids.shape, (_multiple(len(ids)), TOKENS), strict=True))
        if self.max_tokens is not None:
            tokens = min(tokens, self.max_tokens)
        shape = (documents, tokens, theta.dim())
        if shape not in self._recordings and self._is_worth(shape):
            try:
                self._recordings[shape] = self._record(documents, tokens, theta)
            except RuntimeError as error:  # too little memory, or a model that waits for the GPU
                self._possible = False
                log.info("no CUDA graphs from here on: %s", first_line(error))
        recording = self._recordings.get(shape)
        return self.run(ids, theta) if recording is None else _Replay.apply(ids, theta, recording, self)

    def _is_worth(self, shape: tuple[int, ...]) -> bool:
        """Return whether a shape has occurred before and there is room for another recording."""
        occurred = shape in self._seen
        self._seen.add(shape)
        alike = sum(known[-1] == shape[-1] for known in self._recordings)
        return occurred and self._possible and alike < MAX_RECORDINGS

    def _record(self, documents: int, tokens: int, like: Tensor) -> Recording:
        """Run a shape twice, then record it.

        Raises:
            RuntimeError: `run` waits for the GPU, which cannot be recorded; or there is too little memory.
        """
        ids = torch.zeros(documents, tokens, dtype=torch.long, device=like.device)
        theta, of_theta = self._theta_buffers(documents, like)
        theta.requires_grad_()
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        # This context leaves the stream even if recording fails; torch's graph alone would stay in it.
        with torch.cuda.stream(self._stream):
            self._differentiate(ids, theta)  # one-time work, such as allocating cuBLAS's workspace, may wait
            with _no_waiting():
                self._differentiate(ids, theta)
            forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(forward, pool=self._pool, stream=self._stream):
                hidden = self.run(ids, theta)
            self._pool = self._pool or forward.pool()  # all recordings share one memory pool
            of_hidden = torch.zeros_like(hidden)
            with torch.cuda.graph(backward, pool=self._pool, stream=self._stream):
                of_theta.copy_(torch.autograd.grad(hidden, theta, of_hidden)[0])
        torch.cuda.current_stream().wait_stream(self._stream)
        return Recording(ids, theta.detach(), hidden.detach(), of_hidden, of_theta, forward, backward)

    def _differentiate(self, ids: Tensor, theta: Tensor) -> None:
        hidden = self.run(ids, theta)
        torch.autograd.grad(hidden, theta, torch.zeros_like(hidden))

    def _theta_buffers(self, documents: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return θ and its gradient, in buffers that recordings share, with documents rounded up to a power of 2."""
        rows = 0 if like.dim() == 1 else 1 << (documents - 1).bit_length()
        if rows not in self._buffers:
            shape = (rows, *like.shape[1:]) if rows else like.shape
            self._buffers[rows] = like.new_zeros(shape), like.new_zeros(shape)
        theta, of_theta = (buffer[:documents] if rows else buffer for buffer in self._buffers[rows])
        return theta.detach(), of_theta


def _multiple(documents: int) -> int:
    """Return the unit to which documents are rounded up: 8, or less if that would add a quarter or more."""
    return min(8, 1 << max(0, documents.bit_length() - 3))


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids: Tensor, theta: Tensor, recording: Recording, recorder: Recorder) -> Tensor:
        recorder.turn += 1
        ctx.recording, ctx.recorder, ctx.turn, ctx.shape = recording, recorder, recorder.turn, ids.shape
        documents, tokens = ids.shape
        recording.input_ids.zero_()  # remove the previous batch's documents, whose θ is gone
        recording.input_ids[:documents, :tokens].copy_(ids)
        (recording.theta[:documents] if theta.dim() == 2 else recording.theta).copy_(theta)
        recording.forward.replay()
        return recording.hidden[:documents, :tokens].clone()

    @staticmethod
    def backward(ctx, of_hidden: Tensor):
        recording, (documents, tokens) = ctx.recording, ctx.shape
        if ctx.turn != ctx.recorder.turn:
            raise RuntimeError("another forward was run before this backward; build the model with cuda_graphs=False")
        recording.of_hidden.zero_()
        recording.of_hidden[:documents, :tokens].copy_(of_hidden)
        recording.backward.replay()
        of_theta = recording.of_theta
        # Rows are read before the next replay overwrites them; a single θ's gradient may become p.grad, so it is cloned.
        return None, of_theta[:documents] if of_theta.dim() == 2 else of_theta.clone(), None, None


@contextmanager
def _no_waiting():
    """Make torch raise a RuntimeError whenever the CPU would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
