"""Checks and reports of data sets."""
