"""Runs every test on eight virtual CPU devices, with strict dtype promotion."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

# Imported after the environment variables are set, because these modules initialize JAX.
from helpers.conv_cases import CPU_BACKENDS  # noqa: E402

from resflax.kernels import conv_backend  # noqa: E402

THOROUGH = Path(__file__).with_name("thorough.txt")
# Regions of memory, of which each compiled program takes some: Linux allows a process 65,530.
MAX_REGIONS = 8_000


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help=f"run those of {THOROUGH.name} too")


def pytest_collection_modifyitems(config, items):
    """Deselects the tests of thorough.txt, unless all are asked for, or one of them is named."""
    if config.getoption("--thorough"):
        return
    named = tuple(arg.partition("::")[2] for arg in config.args if "::" in arg)
    lines = {line for line in THOROUGH.read_text().splitlines() if line.startswith("tests/")}
    deselected = [
        item
        for item in items
        if {item.nodeid, item.nodeid.split("[")[0]} & lines
        and not item.nodeid.partition("::")[2].startswith(named)
    ]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
    """Frees the programs of a module's tests before their memory has too many regions."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MAX_REGIONS:
        jax.clear_caches()


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    """Each CPU backend other than XLA in turn, set for everything that the test traces."""
    with conv_backend(request.param):
        yield request.param
