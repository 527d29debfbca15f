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

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from jaxseg.errors import ConfigError, JaxsegError
from jaxseg.files import cache_dir, expand

HELP = "configs/FILE.py:VARIANT (see above); --config.FIELD=VALUE overrides a field."


def define_config() -> Any:
    """The flag --config=configs/FILE.py:VARIANT, with --config.FIELD=VALUE overrides."""
    return config_flags.DEFINE_config_file("config", None, HELP)


def run(
    main: Callable[[Sequence[str]], None],
    *,
    needs_config: bool = True,
    of_run: bool = False,
    positional: bool = False,
) -> None:
    """`app.run(main)`, with the caller's docstring and the grammar as help; exits with 1 after an error of the user's.

    Args:
        main: takes the arguments that are no flags.
        needs_config: a missing --config is answered with the grammar.
        of_run: the script works with the trained run that --checkpoint or --workdir names; where --config is missing,
            overrides are of the run's config, and those that a trained model does not read are refused.
        positional: whether arguments that are no flags are meant.
    """
    from jaxseg.config.builders import grammar

    module = sys.modules["__main__"]
    module.__doc__ = f"{(module.__doc__ or '').rstrip()}\n\n{grammar()}\n\nflags:"

    def parse_flags(argv: list[str]) -> list[str]:
        rest = parse(argv, needs_config=needs_config, of_run=of_run)
        if rest[1:] and not positional:
            hint = "values are given as --flag=value"
            raise ConfigError(f"unexpected argument '{rest[1]}'", field=rest[1], hint=hint)
        _quiet()
        enable_compilation_cache()
        return rest

    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:
        sys.exit(130)
    except JaxsegError as error:
        if os.environ.get("JAXSEG_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _quiet() -> None:
    """Show what jaxseg has to say, plainly, and only warnings of others (--verbosity=0 shows more)."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault(
        "OPENCV_LOG_LEVEL", "OFF"
    )  # what cannot be read is told by us, with the file's name
    logging.getLogger("tifffile").addFilter(
        lambda record: "GDAL_NODATA" not in str(record.msg)
    )  # read by us, and said better
    ours, handler = logging.getLogger("jaxseg"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


# --- Flags ------------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str], *, needs_config: bool = False, of_run: bool = False) -> list[str]:
    """Parse the script's flags and the overrides of its config; see `run`.

    Returns:
        The script's name and the arguments that are no flags.

    Raises:
        ConfigError: a flag or an override that does not exist or whose value cannot be meant.
    """
    from jaxseg import overrides

    try:
        given, argv = overrides.take(argv, "config")
    except flags.Error as error:
        raise _told(error, argv, None) from error
    asks_for_help = any(re.match("--?help", arg) for arg in argv)
    config = None if asks_for_help else _config(given or "", argv, needs_config, of_run)
    if config is not None:
        overrides.check_names(config, argv)
    rest = _parse(argv, config)
    for flag in map(flags.FLAGS.__getitem__, flags.FLAGS):
        if isinstance(flag.value, str) and flag.value.startswith("~"):
            flag.value = str(expand(flag.value))  # shells leave it alone after --flag=
    if of_run and config is not None:
        _check_overrides(config, argv, bool(given))
    return rest


def _parse(argv: list[str], config: ConfigDict | None) -> list[str]:
    """absl's parsing. The config comes built: what its file raises is a message or a bug, not a flag's wrong value."""
    try:
        if config is not None:
            delattr(flags.FLAGS, "config")
            config_flags.DEFINE_config_dict("config", config, HELP, sys_argv=argv)
        return flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:
        raise _told(error, argv, config) from error


def _config(given: str, argv: Sequence[str], needs_config: bool, of_run: bool) -> ConfigDict | None:
    """The config that overrides are of: --config's, else the run's; None where there is neither."""
    from jaxseg import overrides
    from jaxseg.config import fields
    from jaxseg.config.builders import build, grammar, load_builder

    file, _, variant = given.partition(":")
    if file:
        parameter = inspect.signature(load_builder(file)).parameters.get("variant")
        if parameter and not variant:
            example = f"for example --config={file}:{parameter.default}\n\n{grammar()}"
            raise ConfigError("needs a variant", file=file, field="--config", hint=example)
        return fields.complete(build(file, variant))
    if needs_config:
        raise ConfigError(f"give --config=configs/FILE.py:VARIANT\n\n{grammar()}", field="--config")
    named = overrides.named(argv)
    if not named:
        return None
    if of_run and (path := _run_path(argv)):
        return _run_config(path)
    needed = (
        "--checkpoint, the run whose config it overrides"
        if of_run
        else "--config, which it overrides"
    )
    raise ConfigError(f"--config.{named[0]} needs {needed}", field=named[0])


def _run_path(argv: Sequence[str]) -> Path | None:
    from jaxseg import overrides

    path = next(
        filter(None, (overrides.take(argv, name)[0] for name in ("checkpoint", "workdir"))), None
    )
    return expand(path) if path else None


def _run_config(path: Path) -> ConfigDict:
    from jaxseg import checkpoint  # orbax is slow to import, and benchmark.py does without

    return checkpoint.read_config(checkpoint.find_workdir(path)[0])


def _check_overrides(config: ConfigDict, argv: Sequence[str], has_file: bool) -> None:
    """Refuse overrides that a trained model does not read; its precision is the run's unless one says otherwise."""
    from jaxseg import overrides

    trained = _run_config(_run_path(argv))
    values = config_flags.get_override_values(flags.FLAGS["config"])
    overrides.check_read(values, trained, Path(sys.argv[0]).name)
    if has_file and "precision" not in values and "precision" in trained:
        config.precision = trained.precision


def _told(error: Exception, argv: Sequence[str], config: ConfigDict | None) -> ConfigError:
    """What absl has to say about a flag as one sentence, with what a value must be in place of Python's words."""
    from jaxseg import overrides

    text = str(error).removeprefix("flag ")
    if isinstance(error, flags.UnrecognizedFlagError):
        near = text.partition("Did you mean: ")[2].rstrip(" ?")
        hint = f"did you mean --{near.replace(', ', ' or --')}?" if near else ""
        return ConfigError(
            f"there is no flag --{error.flagname}", field=f"--{error.flagname}", hint=hint
        )
    # absl puts the values of all flags of a validator before its message, whole configs too.
    validators = [validator for name in flags.FLAGS for validator in flags.FLAGS[name].validators]
    messages = dict.fromkeys(v.message for v in validators if f": {v.message}" in text)
    if messages:
        missing = [
            found[1]
            for found in map(re.compile(r"Flag --(\w+) must have a value").match, messages)
            if found
        ]
        told = [
            f"--{name} is missing ({flags.FLAGS[name].help.rstrip('.')})" for name in missing
        ] or messages
        return ConfigError("; ".join(told), field=f"--{missing[0]}" if missing else "")
    found = re.match(r"--([\w.]+)=", text)
    path, words = found[1].removeprefix("config.") if found else "", ""
    if found and path != found[1]:
        words = overrides.describe(config, path) if config is not None else ""
    elif found and found[1] in flags.FLAGS:
        path, words = f"--{path}", flags.FLAGS[path].parser.syntactic_help
    if words:
        value = overrides.take(argv, found[1])[0]
        return ConfigError(f"--{found[1]} is {value!r}", field=path, hint=f"it must be {words}")
    field = re.search(r"--[\w.]+", text)
    return ConfigError(text.strip(), field=field[0] if field else "")


def enable_compilation_cache() -> str:
    """Turn JAX's persistent compilation cache on and return its folder.

    A folder that JAX was already given (JAX_COMPILATION_CACHE_DIR) is kept. A second start of the same program on the
    same devices then reads its compiled code instead of compiling for seconds to minutes.
    """
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        folder = str(cache_dir() / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
