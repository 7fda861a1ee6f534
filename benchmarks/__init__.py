"""Speed and memory benchmarks of resflax against PyTorch and plain Flax.

Run `python -m benchmarks --help`. The `resflax` package never imports this one.
"""
