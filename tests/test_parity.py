"""A few reference cases of MMSegmentation; `-m zoo` runs all there are."""

import os
from pathlib import Path

import parity
import pytest

STORED = Path(__file__).parent / "data" / "parity"
# All 38 cases lie beside the checkout, or where JAXSEG_PARITY says.
ELSEWHERE = Path(os.environ.get("JAXSEG_PARITY", Path(__file__).parents[2] / "shared" / "parity"))
ALL = ELSEWHERE if ELSEWHERE.is_dir() else STORED


def _cases(folder):
    return sorted(path.stem for path in (folder / "cases").glob("*.json"))


def _check(folder, name, train=True):
    found = parity.deviations(folder, name, train)
    assert max(found.values()) <= 1, f"{name}: deviations over their bounds {found}"


@pytest.mark.parametrize("name", _cases(STORED))
def test_agrees_with_mmsegmentation(name):
    _check(
        STORED, name, train="r18" in name or name.startswith("fast_scnn")
    )  # the larger ones' gradients compile for minutes: -m zoo


@pytest.mark.zoo
@pytest.mark.parametrize("name", _cases(ALL))
def test_agrees_with_mmsegmentation_in_every_case(name):
    _check(ALL, name)
