"""The command line of every script: flags, help, logging, exit status, process set-up.

A JaxsegError is a user's mistake and is shown as one message; any other exception is a bug and
keeps its traceback. JAXSEG_TRACEBACK=1 shows every traceback.
"""

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from jaxseg.cli import overrides
from jaxseg.config.checks import complete
from jaxseg.config.finder import build, load_builder
from jaxseg.config.resolve import copy_config
from jaxseg.config.variant import grammar
from jaxseg.data.process import silence_nodata, tune_process
from jaxseg.errors import ConfigError, JaxsegError
from jaxseg.files import cache_dir, expand
from jaxseg.workdir import IGNORED_ORBAX_WARNINGS, find_workdir, read_experiment

CONFIG_HELP = "configs/FILE.py:VARIANT (see above); --config.FIELD=VALUE overrides a field."


def define_config() -> flags.FlagHolder:
    """Define the flag --config=configs/FILE.py:VARIANT, with --config.FIELD=VALUE overrides."""
    return config_flags.DEFINE_config_file("config", None, CONFIG_HELP)


def run_main(
    main: Callable[[Sequence[str]], None],
    *,
    needs_config: bool = True,
    of_run: bool = False,
    positional: bool = False,
) -> None:
    """Parse the command line, set up the process and call `main`; exit with 1 after a user's error.

    The help is the caller's docstring and the grammar of variants.

    Args:
        main: Called with the script's name and its positional arguments.
        needs_config: Without --config, explain the grammar and exit.
        of_run: Whether the script works on the trained run that --checkpoint or --workdir names.
            Without --config, overrides apply to the run's config. Overrides that a trained model
            does not read are refused.
        positional: Whether the script takes positional arguments.
    """
    module = sys.modules["__main__"]
    module.__doc__ = f"{(module.__doc__ or '').rstrip()}\n\n{grammar()}\n\nflags:"

    def parse_flags(argv: list[str]) -> list[str]:
        rest = parse(argv, needs_config=needs_config, of_run=of_run)
        if rest[1:] and not positional:
            hint = "values are given as --flag=value"
            raise ConfigError(f"unexpected argument '{rest[1]}'", field=rest[1], hint=hint)
        set_up_process()
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


# --- The process ----------------------------------------------------------------------------------


def set_up_process() -> None:
    """Configure this process for a script: logging, JAX's compilation cache, memory and threads."""
    _set_up_logging()
    enable_compilation_cache()
    tune_process()


def _set_up_logging() -> None:
    """Show jaxseg's messages plainly, and only the warnings of other libraries."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # jaxseg reports unreadable files itself
    absl_logging.get_absl_logger().addFilter(_is_unexpected)
    logging.getLogger("tifffile").addFilter(silence_nodata)
    ours = logging.getLogger("jaxseg")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Whether a log record is not one of the orbax warnings that every run causes."""
    return not any(phrase in str(record.msg) for phrase in IGNORED_ORBAX_WARNINGS)


def enable_compilation_cache() -> None:
    """Turn on JAX's persistent compilation cache, so that a second start compiles nothing.

    A folder that is already configured (JAX_COMPILATION_CACHE_DIR) is kept.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# --- Flags ----------------------------------------------------------------------------------------


def parse(argv: Sequence[str], *, needs_config: bool = False, of_run: bool = False) -> list[str]:
    """Parse the script's flags and the overrides of its config; see `run_main`.

    Returns:
        The script's name and its positional arguments.

    Raises:
        ConfigError: A flag or an override does not exist, or its value is out of range.
    """
    try:
        given, argv = overrides.take(argv, "config")
    except flags.Error as error:
        raise _explain(error, argv, None) from error
    wants_help = any(re.match("--?help", arg) for arg in argv)
    config = None if wants_help else _load_config(given or "", argv, needs_config, of_run)
    if config is not None:
        overrides.check_names(config, argv)
    rest = _parse(list(argv), config)
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if isinstance(flag.value, str) and flag.value.startswith("~"):
            flag.value = str(expand(flag.value))  # shells do not expand it after --flag=
    if of_run and config is not None:
        _check_overrides(config, argv, bool(given))
    return rest


def _parse(argv: list[str], config: ConfigDict | None) -> list[str]:
    """Let absl parse the flags around a config that is already built."""
    try:
        if config is not None:
            delattr(flags.FLAGS, "config")
            config_flags.DEFINE_config_dict("config", config, CONFIG_HELP, sys_argv=argv)
        return flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:
        raise _explain(error, argv, config) from error


def _load_config(
    given: str, argv: Sequence[str], needs_config: bool, of_run: bool
) -> ConfigDict | None:
    """Return the config that overrides apply to: from --config, else the run's, else None."""
    file, _, variant = given.partition(":")
    if file:
        return _build_config(file, variant)
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


