"""Runs every test on eight virtual CPU devices, with strict dtype promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

# Imported after the environment variables are set, because these modules initialize JAX.
from helpers.conv_cases import CPU_BACKENDS  # noqa: E402

from resflax.kernels import conv_backend  # noqa: E402


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    """Each CPU backend other than XLA in turn, set for everything that the test traces."""
    with conv_backend(request.param):
        yield request.param
