"""The two ways in which a run ends early for a reason that the user must hear."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the field, what it takes and what it got. `main.py` prints it without a
    traceback and exits with code 2; nothing has been compiled or written by then.
    """


class DivergedError(RuntimeError):
    """The loss became NaN or infinite; the message gives the epoch, the step and the learning rate."""
