"""Ahead-of-time plans: the steps of a run, compiled for accelerators that are not there."""
