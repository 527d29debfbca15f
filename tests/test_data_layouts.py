"""Every data set of the zoo, read in place from a miniature of its layout."""

import numpy as np
import pytest
from helpers.data_helpers import check_experiment, make_experiment, write_png

from jaxseg import constants
from jaxseg.data import catalog, sources
from jaxseg.data.builtin import BUILTIN, CONVERTED, named_label_map
from jaxseg.data.prepare import raw_datasets

LAYOUTS = [
    (name, number) for name in sorted(BUILTIN) for number in range(len(BUILTIN[name].layouts))
]


@pytest.mark.parametrize("name, number", LAYOUTS)
def test_every_layout_reads_a_miniature(tmp_path, name, number):
    """Two images for each folder of a split, their labels the last class and an ignored value."""
    layout = BUILTIN[name].layouts[number]
    for split in ("train", "val"):
        for part in layout.parts(split):
            ids = raw_ids(name, layout)
            for stem in ("one", "two"):
                image, label = (
                    tmp_path
                    / pattern.replace("{split}", part).replace(
                        "{stem}", f"city/{stem}" if layout.nested else stem
                    )
                    for pattern in (layout.images, layout.labels[-1][0])
                )
                write_png(image, np.zeros((4, 6, 3), np.uint8))
                write_png(label, np.resize(np.uint8(list(ids)), (4, 6)))
            if layout.listing:
                listing = tmp_path / layout.listing.replace("{split}", part)
                listing.parent.mkdir(parents=True, exist_ok=True)
                listing.write_text("one\ntwo\n")
    spec = catalog.get_spec(name, tmp_path)
    assert spec.layout == layout
    check_experiment(make_experiment(name, root=str(tmp_path)))
    for split in ("train", "val"):
        source = sources.open_source(spec, tmp_path, split)
        image, label = source.read(1)
        assert len(source) == 2 * len(layout.parts(split)) and image.shape == (4, 6, 3)
        np.testing.assert_array_equal(label, np.resize(list(ids.values()), (4, 6)))


def raw_ids(name, layout):
    """{raw id: class} of the first class, the last and, if there is one, an ignored id."""
    ids = named_label_map(layout.labels[-1][1], catalog.get_spec(name).num_classes)
    wanted = (0, catalog.get_spec(name).num_classes - 1, constants.IGNORE)
    return {
        next(raw for raw, index in ids.items() if index == one): one
        for one in wanted
        if one in ids.values()
    }


def test_data_sets_that_need_conversion_are_those_that_can_be_converted():
    assert set(CONVERTED) == set(raw_datasets.NAMES)
