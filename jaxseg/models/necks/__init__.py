"""Necks map feature maps to the same number of feature maps, with the same sizes."""
