"""Folders that prediction refuses before it writes anything."""

import types

import cv2
import numpy as np
import pytest
from data_helpers import make_config, write_png

from jaxseg.data.datasets import DataError
from jaxseg.predict import find_images, predict_files


@pytest.mark.parametrize("bad", ["16 bit", "damaged"])
def test_one_bad_image_stops_before_anything_is_written(tmp_path, bad):
    write_png(tmp_path / "in/a.png", np.zeros((4, 6, 3), np.uint8))
    if bad == "damaged":
        (tmp_path / "in/z.JPG").write_bytes(b"no image")
    else:
        cv2.imwrite(str(tmp_path / "in/z.PNG"), np.zeros((4, 6, 3), np.uint16))
    assert [file.stem for file in find_images(tmp_path / "in")] == ["a", "z"]
    with pytest.raises(DataError, match=r"in/z\.(JPG|PNG)"):
        predict_files(types.SimpleNamespace(config=make_config()), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
