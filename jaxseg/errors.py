"""Errors that jaxseg raises when a user's input cannot be used.

Scripts print these as one message and exit with status 1. Any other exception is a bug in jaxseg or
a library, and keeps its traceback. Library users catch `JaxsegError`, or one of its subclasses.
"""

import contextlib
from collections.abc import Iterator


class JaxsegError(Exception):
    """An argument or a file cannot be used; the message names the problem, its place and a fix.

    Attributes:
        problem: The problem, without the file and the hint.
        file: The file, folder or address, "" for none.
        field: The config field ("dataset.root"), parameter or flag ("--output"), "" for none.
        hint: How to fix it, "" where `problem` implies it.
    """

    def __init__(self, problem: str = "", *, file: object = "", field: str = "", hint: str = ""):
        # `problem` is the one positional argument, so the error can be pickled between processes.
        super().__init__(problem)
        self.problem, self.file, self.field, self.hint = problem, str(file), field, hint

    def __str__(self) -> str:
        file = f"{self.file}: " if self.file else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{file}{self.problem}{hint}"


class ConfigError(JaxsegError, ValueError):
    """A config, an override or an argument is invalid."""


class DataError(JaxsegError, ValueError):
    """An image, a label or a data set cannot be used for training, evaluation or prediction."""


class ImageTypeError(DataError, TypeError):
    """An image is not an array, or its dtype differs from that of the training images."""


class CheckpointError(JaxsegError, ValueError):
    """A workdir or one of its checkpoints cannot be used."""


class WeightsError(JaxsegError, ValueError):
    """Weights cannot be read, do not fit the model, or are not finite."""


class NonFiniteError(JaxsegError, RuntimeError):
    """A loss, gradient, variable or class score is NaN or infinite."""


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def about(*, file: object = "", field: str = "") -> Iterator[None]:
    """Add a file and a field to errors raised in a `with` block, where they have none.

    Args:
        file: The file, folder or address, "" for none.
        field: The config field, parameter or flag, "" for none.

    Raises:
        JaxsegError: The error of the block.
    """
    try:
        yield
    except JaxsegError as error:
        error.file, error.field = error.file or str(file), error.field or field
        raise
