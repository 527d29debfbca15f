"""Narrow models of every head, backbone and neck agree with MMSegmentation's own outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
from ml_collections import ConfigDict

from jaxseg import convert
from jaxseg.models import BACKBONES, HEADS, NECKS, create_model

STORED = Path(__file__).parent / "data" / "parity"
SMALL = sorted(path.stem for path in (STORED / "small").glob("*.json"))
PUBLISHED = sorted(path.stem for path in (STORED / "cases").glob("*.json"))
STRICT = 0.1  # of the bounds of published models: narrow ones deviate by a hundredth of these
RANDOM_TRAINING = {"point"}  # samples points at random, so no training step has a reference


def load(name: str) -> dict[str, Any]:
    """Return a small case's JSON."""
    return json.loads((STORED / "small" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", SMALL)
def test_small_case_agrees_with_mmsegmentation(name: str) -> None:
    """Logits, losses, gradient norms and running statistics agree within bounds."""
    case, seeded = load(name), parity.seeded(STORED)
    model = create_model(case["jaxseg"]["model"])
    weights = {
        key: seeded.seeded_array(key, tuple(shape), case["seed"])
        for key, shape in case["state_dict"]
    }
    variables = convert.from_mmseg(weights, model)
    images = parity.nhwc(seeded.seeded_images(tuple(case["input_shape"]), case["seed"]))
    with np.load(STORED / "small" / f"{name}.npz") as arrays:
        found = parity.eval_deviations(case, dict(arrays), model, variables, images)
    if "train" in case:
        config = ConfigDict(case["jaxseg"])
        found |= parity.train_deviations(case, config, model, variables, seeded)
    limits = {key: 1 if key.startswith("gradient") else STRICT for key in found}
    assert all(found[key] <= limits[key] for key in found), f"deviations over bounds: {found}"


def parts_of(model: Any) -> set[tuple[str, str]]:
    """Return ('head' | 'backbone' | 'neck', name) of everything in a model's config."""
    parts = {("head", head["name"]) for head in model["heads"].values()}
    parts.add(("backbone", model["backbone"]["name"]))
    if model.get("neck", {}).get("name"):
        parts.add(("neck", model["neck"]["name"]))
    return parts


def test_every_part_has_a_reference() -> None:
    """Every registered head, backbone and neck is in a case, nearly all in a training step."""
    references = [(case["jaxseg"]["model"], case) for case in map(load, SMALL)]
    for name in PUBLISHED:
        case = json.loads((STORED / "cases" / f"{name}.json").read_text())
        references.append((parity.experiment_of(case["config"]).model, case))
    evaluated = set().union(*(parts_of(model) for model, _ in references))
    trained = set().union(*(parts_of(model) for model, case in references if "train" in case))
    registered = {("head", name) for name in HEADS}
    registered |= {("backbone", name) for name in BACKBONES}
    registered |= {("neck", name) for name in NECKS}
    assert registered - evaluated == set()
    assert registered - trained == {("head", name) for name in RANDOM_TRAINING}
