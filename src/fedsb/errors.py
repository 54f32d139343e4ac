"""The error tree. Imports nothing.

FedsbError
├── InputError       the user's input was wrong: exit status 2, one message, no traceback
├── RunFailed        the run cannot continue: exit status 1, its state is saved
└── UpdateRejected   one client's update is left out of a round; the round continues
"""


class FedsbError(Exception):
    """Root of every error that fedsb raises on purpose."""


class InputError(FedsbError):
    """A wrong input. The message names the key or file, what was expected, what was found and the cure."""


class RunFailed(FedsbError):
    """The run cannot continue, through no fault of the input's form. What was finished is saved."""


class UpdateRejected(FedsbError):
    """A client's update cannot be used (not finite, wrong shape, wrong key, wrong round)."""


def explain(error: Exception) -> str:
    """What is said of an error: our own explain themselves, of others the type is named."""
    return str(error) if isinstance(error, FedsbError) else f"{type(error).__name__}: {error}"
