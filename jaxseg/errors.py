"""What jaxseg raises when something it was given cannot be used.

Scripts show exactly these as one message and exit with 1; every other exception is a bug of jaxseg
or of a library and keeps its traceback. Library users catch `JaxsegError`, or one of its kinds.
"""

import contextlib
from collections.abc import Iterator


class JaxsegError(Exception):
    """Something the caller or a file brought along cannot be used; the text says what, where and what to do.

    Attributes:
        problem: what is wrong, without the file and without the hint.
        file: the file, folder or address it is about, "" where there is none.
        field: the config field ("dataset.root"), flag ("--output") or argument it is about, ""
            where there is none.
        hint: what to do about it, "" where `problem` says so already.
    """

    def __init__(self, problem: str = "", *, file: object = "", field: str = "", hint: str = ""):
        super().__init__(
            problem
        )  # the one positional argument, so that the error survives pickling between processes
        self.problem, self.file, self.field, self.hint = problem, str(file), field, hint

    def __str__(self) -> str:
        return (
            (f"{self.file}: " if self.file else "")
            + self.problem
            + (f"; {self.hint}" if self.hint else "")
        )


class ConfigError(JaxsegError, ValueError):
    """A config, an override or an argument that cannot be meant."""


class DataError(JaxsegError, ValueError):
    """An image, a label or a data set that cannot be trained on, evaluated on or segmented."""


class ImageTypeError(DataError, TypeError):
    """Something given as an image is no array, or an array of another dtype than the model was trained on."""


class CheckpointError(JaxsegError, ValueError):
    """A workdir or a checkpoint in it that cannot be used."""


class WeightsError(JaxsegError, ValueError):
    """A weight file, or weights, that cannot be read, do not fit the model or are not numbers."""


class NonFiniteError(JaxsegError, RuntimeError):
    """Training or a model's output left the numbers: the loss, a gradient, a variable or a class score is NaN or infinite."""


@contextlib.contextmanager
def about(*, file: object = "", field: str = "") -> Iterator[None]:
    """Let the errors of a block say what they are about, where they do not yet: only the caller knows the file's name."""
    try:
        yield
    except JaxsegError as error:
        error.file, error.field = error.file or str(file), error.field or field
        raise
