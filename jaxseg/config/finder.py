"""Find configs: files by path, experiments and models by name."""

import contextlib
import importlib.machinery
import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.errors import ConfigError, JaxsegError
from jaxseg.files import expand
from jaxseg.registry import unknown_name
from jaxseg.zoo import published


def configs_folder() -> Path:
    """Return configs/, which is next to the package in a checkout and inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "configs", package / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError("has no folder configs", file=package, hint="install jaxseg again")


@contextlib.contextmanager
def _locate_errors(file: Path) -> Iterator[None]:
    """Turn an error in a config file's own code into a ConfigError with the line number."""
    try:
        yield
    except (JaxsegError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        problem = f"{line}{error.msg}"
        raise ConfigError(problem, file=error.filename or file, field="file") from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if frame.filename != str(file):
            raise
        problem = f"line {frame.lineno}: {type(error).__name__}: {error}"
        raise ConfigError(problem, file=file, field="file") from error


def load_builder(file: str | Path) -> Callable[..., ConfigDict]:
    """Return `get_config` of a config file.

    Raises:
        ConfigError: The file does not exist, cannot be run, or has no `get_config`.
    """
    file = expand(file)
    if not file.is_file():
        hint = "the methods are the files of configs/"
        raise ConfigError("there is no such file", file=file, field="file", hint=hint)
    loader = importlib.machinery.SourceFileLoader(f"configs.{file.stem}", str(file))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None  # a loader is given
    module = importlib.util.module_from_spec(spec)
    with _locate_errors(file):
        try:
            loader.get_code(loader.name)
        except (OSError, ValueError) as error:
            problem = f"cannot be read as Python ({error})"
            raise ConfigError(problem, file=file, field="file") from error
        loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        problem = "is not a config file: it has no function get_config"
        raise ConfigError(problem, file=file, field="file")
    return module.get_config


def build(file: str | Path, variant: str = "") -> ConfigDict:
    """Return the config of a file in configs/ and a variant, before overrides.

    Args:
        file: A Python file with a function `get_config(variant)`, or `get_config()` for a method
            without variants, that returns a ConfigDict.
        variant: The variant; "" for the file's default.

    Returns:
        The config.

    Raises:
        ConfigError: There is no such file or variant, or the file's own code fails.
    """
    get_config = load_builder(file)
    file = expand(file)
    if variant and not inspect.signature(get_config).parameters:
        problem = f"takes no variant, but '{variant}' is given"
        raise ConfigError(problem, file=file, field="file", hint="leave the variant out")
    with _locate_errors(file):
        config = get_config(variant) if variant else get_config()
    if not isinstance(config, ConfigDict):
        problem = f"get_config returns {type(config).__name__}, not a ConfigDict"
        raise ConfigError(problem, file=file, field="file")
    return config


def get_experiment(name: str) -> ConfigDict:
    """Return the config of a named experiment, '<file in configs>_<variant>'.

    Args:
        name: For example 'pspnet_r50-d8_512x1024_40k_cityscapes'.

    Raises:
        ConfigError: There is no such method or variant.
    """
    folder = configs_folder()
    files = sorted((path.stem for path in folder.glob("*.py")), key=len, reverse=True)
    method = next((f for f in files if name == f or name.startswith(f"{f}_")), None)
    if method is None:
        raise unknown_name(sorted(files), name.split("_")[0], "method")
    return build(folder / f"{method}.py", name[len(method) + 1 :])


def published_models() -> list[str]:
    """Return the published names without precision, crop, schedule and data set."""
    names = (re.sub(r"_?\d+x\d+_\d+k.*", "", row["name"]) for row in published())
    return sorted({name.removesuffix("_fp16") for name in names})


def model_config(name: str) -> ConfigDict:
    """Return the model config of a short name such as 'pspnet_r50-d8', published or not.

    The model has 19 classes, those of Cityscapes, and `align_corners` is False.

    Raises:
        ConfigError: There is no such method or backbone.
    """
    if name == "quickstart":
        return get_experiment(name).model
    return get_experiment(f"{name}_512x1024_40k_cityscapes").model
