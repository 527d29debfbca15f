"""Constants that several packages share."""

IGNORE = 255  # label of pixels without a class, which losses and metrics ignore
