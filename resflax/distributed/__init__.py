"""Data-parallel engines and multi-process set-up."""
