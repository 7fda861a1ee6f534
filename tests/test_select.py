"""Parameters and intermediate outputs selected by patterns of their names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import DenyList
from helpers.networks import randomized, run, variables_of

from resflax import UserError, create_model
from resflax.nn import ResNet, Spec, select, stack_params, unstack_params
from resflax.train import create_state
from resflax.train.eval_step import make_predict_step

IMAGES = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
SPEC = Spec((3, 2), (8, 16), "basic", "cifar", 8, num_classes=5)
MODEL = ResNet(SPEC)
VARIABLES = randomized(variables_of(MODEL, IMAGES.shape))
STACKED = jax.tree.map(np.asarray, stack_params(VARIABLES))
either = pytest.mark.parametrize("variables", [VARIABLES, STACKED], ids=["unrolled", "stacked"])


def names(variables, patterns):
    return set(select(variables, patterns).get())


@either
@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("stage[12]/*/conv1/kernel", {f"stage{i}_block{j}/conv1/kernel" for i, j in
                                      ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2))}),
        ("stage2_block2/norm1", {f"stage2_block2/norm1/{x}" for x in
                                 ("scale", "bias", "mean", "var")}),
        (["head", "stem_conv"], {"head/kernel", "head/bias", "stem_conv/kernel"}),
        ("stage2/block1/Ws, stem_c*", {"stage2_block1/Ws/kernel", "stem_conv/kernel"}),
    ],
)  # fmt: skip
def test_patterns_select_by_path(variables, patterns, expected):
    assert names(variables, patterns) == expected


@either
def test_set_changes_the_selected_arrays_only(variables):
    changed = select(variables, "stage1_block2").set(lambda x: 2 * x)
    assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, variables)
    before, after = unstack_params(variables), unstack_params(changed)
    for collection in ("params", "batch_stats"):
        for module, arrays in before[collection].items():
            factor = 2 if module == "stage1_block2" else 1
            jax.tree.map(
                lambda a, b, f=factor: np.testing.assert_array_equal(f * a, b),
                arrays, after[collection][module],
            )  # fmt: skip


def test_set_takes_numbers_and_arrays_by_path():
    selection = select(VARIABLES, "head")
    zero = selection.set(0)["params"]["head"]
    assert not zero["kernel"].any()
    ones = selection.set({"head/bias": np.ones(5)})["params"]["head"]
    np.testing.assert_array_equal(ones["kernel"], VARIABLES["params"]["head"]["kernel"])
    np.testing.assert_array_equal(ones["bias"], np.ones(5))
    assert select(VARIABLES["params"], "head").set(1)["head"]["bias"].sum() == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select(VARIABLES, "stgae1"), "pattern .stgae1. matches no parameter: expected "),
        (lambda: select(VARIABLES, "head").set({"stem": 1}), "stem is not selected by head"),
        (lambda: select(VARIABLES, "head/bias").set(np.ones(4)),
         r"head/bias has shape \(5,\): got a value of \(4,\)"),
        (lambda: select(VARIABLES, "head").set(1j), "head/.* has dtype float32: got a complex"),
        (lambda: select(VARIABLES, ""), "patterns is '': expected a name or pattern such as"),
        (lambda: select(VARIABLES, None), "patterns is None: expected a name or pattern"),
        (lambda: select(VARIABLES, "stem_norm/mean").freeze(), "matches no parameter, only stat"),
        (lambda: outputs(","), "capture is ',': expected a name or pattern such as 'stage1'"),
        (lambda: outputs((1,)), r"capture is \(1,\): expected a name or pattern"),
        (lambda: outputs((None,)), r"capture is \(None,\): expected a name or pattern"),
        (lambda: select(STACKED, "stage1_block2").freeze(), "matches stage1_block2/.*stacked"),
    ],
)  # fmt: skip
def test_error_is_one_line(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_mask_freezes_in_optax():
    mask = select(VARIABLES, "stage1, stem*").freeze()
    optimizer = optax.chain(optax.sgd(0.1), optax.transforms.freeze(mask))
    params = VARIABLES["params"]
    updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params))
    moved = {name for name, tree in updates.items() if jax.tree.leaves(tree)[0].any()}
    assert moved == {"stage2_block1", "stage2_block2", "head"}


@either
def test_reinitialize_draws_the_selected_arrays(variables):
    model = MODEL.clone(scan=variables is STACKED)
    fresh = jax.jit(lambda key: model.init(key, IMAGES, train=False))(jax.random.key(3))
    new = select(variables, "stage2, head").reinitialize(model, jax.random.key(3), IMAGES)
    assert names(new, "*") == names(variables, "*")
    expected = {**variables["params"]}
    expected |= {k: fresh["params"][k] for k in expected if k.startswith(("stage2", "head"))}
    jax.tree.map(np.testing.assert_array_equal, new["params"], expected)


def outputs(capture, model=MODEL, **options):
    variables = STACKED if model.scan else VARIABLES
    call = {"train": False, **options}
    return run(lambda v, x: model.apply(v, x, capture=capture, **call), variables, IMAGES)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan", [False, True])
def test_capture_returns_outputs_by_name(scan, remat):
    wanted = ("stem", "stage1_block2", "stage1", "stage2_block2/conv1", "pooled", "head")
    logits, found = outputs(wanted, MODEL.clone(scan=scan, remat=remat))
    assert set(found) == set(wanted)
    features = ResNet(SPEC, out_indices=(0, 1, 2))
    stem, stage1, stage2 = run(lambda v: features.apply(v, IMAGES, train=False), VARIABLES)
    for name, expected in (
        ("stem", stem), ("stage1", stage1), ("pooled", stage2.mean((1, 2))), ("head", logits),
    ):  # fmt: skip
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    assert found["stage1_block2"].shape == (2, 8, 8, 8)
    assert found["stage2_block2/conv1"].shape == (2, 4, 4, 16)


def test_capture_of_the_last_block_is_the_stage():
    _, found = outputs("stage1, stage1_block?", MODEL.clone(scan=True))
    assert sorted(found) == ["stage1", "stage1_block1", "stage1_block2", "stage1_block3"]
    np.testing.assert_array_equal(found["stage1_block3"], found["stage1"])


def test_capture_keeps_other_collections():
    (logits, state), found = outputs("pooled", train=True, mutable=["batch_stats"])
    assert set(state) == {"batch_stats"}
    assert (logits.shape, found["pooled"].shape) == ((2, 5), (2, 16))


def test_capture_of_an_unknown_name_is_refused():
    model = create_model("cifar_resnet8", num_classes=5)
    with pytest.raises(UserError, match="capture 'stage2_blok1' matches no module: did you mean"):
        jax.eval_shape(
            lambda v: model.apply(v, IMAGES, train=False, capture="stage2_blok1"),
            variables_of(model, IMAGES.shape),
        )


def loop(ops, x, channels):
    """A module in a loop of its own, whose intermediate outputs linen drops."""

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(x.shape[-1], name="inner")(x), None

    steps = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return steps(name="loop")(x, None)[0]


def twice(ops, x, channels):
    dense = nn.Dense(x.shape[-1], name="shared")
    return dense(dense(x))


@pytest.mark.parametrize(
    ("attention", "name", "message"),
    [
        (loop, "stage1_block1/loop/inner", "inner, whose output is not kept, as in an nn.scan of"),
        (twice, "stage1_block1/shared", "shared, which is called 2 times: capture a module that"),
    ],
)
def test_capture_of_an_output_that_is_not_one_is_refused(attention, name, message):
    model = ResNet(SPEC.override(depths=(1,), widths=(8,), attention=attention))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            lambda v: model.apply(v, IMAGES, train=False, capture=name),
            jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False)),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capture_intermediates": True}, "and capture_intermediates asks linen for them"),
        ({"mutable": "intermediates"}, "and mutable='intermediates' asks linen"),
        ({"mutable": ["batch_stats", "intermediates"]}, "asks linen for them: leave one of them"),
    ],
)
def test_capture_refuses_the_intermediates_of_linen(options, message):
    with pytest.raises(UserError, match=message):
        outputs("pooled", train=True, **options)


@pytest.mark.parametrize("mutable", [True, DenyList("params")])
def test_capture_takes_the_filters_of_linen(mutable):
    (_, state), found = outputs("pooled", train=True, mutable=mutable)
    assert set(state) == {"batch_stats"} | ({"params"} if mutable is True else set())
    assert set(found) == {"pooled"}


def test_prediction_step_returns_captured_outputs():
    state = create_state(MODEL, optax.sgd(0.1), 0, IMAGES.shape[1:], VARIABLES)
    batch = {"image": IMAGES, "label": np.zeros(2, np.int32), "weight": np.ones(2, np.float32)}
    results = jax.jit(make_predict_step(MODEL, capture=("stage1", "pooled")))(state, batch)
    logits, found = outputs(("stage1", "pooled"))
    np.testing.assert_allclose(results["logits"], logits, rtol=1e-5, atol=1e-5)
    for name in ("stage1", "pooled"):
        np.testing.assert_allclose(results[name], found[name], rtol=1e-5, atol=1e-5)
