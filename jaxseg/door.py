"""The door of every script: flags that teach the config grammar, and mistakes answered with a message, not a traceback.

A JaxsegError says what to change and is shown as one message; any other exception is a bug and keeps its traceback.
JAXSEG_TRACEBACK=1 shows every traceback.
"""

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jaxseg.errors import JaxsegError


def define_config() -> Any:
    """The flag --config=configs/FILE.py:VARIANT, with --config.FIELD=VALUE overrides."""
    return config_flags.DEFINE_config_file("config", None, "configs/FILE.py:VARIANT (see above); --config.FIELD=VALUE overrides a field.")


def use_run_config(argv: Sequence[str]) -> None:
    """Without --config, let --config.FIELD=VALUE override the config of the run that --checkpoint (or --workdir) names."""
    from jaxseg import checkpoint

    path = _given(argv, "checkpoint") or _given(argv, "workdir")
    if path and not _given(argv, "config") and any(re.match(r"--?(no)?config\.", arg) for arg in argv):
        config = checkpoint.read_config(checkpoint.find_workdir(path)[0])
        delattr(flags.FLAGS, "config")
        config_flags.DEFINE_config_dict("config", config, "the config of the run", sys_argv=list(argv))


def run(main: Callable[[Sequence[str]], None], *, needs_config: bool = True, of_run: bool = False) -> None:
    """`app.run(main)`, with the caller's docstring and the grammar as help; exits with 1 after an error of the user's.

    needs_config: a missing --config, or one without its variant, is answered with the grammar. of_run: where --config is
    missing, overrides are of the trained run's config.
    """
    from jaxseg.config import grammar

    module = sys.modules["__main__"]
    module.__doc__ = f"{(module.__doc__ or '').rstrip()}\n\n{grammar()}\n\nflags:"

    def parse(argv: list[str]) -> list[str]:
        if needs_config and not any(re.match("--?help", arg) for arg in argv):
            _require_variant(argv, grammar())
        rest = _parse(argv, of_run)
        _quiet()
        return rest

    try:
        app.run(main, flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit(130)
    except JaxsegError as error:
        if os.environ.get("JAXSEG_TRACEBACK"):
            raise
        _stop(str(error))


def _quiet() -> None:
    """Show what jaxseg has to say, plainly, and only warnings of others (--verbosity=0 shows more)."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # what cannot be read is told by us, with the file's name
    logging.getLogger("tifffile").addFilter(lambda record: "GDAL_NODATA" not in str(record.msg))  # read by us, and said better
    ours, handler = logging.getLogger("jaxseg"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _parse(argv: list[str], of_run: bool) -> list[str]:
    try:
        if of_run:
            use_run_config(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        # absl and config_flags wrap what a config raised into text with its traceback: look for the original
        cause = error
        while cause is not None and not isinstance(cause, JaxsegError):
            cause = cause.__context__
        if os.environ.get("JAXSEG_TRACEBACK"):
            raise
        _stop(str(cause or error))
    except (AttributeError, KeyError):  # an override of a field that the config does not have
        _stop(_unknown_field(argv))


def _given(argv: Sequence[str], flag: str) -> str:
    """The value of a flag, '' without it."""
    pairs = (arg.partition("=")[::2] if "=" in arg else (arg, value) for arg, value in zip(argv, [*argv[1:], ""]))
    return next((value for name, value in pairs if name in (f"--{flag}", f"-{flag}")), "")


def _given_config(argv: list[str]) -> tuple[Path, str] | None:
    """(file, variant) that --config names, None without it."""
    file, _, variant = _given(argv, "config").partition(":")
    return (Path(file), variant) if file else None


def _unknown_field(argv: list[str]) -> str:
    """Which override names no field of the config, and what there is in its place."""
    from jaxseg import checkpoint
    from jaxseg.config import load_builder
    from jaxseg.models.names import choose

    given = _given_config(argv)
    if given is None:
        run = _given(argv, "checkpoint") or _given(argv, "workdir")
        base = checkpoint.read_config(checkpoint.find_workdir(run)[0])
    else:
        base = load_builder(given[0])(*filter(None, [given[1]]))
    for arg in argv:
        found = re.match(r"--?config\.([^=]+)", arg)
        config, path = base, "config"
        for key in found[1].split(".") if found else ():
            try:
                choose(dict.fromkeys(config.keys()), key, f"field of {path}")
            except ValueError as error:
                return f"{arg}: {error}"
            config, path = config[key], f"{path}.{key}"
            if not hasattr(config, "keys"):
                break
    return "an override names a field that the config does not have"


def _require_variant(argv: list[str], grammar: str) -> None:
    """Stop with the grammar unless argv gives a config, with its variant if the file takes one."""
    from jaxseg.config import load_builder

    given = _given_config(argv)
    if given is None:
        _stop(f"give --config=configs/FILE.py:VARIANT\n\n{grammar}")
    file, variant = given
    if not file.is_file():
        _stop(f"--config={file}: there is no such file; the methods are the files of configs/")
    parameter = inspect.signature(load_builder(file)).parameters.get("variant")
    if parameter and not variant:
        _stop(f"{file} needs a variant, for example --config={file}:{parameter.default}\n\n{grammar}")
