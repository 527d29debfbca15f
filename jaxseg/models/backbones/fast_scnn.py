"""Fast-SCNN's two-branch backbone (arXiv:1902.04502), as corrected upstream (70.96 mIoU on Cityscapes)."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxseg.models.backbones.mobilenet_v2 import InvertedResidual
from jaxseg.models.layers import Layers


class FastSCNN(nn.Module):
    """Images [B, H, W, 3] to (higher [B, H/8, W/8, 64], lower [B, H/32, W/32, 128], fused [B, H/8, W/8, 128]).

    A shared, learned downsampling to 1/8 feeds a deep branch for context; both are added for the classifier.
    """

    layer: Layers
    downsample_channels: Sequence[int] = (32, 48)
    higher_channels: int = 64
    block_channels: Sequence[int] = (64, 96, 128)
    block_strides: Sequence[int] = (2, 2, 1)
    lower_channels: int = 128
    fusion_channels: int = 128

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the three outputs."""
        return (self.higher_channels, self.lower_channels, self.fusion_channels)

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input size over output size, for the three outputs."""
        return (8, 32, 8)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        layer, (first, second) = self.layer, self.downsample_channels
        ltd, gfe, ffm = "learning_to_downsample", "global_feature_extractor", "feature_fusion"
        x = layer.conv_norm_act(first, 3, stride=2, name=f"{ltd}.conv")(x, train=train)
        separable = dict(stride=2, depthwise_activation="identity")
        x = layer.separable_conv(second, **separable, name=f"{ltd}.dsconv1")(x, train=train)
        higher = layer.separable_conv(self.higher_channels, **separable, name=f"{ltd}.dsconv2")(
            x, train=train
        )

        x = higher
        for i, (features, stride) in enumerate(zip(self.block_channels, self.block_strides), 1):
            for j in range(3):
                x = InvertedResidual(
                    layer, features, stride if j == 0 else 1, name=f"{gfe}.bottleneck{i}.{j}"
                )(x, train=train)
        x = layer.pyramid_pool(x, x.shape[-1] // 4, (1, 2, 3, 6), train=train, name=f"{gfe}.ppm")
        lower = layer.conv_norm_act(self.lower_channels, 3, name=f"{gfe}.out")(x, train=train)

        x = layer.resize(lower, higher.shape[1:3])
        x = layer.conv_norm_act(self.fusion_channels, 3, groups=x.shape[-1], name=f"{ffm}.dwconv")(
            x, train=train
        )
        deep = layer.conv_norm_act(
            self.fusion_channels, 1, activation="identity", name=f"{ffm}.conv_lower_res"
        )(x, train=train)
        fine = layer.conv_norm_act(
            self.fusion_channels, 1, activation="identity", name=f"{ffm}.conv_higher_res"
        )(higher, train=train)
        return [higher, lower, nn.relu(deep + fine)]
