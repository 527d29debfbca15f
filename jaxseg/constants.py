"""Values that several packages share and none of them owns."""

IGNORE = 255  # in labels: pixels that belong to no class and count nowhere
