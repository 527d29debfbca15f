"""A library leaves its process alone: nothing global differs after importing and calling it."""

import os
import subprocess
import sys

import pytest
from helpers.data_helpers import make_folder

# The host's state; third-party libraries are imported first, as what they change is theirs.
STATE = """
import gc, importlib, json, locale, logging, multiprocessing, os, pkgutil, random, signal, sys
import warnings
from pathlib import Path
import absl.app, absl.logging, cv2, flax.linen, grain, imagecodecs, jax, ml_collections.config_flags
import numpy, optax, orbax.checkpoint, PIL.Image, rich.progress, safetensors, scipy.io, scipy.sparse
import tensorboardX, tensorflow_datasets, tifffile
from absl import flags

LOGGERS = ("", "absl", "jax", "jaxseg", "orbax", "tifffile", "py.warnings", "PIL")

def describe(logger):
    kinds = [type(each).__name__ for each in (*logger.handlers, *logger.filters)]
    return [logger.level, logger.propagate, logger.disabled, *kinds]

def state():
    loggers = {name: describe(logging.getLogger(name)) for name in LOGGERS}
    return {
        "OpenCV's threads": cv2.getNumThreads(),
        "Pillow's limit of pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "loggers": loggers,
        "logging.disable": logging.root.manager.disable,
        "absl's flags are parsed": flags.FLAGS.is_parsed(),
        "absl's verbosity": absl.logging.get_verbosity(),
        "JAX's config": {key: repr(value) for key, value in jax.config.values.items()},
        "environment": dict(os.environ),
        "warning filters": [repr(each) for each in warnings.filters],
        "showwarning": repr(warnings.showwarning),
        "locale": locale.setlocale(locale.LC_ALL),
        "NumPy's printing": repr(numpy.get_printoptions()),
        "NumPy's errors": numpy.geterr(),
        "random states": [hash(random.getstate()), str(numpy.random.get_state())],
        "signal handlers": {n: repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)},
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "streams": [repr(sys.stdout), repr(sys.stderr)],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "sys": [sys.path, sys.argv, sys.getrecursionlimit(), sys.getswitchinterval()],
        "gc": [gc.isenabled(), gc.get_threshold()],
        "folder": os.getcwd(),
        "main module": [sys.modules["__main__"].__doc__],
    }

def plain(value):
    return json.loads(json.dumps(value, default=str))

def changed(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b})
        return {key: changed(a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}
    return f"{a} -> {b}"

def differences(before, when, but=()):
    before, after = (
        {key: value for key, value in plain(each).items() if key not in but}
        for each in (before, state())
    )
    assert before == after, f"{when} changed {json.dumps(changed(before, after), indent=1)}"
"""

IMPORT = """
before = state()
import jaxseg
for module in pkgutil.walk_packages(jaxseg.__path__, "jaxseg."):
    importlib.import_module(module.name)
    differences(before, f"importing {module.name}")
"""

READ = """
import dataclasses
import jaxseg.data
from jaxseg.config import get_experiment
from jaxseg.data import decode, pipeline
from jaxseg.data.catalog import load_spec
from jaxseg.data.decode import decode_image
from jaxseg.data.validate import checks
from jaxseg.experiments import load_experiment

before, root = state(), sys.argv[1]
config = get_experiment("fcn_r18-d8_16x20_2k_folder")
config.dataset.root = root
config.batch_size = 4
experiment = load_experiment(config)
differences(before, "load_experiment")
dataset, spec = experiment.dataset, load_spec(experiment.dataset)
checks.check(experiment, spec)
differences(before, "checks.check")
arguments = dict(batch_size=4, seed=0, devices=1)
with_closing = pipeline.train_batches(dataset, spec, **arguments)
next(with_closing), next(with_closing), with_closing.close()
differences(before, "train_batches")
pipeline.eval_samples(dataset, experiment.eval, spec)[0]
differences(before, "eval_samples")
large = PIL.Image.new("1", (15000, 15000))  # more pixels than Pillow accepts
large.save(Path(root) / "large.png")
data = (Path(root) / "large.png").read_bytes()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert decode.inspect_image(data, "large.png").size == (15000, 15000)
assert not caught, [str(each.message) for each in caught]
differences(before, "a large image")
"""

WORKERS = """
from jaxseg.data import pipeline
from jaxseg.data.catalog import load_spec
from helpers.data_helpers import make_experiment

if __name__ == "__main__":
    before = state()
    dataset = make_experiment(root=sys.argv[1], num_workers=2).dataset
    batches = pipeline.train_batches(dataset, load_spec(dataset), batch_size=4, seed=0, devices=1)
    for _ in range(4):
        next(batches)
    batches.close()
    # Whoever starts a process, here Grain, fixes the start method.
    differences(before, "train_batches with workers", but=["start method"])
"""

RUN = """
import jaxseg
from jaxseg.config import get_experiment
from jaxseg.evaluation import evaluate_checkpoint
from jaxseg.training.loop import train
from helpers.narrow import narrow

THEIRS = ["start method"]  # which whoever starts a process fixes, here Orbax
before, (root, workdir) = state(), sys.argv[1:]
config = narrow(get_experiment("fcn_r18-d8_16x20_2k_folder"))
config.dataset.root = root
config.steps, config.batch_size, config.log_every = 2, 4, 1
config.eval_every = config.checkpoint_every = 1
train(config, workdir)
differences(before, "train", THEIRS)
evaluate_checkpoint(workdir, pictures=1)
differences(before, "evaluate_checkpoint", THEIRS)
segment = jaxseg.Predictor.from_checkpoint(workdir)
segment(numpy.zeros((16, 20, 3), numpy.uint8))
differences(before, "Predictor", THEIRS)
"""


@pytest.mark.parametrize(
    "script", [IMPORT, READ, WORKERS, RUN], ids=["import", "read", "workers", "run"]
)
def test_nothing_global_differs(script, tmp_path):
    root = make_folder(tmp_path / "data")
    file = tmp_path / "host.py"
    file.write_text(STATE + script)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "JAXSEG_CACHE": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what is compiled is of no interest here
    }
    command = [sys.executable, str(file), str(root), str(tmp_path / "run")]
    if script is not RUN:
        command.pop()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


# Modules that other systems lack, or libraries that are theirs only.
ELSEWHERE = """
import sys, types

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

import ctypes, importlib, pkgutil
import cv2, flax.linen, grain, imagecodecs, jax, optax, orbax.checkpoint, rich.progress
import tensorboardX, tensorflow_datasets, tifffile, filelock
for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())

def refuse(name, *arguments, **options):
    raise OSError(f"no library {name}")

ctypes.CDLL = refuse
import jaxseg
for module in pkgutil.walk_packages(jaxseg.__path__, "jaxseg."):
    importlib.import_module(module.name)
from jaxseg.data.process import tune_process
tune_process()
"""


def test_imports_where_unix_modules_are_missing():
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
