"""Public names that a package imports on first use: they need more libraries than the rest."""

import importlib
from collections.abc import Mapping
from typing import Any


def import_name(package: str, modules: Mapping[str, str], name: str) -> Any:
    """Import a public name of a package, for the package's `__getattr__`.

    Args:
        package: Name of the package.
        modules: {public name: module that defines it}; a submodule defines its own name.
        name: The attribute to import.

    Returns:
        The attribute.

    Raises:
        AttributeError: The package has no such name.
        ModuleNotFoundError: A library is not installed; the error names the extra that installs it.
    """
    if name not in modules:
        raise AttributeError(f"module '{package}' has no attribute '{name}'")
    try:
        module = importlib.import_module(modules[name])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("jaxseg"):
            raise
        problem = f"{package}.{name} needs {error.name}: pip install 'jaxseg[train]'"
        raise ModuleNotFoundError(problem, name=error.name) from error
    return module if module.__name__ == f"{package}.{name}" else getattr(module, name)
