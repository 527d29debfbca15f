"""Errors that jaxseg raises when a user's input cannot be used.

Scripts print these as one message and exit with status 1. Any other exception is a bug in jaxseg or
a library, and keeps its traceback. Library users catch `JaxsegError`, or one of its subclasses.
"""

import contextlib
from collections.abc import Iterator


class JaxsegError(Exception):
    """An argument or a file cannot be used; the text says what, where and what to do.

    Attributes:
        problem: What is wrong, without the file and the hint.
        file: The file, folder or address, "" for none.
        field: The config field ("dataset.root"), parameter or flag ("--output"), "" for none.
        hint: What to do about it, "" where `problem` says it.
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
    """An image is not an array, or has a dtype that the model was not trained on."""


class CheckpointError(JaxsegError, ValueError):
    """A workdir or a checkpoint in it cannot be used."""


class WeightsError(JaxsegError, ValueError):
    """Weights cannot be read, do not fit the model, or are not finite."""


class NonFiniteError(JaxsegError, RuntimeError):
    """A loss, gradient, variable or class score is NaN or infinite."""


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def about(*, file: object = "", field: str = "") -> Iterator[None]:
    """Fill in the file and field of errors that the block raises without them.

    Args:
        file: The file, folder or address.
        field: The config field, parameter or flag.
    """
    try:
        yield
    except JaxsegError as error:
        error.file, error.field = error.file or str(file), error.field or field
        raise
