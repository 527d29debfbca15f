"""Backbones: images [B, H, W, C] to feature maps, finest first, of declared channels and strides.

A backbone has the properties `channels` and `reductions` (input size over output size), one number
for each map.
"""
