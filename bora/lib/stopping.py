"""Signals that ask a run to stop: it finishes the step, saves, and leaves with a code that says so.

Where validation follows the step it leaves in that, with what was saved before: to save it would have to be through.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

log = logging.getLogger(__name__)

# What schedulers send before they take a machine away (SLURM: SIGTERM, or what --signal names), and Ctrl-C.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """The run was asked to stop. Not an Exception: a sweep must not take it for one job's failure.

    Attributes:
        exit_code: 128 + the signal's number, as shells count: 143 for SIGTERM, 130 for Ctrl-C, 138 for SIGUSR1.
    """

    def __init__(self, signum: int) -> None:
        self.signum, self.exit_code = signum, 128 + signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; the same command goes on from the last save"
        )

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int]]:
        return Stopped, (self.signum,)  # a sweep's job may tell of it from another process


class Stop:
    """Whether, and by which signal, the run was asked to stop.

    While it trains, the request waits for a moment at which the run can be saved; at any other time, or when it
    comes a second time, it is obeyed at once.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.waits = False  # set while the run trains

    def obey(self) -> None:
        """Leave, if the run was asked to.

        Raises:
            Stopped: it was.
        """
        if self.signum is not None:
            raise Stopped(self.signum)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum is not None, signum
        if again or not self.waits:
            raise Stopped(signum)
        log.info("%s: stopping after this step", signal.Signals(signum).name)


class PassOn:
    """Hands a signal on to the processes below this one, a sweep's jobs, which stop as a run does.

    Attributes:
        signum: the first signal there was, else None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def begin(self) -> None:
        """From now on. Not Ctrl-C, which a terminal sends to all of them."""
        import psutil  # which comes with the launchers that have processes

        self.processes_below = psutil.Process().children
        for signum in SIGNALS:
            if signum != signal.SIGINT:
                signal.signal(signum, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        below = self.processes_below(recursive=True)
        if self.signum is not None or not below:
            raise Stopped(signum)
        self.signum = signum
        for process in below:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signum)
        log.info("%s: the sweep's jobs are stopped", signal.Signals(signum).name)


passed_on = PassOn()  # of this process


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within: SIGNALS are requests to stop. A thread that is not the main one cannot be asked."""
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
