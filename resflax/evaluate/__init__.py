"""Evaluation of trained networks: test-time views, reports, figures."""
