"""How fast resflax is beside the peers that people would write instead.

`python -m benchmarks --help` is the front; nothing here is imported by the package itself.
"""
