"""Write the small reference cases under tests/data/parity/small with MMSegmentation itself.

    python tools/make_parity_cases.py [name ...]

Writes all cases, or the named ones. Needs an environment of its own, without jaxseg:

    python -m venv parity-env
    parity-env/bin/pip install torch mmengine scipy prettytable ftfy regex opencv-python-headless
    parity-env/bin/pip install --no-deps mmsegmentation==1.2.2 mmcv-lite==2.1.0
    parity-env/bin/python tools/make_parity_cases.py

A case is one narrow model of MMSegmentation 1.2.2, evaluated in float64 on CPU with weights,
images and labels from tests/data/parity/seeded_weights.py, and our config of the same model, which
tests/test_parity_small.py builds. tests/data/parity/README.md describes the files.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "parity"
CLASSES = 5
SIZE = (65, 97)
SEED = 0
STEP = 4  # of the rows and columns of the logits that a case keeps
WIDTH = 16  # channels of a head
RESNET = (8, 16, 32, 64)  # channels of the narrow ResNet's maps
DIGITS = 8  # significant digits of the numbers in the JSON
CROSS_ENTROPY = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One model, described for both libraries.

    Attributes:
        theirs: MMSegmentation's model config, without the class count and the alignment of corners.
        ours: The `model` and `losses` of our config.
        align_corners: Whether bilinear resizing aligns corners.
        batch: Images of the training step; 0 stores no training step.
        adjust: Changes the built PyTorch model in place.
    """

    theirs: Settings
    ours: Settings
    align_corners: bool = False
    batch: int = 2
    adjust: Callable[[Any], None] | None = None


def norm(epsilon: float = 1e-5, momentum: float = 0.1) -> Settings:
    """Return MMSegmentation's config of batch norm."""
    return {"type": "BN", "eps": epsilon, "momentum": momentum, "requires_grad": True}


def their_head(kind: str, in_index: Any, in_channels: Any, **options: Any) -> Settings:
    """Return MMSegmentation's config of a head of `in_channels` input channels."""
    common = {"channels": WIDTH, "num_classes": CLASSES, "norm_cfg": norm()}
    common["loss_decode"] = dict(CROSS_ENTROPY)
    return {"type": kind, "in_index": in_index, "in_channels": in_channels} | common | options


def cross_entropy(weight: float = 1.0, **options: Any) -> Settings:
    """Return our config of a softmax cross entropy."""
    return {"name": "cross_entropy", "weight": weight} | options


def resnet(dilated: bool = True) -> tuple[Settings, Settings]:
    """Return both configs of a narrow ResNet of four basic blocks with a 7x7 stem."""
    strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if dilated else ((1, 2, 2, 2), (1, 1, 1, 1))
    common = {"depth": 10, "base_channels": 8, "stem_channels": 8}
    common |= {"strides": strides, "dilations": dilations, "contract_dilation": True}
    theirs = {"type": "ResNet", "num_stages": 4, "out_indices": (0, 1, 2, 3), "norm_cfg": norm()}
    return theirs | common, {"name": "resnet", "stem": "v1"} | common


def ours_of(backbone: Settings, heads: Settings, losses: Settings, **model: Any) -> Settings:
    """Return our config: the fields that every model has, and those given."""
    fields = {"backbone": backbone, "heads": heads, "num_classes": CLASSES, "dropout_rate": 0.0}
    fields |= {"norm": {"momentum": 0.9, "epsilon": 1e-5}}
    return {"model": fields | model, "losses": losses}


