"""A few reference cases of MMSegmentation; `-m zoo` runs all there are."""

import os
from pathlib import Path

import parity
import pytest

STORED = Path(__file__).parent / "data" / "parity"
# The folder that JAXSEG_PARITY names may hold further cases.
ALL = Path(os.environ.get("JAXSEG_PARITY", STORED))


def _cases(folder):
    return sorted(path.stem for path in (folder / "cases").glob("*.json"))


def _check(folder, name, train=True):
    found = parity.deviations(folder, name, train)
    agrees = all(value <= 1 for value in found.values())
    assert agrees, f"{name}: deviations divided by their bounds {found}"


@pytest.mark.parametrize("name", _cases(STORED))
def test_agrees_with_mmsegmentation(name):
    # The gradients of larger ones compile for long: -m zoo. Narrow models of each have theirs.
    _check(STORED, name, train=name.startswith(("pspnet_r18", "fast_scnn")))


@pytest.mark.zoo
@pytest.mark.parametrize("name", _cases(ALL))
def test_agrees_with_mmsegmentation_in_every_case(name):
    _check(ALL, name)
