"""Number of traces and compilations of a run, the compilation cache, and memory reuse."""

import os
import subprocess
import sys
from collections import Counter

import jax
import jax.monitoring
import pytest

from resflax.nn import ResNet
from resflax.runtime import enable_compilation_cache
from resflax.train import default_config, fit


@pytest.fixture
def compiled(caplog):
    """Returns a function that counts compilations so far by name."""
    with jax.log_compiles(), caplog.at_level("WARNING"):
        yield lambda: Counter(
            str(record.args[0])
            for record in caplog.records
            if str(record.msg).startswith("Compiling")
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "placement"), [("pmap", "host"), ("mesh", "host"), ("mesh", "device")]
)
def test_run_traces_and_compiles_each_step_once(
    parallel, placement, compiled, tmp_path, monkeypatch
):
    calls = Counter()
    forward = ResNet.__call__

    def counted(self, x, *, train):
        calls["train" if train else "other"] += 1
        return forward(self, x, train=train)

    monkeypatch.setattr(ResNet, "__call__", counted)
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 2, 48
    config.parallel, config.data.placement = parallel, placement
    # 48 divides neither split, so the last batches of training and evaluation are partial.
    fit(config, tmp_path / "run", silent=True)
    # The others: initialization, the multiply-adds in the summary, and evaluation.
    assert calls == {"train": 1, "other": 3}
    # Under `pmap`, JAX names the compiled function "_fun".
    names = {"pmap": ["jit(_fun)"], "mesh": ["jit(step_with_shardings)", "jit(step)"]}[parallel]
    assert sum(compiled()[name] for name in names) == 2


def test_compilation_cache_is_in_the_users_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert enable_compilation_cache() == tmp_path / "resflax" / "xla"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "resflax" / "xla")
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        assert enable_compilation_cache() is None
        assert jax.config.jax_compilation_cache_dir == "elsewhere"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_unwritable_cache_directory_is_not_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert enable_compilation_cache() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


REPEATED_CALLS = """
import resource
import resflax
resflax.tune_malloc()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: x * 2)
x = jnp.ones((2**24,))
for _ in range(40):  # warm up the heap
    f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(setting):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env |= {"RESFLAX_TUNE_MALLOC": setting, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", REPEATED_CALLS]
    return int(subprocess.run(command, capture_output=True, check=True, env=env, text=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_tuned_malloc_reuses_memory_between_steps():
    """Five calls with results of 64 MiB cause 16,384 page faults each if memory is returned.

    A tuned heap may still grow by a result or two because of fragmentation, but not at every call.
    """
    pages = 16_384
    assert page_faults("0") >= 5 * pages
    assert page_faults("1") < 3 * pages