def on_resnet(
    kind: str,
    name: str,
    their_options: Settings,
    our_options: Settings,
    *,
    in_index: int | tuple[int, ...] = 3,
    losses: Settings | None = None,
    auxiliary: bool = False,
    dilated: bool = True,
    **case: Any,
) -> Case:
    """Return the case of one decode head on the narrow ResNet.

    Args:
        kind: MMSegmentation's name of the head.
        name: Our name of the head.
        their_options: Further fields of their head.
        our_options: Further fields of our head.
        in_index: The map or maps that the head reads.
        losses: Our losses in addition to that of the decode head.
        auxiliary: Whether an FCN head on the third map is trained too.
        dilated: Whether the backbone keeps an output stride of 8.
        **case: Further fields of the Case.

    Returns:
        The case.
    """
    backbones = resnet(dilated)
    channels = RESNET[in_index] if isinstance(in_index, int) else [RESNET[i] for i in in_index]
    theirs = {"type": "EncoderDecoder", "backbone": backbones[0]}
    theirs["decode_head"] = their_head(kind, in_index, channels, **their_options)
    heads = {"decode": {"name": name, "in_index": in_index, "channels": WIDTH} | our_options}
    losses = {"decode": cross_entropy()} | (losses or {})
    if auxiliary:
        weighted = CROSS_ENTROPY | {"loss_weight": 0.4}
        options = {"num_convs": 1, "concat_input": False}
        head = their_head("FCNHead", 2, RESNET[2], channels=8, loss_decode=weighted, **options)
        theirs["auxiliary_head"] = head
        heads["aux_0"] = {"name": "fcn", "in_index": 2, "channels": 8} | options
        losses["aux_0"] = cross_entropy(0.4)
    return Case(theirs, ours_of(backbones[1], heads, losses), **case)


def same(kind: str, name: str, options: Settings | None = None, **case: Any) -> Case:
    """Return the case of a head whose fields have the same names in both libraries."""
    return on_resnet(kind, name, options or {}, options or {}, **case)


def pyramid_case(kind: str, **case: Any) -> Case:
    """Return the case of a feature pyramid: Semantic FPN ('fpn') or PointRend ('point')."""
    backbones = resnet(dilated=False)
    strides, indices = (4, 8, 16, 32), (0, 1, 2, 3)
    head = their_head("FPNHead", indices, [WIDTH] * 4, feature_strides=strides)
    theirs = {"backbone": backbones[0], "decode_head": head, "type": "EncoderDecoder"}
    theirs["neck"] = {
        "type": "FPN",
        "in_channels": list(RESNET),
        "out_channels": WIDTH,
        "num_outs": 4,
    }
    fields = {"name": "fpn", "in_index": indices, "feature_strides": strides, "channels": WIDTH}
    heads, losses = {"decode": fields}, {"decode": cross_entropy()}
    if kind == "point":
        options = {"num_fcs": 3, "coarse_pred_each_layer": True, "norm_cfg": None}
        point = their_head("PointHead", [0], [WIDTH], **options)
        theirs |= {"type": "CascadeEncoderDecoder", "num_stages": 2, "decode_head": [head, point]}
        theirs["test_cfg"] = {"subdivision_steps": 2, "subdivision_num_points": 64}
        theirs["test_cfg"] |= {"mode": "whole", "scale_factor": 2}
        options = {"num_fcs": 3, "subdivision_steps": 2, "subdivision_points": 64}
        heads = {"stage_0": fields}
        heads["decode"] = {"name": "point", "in_index": (0,), "channels": WIDTH} | options
        losses = {}
    neck = {"name": "fpn", "channels": WIDTH}
    return Case(theirs, ours_of(backbones[1], heads, losses, neck=neck), **case)


def hrnet_ocr() -> Case:
    """Return OCRNet's cascade on an HRNet of one exchange a stage."""
    channels, indices = (4, 8, 16, 32), (0, 1, 2, 3)
    stages = {"stage1": {"block": "BOTTLENECK", "num_blocks": (1,), "num_channels": (64,)}}
    for branches in (2, 3, 4):
        stages[f"stage{branches}"] = {"block": "BASIC", "num_blocks": (1,) * branches}
        stages[f"stage{branches}"]["num_channels"] = channels[:branches]
    extra = {
        stage: {"num_modules": 1, "num_branches": i} | fields
        for i, (stage, fields) in enumerate(stages.items(), 1)
    }
    inputs = {"input_transform": "resize_concat"}
    coarse = {"kernel_size": 1, "num_convs": 1, "concat_input": False}
    weighted = CROSS_ENTROPY | {"loss_weight": 0.4}
    first = their_head("FCNHead", indices, channels, loss_decode=weighted, **coarse, **inputs)
    second = their_head("OCRHead", indices, channels, ocr_channels=8, **inputs)
    theirs = {"type": "CascadeEncoderDecoder", "num_stages": 2, "decode_head": [first, second]}
    theirs["backbone"] = {"type": "HRNet", "extra": extra, "norm_cfg": norm()}
    backbone = {"name": "hrnet", "base_channels": 4, "modules": (1, 1, 1), "blocks": 1}
    common = {"in_index": indices, "channels": WIDTH}
    heads = {"stage_0": {"name": "fcn"} | common | coarse}
    heads["decode"] = {"name": "ocr", "ocr_channels": 8} | common
    losses = {"stage_0": cross_entropy(0.4), "decode": cross_entropy()}
    return Case(theirs, ours_of(backbone | {"stem_channels": 64}, heads, losses))


