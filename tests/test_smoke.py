"""The smoke subset: every third-party library once, at small sizes, mostly through the scripts.

    pytest -m smoke

CI runs it with the oldest releases that setup.cfg allows and with the newest Python and JAX.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.models import create_model, init_variables, list_models

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parent.parent
CLASSES = (
    "sky",
    "дорога",
    "Straße",
)  # beyond ASCII: needs Matplotlib's fonts
SIZE = (40, 48)
NARROW = dict(backbone=dict(base_channels=4, stem_channels=8), channels=8, num_classes=len(CLASSES))
FCN = (
    f"--config={ROOT}/configs/fcn.py:r10-d8_32x32_1k_b2_folder",
    "--config.model.backbone.base_channels=4",
    "--config.model.backbone.stem_channels=8",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run scripts/NAME.py with flags on one CPU device and return what it prints."""
    folder = tmp_path_factory.mktemp("run")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAXSEG_CACHE": str(folder / "cache"),
        "PYTHONIOENCODING": "utf-8",
    }
    environment.pop("XLA_FLAGS", None)

    def run(name: str, *flags: str) -> str:
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *flags]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=900
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def folder_root(tmp_path_factory):
    """Make a `folder` data set in many formats.

    Returns root, training images [N, H, W, 3] and labels {split: [N, H, W]}.
    """
    from imagecodecs import png_encode
    from PIL import Image
    from tifffile import imwrite

    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    labels = {
        split: rng.choice([0, 1, 2, 255], (6, *SIZE)).astype(np.uint8) for split in ("train", "val")
    }
    all_pixels = {split: rng.integers(0, 256, (6, *SIZE, 3), np.uint8) for split in labels}
    for split, masks in labels.items():
        images, targets = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        targets.mkdir(parents=True)
        pixels = all_pixels[split]
        Image.fromarray(pixels[0]).save(images / f"{split}0.jpg", quality=90)
        Image.fromarray(pixels[1]).save(images / f"{split}1.png")
        Image.fromarray(pixels[2]).save(images / f"{split}2.webp", lossless=True)
        imwrite(images / f"{split}3.tif", pixels[3], photometric="rgb", compression="zlib")
        Image.fromarray(pixels[4]).save(images / f"{split}4.bmp")
        np.save(images / f"{split}5.npy", pixels[5])
        indexed = Image.fromarray(masks[0])
        indexed.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        indexed.save(targets / f"{split}0.png")
        (targets / f"{split}1.png").write_bytes(png_encode(masks[1]))
        Image.fromarray(masks[2].astype(np.uint16)).save(targets / f"{split}2.png")
        imwrite(targets / f"{split}3.tif", masks[3], compression="zstd")
        imwrite(
            targets / f"{split}4.tif", masks[4].astype(np.int32), compression="zlib", predictor=2
        )
        np.save(targets / f"{split}5.npy", masks[5])
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    return root, all_pixels["train"], labels


@pytest.fixture(scope="module")
def workdir(run, tmp_path_factory):
    """The quickstart's config, trained for two steps and then continued to a third."""
    workdir = tmp_path_factory.mktemp("quickstart")
    for steps in (2, 3):
        run(
            "train",
            f"--config={ROOT}/configs/quickstart.py",
            f"--workdir={workdir}",
            f"--config.steps={steps}",
            "--config.batch_size=2",
            "--config.dataset.val_split=val[:6]",
            "--config.schedule.warmup_steps=1",
            "--config.log_every=1",
            "--config.eval_every=3",
            "--config.checkpoint_every=1",
        )
    return workdir


def test_model_loss_and_metrics():
    assert "pspnet_r50-d8" in list_models()
    model = create_model("pspnet_r18-d8", **NARROW)
    variables = init_variables(model, seed=0)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 65, 65, 3)), jnp.float32)
    label = jnp.asarray(rng.choice([0, 1, 2, 255], (2, 65, 65)), jnp.int32)

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=False)
            return jaxseg.losses.cross_entropy(logits, label), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), gradient = loss_and_gradient(variables["params"])
    assert logits.shape == (2, 65, 65, 3)
    assert logits.dtype == jnp.float32
    assert 0 < float(loss) < 10
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient))
    confusion = jaxseg.metrics.confusion_matrix(jnp.argmax(logits, -1), label, 3)
    summary = jaxseg.metrics.summarize(np.asarray(confusion), CLASSES)
    assert sum(row["pixels"] for row in summary["per_class"].values()) == int((label != 255).sum())


def test_train_resume_evaluate_predict(run, workdir, tmp_path):
    steps = [json.loads(line)["step"] for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert {1, 2, 3} <= set(steps)
    assert any((workdir / "tensorboard").iterdir())
    assert (workdir / "checkpoints" / "3").is_dir()
    run("eval", f"--checkpoint={workdir}", "--pictures=2")
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["step"] in (2, 3)  # the better one
    assert metrics["images"] == 6
    assert len(list((workdir / "pictures").glob("*.png"))) >= 2
    run(
        "predict",
        f"--checkpoint={workdir}",
        f"--input={ROOT}/docs/shapes_input.png",
        f"--output={tmp_path}",
    )
    from PIL import Image

    with Image.open(tmp_path / "shapes_input.png") as written:
        mask = np.asarray(written)
    with Image.open(ROOT / "docs" / "shapes_input.png") as photo:
        image = np.asarray(photo.convert("RGB"))
    np.testing.assert_array_equal(mask, jaxseg.Predictor.from_checkpoint(workdir)(image))


def test_weights_go_to_mmsegmentation_and_back(run, workdir, tmp_path):
    from safetensors.numpy import load_file

    file = tmp_path / "weights.safetensors"
    run("convert_mmseg", f"--checkpoint={workdir}", f"--to_mmseg={file}")
    segment = jaxseg.Predictor.from_checkpoint(workdir)
    written = load_file(file)
    variables = jaxseg.convert.from_mmseg(written, segment.model)
    jax.tree.map(
        np.testing.assert_array_equal, variables, jax.tree.map(np.asarray, segment.variables)
    )
    for name, value in jaxseg.convert.to_mmseg(variables).items():
        np.testing.assert_array_equal(value, written[name], err_msg=name)


def test_every_format_is_read_as_stored(run, folder_root, tmp_path):
    root, pixels, labels = folder_root
    run("check_data", f"--root={root}", f"--json={tmp_path}/report.json", "--statistics")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"]
    for split, masks in labels.items():
        counts = np.bincount(masks.ravel(), minlength=256)
        assert report["splits"][split]["pixels"] == counts[:3].tolist()
        assert report["splits"][split]["ignored"] == counts[255]
    statistics = json.loads((root / "statistics.json").read_text())
    # One of six images is a JPEG, which changes random pixels a little.
    np.testing.assert_allclose(statistics["mean"], pixels.mean((0, 1, 2)), atol=2)


def test_prepared_records_train_and_evaluate(run, folder_root, tmp_path):
    root, _, labels = folder_root
    run("prepare_data", f"--root={root}", f"--output={tmp_path}/prepared", "--codec=zstd")
    run(
        "train",
        *FCN,
        f"--workdir={tmp_path}/run",
        "--config.dataset.source=tfds",
        f"--config.dataset.root={tmp_path}/prepared",
        "--config.dataset.num_workers=1",
        "--config.steps=2",
        "--config.eval_every=2",
        "--config.checkpoint_every=2",
        "--config.precision=bfloat16",
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    pixels = [metrics["per_class"][name]["pixels"] for name in CLASSES]
    assert pixels == np.bincount(labels["val"].ravel(), minlength=256)[:3].tolist()
