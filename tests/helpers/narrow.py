"""Width-reduced models: every layer of the published one, a fraction of its channels."""

from ml_collections import ConfigDict

BACKBONES = {
    "resnet": dict(base_channels=8, stem_channels=8),
    "resnest": dict(base_channels=8, stem_channels=8),
    "hrnet": dict(base_channels=4, stem_channels=8),
    "mobilenet_v2": dict(widen_factor=0.25),
    "mobilenet_v3": dict(widen_factor=0.25),
    "fast_scnn": dict(
        downsample_channels=(8, 12),
        higher_channels=16,
        block_channels=(16, 24, 32),
        lower_channels=32,
        fusion_channels=32,
    ),
    "cgnet": dict(widths=(8, 16, 32)),
}
FACTOR, LEAST = 8, 8
COUNTS = ("num_bases", "num_codes", "num_points")


def narrow(config: ConfigDict) -> ConfigDict:
    """A copy of an experiment's config with a narrow backbone, neck and heads; depth, strides and
    losses stay.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        model = config.model
        model.backbone.update(BACKBONES[model.backbone.name])
        for part in (model.neck, *model.heads.values()):
            for field, value in part.items():
                if field.endswith("channels") or field in COUNTS:
                    part[field] = (
                        tuple(map(_less, value)) if isinstance(value, tuple) else _less(value)
                    )
    return config


def _less(width: int) -> int:
    return max(width // FACTOR, LEAST)
