"""Weights: reading and writing files, MMSegmentation's names, merging into a model, downloads."""
