"""Signals that ask a run to stop: it finishes the step, saves a checkpoint, and exits with the signal's code.

If validation is due, the run stops during it and keeps the previous checkpoint.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

log = logging.getLogger(__name__)

# Sent by schedulers before they reclaim a machine (SLURM: SIGTERM, or the one that --signal names), and by Ctrl-C.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """The run was stopped by a signal. Not an Exception, so that a sweep does not record it as a job's failure.

    Attributes:
        exit_code: 128 + the signal's number, as in shells: 143 for SIGTERM, 130 for Ctrl-C, 138 for SIGUSR1.
    """

    def __init__(self, signum: int) -> None:
        self.signum, self.exit_code = signum, 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int]]:
        return Stopped, (self.signum,)  # a sweep's job may be another process


class Stop:
    """Handle the signals of a run.

    During training, a signal waits until the run can be saved. At other times, and on a second signal, the run stops at
    once.
    """

    signum: int | None = None  # the signal received
    waits = False  # whether the run is training

    def obey(self) -> None:
        """Raise Stopped if a signal has been received."""
        if self.signum is not None:
            raise Stopped(self.signum)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum is not None, signum
        if again or not self.waits:
            raise Stopped(signum)
        log.info("%s: stopping after this step", signal.Signals(signum).name)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Handle SIGNALS with a Stop; do nothing outside the main thread, the only one that receives them."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.signal(signum, stop) for signum in SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class JobsStop:
    """Forward signals to a sweep's job processes, and end when they end."""

    signum: int | None = None  # the signal received

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        jobs = psutil.Process().children(recursive=True)
        if self.signum is not None or not jobs:
            raise Stopped(signum)
        self.signum = signum
        for job in jobs:
            with suppress(psutil.NoSuchProcess):
                job.send_signal(signum)
        log.info("%s: stopping the sweep's jobs", signal.Signals(signum).name)


def stop_jobs_too() -> None:
    """Handle SIGNALS with a JobsStop from now on, except Ctrl-C, which a terminal sends to every process itself."""
    handler = JobsStop()
    for signum in SIGNALS:
        if signum != signal.SIGINT:
            signal.signal(signum, handler)


def signal_sent_on() -> int | None:
    """Return the signal that was forwarded to a sweep's jobs, or None; launchers report it as an error of their own."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler.signum if isinstance(handler, JobsStop) else None