def resnest_aspp() -> Case:
    """Return DeepLabV3 on a ResNeSt of one block a stage."""
    common = {"depth": 10, "base_channels": 8, "stem_channels": 16, "strides": (1, 2, 1, 1)}
    common |= {"dilations": (1, 1, 2, 4), "contract_dilation": True, "radix": 2}
    theirs = {"type": "ResNeSt", "num_stages": 4, "out_indices": (0, 1, 2, 3), "norm_cfg": norm()}
    theirs |= common | {"reduction_factor": 4, "avg_down_stride": True}
    ours = {"name": "resnest", "reduction": 4, "avg_down_stride": True} | common
    head = their_head("ASPPHead", 3, 4 * RESNET[3], dilations=(1, 6, 12))
    fields = {"name": "aspp", "in_index": 3, "channels": WIDTH, "dilations": (1, 6, 12)}
    model = {"type": "EncoderDecoder", "backbone": theirs, "decode_head": head}
    ours = ours_of(ours, {"decode": fields}, {"decode": cross_entropy()})
    return Case(model, ours, align_corners=True, batch=4)


def mobilenet_v2_fcn() -> Case:
    """Return FCN on half of MobileNetV2's channels."""
    common = {"widen_factor": 0.5, "strides": (1, 2, 2, 1, 1, 1, 1)}
    common |= {"dilations": (1, 1, 1, 2, 2, 4, 4), "out_indices": (1, 2, 4, 6)}
    backbone = {"type": "MobileNetV2", "norm_cfg": norm()} | common
    options = {"num_convs": 1, "concat_input": True}
    head = their_head("FCNHead", 3, 160, **options)
    fields = {"name": "fcn", "in_index": 3, "channels": WIDTH} | options
    model = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": head}
    ours = {"name": "mobilenet_v2"} | common
    ours = ours_of(ours, {"decode": fields}, {"decode": cross_entropy()})
    return Case(model, ours)


def mobilenet_v3_lraspp() -> Case:
    """Return LR-ASPP on the small MobileNetV3; 49x49 windows do not fit, so they are 5x5."""
    pool, stride = 5, (2, 3)

    def replace_pool(model: Any) -> None:
        import torch  # noqa: PLC0415 - an environment of its own has it

        model.decode_head.image_pool[0] = torch.nn.AvgPool2d(pool, stride)

    batch_norm = norm(epsilon=1e-3)
    backbone = {"type": "MobileNetV3", "arch": "small", "out_indices": (0, 1, 12)}
    backbone["norm_cfg"] = batch_norm
    options = {"input_transform": "multiple_select", "branch_channels": (8, 12)}
    options |= {"act_cfg": {"type": "ReLU"}, "norm_cfg": batch_norm}
    head = their_head("LRASPPHead", (0, 1, 2), (16, 16, 576), **options)
    fields = {"name": "lraspp", "in_index": (0, 1, 2), "channels": WIDTH}
    fields |= {"branch_channels": (8, 12), "pool_size": pool, "pool_stride": stride}
    model = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": head}
    ours = {"name": "mobilenet_v3", "arch": "small", "widen_factor": 1.0}
    ours = ours_of(
        ours,
        {"decode": fields},
        {"decode": cross_entropy()},
        norm={"momentum": 0.9, "epsilon": 1e-3},
    )
    return Case(model, ours, adjust=replace_pool)


