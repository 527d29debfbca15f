"""Speed of training, inference and the data pipeline.

`measure` times training and inference on synthetic images and needs jax, flax, optax and
ml_collections and nothing else; `benchmark.data.measure_data` times the data pipeline. Both return
a row: median and spread of the time after warm-up, images per second, time to compile, FLOPs as XLA
counts them, memory, and the conditions they hold under. Fields that MMSegmentation's timing has as
well have the same names in both.
"""

from jaxseg.benchmark.cases import SyntheticSpec, without_measurements
from jaxseg.benchmark.model import PRECISIONS, measure
from jaxseg.benchmark.rows import append
from jaxseg.benchmark.timing import Timing

__all__ = ["PRECISIONS", "SyntheticSpec", "Timing", "append", "measure", "without_measurements"]
