#!/usr/bin/env bash
# Build the source archive and the wheel, install the wheel in a new environment, and use it from another folder:
# models with the light dependencies alone, then training with the `train` extra.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export JAXSEG_CACHE="$work/cache" JAX_PLATFORMS=cpu

python3 -m venv "$work/builder"
"$work/builder/bin/pip" install --quiet build
# The wheel is made from the source archive, which is made from a copy: an old build/ cannot add files.
mkdir "$work/source"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    tar --create --null --files-from=- | tar --extract --directory "$work/source"
"$work/builder/bin/python" -m build --outdir "$work/dist" "$work/source" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/*.whl)
rm -rf "$work/builder"
echo "-- wheel: built $(basename "$wheel") after $SECONDS s"

# Every module, and the files that they read, are in the wheel.
python3 - "$wheel" "$checkout" <<'EOF'
import sys, zipfile
from pathlib import Path

wheel, checkout = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
package = {f.relative_to(checkout).as_posix() for f in (checkout / "jaxseg").rglob("*") if f.is_file()}
wanted = {name for name in package if "__pycache__" not in name}
wanted |= {f"jaxseg/configs/{f.name}" for f in (checkout / "configs").glob("*.py")}
if packed != wanted:
    sys.exit(f"error: missing in the wheel: {sorted(wanted - packed)}; only in the wheel: {sorted(packed - wanted)}")
EOF

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "$wheel"
echo "-- wheel: light installation of $(du -sm "$work/venv" | cut -f1) MB after $SECONDS s"
mkdir "$work/elsewhere" && cd "$work/elsewhere"
cp "$checkout"/scripts/{benchmark,train,eval,predict}.py .
cp "$checkout/docs/shapes_input.png" photo.png
source "$work/venv/bin/activate"

python - <<'EOF'
import importlib.util, sys
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxseg
from jaxseg import losses, metrics, models, optim, precision  # noqa: F401

assert Path(jaxseg.__file__).is_relative_to(sys.prefix), jaxseg.__file__
loaded = {name.partition(".")[0] for name in sys.modules}
only_training = {"cv2", "grain", "imagecodecs", "matplotlib", "PIL", "simplejpeg", "tensorboardX", "tensorflow_datasets", "tifffile"}
installed = {name for name in only_training if importlib.util.find_spec(name)}
assert not installed, f"the light installation brought {sorted(installed)}"
assert "orbax" not in loaded, "importing jaxseg.models loads orbax"

assert len(models.list_models()) > 80
narrow = dict(backbone=dict(base_channels=4, stem_channels=8), channels=8, num_classes=3)
for name in ("pspnet_r18-d8", "deeplabv3plus_r18-d8"):
    model = models.create_model(name, **narrow)
    variables = models.init_variables(model, seed=0)
    logits, _ = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, jnp.ones((1, 65, 65, 3)))
    assert logits.shape == (1, 65, 65, 3) and bool(jnp.isfinite(logits).all())
    assert float(losses.cross_entropy(logits, jnp.zeros((1, 65, 65), jnp.int32))) > 0
EOF
configs=$(python -c "import jaxseg.configs; print(list(jaxseg.configs.__path__)[0])")
python benchmark.py --config="$configs/pspnet.py:r18-d8_64x64_1k_cityscapes" --what=infer --size=64x64 --repeats=1 >benchmark.log 2>&1 ||
    { cat benchmark.log; echo "error: benchmark.py needs more than the light installation" >&2; exit 1; }
echo "-- wheel: models work without the training libraries after $SECONDS s"

pip install --quiet --no-compile "$wheel[train]"
echo "-- wheel: train extra installed, $(du -sm "$work/venv" | cut -f1) MB, after $SECONDS s"
python train.py --config="$configs/quickstart.py" --workdir=run --config.steps=2 --config.batch_size=2 \
    --config.schedule.warmup_steps=1 --config.eval_every=2 --config.checkpoint_every=2 --config.dataset.val_split='val[:4]'
python eval.py --checkpoint=run --pictures=1
python predict.py --checkpoint=run --input=photo.png --output=mask.png
test -s run/metrics.json
test -s mask.png
echo "-- wheel: $SECONDS s"
