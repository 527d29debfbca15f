"""Evaluation of every image of a split exactly once, on all local devices, in integer counts."""

from jaxseg.evaluation.counting import Counts, compute_confusion
from jaxseg.evaluation.summary import evaluate
from jaxseg.evaluation.workdir import evaluate_checkpoint, evaluation_folder

__all__ = ["Counts", "compute_confusion", "evaluate", "evaluate_checkpoint", "evaluation_folder"]
