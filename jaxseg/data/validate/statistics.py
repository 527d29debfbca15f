"""Moved to `jaxseg.data.statistics`."""

from jaxseg.data.statistics import *  # noqa: F403
