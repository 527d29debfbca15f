"""Evaluation during training."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import models, precision, visualize
from jaxseg.config.schema import Experiment
from jaxseg.data import pipeline
from jaxseg.data.spec import DatasetSpec
from jaxseg.evaluation import evaluate
from jaxseg.inference.settings import make_settings
from jaxseg.training.logging import TrainLogger

PICTURES = 8  # predictions that an evaluation draws


class Validator:
    """Evaluates an experiment's model on its evaluation split.

    Each evaluation writes a few pictures to a folder, replacing those of the previous one.

    Attributes:
        summaries: {step: summary} of the last evaluation, whose pictures are in the folder.
    """

    def __init__(
        self,
        experiment: Experiment,
        spec: DatasetSpec,
        policy: precision.Policy,
        logger: TrainLogger,
        folder: Path,
    ):
        """Open the evaluation split.

        Args:
            experiment: The experiment.
            spec: Its data set.
            policy: Precision of the model.
            logger: Logger of summaries and pictures.
            folder: Folder of the pictures.
        """
        self._model = models.create_model(experiment.model, dtype=policy.dtype)
        self._samples = pipeline.eval_samples(experiment.dataset, experiment.eval, spec)
        self._settings = make_settings(experiment)
        self._policy, self._logger, self._folder = policy, logger, folder
        self.summaries: dict[int, dict[str, Any]] = {}

    def __call__(self, step: int, variables: Any, *, record: bool = True) -> dict[str, Any]:
        """Evaluate the model with some variables.

        Args:
            step: Training step of the variables.
            variables: The model's variables, on the host.
            record: Whether to log the summary and the pictures, which should happen once per step.

        Returns:
            The summary that metrics.json holds.
        """
        self.summaries.clear()  # their pictures are about to be replaced

        def save_picture(name: str, picture: np.ndarray) -> None:
            visualize.save_picture(self._folder, name, picture)
            if record:
                self._logger.picture(step, name, picture)

        with self._policy.matmul_precision():
            summary = evaluate(
                self._model,
                variables,
                self._settings,
                self._samples,
                pictures=PICTURES,
                save_picture=save_picture,
            )
        self._report(step, summary, record)
        self.summaries[step] = summary
        return summary

    def _report(self, step: int, summary: dict[str, Any], record: bool) -> None:
        overall = {key: v for key, v in summary.items() if not isinstance(v, dict | list)}
        if record:
            self._logger.record("eval", {"step": step, **overall})
        figures = {key: overall[key] for key in ("mIoU", "aAcc", "mAcc")}
        shown = ", ".join(f"{key} {v:.4f}" for key, v in figures.items() if v is not None)
        images, seconds = overall["images"], overall["seconds"]
        self._logger.message(f"step {step}: {shown} ({images} images in {seconds:.1f} s)")
