"""Convolution and pooling primitives and their CPU backends."""
