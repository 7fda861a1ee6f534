"""Imports go downward and have no cycles; importing the package is light; one place per concern."""

import ast
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "resflax"
LAYERS = {
    "errors": 1,
    "files": 1,
    "runtime": 1,
    "plotting": 1,
    "progress": 1,
    "data": 2,
    "kernels": 2,
    "metrics": 2,
    "distributed": 3,
    "nn": 4,
    "run": 4,
    "zoo": 5,
    "inference": 6,
    "weights": 6,
    "train": 7,
    "evaluate": 8,
    "export": 8,
    "plan": 8,
    "study": 9,
    "cli": 10,
    "__main__": 11,
}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


def name_of(path):
    return next(name for name, file in MODULES.items() if file == path)


def imported_modules(path):
    """Returns the modules of the package that a file imports, at any depth of its code.

    Imports inside functions and under `TYPE_CHECKING` are included.
    """
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from package import module` imports the module; other names are in the package.
            names = [
                full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        modules.update(name for name in names if name.split(".")[0] == "resflax")
    return modules


def layer(module):
    return LAYERS[module.split(".")[1]]


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path != PACKAGE / "__init__.py"],  # imports all layers, lazily
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_go_downward(path):
    own = name_of(path)
    for target in imported_modules(path):
        assert target != "resflax", f"{path} imports the top of the package"
        same = own.split(".")[1] == target.split(".")[1]
        below = layer(target) < layer(own) or layer(target) == layer(own) == 1
        assert same or below, f"{path} imports {target}"


def test_imports_have_no_cycle():
    graph = {name: imported_modules(path) - {name} for name, path in MODULES.items()}
    done = set()

    def visit(module, stack):
        assert module not in stack, " -> ".join([*stack[stack.index(module) :], module])
        if module in done:
            return
        for target in sorted(graph.get(module, ())):
            visit(target, [*stack, module])
        done.add(module)

    for module in graph:
        visit(module, [])


def test_packages_all_have_a_layer():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} == {
        "__init__",
        *LAYERS,
    }


def loaded_modules(code):
    """Returns the modules that a fresh interpreter has after running `code`."""
    command = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = {"tensorflow_datasets", "grain", "orbax", "matplotlib", "huggingface_hub", "optax", "torch"}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["resflax", "resflax.nn", "resflax.zoo", "resflax.kernels"])
def test_models_import_no_heavy_library(module):
    assert not loaded_modules(f"import {module}") & HEAVY


@pytest.mark.slow
def test_weights_import_no_heavy_library():
    assert not loaded_modules("import resflax.weights") & HEAVY


@pytest.mark.slow
def test_models_and_weights_import_without_fcntl():
    """As on Windows, where Python has no such module."""
    loaded_modules(
        "sys.modules['fcntl'] = None; import resflax.zoo, resflax.weights, resflax.run.workdir"
    )


@pytest.mark.slow
def test_package_imports_nothing_until_a_name_is_used():
    assert not loaded_modules("import resflax") & {"jax", "flax", "numpy"}
    assert "jax" in loaded_modules("import resflax; resflax.create_model")


def test_command_line_help_imports_no_jax():
    code = "from resflax.cli.main import main; assert main(['--help']) == 0"
    assert not loaded_modules(code) & {"jax", "flax", "numpy", "absl"}


def test_package_names_are_all_there():
    import resflax

    for name in resflax.__all__:
        assert getattr(resflax, name) is not None
        assert name in dir(resflax)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        resflax.nonsense  # noqa: B018


def test_import_leaves_the_allocator_alone():
    code = """
import ctypes
calls = []
ctypes.CDLL = lambda *args: calls.append(args)
import resflax, resflax.errors, resflax.runtime
resflax.UserError
assert not calls, calls
"""
    loaded_modules(code)


def test_sharding_code_is_in_the_distributed_package():
    # Except for the rule by which XLA partitions a convolution.
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("pmap", "shard_map", "device_put"))
        or (isinstance(node, ast.ImportFrom) and node.module == "jax.sharding")
    }
    expected = {"engines.py", "ensemble_engine.py", "member_program.py", "placement.py"}
    assert files == {"kernels/partition.py", *(f"distributed/{name}" for name in expected)}


def test_package_uses_no_mocks():
    for path in FILES:
        assert "unittest" not in path.read_text(), path


def test_exported_functions_shadow_no_module():
    """`resflax.train.fit` as a function must not hide a module of that name."""
    for name, path in MODULES.items():
        if path.name != "__init__.py":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    shadowed = f"{name}.{alias.asname or alias.name}"
                    assert shadowed not in MODULES, shadowed


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_preact_resnet8"])
def test_only_residual_adds_the_shortcut(name, monkeypatch):
    """Without the sum in `Residual`, a network is its plain twin."""
    from resflax import create_model
    from resflax.nn import resnet
    from resflax.nn.residual import Residual

    class WithoutSum(Residual):
        """Ignores the shortcut."""

        def __post_init__(self):
            self.shortcut = None
            super().__post_init__()

    model = create_model(name, zero_init=False)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    plain = create_model(name, zero_init=False, shortcut="none")
    variables = plain.init(jax.random.key(0), x, train=False)
    expected = plain.apply(variables, x, train=False)
    residual = model.apply(variables, x, train=False)
    assert not np.allclose(residual, expected)
    monkeypatch.setattr(resnet, "Residual", WithoutSum)
    np.testing.assert_array_equal(model.apply(variables, x, train=False), expected)
