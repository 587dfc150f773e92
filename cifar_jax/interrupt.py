"""Ctrl-C and SIGTERM, turned into one exception that stops a run in good order."""

import contextlib
import signal


class Interrupted(BaseException):
    """The user (SIGINT) or the system (SIGTERM) asked to stop. Not an Exception: nothing may swallow it."""

    def __init__(self, signum: int, message: str = ""):
        super().__init__(message or f"Stopped by {signal.Signals(signum).name}.")
        self.signum = signum


class Interrupt:
    """Whether a stop was asked for.

    The exception is raised where the signal arrives. Python drops exceptions in a few places (finalizers, callbacks of
    the garbage collector), so loops also call `check`.
    """

    def __init__(self):
        self.signum: int | None = None

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
        interrupt.signum = signum
        for name in previous:
            signal.signal(name, signal.SIG_DFL)
        raise Interrupted(signum)

    previous = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
