"""Backbones map images [B, H, W, C] to a list of feature maps, finest first.

Each backbone declares its maps with the properties `channels` and `reductions` (input size divided
by output size), which have one number per map.
"""
