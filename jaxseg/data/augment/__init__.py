"""Augmentation: crop geometry and flips (transforms.py), colours (photometric.py)."""
