"""Data: what a data set holds (datasets), reading it (sources), augmentation (transforms), batches (pipeline)."""
