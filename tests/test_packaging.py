"""The package's metadata: tested bounds, extras, nothing missing and nothing unused."""

import ast
import configparser
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
# No module of ours imports it: it is missing from tensorflow-datasets' own metadata.
INDIRECT = {"importlib-resources"}
# Imported by us, and installed by JAX itself.
WITH_JAX = {"ml-dtypes", "scipy"}
# Installed by grain and by tensorflow-datasets alike.
WITH_GRAIN = {"array-record"}
# What `pip install jaxseg` alone has to import.
LIGHT = (
    "jaxseg",
    "jaxseg.models",
    "jaxseg.losses",
    "jaxseg.metrics",
    "jaxseg.optim",
    "jaxseg.precision",
    "jaxseg.config",
    "jaxseg.weights.mmseg",
    "jaxseg.weights.state_dict",
)


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(text: str) -> dict[str, str]:
    """{distribution: version specifier} of lines such as `jax>=0.6.1`."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    found = [re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(.*)", line) for line in lines if line]
    return {canonical(match[1]): match[2] for match in found}


BASE = requirements(SETUP["options"]["install_requires"])
EXTRAS = {name: requirements(text) for name, text in SETUP["options.extras_require"].items()}


def imported() -> dict[str, set[str]]:
    """{third-party distribution: the files of jaxseg/, scripts/ and configs/ that import it}."""
    distributions = metadata.packages_distributions()
    result = {}
    for file in (
        f for folder in ("jaxseg", "scripts", "configs") for f in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for name in (
                {module.partition(".")[0] for module in modules}
                - {"jaxseg"}
                - sys.stdlib_module_names
            ):
                for distribution in distributions.get(name, [name]):
                    result.setdefault(canonical(distribution), set()).add(
                        file.relative_to(ROOT).as_posix()
                    )
    return result


def test_lower_bounds_are_those_that_are_tested():
    declared = {**BASE, **EXTRAS["train"]}
    pins = requirements((ROOT / "tools" / "oldest.txt").read_text(encoding="utf-8"))
    assert all(specifier.startswith(">=") for specifier in declared.values()), declared
    assert {name: specifier.removeprefix(">=") for name, specifier in declared.items()} == {
        name: specifier.removeprefix("==") for name, specifier in pins.items()
    }


def test_nothing_has_an_upper_bound():
    for name, specifier in [
        *BASE.items(),
        *(item for extra in EXTRAS.values() for item in extra.items()),
    ]:
        assert not re.search(r"[<~!=]=|<", specifier.replace(">=", "")), f"{name}{specifier}"


def test_what_is_imported_is_declared():
    declared = {*BASE, *EXTRAS["train"], *EXTRAS["convert"], *WITH_JAX, *WITH_GRAIN}
    missing = {name: files for name, files in imported().items() if name not in declared}
    assert not missing


def test_what_is_declared_is_imported():
    assert {*BASE, *EXTRAS["train"], *EXTRAS["convert"]} - set(imported()) - INDIRECT == set()


def test_light_modules_import_without_the_extras():
    """Block what only `train` brings, then import the modules of research code."""
    distributions = metadata.packages_distributions()
    extra = set(EXTRAS["train"]) - {"orbax-checkpoint", "rich"}  # Flax depends on these two
    blocked = sorted(
        module
        for module, names in distributions.items()
        if extra.intersection(map(canonical, names))
    )
    assert {"cv2", "PIL", "grain", "tensorflow_datasets"} <= set(blocked)
    code = (
        f"import sys, importlib; sys.modules.update(dict.fromkeys({blocked}));"
        f"[importlib.import_module(name) for name in {LIGHT}];"
        "print('orbax' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


def test_every_package_is_installed():
    listed = set(SETUP["options"]["packages"].split())
    folders = {
        f.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for f in (ROOT / "jaxseg").rglob("*.py")
    }
    assert listed == folders | {"jaxseg.configs"}


@pytest.mark.parametrize("extra", ["test", "dev"])
def test_extras_contain_each_other(extra):
    text = SETUP["options.extras_require"][extra]
    wanted = {"test": {"train"}, "dev": {"test", "docs"}}[extra]
    assert wanted <= set(re.search(r"jaxseg\[([\w,]+)\]", text)[1].split(","))
