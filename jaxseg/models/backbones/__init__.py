"""Backbones: images [B, H, W, C] to feature maps, finest first. Each declares its channels and strides."""
