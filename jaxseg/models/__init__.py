"""The model zoo.

model = create_model("pspnet_r50-d8", num_classes=19)
variables = init_variables(model, seed=0, image_shape=(1, 512, 1024, 3))
logits, out = model.apply(variables, images, train=False)
"""

from jaxseg.models.build import (
    BACKBONES,
    HEADS,
    NECKS,
    create_model,
    declared_fields,
    init_variables,
    list_models,
    variable_shapes,
)
from jaxseg.models.segmentor import Segmentor

__all__ = [
    "BACKBONES",
    "HEADS",
    "NECKS",
    "Segmentor",
    "create_model",
    "declared_fields",
    "init_variables",
    "list_models",
    "variable_shapes",
]
