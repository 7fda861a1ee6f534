"""Experiments of He et al. (2015) and follow-up papers, one module each; see `resflax study`.

A study module has `add_arguments(parser)` and `run(args)`.
"""
