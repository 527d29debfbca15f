"""Images, labels and scripted randomness for tests of augmentation."""

import cv2
import numpy as np

IMAGE = np.uint8(
    [[[200, 30, 60], [12, 240, 130]], [[90, 90, 90], [255, 0, 128]], [[5, 77, 250], [128, 200, 3]]]
)
# MMSegmentation 1.2.2 on this image: brightness +20.5, saturation 1.4, hue -11, then contrast 0.7.
DISTORTED = [
    [[154, 0, 81], [0, 178, 30]],
    [[77, 77, 77], [178, 0, 160]],
    [[0, 119, 178], [154, 154, 0]],
]
# OpenCV before 5 rounds positions to 1/32 pixel, so that two noisy neighbours mix by up to 1/64
# differently, in each direction.
EXACT = int(cv2.__version__.split(".")[0]) >= 5


class Script:
    """A generator of random numbers that returns the given draws, in order."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self):
        return self.draws.pop(0)

    def uniform(self, low, high):
        assert low <= self.draws[0] < high
        return self.draws.pop(0)

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        assert low <= self.draws[0] < high
        return self.draws.pop(0)


def noise(shape, dtype=np.uint8, seed=0):
    """Random values of the whole range; float32 in 0..1."""
    rng = np.random.default_rng(seed)
    if dtype == np.float32:
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def blocks(classes=4, side=16, shape=(3, 4), seed=1):
    """A label of square blocks."""
    return np.kron(
        np.random.default_rng(seed).integers(0, classes, shape), np.ones((side, side))
    ).astype(np.uint8)
