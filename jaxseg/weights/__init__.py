"""Weights: files, MMSegmentation's names, merging into a model, downloads."""
