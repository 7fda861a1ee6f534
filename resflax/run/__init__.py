"""One training run on disk. Knows neither models nor the trainer: checkpoints hold any pytree."""