def _build_config(file: str, variant: str) -> ConfigDict:
    """Return the config of a file and a variant; errors about the file name the flag."""
    try:
        parameter = inspect.signature(load_builder(file)).parameters.get("variant")
        if parameter and not variant:
            example = f"for example --config={file}:{parameter.default}\n\n{grammar()}"
            raise ConfigError("needs a variant", file=file, field="--config", hint=example)
        return complete(build(file, variant))
    except ConfigError as error:
        if error.field == "file":
            error.field = "--config"
        raise


def _run_path(argv: Sequence[str]) -> Path | None:
    for name in ("checkpoint", "workdir"):
        if path := overrides.take(argv, name)[0]:
            return expand(path)
    return None


def _run_config(path: Path | None) -> ConfigDict:
    if path is None:
        raise ConfigError("give --checkpoint, the trained run", field="--checkpoint")
    return copy_config(read_experiment(find_workdir(path)[0]))


def _check_overrides(config: ConfigDict, argv: Sequence[str], has_file: bool) -> None:
    """Refuse overrides that a trained model does not read."""
    trained = _run_config(_run_path(argv))
    values = config_flags.get_override_values(flags.FLAGS["config"])
    overrides.check_read(values, trained, Path(sys.argv[0]).name)
    if has_file and "precision" not in values:
        config.precision = trained.precision


def _explain(error: Exception, argv: Sequence[str], config: ConfigDict | None) -> ConfigError:
    """Turn absl's error about a flag into one sentence with the values that it accepts."""
    text = str(error).removeprefix("flag ")
    if isinstance(error, flags.UnrecognizedFlagError):
        near = text.partition("Did you mean: ")[2].rstrip(" ?")
        hint = f"did you mean --{near.replace(', ', ' or --')}?" if near else ""
        name = f"--{error.flagname}"
        return ConfigError(f"there is no flag {name}", field=name, hint=hint)
    # Before a validator's message absl prints the values of all its flags, including whole configs.
    validators = [validator for name in flags.FLAGS for validator in flags.FLAGS[name].validators]
    if messages := dict.fromkeys(v.message for v in validators if f": {v.message}" in text):
        return _explain_validators(list(messages))
    found = re.match(r"--([\w.]+)=", text)
    path = found[1].removeprefix("config.") if found else ""
    words = ""
    if found and path != found[1]:
        words = overrides.describe(config, path) if config is not None else ""
    elif found and found[1] in flags.FLAGS:
        path, words = f"--{path}", flags.FLAGS[path].parser.syntactic_help
    if found and words:
        value = overrides.take(argv, found[1])[0]
        return ConfigError(f"--{found[1]} is {value!r}", field=path, hint=f"it must be {words}")
    field = re.search(r"--[\w.]+", text)
    return ConfigError(text.strip(), field=field[0] if field else "")


def _explain_validators(messages: Sequence[str]) -> ConfigError:
    """Name the required flags that are missing, else repeat the validators' messages."""
    pattern = re.compile(r"Flag --(\w+) must have a value")
    missing = [found[1] for found in map(pattern.match, messages) if found]
    lines = [f"--{name} is missing ({str(flags.FLAGS[name].help).rstrip('.')})" for name in missing]
    field = f"--{missing[0]}" if missing else ""
    return ConfigError("; ".join(lines or messages), field=field)
