"""Checks, reports and pictures of data sets."""
