"""Studies that look into a network: responses, gradients, dropping, shortcuts, identity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resflax.cli import study as cli
from resflax.data import Dataset, InMemorySplit, load_dataset, normalize
from resflax.errors import UserError
from resflax.study import dropping, gradients, identity, nets, responses, shortcuts
from resflax.study import sweep as members
from resflax.study.layers import by_layer
from resflax.study.nets import from_run
from resflax.train import Progress, Trainer, Workdir, cross_entropy, default_config
from resflax.zoo import create_model


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    split = InMemorySplit(images, (np.arange(300) % 10).astype(np.int32))
    return Dataset("noise", split, split, tuple("0123456789"))


def network(name, **fields):
    """A network whose norms are no identities."""
    model = create_model(name, zero_init=False, scan=False, **fields)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)), train=False)
    rng = np.random.default_rng(2)

    def shaken(path, leaf):
        return leaf if path[-1].key == "kernel" else leaf + rng.uniform(0, 0.5, leaf.shape)

    changed = jax.tree_util.tree_map_with_path(shaken, variables)
    return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), changed)


# Responses.


def test_deviations_are_those_of_the_outputs_of_the_norms(noise):
    model, variables = network("cifar_resnet8", shortcut="B")
    found = responses.deviations(model, variables, noise)
    assert list(found) == ["stem_norm"] + [
        f"stage{i}_block1/norm{k}" for i in (1, 2, 3) for k in (1, 2)
    ]
    mean, std = noise.train.mean_std()
    x = normalize(jnp.asarray(noise.train.images), mean=mean, std=std)
    kernel = np.asarray(variables["params"]["stem_conv"]["kernel"], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(
        padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)
    )  # by hand, in float64
    norm, stats = variables["params"]["stem_norm"], variables["batch_stats"]["stem_norm"]
    y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
    assert found["stem_norm"] == pytest.approx(float(y.std()), rel=1e-4)


def test_layers_are_counted_as_numbers():
    tree = {f"stage1_block{i}": {"norm1": i} for i in (1, 2, 10)} | {
        "stem_norm": 0,
        "head_norm": 99,
    }
    assert [leaf for _, leaf in by_layer(tree)] == [0, 1, 2, 10, 99]


@pytest.mark.parametrize(
    ("plain", "residual", "said"),
    [
        ((2.0, 2.0), (1.0, 0.5), "are smaller than plain ones; deeper residual networks' are"),
        ((2.0, 2.0), (0.5, 1.0), "networks' are NOT smaller"),
        ((0.1, 2.0), (1.0, 0.5), "responses are NOT smaller"),
    ],
)  # fmt: skip
def test_the_claims_on_responses_can_fail(plain, residual, said):
    found = {
        f"cifar_{kind}{depth}": {"a": value, "b": value}
        for kind, values in (("plain", plain), ("resnet", residual))
        for depth, value in zip((20, 56), values, strict=True)
    }
    assert said in responses.judge(found, [20, 56])


# Dropping.


def test_a_dropped_residual_block_is_one_whose_branch_is_zero():
    model, variables = network("cifar_resnet20")
    x = jax.random.normal(jax.random.key(3), (4, 8, 8, 1))
    for stage, block in ((1, 1), (2, 2), (3, 3)):
        zeroed = jax.tree.map(lambda leaf: leaf, variables)
        norm = zeroed["params"][f"stage{stage}_block{block}"]["norm2"]
        norm["scale"], norm["bias"] = (jnp.zeros_like(norm[k]) for k in ("scale", "bias"))
        expected = model.apply(zeroed, x, train=False)
        less, moved = dropping.without(model, variables, stage, block)
        np.testing.assert_allclose(less.apply(moved, x, train=False), expected, atol=1e-5)


def test_errors_are_of_every_block_that_keeps_its_shape(noise):
    model, variables = network("cifar_plain14")
    found = dropping.errors(model, variables, noise)
    assert list(found["dropped"]) == [
        "stage1_block1",
        "stage1_block2",
        "stage2_block2",
        "stage3_block2",
    ]
    mean, std = noise.test.mean_std()
    x = normalize(jnp.asarray(noise.test.images), mean=mean, std=std)
    logits = model.apply(variables, x, train=False)
    wrong = np.mean(np.argmax(logits, -1) != noise.test.labels)
    assert found["whole"] == pytest.approx(100 * float(wrong), abs=1e-3)


def test_a_run_of_the_trainer_is_taken_apart_as_it_was_saved(tmp_path, monkeypatch):
    config = default_config()
    config.update({"model": "cifar_resnet14", "epochs": 1, "batch_size": 256, "scan": True})
    dataset = load_dataset("digits")
    model = create_model("cifar_resnet14", scan=True, num_classes=10)
    run = Workdir.open(tmp_path / "run", config)
    trainer = Trainer(model, dataset, config)
    results = trainer.fit(run, Progress(trainer.steps))
    name, net, found = from_run(tmp_path / "run")
    assert name == "cifar_resnet14"
    whole = dropping.errors(*net, found)["whole"]
    assert whole == pytest.approx(100 * (1 - results["test_accuracy"]), abs=1e-6)
    arguments = ["responses", f"--runs={tmp_path / 'run'}", f"--out={tmp_path / 'study'}"]
    cli.main(arguments)
    values = json.loads((tmp_path / "study" / "responses.json").read_text())["deviations"]
    assert [len(layers) for layers in values.values()] == [13]
    # What was measured on a run is not taken for what another run of that name would give.
    monkeypatch.setattr(nets, "params_sha256", lambda params: "other")
    with pytest.raises(UserError, match="holds a study with params_sha256"):
        cli.main(arguments)


# Gradients.


def test_gradient_norms_are_slopes_along_the_gradient(noise):
    found = gradients.norms("cifar_resnet8", noise, seeds=1, batch_size=32)
    assert list(found) == ["stem_conv/kernel"] + [
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

    along = jax.grad(loss)(kernel)
    along = along / jnp.linalg.norm(along)
    slope = (loss(kernel + 0.01 * along) - loss(kernel - 0.01 * along)) / 0.02
    expected = float(slope / jnp.linalg.norm(kernel))
    assert found["stage2_block1/conv1/kernel"] == pytest.approx(expected, rel=2e-2)


# Shortcuts.


def test_costs_are_the_closed_forms():
    cost = {
        option: shortcuts.cost(
            create_model("cifar_resnet20", shortcut=option, scan=False), (32, 32, 3)
        )
        for option in shortcuts.ORDER
    }
    parameters = {option: row["parameters"] for option, row in cost.items()}
    assert parameters["A"] == parameters["none"] == 3 * 97_216 - 21_926
    additions = 3 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64)
    assert cost["A"]["multiply_adds"] - cost["none"]["multiply_adds"] == additions // 2
    assert parameters["B"] - parameters["A"] == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    everywhere = 3 * 16 * 16 + 2 * (32 * 32 + 64 * 64) + 2 * (3 * 16 + 2 * (32 + 64))
    assert parameters["C"] - parameters["B"] == everywhere


def test_the_table_has_mean_and_range():
    row = {"parameters": 1000, "multiply_adds": 2000, "learning_rate": 0.1}
    text = shortcuts.table({"A": row | {"train_error": [1.0, 3.0], "test_error": [5.0, 5.0]}})
    assert text.splitlines()[-1] == (
        "| A | 1,000 | 2,000 | 0.1 | 2.00 (1.00 to 3.00) | 5.00 (5.00 to 5.00) |"
    )


# Identity.


def test_a_residual_stack_whose_branches_are_zero_errs_by_the_perturbation_alone():
    model = identity.Stack(3, "residual")
    x, t = identity.data("perturbed")
    variables = model.init(jax.random.key(0), x, train=False)
    blocks = variables["params"]["blocks"]
    zeros = {"scale": jnp.zeros((3, 16)), "bias": jnp.zeros((3, 16))}
    params = {"blocks": {**blocks, "norm2": zeros}}
    y = model.apply({**variables, "params": params}, x, train=False)
    np.testing.assert_array_equal(y, x)
    error = float(jnp.mean((y - t) ** 2) / jnp.mean(t**2))
    assert 1e-4 < error < 1e-2  # of the square of PERTURBATION


@pytest.mark.parametrize("kind", identity.SHORTCUTS)
def test_training_lowers_the_error_and_a_rate_of_zero_does_not(kind):
    _, t = identity.data("identity")

    @jax.jit
    def error(rate):
        model = identity.Stack(2, kind)
        found = identity.fit(model, t, rate=rate, seed=jnp.uint32(0), steps=50)
        return found["first"], found["error"]

    first, last = error(0.0)
    assert last == pytest.approx(float(first), rel=1e-4)
    first, last = error(0.01)
    assert last < 0.5 * first


MEASURES = (
    (members, "train_members"),
    (identity, "fit_all"),
    (gradients, "norms"),
    (responses, "deviations"),
    (dropping, "errors"),
    (shortcuts, "cost"),
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
def test_every_study_writes_its_picture_and_its_numbers(arguments, tmp_path, capsys, monkeypatch):
    cli.main([*arguments, f"--out={tmp_path}"])
    name = arguments[0]
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["settings"]
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.size[0] > 700
    assert f"{name}.png" in capsys.readouterr().out
    # A second start has everything: it only draws.
    (tmp_path / f"{name}.json").unlink()
    (tmp_path / f"{name}.png").unlink()
    for module, measure in MEASURES:
        monkeypatch.setattr(module, measure, lambda *args, **fields: pytest.fail("measured twice"))
    cli.main([*arguments, f"--out={tmp_path}"])
    assert json.loads((tmp_path / f"{name}.json").read_text()) == result
    assert (tmp_path / f"{name}.png").exists()
