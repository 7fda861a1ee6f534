import importlib.metadata
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import needs_onednn
from helpers.conv_reference import assert_close, normal, reference
from hypothesis import assume, given, settings

from resflax.kernels import onednn

PLAIN = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}


def sizes(x, w, strides, padding, dilation, groups):
    """The shape of conv(x, w), from the shapes of x and w."""
    spans = [(k - 1) * d + 1 for k, d in zip(w[:2], dilation, strict=True)]
    room = [n + sum(p) - k for n, p, k in zip(x[1:3], padding, spans, strict=True)]
    return (x[0], *(r // s + 1 for r, s in zip(room, strides, strict=True)), w[3])


def check_readings(x, w, dtype=jnp.float32, tolerance=1e-5, **how):
    how = {**PLAIN, **how}
    y = sizes(x, w, **how)
    shapes = {"x": x, "w": w, "y": y}
    for reading, (a, b) in {"y": "xw", "x": "yw", "w": "xy"}.items():
        lhs, rhs = normal(shapes[a], dtype), normal(shapes[b], dtype, seed=1)
        found = onednn.convolve(reading, lhs, rhs, shapes[reading], **how)
        assert found.dtype == dtype
        assert_close(found, reference(reading, lhs, rhs, shapes[reading], **how), tolerance)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@needs_onednn
@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    size=pairs(1, 13),
    kernel=pairs(1, 5),
    widths=st.sampled_from([(1, 1), (3, 16), (16, 5), (17, 33), (32, 48), (1, 2)]),
    groups=st.sampled_from([1, 1, 2, 3, 8, 16]),
    strides=pairs(1, 3),
    padding=st.tuples(pairs(0, 3), pairs(0, 3)),
    dilation=pairs(1, 2),
)
def test_readings_are_those_of_float64(
    batch, size, kernel, widths, groups, strides, padding, dilation
):
    x = (batch, *size, groups * widths[0])
    w = (*kernel, widths[0], groups * widths[1])
    how = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    assume(min(sizes(x, w, **how)) > 0)
    check_readings(x, w, **how)


@needs_onednn
@pytest.mark.parametrize(
    ("x", "w", "how"),
    [
        ((2, 56, 56, 64), (1, 1, 64, 256), {"padding": ((0, 0), (0, 0))}),
        ((2, 28, 28, 128), (3, 3, 128, 128), {"strides": (2, 2)}),
        ((2, 65, 63, 3), (7, 7, 3, 64), {"strides": (2, 2), "padding": ((3, 3), (3, 3))}),
        ((4, 32, 32, 16), (3, 3, 16, 16), {}),
        ((2, 14, 14, 64), (3, 3, 1, 64), {"groups": 64}),
        ((2, 14, 14, 128), (3, 3, 4, 128), {"groups": 32, "strides": (2, 2)}),
    ],
)
def test_readings_at_the_sizes_of_networks(x, w, how):
    check_readings(x, w, **how)


@needs_onednn
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_readings_in_bfloat16(strides, groups):
    if not onednn.supports(jnp.bfloat16):
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    # Sums in float32 and one rounding to eight bits, of 72 to 1,000 products: 2^-8 of the largest.
    x, w = (4, 15, 15, 32), (3, 3, 32 // groups, 48)
    check_readings(x, w, jnp.bfloat16, 2**-8, strides=strides, groups=groups)


@needs_onednn
def test_only_two_dtypes_are_supported():
    assert onednn.supports(jnp.float32)
    assert not onednn.supports(jnp.float16)
    assert not onednn.supports(jnp.int32)


X, W, Y = (2, 7, 7, 8), (3, 3, 8, 24), (2, 7, 7, 24)


@needs_onednn
@pytest.mark.parametrize(
    ("reading", "a", "b", "shape"), [("y", X, W, Y), ("x", Y, W, X), ("w", X, Y, W)]
)
def test_members_are_convolved_one_by_one(reading, a, b, shape):
    lhs, rhs = normal((3, *a)), normal((3, *b))
    one = partial(onednn.convolve, reading, shape=shape, **PLAIN)
    together = onednn.convolve(reading, lhs, rhs, (3, *shape), **PLAIN)
    alone = jnp.stack([one(lhs[i], rhs[i]) for i in range(3)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(jax.vmap(one)(lhs, rhs), alone)


@needs_onednn
@pytest.mark.parametrize(
    ("reading", "a", "b", "shape"),
    [
        ("y", (0, 7, 7, 8), W, (0, 7, 7, 24)),
        ("x", (0, 7, 7, 24), W, (0, 7, 7, 8)),
        ("w", (0, 7, 7, 8), (0, 7, 7, 24), W),
        ("w", (2, 0, 7, 7, 8), (2, 0, 7, 7, 24), (2, *W)),
    ],
)
def test_a_batch_of_none(reading, a, b, shape):
    found = onednn.convolve(reading, jnp.ones(a), jnp.ones(b), shape, **PLAIN)
    np.testing.assert_array_equal(found, np.zeros(shape))


def square(x, w):
    return onednn.convolve("y", x, w, x.shape, **PLAIN)


@needs_onednn
def test_inside_jit_scan_and_pmap():
    n = jax.local_device_count()
    x, w = normal((n, 2, 9, 9, 16)), normal((3, 3, 16, 16)) / 12

    def twice(x, w):
        return jax.lax.scan(lambda x, _: (square(x, w), None), x, length=2)[0]

    how = {**PLAIN, "shape": x.shape[1:]}
    expected = [reference("y", reference("y", one, w, **how), w, **how) for one in x]
    found = jax.pmap(twice, in_axes=(0, None))(x, w)
    assert_close(found, np.stack(expected))
    assert_close(jax.jit(twice)(x[0], w), expected[0])


@needs_onednn
def test_many_threads_at_once():
    def job(i):
        x, w = normal((2, 5 + i % 4, 9, 16), seed=i), normal((3, 3, 16, 16), seed=i)
        return square(x, w), reference("y", x, w, x.shape, **PLAIN)

    with ThreadPoolExecutor(8) as pool:
        for found, expected in pool.map(job, range(64)):
            assert_close(found, expected)


@needs_onednn
@pytest.mark.parametrize(
    ("a", "b", "shape", "how", "message"),
    [
        (X, W, (2, 7, 8, 24), {}, "oneDNN: could not create"),
        (X, W, Y, {"groups": 0}, "groups must be positive"),
        (X, W, Y[1:], {}, "four axes"),
        ((3, *X), W, Y, {}, "number of members"),
    ],
)
def test_what_does_not_fit_is_an_error(a, b, shape, how, message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        onednn.convolve("y", normal(a), normal(b), shape, **{**PLAIN, **how})


@needs_onednn
def test_dtypes_that_differ_are_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="all float32 or all bfloat16"):
        onednn.convolve("y", normal(X), normal(W, jnp.bfloat16), Y, **PLAIN)


@needs_onednn
def test_it_is_found_inside_a_trace():
    @jax.jit
    def traced(x):
        assert onednn.why_not.__wrapped__() is None
        return x

    traced(1.0)


def compiler(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_onednn
def test_it_is_compiled_once(monkeypatch, tmp_path):
    real = onednn._command()[0]
    counting = compiler(tmp_path / "c++", f'echo >> {tmp_path}/calls; exec {real} "$@"')
    monkeypatch.setenv("CXX", counting)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert onednn._load(onednn._command()).ResflaxConvolve
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    assert [p.suffix for p in (tmp_path / "resflax").iterdir()] == [".so"]
    # A cache that cannot be written: a file stands in its place.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "calls"))
    assert onednn._load(onednn._command()).ResflaxConvolve


WHEEL_FILE = onednn._wheel_file


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """Finds everything anew, as if the wheels were installed and nothing was compiled."""
    monkeypatch.setattr(onednn, "_library", onednn._library.__wrapped__)
    monkeypatch.setattr(onednn, "_wheel_file", lambda wheel, name: tmp_path / "prefix" / name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(onednn.sys, "platform", "linux")
    monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def assert_missing(*words):
    reason = onednn.why_not.__wrapped__()
    assert reason is not None
    assert "\n" not in reason
    assert all(word in reason for word in words), reason


def test_without_the_wheel(afresh):
    def files(name):
        raise importlib.metadata.PackageNotFoundError(name)

    afresh.setattr(onednn, "_wheel_file", WHEEL_FILE)
    afresh.setattr(importlib.metadata, "files", files)
    assert_missing("not installed", 'pip install -e ".[cpu]"')


def test_with_a_wheel_that_lost_its_files(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(onednn._MissingError, match="lost its lib/libdnnl.so.3: pip install"):
        onednn._wheel_file("onednn-cpu-gomp", "lib/libdnnl.so.3")


def test_without_a_compiler(afresh):
    afresh.setenv("PATH", "")
    afresh.delenv("CXX", raising=False)
    assert_missing("C++ compiler", "apt install g++")


def test_with_a_compiler_that_fails(afresh, tmp_path):
    text = "echo warning: first >&2; echo x.cc:1: error: no such header >&2; exit 1"
    afresh.setenv("CXX", compiler(tmp_path / "bad-c++", text))
    assert_missing("bad-c++ could not compile onednn.cc: x.cc:1: error: no such header")
    assert not os.path.exists(tmp_path / "cache")


def test_with_a_library_that_does_not_load(afresh, tmp_path):
    writes = 'for last; do :; done; echo nonsense > "$last"'
    afresh.setenv("CXX", compiler(tmp_path / "odd-c++", writes))
    assert_missing("does not load")


def test_on_another_machine(afresh):
    afresh.setattr(onednn.platform, "machine", lambda: "arm64")
    assert_missing("needs Linux on x86_64")


def test_a_wrong_result_closes_the_road(monkeypatch):
    monkeypatch.setattr(onednn, "_library", lambda: None)
    monkeypatch.setattr(onednn, "convolve", lambda *args, **kwargs: jnp.zeros((1, 3, 1, 1)))
    assert_missing("computes")
