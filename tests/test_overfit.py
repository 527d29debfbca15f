"""The check of the whole zoo (overfit.py) itself, on two methods that hold the most: points and a cascade, bases that are no parameters."""

import jax
import pytest
from overfit import HEAD, format_row, overfit, prepare, smallest, update

from jaxseg import zoo
from jaxseg.models import create_model


@pytest.mark.parametrize(
    "name", ["emanet_r18-d8_64x64_1k_cityscapes", "pointrend_r18_64x64_1k_cityscapes"]
)
def test_learns_resumes_and_evaluates_in_bfloat16_on_four_devices(name, tmp_path):
    row = overfit(prepare(name, precision_name="bfloat16", reduced=True), 4, tmp_path)
    assert row["last"] < 0.7 * row["first"] and row["resumes"] and row["counted"] and row["passes"]


@pytest.mark.parametrize("method", zoo.METHODS)
def test_every_method_has_a_narrow_model(method):
    config = prepare(smallest(method), reduced=True)
    size = config.dataset.crop_size
    shapes = jax.eval_shape(
        lambda k: create_model(config.model).init(k, jax.numpy.zeros((1, *size, 3)), train=False),
        jax.random.key(0),
    )
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) < 2e6
        and config.model.dropout_rate == 0
    )


def test_page_keeps_other_rows_and_sections():
    row = dict(
        parameters=2_000_000,
        first=2.0,
        last=0.5,
        compile_seconds=3.0,
        step_seconds=0.1,
        resumes=True,
        mIoU=0.5,
        passes=True,
    )
    page = ""
    for title, method, changes in (
        ("a", "CCNet", {}),
        ("b", "FCN", {}),
        ("a", "ANN", {"error": "OSError: x"}),
        ("a", "CCNet", {"passes": False}),
    ):
        page = update(page, title, f"on {title}", [format_row(method, "m", 64, row | changes)])
    first, second = page.split("\n## ")[1:]
    assert first.splitlines()[4:] == [
        f"| {' | '.join(HEAD)} |",
        "|---|---|" + "---:|" * (len(HEAD) - 2),
        "| CCNet | `m` | 64 | 2.00 | 2.000 | 0.500 | 3 | 0.10 | yes | 0.500 | no |",
        "| ANN | `m` | 64 |  |  |  |  |  |  |  | no: OSError: x |",
        "",
        "0 of 2 pass.",
    ]
    assert "| FCN |" in second and "1 of 1 pass." in second and "on b" in second
