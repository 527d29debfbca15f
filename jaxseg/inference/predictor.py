"""`Predictor`: a trained model as a function of images."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.checkpoint import load_variables
from jaxseg.config.resolve import Config, override_trained
from jaxseg.config.schema import Experiment
from jaxseg.constants import IGNORE
from jaxseg.data.augment.transforms import scaled_views
from jaxseg.data.photos import prepare_image
from jaxseg.errors import NonFiniteError, about
from jaxseg.experiments import open_experiment
from jaxseg.files import expand
from jaxseg.inference.programs import BoundedJitCache
from jaxseg.inference.settings import make_settings
from jaxseg.inference.slide import predict_slide
from jaxseg.inference.whole import Model, classify, forward, predict, softmax
from jaxseg.models import create_model
from jaxseg.precision import make_policy
from jaxseg.weights.finite import check_finite
from jaxseg.weights.mmseg import from_mmseg
from jaxseg.weights.state_dict import read_state_dict
from jaxseg.workdir import load_dataset_metadata

OVERFLOW_HINT = "float16 ends at 65504: set config.precision to float32 or bfloat16"
VALUES_HINT = "check that the image's values have the range of the training images"

T = TypeVar("T")
Images = list[np.ndarray] | tuple[np.ndarray, ...]


class Predictor:
    """A trained model as a function of images: `segment(image)` returns class ids.

    Images are NumPy or JAX arrays [H, W, C] of any size, with the channels and dtype of the
    training images (uint8 RGB for most models; uint16 and float32 are possible). Methods take one
    image, or a list of images for a list of results. Values that are masked (`numpy.ma`) or listed
    in `dataset.nodata` count as missing data. The experiment's `eval` determines the test resize,
    windows, scales and mirror images, as in evaluation. Each new image size compiles the model.

    Attributes:
        model: The model.
        variables: The model's variables, on the default device.
        experiment: The experiment; `config` is an alias.
        classes: Class names.
        palette: RGB colour of each class.
    """

    def __init__(
        self,
        model: Model,
        variables: Any,
        experiment: Experiment,
        *,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        source: str | Path = "",
    ):
        """Prepare a model for prediction.

        Args:
            model: The model, from `jaxseg.models.create_model`.
            variables: The model's variables, on the host or on devices.
            experiment: Provides `eval`, `dataset`, `precision` and `model.align_corners`.
            classes: Class names.
            palette: RGB colour of each class.
            source: The file of the variables, for messages.

        Raises:
            WeightsError: A variable holds a NaN or an infinity.
            ConfigError: A value of `experiment.eval` is out of range.
        """
        check_finite(variables, str(source))
        settings = make_settings(experiment)
        self.model = model
        self.experiment = experiment
        self.classes = tuple(classes)
        self.palette = tuple(tuple(color) for color in palette)
        self.variables = jax.tree.map(jnp.asarray, variables)
        self._settings = settings
        self._matmul_precision = make_policy(experiment.precision).matmul_precision
        self._whole = BoundedJitCache(
            lambda: jax.jit(partial(predict, model, settings), static_argnames="size"),
            "whole image",
        )
        self._forward = BoundedJitCache(
            lambda: jax.jit(partial(forward, model, settings)), "window"
        )
        self._classify = jax.jit(classify)
        self._softmax = jax.jit(partial(_to_probabilities, averaged=settings.num_views > 1))

    @property
    def config(self) -> Experiment:
        """The experiment; an alias from the first edition."""
        return self.experiment

    @classmethod
    def from_checkpoint(cls, path: str | Path, config: Config | None = None) -> "Predictor":
        """Load a trained or converted model.

        Args:
            path: A workdir (its best step) or one step, WORKDIR/checkpoints/STEP.
            config: An Experiment or a config whose `dataset`, `eval` and `precision` override the
                run's.

        Returns:
            The predictor.

        Raises:
            CheckpointError: There is no complete checkpoint.
            ConfigError: A field of `config` is unknown or out of range.
            WeightsError: A variable holds a NaN or an infinity.
        """
        path = expand(path)
        model, variables, experiment = load_model(path, config)
        metadata = load_dataset_metadata(path)
        return cls(
            model,
            variables,
            experiment,
            classes=metadata["classes"],
            palette=metadata["palette"],
            source=path,
        )

    @classmethod
    def from_mmseg(cls, config: Config, weights: str | Path) -> "Predictor":
        """Load a checkpoint of MMSegmentation.

        Args:
            config: The experiment of the weights, as an Experiment or a config.
            weights: A .pth file, or .npz or .safetensors with the same names.

        Returns:
            The predictor.

        Raises:
            ConfigError: A field of `config` is unknown or out of range.
            DataError: The data set of `config` cannot be read.
            WeightsError: The file cannot be read, does not fit the model or holds a NaN or an
                infinity.
        """
        weights = expand(weights)
        experiment, spec = open_experiment(config)
        model = create_model(experiment.model, dtype=make_policy(experiment.precision).dtype)
        with about(file=weights):
            state_dict = read_state_dict(weights)
            variables = from_mmseg(state_dict, model, experiment.dataset.channels)
        return cls(
            model,
            variables,
            experiment,
            classes=spec.classes,
            palette=spec.palette,
            source=weights,
        )

    @overload
    def __call__(self, image: np.ndarray) -> np.ndarray: ...

    @overload
    def __call__(self, image: Images) -> list[np.ndarray]: ...

    def __call__(self, image: np.ndarray | Images) -> np.ndarray | list[np.ndarray]:
        """Segment an image.

        Args:
            image: uint8, uint16 or float32 [H, W, C] as in training, or a list of such images.

        Returns:
            Class ids, int32 [H, W], 255 for pixels without data; for a list of images, a list.

        Raises:
            ImageTypeError: An image is not an array, or has another dtype.
            DataError: An image has another shape, or holds a NaN or an infinity.
            NonFiniteError: Class scores are not finite.
        """
        if isinstance(image, list | tuple):
            return _map_images(self, image)
        scores, empty = self._scores(image)
        ids, nonfinite = self._classify(scores)
        self._check_finite(int(nonfinite), ids.size)
        return np.asarray(ids) if empty is None else np.where(empty, np.int32(IGNORE), ids)

    @overload
    def probabilities(self, image: np.ndarray) -> np.ndarray: ...

    @overload
    def probabilities(self, image: Images) -> list[np.ndarray]: ...

    def probabilities(self, image: np.ndarray | Images) -> np.ndarray | list[np.ndarray]:
        """Compute class probabilities of an image.

        Args:
            image: uint8, uint16 or float32 [H, W, C] as in training, or a list of such images.

        Returns:
            Probabilities, float32 [H, W, K], 0 for pixels without data; for a list of images, a
            list.

        Raises:
            ImageTypeError: An image is not an array, or has another dtype.
            DataError: An image has another shape, or holds a NaN or an infinity.
            NonFiniteError: Class scores are not finite.
        """
        if isinstance(image, list | tuple):
            return _map_images(self.probabilities, image)
        scores, empty = self._scores(image)
        result, nonfinite = self._softmax(scores)
        self._check_finite(int(nonfinite), result.size // result.shape[-1])
        if empty is None:
            return np.asarray(result)
        return np.where(empty[..., None], np.float32(0), result)

    def _scores(self, image: np.ndarray) -> tuple[jax.Array, np.ndarray | None]:
        """Return scores [H, W, K], and a mask [H, W] of pixels without data or None."""
        pixels, empty = prepare_image(image, self.experiment.dataset)
        height, width = pixels.shape[:2]
        views = scaled_views(pixels, self.experiment.eval.resize, self._settings.scales)
        with self._matmul_precision():
            if self._settings.mode == "whole":
                batches = [view[None] for view in views]
                return self._whole(self.variables, batches, size=(height, width))[0], empty
            call = partial(self._forward, self.variables)
            item = (views, (height, width))
            return next(predict_slide(call, self._settings, [item])), empty

    def _check_finite(self, nonfinite: int, pixels: int) -> None:
        if nonfinite:
            raise NonFiniteError(
                f"the class scores of {nonfinite} of {pixels} pixels are NaN or infinite",
                hint=OVERFLOW_HINT if self.experiment.precision == "float16" else VALUES_HINT,
            )


def _to_probabilities(scores: jax.Array, *, averaged: bool) -> tuple[jax.Array, jax.Array]:
    """Return (probabilities [H, W, K], number of pixels with a score that is not finite)."""
    _, nonfinite = classify(scores)
    return scores if averaged else softmax(scores), nonfinite


def _map_images(function: Callable[[np.ndarray], T], images: Images) -> list[T]:
    results = []
    for i, image in enumerate(images):
        with about(file=f"image[{i}]", field=f"image[{i}]"):
            results.append(function(image))
    return results


def load_model(path: str | Path, config: Config | None = None) -> tuple[Model, Any, Experiment]:
    """Load a trained or converted model.

    Args:
        path: A workdir (its best step) or one step, WORKDIR/checkpoints/STEP.
        config: An Experiment or a config whose `dataset`, `eval` and `precision` override the
            run's.

    Returns:
        The model, its variables as NumPy arrays, and the experiment.

    Raises:
        CheckpointError: There is no complete checkpoint.
        ConfigError: A field of `config` is unknown or out of range.
        WeightsError: A variable holds a NaN or an infinity.
    """
    experiment, variables = load_variables(path)
    if config is not None:
        experiment = override_trained(experiment, config)
    dtype = make_policy(experiment.precision).dtype
    return create_model(experiment.model, dtype=dtype), variables, experiment
