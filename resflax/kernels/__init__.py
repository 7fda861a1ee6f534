"""Convolution and pooling primitives and their CPU backends."""

from resflax.kernels.backend import conv_backend as conv_backend
from resflax.kernels.backend import describe_backend as describe_backend
from resflax.kernels.conv import conv_general_dilated as conv_general_dilated
from resflax.kernels.pool import avg_pool as avg_pool
from resflax.kernels.pool import blur_pool as blur_pool
from resflax.kernels.pool import max_pool as max_pool
