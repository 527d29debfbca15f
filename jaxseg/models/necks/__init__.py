"""Necks: feature maps to feature maps, between a backbone and its heads."""
