"""Ctrl-C and SIGTERM, turned into one exception that stops a run in good order."""

import asyncio
import contextlib
import signal
from collections.abc import Callable


class Interrupted(BaseException):
    """The user (SIGINT) or the system (SIGTERM) asked to stop. Not an Exception: nothing may swallow it."""

    def __init__(self, signum: int, message: str = ""):
        super().__init__(message or f"Stopped by {signal.Signals(signum).name}.")
        self.signum = signum


class Interrupt:
    """Whether a stop was asked for.

    The exception is raised where the signal arrives. Python drops exceptions in a few places (finalizers, callbacks of
    the garbage collector), and an event loop, which Orbax has while it saves, prints them and goes on: there none is
    raised, and loops also call `check`. Where `ask` is set, a signal calls that instead, as a process
    among others must not stop alone.
    """

    def __init__(self):
        self.signum: int | None = None
        self.ask: Callable[[int], None] | None = None

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextlib.contextmanager
def interruptible():
    """While inside, SIGINT and SIGTERM raise Interrupted; a second one ends the process at once."""
    interrupt = Interrupt()

    def handle(signum, frame):
        del frame
        for name in previous:
            signal.signal(name, signal.SIG_DFL)
        if interrupt.ask is not None:
            interrupt.ask(signum)
            return
        interrupt.signum = signum
        if not _in_event_loop():
            raise Interrupted(signum)

    previous = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
