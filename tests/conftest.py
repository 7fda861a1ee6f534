"""Every test runs on eight virtual CPU devices, with strict dtype promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

# After the environment is set: these import what reads it.
from helpers.conv_cases import FAST  # noqa: E402

from resflax.kernels import backend as roads  # noqa: E402


@pytest.fixture(params=FAST)
def road(request, monkeypatch):
    """Every fast road of the CPU in turn, taken by what the test traces."""
    monkeypatch.setattr(roads, "ROAD", request.param)
    return request.param
