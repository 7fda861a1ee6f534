"""One training run on disk: workdir, checkpoints, records, signals, progress."""
