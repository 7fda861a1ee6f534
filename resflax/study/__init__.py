"""The experiments of He et al. (2015) and after, each one command: `python -m resflax study`."""
