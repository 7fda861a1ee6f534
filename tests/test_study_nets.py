"""Studies of single networks: responses, gradients, dropping, shortcuts, identity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resflax.cli import study as cli
from resflax.data import Dataset, InMemorySplit, normalize
from resflax.errors import UserError
from resflax.study import dropping, gradients, identity, nets, responses, shortcuts, sweep
from resflax.study.nets import leaves_by_layer, load_run
from resflax.train import cross_entropy, default_config, fit
from resflax.zoo import create_model


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    split = InMemorySplit(images, (np.arange(300) % 10).astype(np.int32))
    return Dataset("noise", split, split, tuple("0123456789"))


def make_network(name, **fields):
    """Returns a network whose norms have random scales, biases and statistics."""
    model = create_model(name, zero_init=False, scan=False, **fields)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)), train=False)
    rng = np.random.default_rng(2)

    def randomize(path, leaf):
        return leaf if path[-1].key == "kernel" else leaf + rng.uniform(0, 0.5, leaf.shape)

    randomized = jax.tree_util.tree_map_with_path(randomize, variables)
    return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), randomized)


# Responses.


@pytest.mark.slow
def test_response_deviations_match_numpy(noise):
    model, variables = make_network("cifar_resnet8", shortcut="B")
    deviations = responses.response_deviations(model, variables, noise)
    assert list(deviations) == ["stem_norm"] + [
        f"stage{i}_block1/norm{k}" for i in (1, 2, 3) for k in (1, 2)
    ]
    mean, std = noise.train.mean_std()
    x = normalize(jnp.asarray(noise.train.images), mean=mean, std=std)
    kernel = np.asarray(variables["params"]["stem_conv"]["kernel"], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(
        padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)
    )  # the convolution in float64
    norm, stats = variables["params"]["stem_norm"], variables["batch_stats"]["stem_norm"]
    y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
    assert deviations["stem_norm"] == pytest.approx(float(y.std()), rel=1e-4)


def test_leaves_by_layer_sorts_block_numbers_as_integers():
    tree = {f"stage1_block{i}": {"norm1": i} for i in (1, 2, 10)} | {
        "stem_norm": 0,
        "head_norm": 99,
    }
    assert [leaf for _, leaf in leaves_by_layer(tree)] == [0, 1, 2, 10, 99]


@pytest.mark.parametrize(
    ("plain", "residual", "message"),
    [
        ((2.0, 2.0), (1.0, 0.5), "plain ones; those of deeper residual networks are smaller"),
        ((2.0, 2.0), (0.5, 1.0), "networks are NOT smaller"),
        ((0.1, 2.0), (1.0, 0.5), "responses are NOT smaller"),
    ],
)  # fmt: skip
def test_response_claims_can_fail(plain, residual, message):
    deviations = {
        f"cifar_{kind}{depth}": {"a": value, "b": value}
        for kind, values in (("plain", plain), ("resnet", residual))
        for depth, value in zip((20, 56), values, strict=True)
    }
    assert message in responses.check_claims(deviations, [20, 56])


# Dropping.


@pytest.mark.slow
def test_dropped_residual_block_equals_a_zero_branch():
    model, variables = make_network("cifar_resnet20")
    x = jax.random.normal(jax.random.key(3), (4, 8, 8, 1))
    for stage, block in ((1, 1), (2, 2), (3, 3)):
        zeroed = jax.tree.map(lambda leaf: leaf, variables)
        norm = zeroed["params"][f"stage{stage}_block{block}"]["norm2"]
        norm["scale"], norm["bias"] = (jnp.zeros_like(norm[k]) for k in ("scale", "bias"))
        expected = model.apply(zeroed, x, train=False)
        shorter, renumbered = dropping.drop_block(model, variables, stage, block)
        actual = shorter.apply(renumbered, x, train=False)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.slow
def test_blocks_that_keep_their_shape_are_dropped(noise):
    model, variables = make_network("cifar_plain14")
    errors = dropping.measure_errors(model, variables, noise)
    assert list(errors["dropped"]) == [
        "stage1_block1",
        "stage1_block2",
        "stage2_block2",
        "stage3_block2",
    ]
    mean, std = noise.test.mean_std()
    x = normalize(jnp.asarray(noise.test.images), mean=mean, std=std)
    logits = model.apply(variables, x, train=False)
    wrong = np.mean(np.argmax(logits, -1) != noise.test.labels)
    assert errors["whole"] == pytest.approx(100 * float(wrong), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precise_bn_batches", [0, 2])
def test_load_run_returns_the_evaluated_network(tmp_path, monkeypatch, precise_bn_batches):
    config = default_config()
    config.update({"model": "cifar_resnet14", "epochs": 1, "batch_size": 256, "scan": True})
    config.precise_bn_batches = precise_bn_batches
    results = fit(config, tmp_path / "run", silent=True)
    net = load_run(tmp_path / "run")
    assert net.label == f"{tmp_path / 'run'}: cifar_resnet14"
    whole = dropping.measure_errors(net.model, net.variables, net.dataset)["whole"]
    assert whole == pytest.approx(100 * (1 - results["test_accuracy"]), abs=1e-6)
    arguments = ["responses", f"--runs={tmp_path / 'run'}", f"--out={tmp_path / 'study'}"]
    cli.main(arguments)
    values = json.loads((tmp_path / "study" / "responses.json").read_text())["deviations"]
    assert [len(layers) for layers in values.values()] == [13]
    # Results of a run are not reused for another run in the same workdir.
    monkeypatch.setattr(nets, "params_sha256", lambda params: "other")
    with pytest.raises(UserError, match=r"another config \(params_sha256.*, now 'other'\)"):
        cli.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the workdir of a run"),
        ('{"nonsense": 1}', "is not the workdir of a run"),
        ('{"dataset": "digits", "model": "x", "epochs": 1}', "no checkpoint in "),
        (
            '{"dataset": "digits", "model": "x", "epochs": 1, "nonsense": 1}',
            "is not the workdir of a run: .*nonsense",
        ),
    ],
)
def test_load_run_rejects_other_directories(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


# Gradients.


@pytest.mark.slow
def test_relative_gradients_match_finite_differences(noise):
    norms = gradients.relative_gradients("cifar_resnet8", noise, seeds=1, batch_size=32)
    assert list(norms) == ["stem_conv/kernel"] + [
        f"stage{i}_block1/conv{k}/kernel" for i in (1, 2, 3) for k in (1, 2)
    ]
    model = create_model("cifar_resnet8", scan=False, zero_init=False)
    mean, std = noise.train.mean_std()
    x = normalize(jnp.asarray(noise.train.images[:32]), mean=mean, std=std)
    variables = model.init(jax.random.key(0), x[:1], train=False)
    kernel = variables["params"]["stage2_block1"]["conv1"]["kernel"]

    @jax.jit
    def loss(w):
        params = {**variables["params"]}
        params["stage2_block1"] = {**params["stage2_block1"], "conv1": {"kernel": w}}
        logits, _ = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, noise.train.labels[:32]).mean()

    direction = jax.grad(loss)(kernel)
    direction = direction / jnp.linalg.norm(direction)
    slope = (loss(kernel + 0.01 * direction) - loss(kernel - 0.01 * direction)) / 0.02
    expected = float(slope / jnp.linalg.norm(kernel))
    assert norms["stage2_block1/conv1/kernel"] == pytest.approx(expected, rel=2e-2)


# Shortcuts.


@pytest.mark.slow
def test_model_cost_matches_closed_forms():
    cost = {
        option: shortcuts.model_cost(
            create_model("cifar_resnet20", shortcut=option, scan=False), (32, 32, 3)
        )
        for option in shortcuts.SHORTCUT_OPTIONS
    }
    parameters = {option: row["parameters"] for option, row in cost.items()}
    assert parameters["A"] == parameters["none"] == 3 * 97_216 - 21_926
    additions = 3 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64)
    assert cost["A"]["multiply_adds"] - cost["none"]["multiply_adds"] == additions // 2
    assert parameters["B"] - parameters["A"] == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    all_blocks = 3 * 16 * 16 + 2 * (32 * 32 + 64 * 64) + 2 * (3 * 16 + 2 * (32 + 64))
    assert parameters["C"] - parameters["B"] == all_blocks


def test_markdown_table_has_mean_and_range():
    row = {"parameters": 1000, "multiply_adds": 2000, "learning_rate": 0.1}
    text = shortcuts.markdown_table(
        {"A": row | {"train_error": [1.0, 3.0], "test_error": [5.0, 5.0]}}
    )
    assert text.splitlines()[-1] == (
        "| A | 1,000 | 2,000 | 0.1 | 2.00 (1.00 to 3.00) | 5.00 (5.00 to 5.00) |"
    )


# Identity.


@pytest.mark.slow
def test_residual_stack_with_zero_branches_is_the_identity():
    model = identity.Stack(3, "residual")
    x, target = identity.make_data("perturbed")
    variables = model.init(jax.random.key(0), x, train=False)
    blocks = variables["params"]["blocks"]
    zeros = {"scale": jnp.zeros((3, 16)), "bias": jnp.zeros((3, 16))}
    params = {"blocks": {**blocks, "norm2": zeros}}
    y = model.apply({**variables, "params": params}, x, train=False)
    np.testing.assert_array_equal(y, x)
    error = float(jnp.mean((y - target) ** 2) / jnp.mean(target**2))
    assert 1e-4 < error < 1e-2  # of the order of PERTURBATION**2


@pytest.mark.slow
@pytest.mark.parametrize("kind", identity.SHORTCUTS)
def test_fit_lowers_the_error_unless_the_rate_is_zero(kind):
    _, target = identity.make_data("identity")

    @jax.jit
    def error(rate):
        model = identity.Stack(2, kind)
        result = identity.fit(model, target, rate=rate, seed=jnp.uint32(0), steps=50)
        return result["first"], result["error"]

    first, last = error(0.0)
    assert last == pytest.approx(float(first), rel=1e-4)
    first, last = error(0.01)
    assert last < 0.5 * first


COMPUTATIONS = (
    (sweep, "train_sweep"),
    (identity, "fit_all"),
    (gradients, "relative_gradients"),
    (responses, "response_deviations"),
    (dropping, "measure_errors"),
    (shortcuts, "model_cost"),
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["identity", "--depths=1,2", "--steps=5", "--seeds=2"],
        ["gradients", "--depths=8,14", "--seeds=1", "--batch_size=16"],
        ["responses", "--depths=8", "--epochs=1", "--batch_size=256"],
        ["dropping", "--depth=14", "--epochs=1", "--batch_size=256"],
        ["shortcuts", "--depth=8", "--epochs=1", "--batch_size=512", "--seeds=1"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
@pytest.mark.slow
def test_study_writes_its_figure_and_its_result(arguments, tmp_path, capsys, monkeypatch):
    cli.main([*arguments, f"--out={tmp_path}"])
    name = arguments[0]
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["settings"]
    with Image.open(tmp_path / f"{name}.png") as figure:
        assert figure.size[0] > 700
    assert f"{name}.png" in capsys.readouterr().out
    # The second run finds every part finished: it only draws.
    (tmp_path / f"{name}.json").unlink()
    (tmp_path / f"{name}.png").unlink()
    for module, function in COMPUTATIONS:
        monkeypatch.setattr(module, function, lambda *args, **fields: pytest.fail("computed twice"))
    cli.main([*arguments, f"--out={tmp_path}"])
    assert json.loads((tmp_path / f"{name}.json").read_text()) == result
    assert (tmp_path / f"{name}.png").exists()