def cgnet_psp() -> Case:
    """Return PSPNet on a CGNet of two blocks a level."""
    batch_norm = norm(epsilon=1e-3)
    backbone = {"type": "CGNet", "num_channels": (8, 16, 32), "num_blocks": (2, 2)}
    backbone |= {"dilations": (2, 4), "reductions": (8, 16), "norm_cfg": batch_norm}
    head = their_head("PSPHead", 2, 64, norm_cfg=batch_norm, pool_scales=(1, 2, 3, 6))
    fields = {"name": "psp", "in_index": 2, "channels": WIDTH, "pool_scales": (1, 2, 3, 6)}
    model = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": head}
    ours = {"name": "cgnet", "widths": (8, 16, 32), "blocks": (2, 2)}
    ours |= {"dilations": (2, 4), "reduction_factors": (8, 16)}
    ours = ours_of(
        ours,
        {"decode": fields},
        {"decode": cross_entropy()},
        norm={"momentum": 0.9, "epsilon": 1e-3},
    )
    return Case(model, ours)


def cases() -> dict[str, Case]:
    """Return every case by its name."""
    ann = {"project_channels": 8, "key_pool_scales": (1, 3, 6)}
    loss_se = CROSS_ENTROPY | {"use_sigmoid": True, "loss_weight": 0.2}
    encoding = {"use_se_loss": True, "add_lateral": False, "loss_se_decode": loss_se}
    presence = {"name": "se_loss", "weight": 0.2}
    ema = {"ema_channels": WIDTH, "num_bases": 8, "num_stages": 3, "momentum": 0.1}
    similarity = {"reduction": 2, "use_scale": True, "mode": "embedded_gaussian"}
    psa = {"psa_type": "bi-direction", "compact": False, "normalization_factor": 1.0}
    psa |= {"shrink_factor": 2, "psa_softmax": True, "mask_size": (9, 13)}
    context = {"pooling_type": "att", "fusion_types": ("channel_add",), "ratio": 0.25}
    both = {"pam": cross_entropy(), "cam": cross_entropy()}
    return {
        "ann_resnet": same("ANNHead", "ann", ann, in_index=(2, 3)),
        "apc_resnet": same("APCHead", "apc", {"pool_scales": (1, 2, 3)}, batch=4),
        "cc_resnet": same("CCHead", "cc", {"recurrence": 2}, align_corners=True),
        "da_resnet": same("DAHead", "da", {"pam_channels": 8}, losses=both),
        "dm_resnet": same("DMHead", "dm", {"filter_sizes": (1, 3, 4)}),
        "dnl_resnet": on_resnet("DNLHead", "dnl", similarity, {"reduction": 2}),
        "ema_resnet": same("EMAHead", "ema", ema, align_corners=True),
        "enc_resnet": on_resnet(
            "EncHead",
            "enc",
            encoding | {"num_codes": 8},
            {"num_codes": 8, "in_index": 3},
            in_index=(1, 2, 3),
            losses={"presence": presence},
            batch=4,
        ),
        "gc_resnet": on_resnet("GCHead", "gc", context, {"ratio": 0.25}, auxiliary=True),
        "non_local_resnet": on_resnet("NLHead", "non_local", similarity, {"reduction": 2}),
        "psa_resnet": on_resnet("PSAHead", "psa", psa, {"mask_size": (9, 13), "shrink": 2}),
        "uper_resnet": same(
            "UPerHead",
            "uper",
            {"pool_scales": (1, 2, 3)},
            in_index=(0, 1, 2, 3),
            dilated=False,
            batch=4,
        ),
        "fpn_resnet": pyramid_case("fpn", align_corners=True),
        "point_resnet": pyramid_case("point", batch=0),
        "ocr_hrnet": hrnet_ocr(),
        "aspp_resnest": resnest_aspp(),
        "fcn_mobilenet_v2": mobilenet_v2_fcn(),
        "lr_aspp_mobilenet_v3": mobilenet_v3_lraspp(),
        "psp_cgnet": cgnet_psp(),
    }


