"""Run five methods in MMSegmentation itself and here, side by side: the same weights, the same image, float32; writes docs/comparison.md.

    python tools/compare_mmseg.py [--methods pspnet_r50-d8 ...] [--size 512x1024] [--output docs/parity.md]

Needs torch, mmengine, mmsegmentation==1.2.2 and mmcv-lite==2.1.0 (the last two installed with --no-deps). MMSegmentation computes what its
`inference` returns, logits resized to the image; so does jaxseg. Agreement: logits within 1e-3 of the largest, the same class on 99.9% of
pixels.
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
from parity import _seeded as seeded_module

from jaxseg import convert, zoo
from jaxseg.config.builders import get_experiment
from jaxseg.models import create_model

METHODS = ("pspnet_r50-d8", "deeplabv3plus_r50-d8", "fcn_hr18", "ocrnet_hr18", "danet_r50-d8")
SEEDS = Path(__file__).parent / "data" / "parity"
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
    """(mmengine's Config, the registry MODELS); mmcv-lite has no compiled operations, so they are replaced by nothing."""
    warnings.filterwarnings("ignore")

    def stand_in(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    compiled = types.ModuleType("mmcv._ext")
    compiled.__getattr__ = stand_in
    sys.modules["mmcv._ext"] = compiled
    import mmseg.models  # noqa: F401 - registers them
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    return Config, MODELS


def build_mmseg(source: str) -> Any:
    """MMSegmentation's model of one of its config names: plain batch norm, no pretrained weights, in evaluation mode."""
    config_class, registry = import_mmseg()
    folder = Path(importlib.util.find_spec("mmseg").origin).parent / ".mim" / "configs"
    config = config_class.fromfile(glob.glob(f"{folder}/*/{source}.py")[0]).model

    def simplify(node: Any) -> None:
        if isinstance(node, dict):
            node.pop("pretrained", None)
            if node.get("type") == "SyncBN":
                node["type"] = "BN"
            if (
                isinstance(node.get("init_cfg"), dict)
                and node["init_cfg"].get("type") == "Pretrained"
            ):
                node["init_cfg"] = None
        for child in (
            node.values()
            if isinstance(node, dict)
            else node
            if isinstance(node, list | tuple)
            else ()
        ):
            simplify(child)

    simplify(config)
    config["data_preprocessor"] = None
    return registry.build(config).eval()


def theirs(
    source: str, images: np.ndarray, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """(state dict of seeded weights, logits [B, K, H, W], seconds) of MMSegmentation for images [B, 3, H, W]."""
    import torch

    seeded, model = seeded_module(SEEDS), build_mmseg(source)
    weights = {
        name: seeded.seeded_array(name, tuple(value.shape), seed)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    shape = images.shape[2:]
    meta = [dict(ori_shape=shape, img_shape=shape, pad_shape=shape)] * len(images)
    start = time.perf_counter()
    with torch.no_grad():
        logits = model.inference(torch.from_numpy(images), meta).numpy()
    return weights, logits, time.perf_counter() - start


def ours(name: str, weights: dict[str, np.ndarray], images: np.ndarray) -> tuple[np.ndarray, float]:
    """(logits [B, K, H, W], seconds without compiling) of jaxseg."""
    model = create_model(get_experiment(name).model)
    variables = convert.from_mmseg(weights, model)
    images = images.transpose(0, 2, 3, 1)
    apply = (
        jax.jit(lambda v, x: model.apply(v, x, train=False)[0]).lower(variables, images).compile()
    )
    start = time.perf_counter()
    logits = np.asarray(apply(variables, images))
    return logits.transpose(0, 3, 1, 2), time.perf_counter() - start


def compare(model: str, size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """One model of Cityscapes (its published experiment at 512x1024) on one image of `size`."""
    row = next(
        r
        for r in zoo.published()
        if r["name"].startswith(f"{model}_512x1024_") and r["name"].endswith("_cityscapes")
    )
    images = seeded_module(SEEDS).seeded_images((1, 3, *size), seed)
    weights, reference, seconds = theirs(row["source"], images, seed)
    logits, own = ours(row["name"], weights, images)
    assert logits.shape == reference.shape, (logits.shape, reference.shape)
    scale = np.abs(reference).max()
    deviation, same = (
        np.abs(logits - reference).max() / scale,
        (logits.argmax(1) == reference.argmax(1)).mean(),
    )
    found = dict(
        classes=len(np.unique(reference.argmax(1))),
        scale=scale,
        deviation=deviation,
        same=same,
        theirs=seconds,
        ours=own,
    )
    return found | dict(agrees=bool(deviation <= LOGITS and same >= PIXELS))


def format_row(model: str, row: dict[str, Any]) -> str:
    figures = [
        f"{row['scale']:.3g}",
        f"{row['deviation']:.1e}",
        f"{100 * row['same']:.4f}%",
        f"{row['theirs']:.1f}",
        f"{row['ours']:.1f}",
    ]
    return f"| `{model}` | {row['classes']} | {' | '.join(figures)} | {'yes' if row['agrees'] else 'no'} |"


def page(lines: list[str], size: tuple[int, int]) -> str:
    import mmseg
    import torch

    where = f"{len(os.sched_getaffinity(0))} CPU cores, load {os.getloadavg()[0]:.1f}"
    versions = (
        f"MMSegmentation {mmseg.__version__} on PyTorch {torch.__version__}, JAX {jax.__version__}"
    )
    text = (
        f"Written by `python tools/compare_mmseg.py` on {time.strftime('%Y-%m-%d')}: {versions}, {where}. One image of {size[0]}x{size[1]} pixels and weights "
        "from a seed (tests/data/parity/seeded_weights.py), float32 on both sides, whole-image inference with the logits resized to the image. "
        f"Models agree if logits differ by at most {LOGITS} of the largest and {100 * PIXELS}% of pixels get the same class. `Classes` is how many "
        "classes the label map holds. Times are of one run (JAX's without compiling), beside whatever else the machine did: no benchmark."
    )
    return "\n".join(
        [
            "# Beside MMSegmentation itself",
            "",
            text,
            "",
            f"| {' | '.join(HEAD)} |",
            "|---|" + "---:|" * (len(HEAD) - 1),
            *lines,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        help="short names, as scripts/list_configs.py begins them",
    )
    parser.add_argument("--size", default="512x1024")
    parser.add_argument(
        "--output",
        default=str(Path(__file__).parent.parent / "docs" / "comparison.md"),
        help="the page to write; '' for none",
    )
    args = parser.parse_args()
    size, lines, failed = tuple(map(int, args.size.split("x"))), [], 0
    for model in args.methods:
        row = compare(model, size)
        failed += not row["agrees"]
        lines.append(format_row(model, row))
        print(lines[-1], flush=True)
    if args.output:
        Path(args.output).parent.mkdir(exist_ok=True)
        Path(args.output).write_text(page(lines, size))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
