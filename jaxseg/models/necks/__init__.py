"""Necks: feature maps to the same number of feature maps of the same sizes."""
