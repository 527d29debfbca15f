"""Run five methods in MMSegmentation and jaxseg on the same weights and image; write a table.

    python tools/compare_mmseg.py [--methods pspnet_r50-d8 ...] [--size 512x1024] [--output FILE]

Needs torch, mmengine, mmsegmentation==1.2.2 and mmcv-lite==2.1.0 (the last two installed with
--no-deps). Both sides compute in float32 what MMSegmentation's `inference` returns: logits resized
to the image. They agree if the logits differ by at most 1e-3 of the largest and 99.9% of the pixels
get the same class. The table is docs/comparison.md unless --output says otherwise.
"""

import argparse
import glob
import importlib.util
import os
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import parity

from jaxseg import convert, zoo
from jaxseg.config import get_experiment
from jaxseg.models import create_model

METHODS = ("pspnet_r50-d8", "deeplabv3plus_r50-d8", "fcn_hr18", "ocrnet_hr18", "danet_r50-d8")
REPOSITORY = Path(__file__).resolve().parents[1]
SEEDS = REPOSITORY / "tests" / "data" / "parity"
LOGITS, PIXELS = 1e-3, 0.999
HEAD = (
    "Model",
    "Classes",
    "Largest logit",
    "Largest difference / largest logit",
    "Same class (pixels)",
    "MMSegmentation (s)",
    "jaxseg (s)",
    "Agrees",
)


