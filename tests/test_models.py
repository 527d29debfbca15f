"""Models by name and config: overrides, classes of one's own, initial variables, errors."""

import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxseg.config import get_experiment
from jaxseg.config.schema import ModelConfig, from_dict
from jaxseg.errors import ConfigError
from jaxseg.models import create_model, declared_fields, init_variables, list_models

NARROW = dict(backbone=dict(base_channels=4, stem_channels=4), channels=8)
TINY_BACKBONE = dict(backbone=dict(base_channels=4, stem_channels=4))


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
    "name, overrides, field, words",
    [
        ("pspnet_r51-d8", {}, "variant", ["r51-d8", "r50-d8"]),
        ("pspnett_r50-d8", {}, "", ["pspnett", "pspnet"]),
        ("pspnet_r50-d8", dict(pool_scale=(1,)), "", ["pool_scale", "'pool_scales'"]),
        ("upernet_m-v3-d8", {}, "model.heads.decode.in_index", ["(0, 1, 2, 3)", "3 maps"]),
        ("pspnet_r18-d8", dict(norm=dict(eps=1e-3)), "", ["'eps'", "epsilon"]),
        ("pspnet_r18-d8", dict(momentum=0.99), "", ["'momentum'"]),
        ("pspnet_r18-d8", dict(backbone=dict(deep=18)), "", ["ResNet", "'depth'"]),
        ("pspnet_r18-d8", dict(num_classes=0), "model.num_classes", ["num_classes"]),
        ("fcn_d6_hr18", {}, "", ["d6", "HRNet"]),
        ("pspnet_hr18_rsb_adamw", {}, "variant", ["rsb_adamw", "hr18"]),
    ],
)
def test_errors_name_what_is_wrong_and_the_nearest_choice(name, overrides, field, words):
    with pytest.raises(ConfigError) as error:
        create_model(name, **overrides)
    assert error.value.field == field
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_config_without_its_number_of_classes_is_refused():
    config = get_experiment("pspnet_r50-d8_512x512_1k_folder").model
    with pytest.raises(ConfigError) as error:
        create_model(config)
    assert error.value.field == "model.num_classes"
    for nothing in (None, 5, ["fcn"]):
        with pytest.raises(ConfigError):
            create_model(nothing)


def test_an_unknown_depth_is_named_when_the_model_is_traced():
    model = create_model("pspnet_r18-d8", depth=19)
    with pytest.raises(ConfigError) as error:
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert all(word in str(error.value) for word in ("'19'", "18", "101"))


def test_configs_in_every_form_give_the_same_model():
    config = get_experiment("fpn_r18_512x512_1k_shapes").model
    frozen = from_dict(ModelConfig, config)
    models = [create_model(form) for form in (config, config.to_dict(), frozen)]
    assert models[0].backbone.keywords == models[1].backbone.keywords == models[2].backbone.keywords
    for model in models:
        assert model.heads["decode"].keywords == models[0].heads["decode"].keywords
    assert frozen.heads["decode"].options["feature_strides"] == ()  # the config is left alone
    assert create_model(frozen, num_classes=7).heads["decode"].keywords["num_classes"] == 7


class TokenHead(nn.Module):
    """A head with Flax's own layers and initializers."""

    num_classes: int
    layer: Any
    in_index: int = -1
    channels: int = 8

    @nn.compact
    def __call__(self, features, previous=None, *, train):
        x = nn.Dense(self.channels)(features[self.in_index])
        x = nn.LayerNorm()(x)
        for i in range(2):
            x = nn.remat(nn.Dense)(self.channels, name=f"block_{i}")(x)
        return self.layer.classify(nn.gelu(x), self.num_classes, train=train), {}


@pytest.mark.parametrize("head", [TokenHead, functools.partial(TokenHead, channels=16)])
def test_a_class_of_ones_own_stands_where_a_name_does(head):
    model = create_model("fcn_r18-d8", heads=dict(decode=dict(name=head)), **TINY_BACKBONE)
    variables = init_variables(model, 0)
    width = variables["params"]["decode_head"]["Dense_0"]["kernel"].shape[-1]
    assert width == (8 if head is TokenHead else 16)
    logits, _ = jax.eval_shape(
        lambda v: model.apply(v, jnp.zeros((1, 64, 64, 3)), train=False), variables
    )
    assert logits.shape == (1, 64, 64, 19)
    with pytest.raises(ConfigError) as error:
        create_model("fcn_r18-d8", heads=dict(decode=dict(name=TokenHead, chanels=8)))
    assert "TokenHead" in str(error.value) and "'channels'" in str(error.value)
    wide = dict(decode=dict(name=TokenHead, channels=0, in_index=2))
    config = get_experiment("fcn_r18-d8_64x64_1k_shapes").model.to_dict() | {"heads": wide}
    assert declared_fields(config) == {"decode": {"channels": 256}}


def test_flaxs_own_initializers_are_drawn_by_flax():
    heads = dict(decode=dict(name=TokenHead))
    model = create_model("fcn_r18-d8", heads=heads, **TINY_BACKBONE)
    ours, again, other = (init_variables(model, seed) for seed in (0, 0, 1))
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, expected)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(ours))
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(again)))
    head = ours["params"]["decode_head"]
    assert head["LayerNorm_0"]["scale"].all() and not head["LayerNorm_0"]["bias"].any()
    kernel = head["Dense_0"]["kernel"]
    assert kernel.std() == pytest.approx(kernel.shape[0] ** -0.5, rel=0.2)  # lecun_normal
    assert not np.array_equal(kernel, other["params"]["decode_head"]["Dense_0"]["kernel"])
    assert not np.array_equal(head["block_0"]["kernel"], head["block_1"]["kernel"])
    # What else the model has does not matter, and jaxseg's own initializers draw as they do alone.
    plain = init_variables(create_model("fcn_r18-d8", **TINY_BACKBONE), 0)
    same = [v["params"]["backbone"]["stem.0"]["kernel"] for v in (ours, plain)]
    np.testing.assert_array_equal(*same)
    deeper = create_model("fcn_r18-d8", heads=heads, backbone=dict(depth=34, base_channels=4))
    kernels = init_variables(deeper, 0)["params"]["decode_head"]
    np.testing.assert_array_equal(kernels["Dense_0"]["kernel"], kernel)


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
    assert create_model(config.model).heads["decode"].keywords["feature_strides"] == expected
    given = create_model("fpn_r18", feature_strides=(4, 8, 16, 16))  # by an older run, or a person
    assert given.heads["decode"].keywords["feature_strides"] == (4, 8, 16, 16)


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
    heavy = ["orbax", "orbax.checkpoint", "grain", "tensorflow_datasets", "tensorflow", "torch"]
    heavy += ["cv2", "tensorboardX"]
    code = (
        "import sys, jaxseg, jaxseg.models; jaxseg.models.list_models(); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
