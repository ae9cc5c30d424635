"""Signals that ask a training to stop. Only the training processes react to them, not the processes they have started.

SIGTERM (Slurm, Kubernetes, torchrun), SIGUSR1 and SIGUSR2 (Slurm's `--signal=USR1@60`) and SIGINT ask for a clean stop.
They reach whole process groups. This module loads no library, so that the processes of a loader can be started first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
LAUNCHED_BY = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun and by `accelerate launch`
PR_SET_PDEATHSIG = 1  # of prctl, on Linux
ORPHAN_SECONDS = 300  # for so long a process may go on after a signal if its launcher has ended


class StoppedError(Exception):
    """A pass over all samples was given up because a stop was requested."""


class StopSignal:
    """Handles the signals; all processes agree on the step at which they stop.

    Before this object is made, a signal ends the process as usual: nothing is lost before the first step. In a thread
    other than the main one, where Python sets no handlers, signals go on as usual.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device  # where collectives run
        self.is_requested = False  # in this process
        self.is_agreed = False  # by all processes
        self._previous_answer: Callable[[], bool] | None = None
        self._launcher = os.getppid()
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._request)

    def _request(self, number: int, frame: object) -> None:  # noqa: ARG002  (the signature of a handler)
        if self.is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_requested = True
        if os.getppid() != self._launcher:  # nobody else would end a process that waits for ever for another one
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(ORPHAN_SECONDS)

    def poll(self) -> bool:
        """True once any process was asked to stop, in all of them at the same call; all must call it equally often.

        On a GPU the answer is that of the previous call, which is ready by now, so that nothing waits for the device.
        """
        from avssl.distributed import is_active

        if not is_active():
            self.is_agreed = self.is_requested
        elif self.device.type == "cuda":
            previous, self._previous_answer = self._previous_answer, self._exchange()
            self.is_agreed = previous is not None and previous()
        else:
            self.is_agreed = self._exchange()()
        return self.is_agreed

    def _exchange(self) -> Callable[[], bool]:
        """Tell all processes whether this one was asked; the result is a function that gives the common answer."""
        import torch

        from avssl.distributed import all_sum

        total = all_sum(torch.tensor([float(self.is_requested)], device=self.device))
        if not total.is_cuda:
            return lambda: bool(total.item() > 0)
        host = torch.empty(1, pin_memory=True)
        host.copy_(total, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def answer() -> bool:
            arrived.synchronize()
            return bool(host.item() > 0)

        return answer

    def interruptible(self, embed_all: Callable[..., Iterator[Any]], num_polls: int) -> Callable[..., Iterator[Any]]:
        """`embed_all`, a pass over all samples, made to raise StoppedError at a stop.

        num_polls: the number of batches that every process has in a pass.
        """

        def embed(*arguments: Any) -> Iterator[Any]:
            with closing(embed_all(*arguments)) as batches:  # type: ignore[type-var]  # a generator
                for number, batch in enumerate(batches):
                    if number < num_polls and self.poll():
                        raise StoppedError
                    yield batch

        return embed


def end_with_launcher() -> None:
    """Let the system send this process SIGTERM when its launcher, if it has one, ends (Linux).

    `accelerate launch` of one process ends at a SIGTERM without passing it on; torchrun does so at a SIGUSR1.
    """
    if not any(name in os.environ for name in LAUNCHED_BY):
        return
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (AttributeError, OSError, TypeError):
        return


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals: processes started in the block, and those that they start, leave them to this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals_of_others(owner: int | None) -> None:
    """In a process started with `signals_blocked`: end at a SIGTERM that the process `owner` sent, and at no other."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell the sender
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        return

    def watch() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != owner:
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