def import_mmseg() -> tuple[Any, Any]:
    """Return mmengine's Config and the registry MODELS.

    mmcv-lite has no compiled operations; stand-ins that do nothing replace them.
    """
    warnings.filterwarnings("ignore")

    def stand_in(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    compiled: Any = types.ModuleType("mmcv._ext")
    compiled.__getattr__ = stand_in
    sys.modules["mmcv._ext"] = compiled
    import mmseg.models  # noqa: F401, PLC0415 - registers the models; needs the module above
    from mmengine.config import Config  # noqa: PLC0415 - as above
    from mmengine.registry import init_default_scope  # noqa: PLC0415 - as above
    from mmseg.registry import MODELS  # noqa: PLC0415 - as above

    init_default_scope("mmseg")
    return Config, MODELS


def build_mmseg(source: str) -> Any:
    """Build MMSegmentation's model of a config name for evaluation, with plain batch norm."""
    config_class, registry = import_mmseg()
    spec = importlib.util.find_spec("mmseg")
    if spec is None or spec.origin is None:
        raise ImportError("mmseg is not installed")
    folder = Path(spec.origin).parent / ".mim" / "configs"
    config = config_class.fromfile(glob.glob(f"{folder}/*/{source}.py")[0]).model
    _simplify(config)
    config["data_preprocessor"] = None
    return registry.build(config).eval()


def _simplify(node: Any) -> None:
    """Remove synchronised batch norm and pretrained weights from a config, in place."""
    children: Any = node if isinstance(node, list | tuple) else ()
    if isinstance(node, dict):
        node.pop("pretrained", None)
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        initial = node.get("init_cfg")
        if isinstance(initial, dict) and initial.get("type") == "Pretrained":
            node["init_cfg"] = None
        children = node.values()
    for child in children:
        _simplify(child)


def run_mmseg(
    source: str, images: np.ndarray, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Run MMSegmentation's model of a config name on images [B, 3, H, W].

    Returns:
        The state dict of seeded weights, logits [B, K, H, W], and the seconds that it took.
    """
    import torch  # noqa: PLC0415 - only this tool needs it

    seeded, model = parity.seeded(SEEDS), build_mmseg(source)
    weights = {
        name: seeded.seeded_array(name, tuple(value.shape), seed)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    shape = images.shape[2:]
    meta = [{"ori_shape": shape, "img_shape": shape, "pad_shape": shape}] * len(images)
    start = time.perf_counter()
    with torch.no_grad():
        logits = model.inference(torch.from_numpy(images), meta).numpy()
    return weights, logits, time.perf_counter() - start


def run_jaxseg(
    name: str, weights: dict[str, np.ndarray], images: np.ndarray
) -> tuple[np.ndarray, float]:
    """Run our model of an experiment's name on images [B, 3, H, W].

    Returns:
        Logits [B, K, H, W], and the seconds that it took, compilation excluded.
    """
    model = create_model(get_experiment(name).model)
    variables = convert.from_mmseg(weights, model)
    images = images.transpose(0, 2, 3, 1)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
    compiled = apply.lower(variables, images).compile()
    start = time.perf_counter()
    logits = np.asarray(compiled(variables, images))
    return logits.transpose(0, 3, 1, 2), time.perf_counter() - start


def compare(model: str, size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """Compare a model's published Cityscapes experiment at 512x1024 on one image of `size`."""
    row = next(
        row
        for row in zoo.published()
        if row["name"].startswith(f"{model}_512x1024_") and row["name"].endswith("_cityscapes")
    )
    images = parity.seeded(SEEDS).seeded_images((1, 3, *size), seed)
    weights, reference, their_seconds = run_mmseg(row["source"], images, seed)
    logits, our_seconds = run_jaxseg(row["name"], weights, images)
    if logits.shape != reference.shape:
        raise ValueError(f"{model}: logits {logits.shape}, MMSegmentation's {reference.shape}")
    scale = np.abs(reference).max()
    deviation = np.abs(logits - reference).max() / scale
    same = (logits.argmax(1) == reference.argmax(1)).mean()
    return {
        "classes": len(np.unique(reference.argmax(1))),
        "scale": scale,
        "deviation": deviation,
        "same": same,
        "theirs": their_seconds,
        "ours": our_seconds,
        "agrees": bool(deviation <= LOGITS and same >= PIXELS),
    }


def format_row(model: str, row: dict[str, Any]) -> str:
    """Return a model's line of the table."""
    cells = [
        f"`{model}`",
        str(row["classes"]),
        f"{row['scale']:.3g}",
        f"{row['deviation']:.1e}",
        f"{100 * row['same']:.4f}%",
        f"{row['theirs']:.1f}",
        f"{row['ours']:.1f}",
        "yes" if row["agrees"] else "no",
    ]
    return f"| {' | '.join(cells)} |"


def page(lines: list[str], size: tuple[int, int]) -> str:
    """Return the page: the conditions and the table."""
    import mmseg  # noqa: PLC0415 - only this tool needs it
    import torch  # noqa: PLC0415 - as above

    where = f"{os.cpu_count()} CPU cores"
    if hasattr(os, "getloadavg"):  # not on Windows
        where += f", load {os.getloadavg()[0]:.1f}"
    versions = (
        f"MMSegmentation {mmseg.__version__} on PyTorch {torch.__version__}, JAX {jax.__version__}"
    )
    text = (
        f"Written by `python tools/compare_mmseg.py` on {time.strftime('%Y-%m-%d')}: {versions}, "
        f"{where}. One image of {size[0]}x{size[1]} pixels and seeded weights "
        "(tests/data/parity/seeded_weights.py), float32 on both sides, whole-image inference with "
        f"the logits resized to the image. Models agree if logits differ by at most {LOGITS} of "
        f"the largest and {100 * PIXELS}% of pixels get the same class. `Classes` is the number of "
        "classes in the label map. Times are of one run, JAX's without compilation, on a machine "
        "that did other work as well: they are no benchmark."
    )
    table = [f"| {' | '.join(HEAD)} |", "|---|" + "---:|" * (len(HEAD) - 1), *lines]
    return "\n".join(["# Beside MMSegmentation itself", "", text, "", *table, ""])


def main() -> int:
    """Compare the methods, write the table and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help="short names (scripts/list_configs.py)"
    )
    parser.add_argument("--size", default="512x1024", help="height x width of the image")
    parser.add_argument(
        "--output",
        default=str(REPOSITORY / "docs" / "comparison.md"),
        help="page to write; '' for none",
    )
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    lines, failed = [], 0
    for model in args.methods:
        row = compare(model, (height, width))
        failed += not row["agrees"]
        lines.append(format_row(model, row))
        print(lines[-1], flush=True)
    if args.output:
        Path(args.output).parent.mkdir(exist_ok=True)
        Path(args.output).write_text(page(lines, (height, width)))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
