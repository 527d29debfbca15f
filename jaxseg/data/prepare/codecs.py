"""How the images and labels of a prepared data set are encoded."""

import io

import cv2
import numpy as np

from jaxseg.errors import DataError

# Milliseconds to read a pair of 2048x1024 on one core (docs/benchmarks.md): keep 28 (PNG files),
# zstd 14, raw 9, jpeg 8.
CODECS = {
    "keep": "the files' own bytes (tiles and converted images become png)",
    "png": "lossless, small",
    "zstd": "lossless, about as small as png, read twice as fast: PNG compressed by ArrayRecord",
    "raw": "lossless, twice as large as png, read three times as fast: uncompressed PNG",
    "jpeg": "lossy, a sixth of the size of png, read fastest",
}
PNG_OPTIONS: dict[str, tuple[int, ...]] = {
    "png": (),
    "zstd": (
        cv2.IMWRITE_PNG_COMPRESSION,
        0,
        cv2.IMWRITE_PNG_FILTER,
        cv2.IMWRITE_PNG_FILTER_UP,
    ),
    "raw": (
        cv2.IMWRITE_PNG_COMPRESSION,
        0,
        cv2.IMWRITE_PNG_FILTER,
        cv2.IMWRITE_PNG_FILTER_NONE,
    ),
}
LABEL_OPTIONS = (
    cv2.IMWRITE_PNG_COMPRESSION,
    3,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_NONE,
)


def encode_image(image: np.ndarray, codec: str = "png", quality: int = 95) -> bytes:
    """Encode an image.

    Args:
        image: [H, W, C] of any dtype.
        codec: "png", "zstd", "raw" or "jpeg", see CODECS. What PNG cannot hold without loss becomes
            NPY.
        quality: 1 to 100, for "jpeg".

    Returns:
        The bytes of a PNG, JPEG or NPY file.

    Raises:
        DataError: The codec is "jpeg" and the image is not grey or RGB of 8 bits.
    """
    channels = image.shape[2]
    if codec == "jpeg":
        if image.dtype != np.uint8 or channels not in (1, 3):
            raise DataError(
                f"jpeg holds 8 bits of 1 or 3 channels, not {image.dtype} of {channels}",
                field="codec",
                hint="use codec 'zstd'",
            )
        options = (cv2.IMWRITE_JPEG_QUALITY, quality)
        return cv2.imencode(".jpg", _as_bgr(image), options)[1].tobytes()
    if channels not in (1, 3, 4) or image.dtype not in (np.uint8, np.uint16):
        np.save(data := io.BytesIO(), image)
        return data.getvalue()
    return cv2.imencode(".png", _as_bgr(image), PNG_OPTIONS[codec])[1].tobytes()


def _as_bgr(image: np.ndarray) -> np.ndarray:
    """Return an image of 1, 3 or 4 channels with these in OpenCV's order."""
    channels = image.shape[2]
    return image if channels == 1 else image[..., [2, 1, 0, 3][:channels]]


def encode_label(label: np.ndarray) -> bytes:
    """Encode a label [H, W] as a PNG that decodes quickly: 2048x1024 in 1 ms instead of 5."""
    return cv2.imencode(".png", label, LABEL_OPTIONS)[1].tobytes()