def seeded_module() -> types.ModuleType:
    """Import tests/data/parity/seeded_weights.py."""
    spec = importlib.util.spec_from_file_location("seeded", FOLDER / "seeded_weights.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(FOLDER / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def visible(size: int, mask: int, offset: int) -> tuple[slice, slice]:
    """Return which positions see the one at `offset` of their mask, and where those are."""
    shift = offset - (mask - 1) // 2
    first, last = max(0, -shift), max(0, min(size, size - shift))
    return slice(first, last), slice(first + shift, last + shift)


def move_mask(mask: Any, full: Any, *, psa_type: int, backward: bool, **sizes: int) -> None:
    """Copy scores between PSANet's masks and its map of all pairs of positions, in place.

    The compiled operation that mmcv-lite lacks. Scores of positions outside the map are left out.

    Args:
        mask: Tensor [N, h_mask * w_mask, h, w], a position's scores of those around it.
        full: Tensor [N, h * w, h, w]; collecting puts the other position first, distributing last.
        psa_type: 0 to collect, 1 to distribute.
        backward: Whether to copy from `full` to `mask`.
        **sizes: h_feature, w_feature, h_mask and w_mask; others are not used.
    """
    height, width = sizes["h_feature"], sizes["w_feature"]
    rows, columns = sizes["h_mask"], sizes["w_mask"]
    mask = mask.view(-1, rows, columns, height, width)
    full = full.view(-1, height, width, height, width)
    if psa_type == 1:
        full = full.permute(0, 3, 4, 1, 2)  # the other position first
    for row in range(rows):
        here_y, there_y = visible(height, rows, row)
        for column in range(columns):
            here_x, there_x = visible(width, columns, column)
            for i, y in enumerate(range(here_y.start, here_y.stop)):
                for j, x in enumerate(range(here_x.start, here_x.stop)):
                    other = (there_y.start + i, there_x.start + j)
                    if backward:
                        mask[:, row, column, y, x] = full[:, other[0], other[1], y, x]
                    else:
                        full[:, other[0], other[1], y, x] = mask[:, row, column, y, x]


def psamask_forward(mask: Any, full: Any, **options: int) -> None:
    """Fill the map of all pairs of positions from the masks."""
    move_mask(mask, full, backward=False, **options)


def psamask_backward(full: Any, mask: Any, **options: int) -> None:
    """Fill the gradient of the masks from that of the map of all pairs."""
    move_mask(mask, full, backward=True, **options)


def point_sample(features: Any, points: Any, **options: Any) -> Any:
    """Sample features [N, C, H, W] at points [N, P, 2], which PointRend makes in float32."""
    from mmcv.ops import point_sample as sample  # noqa: PLC0415 - needs import_mmseg's module

    return sample(features, points.to(features.dtype), **options)


def import_mmseg() -> Any:
    """Import MMSegmentation, add a ResNet and a ResNeSt of depth 10, and return its registry.

    mmcv-lite has no compiled operations: PSANet's are given here, the rest fail when called.
    """
    warnings.filterwarnings("ignore")

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def fail(*_: Any, **__: Any) -> None:
            raise NotImplementedError(f"mmcv-lite has no {name}")

        return fail

    compiled = types.ModuleType("mmcv._ext")
    for function in (psamask_forward, psamask_backward):
        setattr(compiled, function.__name__, function)
    compiled.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules["mmcv._ext"] = compiled
    from mmengine.registry import init_default_scope  # noqa: PLC0415 - needs the module above
    from mmseg.models.backbones import ResNeSt, ResNet  # noqa: PLC0415 - as above
    from mmseg.models.decode_heads import point_head  # noqa: PLC0415 - as above
    from mmseg.registry import MODELS  # noqa: PLC0415 - as above

    init_default_scope("mmseg")
    blocks = (1, 1, 1, 1)
    ResNet.arch_settings[10] = (ResNet.arch_settings[18][0], blocks)
    ResNeSt.arch_settings[10] = (ResNeSt.arch_settings[50][0], blocks)
    point_head.point_sample = point_sample
    return MODELS


def build(case: Case, seeded: types.ModuleType, seed: int = SEED) -> Any:
    """Build the case's PyTorch model in float64, with seeded weights and no dropout."""
    import torch  # noqa: PLC0415 - an environment of its own has it
    from mmengine.config import ConfigDict  # noqa: PLC0415 - as above

    config = {"test_cfg": {"mode": "whole"}, "train_cfg": {}} | case.theirs
    heads = config["decode_head"]
    for head in heads if isinstance(heads, list) else [heads]:
        head["align_corners"] = case.align_corners
    if "auxiliary_head" in config:
        config["auxiliary_head"]["align_corners"] = case.align_corners
    model = import_mmseg().build(ConfigDict(config))
    if case.adjust is not None:
        case.adjust(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    model = model.double()
    weights = {
        name: torch.from_numpy(seeded.seeded_array(name, tuple(value.shape), seed))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model


def auxiliary_heads(model: Any) -> list[Any]:
    """Return the model's auxiliary heads."""
    import torch  # noqa: PLC0415 - an environment of its own has it

    heads = model.auxiliary_head if model.with_auxiliary_head else []
    return list(heads) if isinstance(heads, torch.nn.ModuleList | list) else [heads]


def evaluate(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the logits in evaluation mode.

    Args:
        model: The PyTorch model.
        images: float32 [N, 3, H, W].

    Returns:
        `logits`, resized to the images, every STEP-th row and column; `aux_logits_<i>` at their own
        resolution. float32 [N, K, h, w].
    """
    import torch  # noqa: PLC0415 - an environment of its own has it

    model.eval()
    shape = images.shape[2:]
    meta = [{"ori_shape": shape, "img_shape": shape, "pad_shape": shape}] * len(images)
    with torch.no_grad():
        batch = torch.from_numpy(images).double()
        arrays = {"logits": model.inference(batch, meta)[:, :, ::STEP, ::STEP]}
        features = model.extract_feat(batch)
        for i, head in enumerate(auxiliary_heads(model)):
            arrays[f"aux_logits_{i}"] = head(features)
    return {name: value.numpy().astype(np.float32) for name, value in arrays.items()}


def significant(value: Any) -> float:
    """Return the number with DIGITS significant digits."""
    return float(f"{float(value):.{DIGITS}g}")


def train_step(model: Any, images: np.ndarray, labels: np.ndarray) -> Settings:
    """Run one training step without an update of the weights.

    Args:
        model: The PyTorch model.
        images: float32 [N, 3, H, W].
        labels: int64 [N, H, W].

    Returns:
        The `train` part of a case's JSON.
    """
    import torch  # noqa: PLC0415 - an environment of its own has it
    from mmengine.structures import PixelData  # noqa: PLC0415 - as above
    from mmseg.structures import SegDataSample  # noqa: PLC0415 - as above

    model.train()
    samples = []
    for label in torch.from_numpy(labels):
        sample = SegDataSample(metainfo={"img_shape": tuple(label.shape)})
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)
    values = model.loss(torch.from_numpy(images).double(), samples)
    losses = {name: value for name, value in values.items() if ".loss" in name}
    total = sum(losses.values())
    total.backward()
    norms = {
        name: significant(value.grad.norm())
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    after = {
        name: [significant(value.mean()), significant(value.std(correction=0))]
        for name, value in model.state_dict().items()
        if name.endswith(("running_mean", "running_var", ".bases"))
    }
    return {
        "batch": len(images),
        "losses": {name: significant(value) for name, value in losses.items()},
        "total_loss": significant(total),
        "grad_norms": norms,
        "running_after": after,
    }


def dump(document: Settings) -> str:
    """Format a document as JSON with one top-level entry a line."""
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in document.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(name: str, case: Case, folder: Path) -> None:
    """Compute one case and write its JSON and NPZ.

    Args:
        name: Stem of the files.
        case: The model.
        folder: Where to write.
    """
    seeded = seeded_module()
    model = build(case, seeded)
    case.ours["model"]["align_corners"] = case.align_corners
    images = seeded.seeded_images((1, 3, *SIZE), SEED)
    document = {
        "config": name,
        "model": case.theirs,
        "jaxseg": case.ours,
        "seed": SEED,
        "num_classes": CLASSES,
        "align_corners": case.align_corners,
        "input_shape": images.shape,
        "state_dict": [[key, tuple(value.shape)] for key, value in model.state_dict().items()],
    }
    arrays = evaluate(model, images)
    if case.batch:
        images = seeded.seeded_images((case.batch, 3, *SIZE), SEED + 1)
        labels = seeded.seeded_labels((case.batch, *SIZE), CLASSES, SEED + 1)
        document["train"] = train_step(model, images, labels)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(dump(document))
    np.savez_compressed(folder / f"{name}.npz", **arrays)


def main() -> None:
    """Write the named cases, or all."""
    known = cases()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=" ".join(known))
    parser.add_argument("--output", type=Path, default=FOLDER / "small")
    args = parser.parse_args()
    if unknown := set(args.names) - set(known):
        parser.error(f"unknown names: {', '.join(sorted(unknown))}")
    for name in args.names or known:
        write(name, known[name], args.output)
        print(name, flush=True)


if __name__ == "__main__":
    main()
