"""Speed of training, inference and the data pipeline.

`measure` times training and inference on synthetic images and needs none of the `train` extra;
`benchmark.data.measure_data` times the data pipeline. Both return a row with the median and spread
of the time after warm-up, images per second, compile time, FLOPs counted by XLA, memory, and the
conditions of the measurement. Fields have the same names as in the timing of MMSegmentation.
"""

from jaxseg.benchmark.cases import SyntheticSpec, without_measurements
from jaxseg.benchmark.model import PRECISIONS, measure
from jaxseg.benchmark.rows import append
from jaxseg.benchmark.timing import Timing

__all__ = ["PRECISIONS", "SyntheticSpec", "Timing", "append", "measure", "without_measurements"]
