"""Files of a training run, independent of models and trainer: checkpoints hold any pytree."""
