"""The model room's door: names, overrides, initialisation, errors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config.builders import get_experiment
from jaxseg.config.resolve import resolve
from jaxseg.models import create_model, init_variables, list_models

NARROW = dict(backbone=dict(base_channels=4, stem_channels=4), channels=8)


def test_short_names_are_those_of_the_published_experiments():
    names = list_models()
    assert len(names) == 85 and {
        "pspnet_r50-d8",
        "fast_scnn",
        "fcn_d6_r50-d16",
        "cgnet",
        "lraspp_m-v3-d8_scratch",
    } <= set(names)
    assert list_models("pspnet_r18") == ["pspnet_r18-d8", "pspnet_r18b-d8"]


def test_a_model_by_name_gives_logits_of_the_input_size_in_float32():
    model = create_model("pspnet_r18-d8", num_classes=5, dtype=jnp.bfloat16, **NARROW)
    variables = init_variables(model, 0)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    logits, out = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False), variables, jnp.zeros((2, 65, 97, 3))
    )
    assert logits.shape == (2, 65, 97, 5) and logits.dtype == jnp.float32
    assert {k: v.shape for k, v in out.items()} == {"aux_0": (2, 9, 13, 5), "decode": (2, 9, 13, 5)}


def test_overrides_reach_the_part_that_has_the_field():
    model = create_model(
        "pspnet_r18-d8",
        pool_scales=(1, 2),
        align_corners=True,
        dropout_rate=0.0,
        base_channels=4,
        axis_name="batch",
    )
    assert (
        model.heads["decode"].keywords["pool_scales"] == (1, 2)
        and model.backbone.keywords["base_channels"] == 4
    )
    assert (
        model.layer.align_corners
        and model.layer.dropout_rate == 0
        and model.layer.axis_name == "batch"
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: create_model("pspnet_r51-d8"), ["r51-d8", "Did you mean", "r50-d8"]),
        (lambda: create_model("pspnett_r50-d8"), ["pspnett", "pspnet"]),
        (
            lambda: create_model("pspnet_r50-d8", pool_scale=(1,)),
            ["pool_scale", "Did you mean 'pool_scales'"],
        ),
        (
            lambda: create_model(get_experiment("pspnet_r50-d8_512x512_1k_folder").model),
            ["num_classes", "resolve"],
        ),
        (
            lambda: create_model("upernet_m-v3-d8"),
            ["heads.decode.in_index", "(0, 1, 2, 3)", "3 maps"],
        ),
        (
            lambda: create_model("pspnet_r18-d8", norm=dict(eps=1e-3)),
            ["field of model.norm 'eps'", "epsilon"],
        ),
        (lambda: create_model("pspnet_r18-d8", momentum=0.99), ["'momentum'"]),
        (
            lambda: create_model("pspnet_r18-d8", depth=19).init(
                jax.random.key(0), jnp.zeros((1, 32, 32, 3))
            ),
            ["'19'", "18", "101"],
        ),
        (lambda: create_model("fcn_d6_hr18"), ["d6", "HRNet"]),
        (lambda: create_model("pspnet_hr18_rsb_adamw"), ["rsb_adamw", "hr18"]),
    ],
)
def test_errors_name_what_is_wrong_and_the_nearest_choice(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_initial_variables_match_flax_and_depend_on_seed_and_path_only():
    model = create_model("deeplabv3plus_r18-d8", num_classes=5, **NARROW)
    ours, again, other = (
        init_variables(model, 0),
        init_variables(model, 0, (1, 96, 96, 3)),
        init_variables(model, 1),
    )
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, expected)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(again)))
    kernel = ours["params"]["backbone"]["layer4.0"]["conv1"]["kernel"]
    assert not np.array_equal(kernel, other["params"]["backbone"]["layer4.0"]["conv1"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * kernel.shape[-1])), rel=0.1)
    assert (
        not ours["params"]["backbone"]["layer4.0"]["bn2"]["scale"].any()
        and ours["params"]["backbone"]["layer4.0"]["bn1"]["scale"].all()
    )
    assert ours["params"]["decode_head"]["conv_seg"]["kernel"].std() == pytest.approx(0.01, rel=0.3)
    assert (
        ours["batch_stats"]["backbone"]["stem.1"]["var"].all()
        and not ours["batch_stats"]["backbone"]["stem.1"]["mean"].any()
    )


def test_multi_grid_keeps_the_number_of_blocks():
    model = create_model("deeplabv3_r18-d16-mg124", **NARROW)
    backbone = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))[
        "params"
    ]["backbone"]
    assert [name for name in backbone if name.startswith("layer4")] == ["layer4.0", "layer4.1"]


def test_another_backbone_replaces_the_config_s():
    model = create_model("pspnet_r18-d8", backbone=dict(name="mobilenet_v2", widen_factor=0.25))
    assert (
        model.backbone.func.__name__ == "MobileNetV2"
        and model.backbone.keywords["widen_factor"] == 0.25
    )


@pytest.mark.parametrize("name, head", [("fpn_r18", "decode"), ("pointrend_r18", "stage_0")])
@pytest.mark.parametrize(
    "strides, expected",
    [((1, 2, 2, 2), (4, 8, 16, 32)), ((1, 2, 1, 1), (4, 8, 8, 8)), ((2, 2, 2, 1), (8, 16, 32, 32))],
)
def test_strides_are_those_the_backbone_declares(name, head, strides, expected):
    for model in (
        create_model(name, strides=strides, **NARROW),
        create_model(name, backbone=dict(strides=strides)),
    ):
        assert model.heads[head].keywords["feature_strides"] == expected
    config = get_experiment("fpn_r18_512x512_1k_shapes")
    config.model.backbone.strides = strides
    assert resolve(config).model.heads.decode.feature_strides == expected
    told = create_model("fpn_r18", feature_strides=(4, 8, 16, 16))  # an older run's, or meant so
    assert told.heads["decode"].keywords["feature_strides"] == (4, 8, 16, 16)


def test_joined_heads_are_as_wide_as_their_maps():
    assert create_model("fcn_hr18").heads["decode"].keywords["channels"] == 270
    assert (
        create_model("fcn_hr18", backbone=dict(base_channels=6))
        .heads["decode"]
        .keywords["channels"]
        == 90
    )
    assert (
        create_model("ocrnet_hr18", backbone=dict(base_channels=6))
        .heads["stage_0"]
        .keywords["channels"]
        == 90
    )
    assert (
        create_model("fcn_r18-d8", channels=0, in_index=(0, 3)).heads["decode"].keywords["channels"]
        == 64 + 512
    )
    neck = dict(name="fpn", channels=32)
    assert (
        create_model("fcn_r18-d8", channels=0, in_index=(0, 3), neck=neck)
        .heads["decode"]
        .keywords["channels"]
        == 64
    )


def test_importing_the_models_is_light():
    code = "import sys, jaxseg, jaxseg.models; jaxseg.models.list_models(); print([m for m in %r if m in sys.modules])"
    heavy = [
        "orbax",
        "orbax.checkpoint",
        "grain",
        "tensorflow_datasets",
        "tensorflow",
        "torch",
        "cv2",
        "tensorboardX",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
