"""Knowledge distillation: closed forms, engines, and a run that resumes with its teacher."""

import dataclasses
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.modules import LinearClassifier, NormNet, random_batch, softmax
from helpers.networks import randomized, run, variables_of
from helpers.records import read_records

from resflax import UserError, create_model
from resflax.nn import identity, stack_params
from resflax.train import (
    Trainer,
    build,
    create_state,
    default_config,
    fit,
    make_engine,
    make_train_step,
)
from resflax.train.distill import Distillation, distillation_loss, feature_loss
from resflax.train.ensemble import member_config
from resflax.train.histograms import HistogramSource
from resflax.train.programs import run_programs
from resflax.train.teacher import Teacher, renormalize

SHAPE, OPTIMIZER, T = (2, 2, 1), optax.sgd(0.5), 2.0
TEACHER = {"params": {"kernel": np.random.default_rng(3).standard_normal((4, 3)).astype("f")}}


def teach(variables, images):
    return images.reshape(len(images), -1) @ variables["params"]["kernel"]


def make_state():
    state = create_state(LinearClassifier(), OPTIMIZER, 0, SHAPE)
    return dataclasses.replace(state, teacher=TEACHER)


def expected_gradient(state, batch, weight):
    """Returns the loss and the gradient of the kernel in float64."""
    x = batch["image"].reshape(len(batch["image"]), -1).astype(np.float64)
    z = x @ np.asarray(state.params["head"]["kernel"], np.float64)
    t = x @ TEACHER["params"]["kernel"]
    p, q, y = softmax(t / T), softmax(z / T), np.eye(3)[batch["label"]]
    soft = T**2 * (p * (np.log(p) - np.log(q))).sum(-1)
    hard = -(y * np.log(softmax(z))).sum(-1)
    error = (1 - weight) * (softmax(z) - y) + weight * T * (q - p)
    return ((1 - weight) * hard + weight * soft).mean(), x.T @ error / len(x)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2])
def test_distillation_equals_the_closed_form(weight, count):
    """The gradient is `T (softmax(z / T) - softmax(t / T))`; the teacher does not change."""
    state, batch = make_state(), random_batch()
    step = make_train_step(
        LinearClassifier(),
        OPTIMIZER,
        distillation=Distillation(teach, weight, T),
        grad_accum_steps=count,
    )
    new, metrics = jax.jit(step)(state, batch)
    loss, gradient = expected_gradient(state, batch, weight)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    kernels = (s.params["head"]["kernel"] for s in (state, new))
    np.testing.assert_allclose(next(kernels) - next(kernels), 0.5 * gradient, rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, new.teacher, TEACHER)


@pytest.mark.parametrize(
    ("name", "fsdp"), [("pmap", 1), ("mesh", 1), ("mesh", 2), ("shard_map", 1)]
)
def test_distillation_is_the_same_on_eight_devices(name, fsdp, monkeypatch):
    """With `fsdp` above 1, the teacher is divided over devices too."""
    monkeypatch.setattr("resflax.distributed.engines.MIN_SHARD_SIZE", 1)
    state, batch = make_state(), random_batch(16)
    engine = make_engine(name, fsdp=fsdp)
    kernel = engine.put_state(state).teacher["params"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (fsdp == 1) or name == "pmap"
    step = make_train_step(
        LinearClassifier(),
        OPTIMIZER,
        distillation=Distillation(teach, 0.3, T),
        axis_name=engine.axis_name,
    )
    new, metrics = engine.compile_train(step)(engine.put_state(state), engine.shard_batch(batch))
    loss, gradient = expected_gradient(state, batch, 0.3)
    np.testing.assert_allclose(engine.to_host(metrics)["loss"], loss, rtol=1e-5)
    difference = state.params["head"]["kernel"] - engine.to_host(new).params["head"]["kernel"]
    np.testing.assert_allclose(difference, 0.5 * gradient, rtol=1e-4, atol=1e-6)


def test_teacher_sees_the_mixed_images():
    """Both networks have the same input: Beyer et al. 2021, figure 1, "function matching"."""
    seen = []

    def record(variables, images):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
        return teach(variables, images)

    def mix(keys, images, targets):
        return (images + images[::-1]) / 2, (targets + targets[::-1]) / 2

    step = make_train_step(
        LinearClassifier(),
        OPTIMIZER,
        augment=lambda keys, images: images[:, :, ::-1],
        normalize=lambda images: 3 * images,
        mix=mix,
        num_classes=3,
        distillation=Distillation(record, 1.0, T),
    )
    state, batch = make_state(), random_batch()
    jax.block_until_ready(step(state, batch))
    jax.effects_barrier()
    flipped = 3 * batch["image"][:, :, ::-1]
    np.testing.assert_allclose(seen[0], (flipped + flipped[::-1]) / 2, rtol=1e-6)


NARROW = {"widths": (4, 4, 8), "stem_width": 4, "norm": "frn_tlu", "num_classes": 3}
STUDENT, WIDE = (create_model("cifar_resnet8", **NARROW, depths=(n, 1, 1)) for n in (1, 3))
FEATURES = ("stage2", "pooled")


def teach_maps(variables, images):
    return WIDE.apply(variables, images, train=False, capture=FEATURES)


def feature_case(weight=0.3):
    """Returns the state, a batch, and loss and gradient of a feature distillation."""
    teacher = randomized(variables_of(WIDE, (1, 8, 8, 1)), 1)
    params = randomized(variables_of(STUDENT, (1, 8, 8, 1)), 2)["params"]
    state = create_state(STUDENT, OPTIMIZER, 0, (8, 8, 1), {"params": params})
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 8, 8, 1)).astype("f")
    batch = {"image": images, "label": rng.integers(0, 3, 16).astype("i")}
    taught, taught_maps = run(teach_maps, teacher, images)

    def loss(params):
        z, maps = STUDENT.apply({"params": params}, images, train=False, capture=FEATURES)
        errors = [((maps[name] - taught_maps[name]) ** 2).mean() for name in FEATURES]
        hard = -jnp.take_along_axis(jax.nn.log_softmax(z), batch["label"][:, None], 1).mean()
        soft = distillation_loss(z, taught, T).mean()
        return (1 - weight) * hard + weight * soft + 5 * sum(errors)

    return dataclasses.replace(state, teacher=teacher), batch, run(jax.value_and_grad(loss), params)


def check_feature_step(new, metrics, state, expected):
    loss, gradient = expected
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    changes = jax.tree.map(lambda a, b: (np.asarray(a) - b) / 0.5, state.params, new.params)
    assert_trees_close(changes, gradient, 1e-3)


def assert_trees_close(tree, other, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max()),
        tree,
        other,
    )


FEATURE_DISTILLATION = Distillation(teach_maps, 0.3, T, FEATURES, 5.0)


def test_feature_loss_equals_the_closed_form_in_float64():
    rng = np.random.default_rng(0)
    shapes = {"stage2": (5, 4, 4, 3), "pooled": (5, 7)}
    x, t = ({k: rng.standard_normal(s) for k, s in shapes.items()} for _ in range(2))
    expected = sum(((x[k] - t[k]) ** 2).reshape(5, -1).mean(1) for k in shapes)
    maps = [{k: jnp.float32(v) for k, v in tree.items()} for tree in (x, t)]
    np.testing.assert_allclose(feature_loss(*maps), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "weight"), [(1, 0.3), (2, 0.3), (1, 0.0)])
def test_features_are_learned_besides_logits_and_labels(count, weight):
    state, batch, expected = feature_case(weight)
    distillation = FEATURE_DISTILLATION._replace(weight=weight)
    step = make_train_step(STUDENT, OPTIMIZER, distillation=distillation, grad_accum_steps=count)
    check_feature_step(*run(step, state, batch), state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_features_are_the_same_on_eight_devices(name):
    state, batch, expected = feature_case()
    engine = make_engine(name)
    step = make_train_step(
        STUDENT, OPTIMIZER, distillation=FEATURE_DISTILLATION, axis_name=engine.axis_name
    )
    new, metrics = engine.compile_train(step)(engine.put_state(state), engine.shard_batch(batch))
    check_feature_step(engine.to_host(new), engine.to_host(metrics), state, expected)


@pytest.mark.slow
def test_features_of_stacked_blocks_are_the_same():
    batch, features = feature_case()[1], (*FEATURES, "stage1_block3")
    variables, teacher = (randomized(variables_of(WIDE, (1, 8, 8, 1)), seed) for seed in (2, 1))
    teach = partial(WIDE.apply, train=False, capture=features)
    distillation = Distillation(teach, 0.3, T, features, 5.0)

    def take_step(model, variables):
        state = create_state(model, OPTIMIZER, 0, (8, 8, 1), variables)
        state = dataclasses.replace(state, teacher=teacher)
        return run(make_train_step(model, OPTIMIZER, distillation=distillation), state, batch)

    plain, metrics = take_step(WIDE, variables)
    stacked, others = take_step(WIDE.clone(scan=True, remat=True), stack_params(variables))
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-5)
    assert_trees_close(stacked.params, stack_params(plain.params), 1e-4)


def test_steps_refuse_features_that_do_not_fit():
    state, batch, _ = feature_case()
    step = make_train_step(
        STUDENT, OPTIMIZER, distillation=FEATURE_DISTILLATION._replace(features=("stage1",))
    )
    with pytest.raises(UserError, match="feature stage1 of distill.features does not exist in the"):
        jax.eval_shape(step, state, batch)
    with pytest.raises(UserError, match=r"of a LinearClassifier cannot be distilled"):
        make_train_step(LinearClassifier(), OPTIMIZER, distillation=FEATURE_DISTILLATION)


def test_features_of_members_are_refused():
    """Those of the network and of the teacher, of which a step knows only the outputs."""
    members = create_model("cifar_resnet8", **NARROW, ensemble="batch", members=2)
    message = "of a network with members, batch, cannot be distilled"
    with pytest.raises(UserError, match=message) as e:
        make_train_step(members, OPTIMIZER, distillation=FEATURE_DISTILLATION)
    assert "\n" not in str(e.value)
    teacher = Teacher(members, {}, identity, "runs/x", "runs/x")
    with pytest.raises(UserError, match=message):
        teacher.check_features(FEATURE_DISTILLATION, STUDENT, (8, 8, 3))


def test_distillation_of_members_is_their_mean():
    rng = np.random.default_rng(0)
    members, t = rng.standard_normal((2, 4, 3)).astype("f"), rng.standard_normal((4, 3))
    expected = sum(distillation_loss(z, jnp.float32(t), T) for z in members) / 2
    np.testing.assert_allclose(distillation_loss(members, jnp.float32(t), T), expected, rtol=1e-5)


def test_images_are_normalized_for_the_teacher():
    rng = np.random.default_rng(0)
    raw = rng.random((2, 4, 4, 3))
    old, new = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    images = jnp.float32((raw - old[0]) / old[1])
    expected = (raw - new[0]) / new[1]
    np.testing.assert_allclose(renormalize(images, old=old, new=new), expected, atol=1e-5)
    assert renormalize(images, old=old, new=(list(old[0]), list(old[1]))) is images


def test_step_refuses_a_state_or_teacher_that_does_not_fit():
    def step(teacher):
        distillation = Distillation(teacher)
        return make_train_step(LinearClassifier(), OPTIMIZER, distillation=distillation)

    state = make_state()
    with pytest.raises(UserError, match="the state has no teacher"):
        step(teach)(dataclasses.replace(state, teacher={}), random_batch())
    with pytest.raises(UserError, match=r"logits have shape \(6, 2\), and those of the model"):
        step(lambda v, x: teach(v, x)[:, :2])(state, random_batch())


TINY = {"model": "cifar_resnet8", "spec.widths": (8, 8, 8), "spec.stem_width": 8, "batch_size": 256}


def run_config(**keys):
    config = default_config()
    config.update_from_flattened_dict(TINY | {"epochs": 1} | keys)
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a tiny run on the digits, with a normalization of its own."""
    path = tmp_path_factory.mktemp("teacher") / "run"
    fit(run_config(**{"data.mean": (0.5,), "data.std": (0.5,)}), path, silent=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("features", [None, "stage2, pooled"])
def test_run_distils_and_resumes_bit_for_bit(tmp_path, teacher, features):
    keys = {"distill.teacher": str(teacher), "schedule": "constant", "data.mixup": 0.2}
    keys["distill.features"] = features
    config = run_config(epochs=2, **keys)
    fit(run_config(epochs=1, **keys), tmp_path / "part", silent=True)
    resumed = fit(config, tmp_path / "part", silent=True)
    once = fit(config, tmp_path / "once", silent=True)
    assert resumed["params_sha256"] == once["params_sha256"]
    if features:
        losses = [record["loss"] for record in read_records(tmp_path / "once", "train")]
        assert losses[-1] < losses[0]
    else:
        assert resumed["test_loss"] < np.log(10)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_several_steps_per_call_distil_as_one_by_one(teacher, devices):
    """On 8 devices to rounding, see `test_steps_per_call`."""
    states = []
    for steps_per_call, counts in ((1, [1, 1, 1]), (8, [2, 1])):
        config = run_config(**{"distill.teacher": str(teacher), "steps_per_call": steps_per_call})
        run = build(config, model=NormNet(), devices=jax.devices()[:devices])
        step_fn = Trainer(run).make_step_fn(0)
        state = run.engine.put_state(run.with_teacher(run.init()))
        for count in counts:
            state, _ = step_fn(state, count)
        states.append(run.engine.to_host(state))
    assert states[0].step == 3
    tolerance = 0 if devices == 1 else 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), *states)
    jax.tree.map(np.testing.assert_array_equal, states[1].teacher, run.teacher.variables)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"ensemble.method": "map", "ensemble.member_devices": 1}])
def test_members_of_an_ensemble_distil_as_runs_alone(teacher, keys):
    keys = {
        "ensemble.size": 2, "ensemble.learning_rate": (0.05, 0.1), "distill.features": "pooled",
        "distill.teacher": str(teacher), "data.mixup": 0.2, "schedule": "constant", **keys,
    }  # fmt: skip

    def losses(config):
        run = build(config)
        state = run.engine.put_state(run.with_teacher(run.init()))
        step, found = Trainer(run).make_step_fn(0), []
        for _ in range(5):
            state, metrics = step(state)
            found.append(run.engine.to_host(metrics)["loss"])
        held = run.engine.to_host(state.teacher)
        jax.tree.map(np.testing.assert_array_equal, held, run.teacher.variables)
        return np.array(found)

    config = run_config(**keys)
    both = losses(config)
    for k in range(2):
        alone = member_config(config, k)
        alone.ensemble.method, alone.ensemble.member_devices = "auto", 0
        np.testing.assert_allclose(both[:, k], losses(alone), rtol=1e-4)


@pytest.mark.slow
def test_ensemble_distils_and_resumes_bit_for_bit(tmp_path, teacher):
    keys = {"distill.teacher": str(teacher), "schedule": "constant", "ensemble.size": 2}
    keys |= {"precise_bn_batches": 2}
    fit(run_config(epochs=1, **keys), tmp_path / "part", silent=True)
    resumed = fit(run_config(epochs=2, **keys), tmp_path / "part", silent=True)
    once = fit(run_config(epochs=2, **keys), tmp_path / "once", silent=True)
    assert resumed["params_sha256"] == once["params_sha256"]
    assert all(member["nll"] < np.log(10) for member in resumed["members"])


@pytest.mark.slow
def test_histograms_have_the_gradient_of_distillation(teacher):
    """It is what plain gradient descent subtracts from the parameters."""
    keys = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "learning_rate": 0.5}
    run = build(run_config(**{"distill.teacher": str(teacher)}, **keys))
    before = run.init()
    state = run.engine.put_state(run.with_teacher(before))
    arrays = HistogramSource(run)(state, 0)
    state, _ = Trainer(run).make_step_fn(0)(state, 1)
    after = run.engine.to_host(state).params
    changes = jax.tree.map(lambda a, b: np.asarray(a) - b, before.params, after)
    for path, change in flatten_dict(changes, sep="/").items():
        np.testing.assert_allclose(arrays[f"gradients/{path}"], change / 0.5, atol=1e-5)


@pytest.mark.slow
def test_members_share_the_teacher_of_the_compiled_step(teacher):
    run = build(run_config(**{"distill.teacher": str(teacher), "ensemble.size": 2}))
    program = next(p for p in run_programs(run) if p.name == "train")
    found = jax.tree.map(lambda x: x.shape, program.arguments[0].teacher)
    assert found == jax.tree.map(jnp.shape, run.teacher.variables)
    program.lower()


@pytest.mark.slow
def test_teacher_is_an_argument_of_the_compiled_step(teacher):
    """It is in the plan of a run, and neither in its checkpoints nor in its program."""
    run = build(run_config(**{"distill.teacher": str(teacher)}))
    program = next(p for p in run_programs(run) if p.name == "train")
    found = jax.tree.map(lambda x: x.shape[1:], program.arguments[0].teacher)  # of each device
    assert found == jax.tree.map(jnp.shape, run.teacher.variables)
    assert not run.abstract_state().teacher
    kernel = run.teacher.variables["params"]["head"]["kernel"]
    constants = re.findall(r"dense<\S*> : tensor<[^>]*>", program.lower().as_text())
    assert max(map(len, constants)) < 8 * kernel.size  # hexadecimal digits of its bytes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"distill.teacher": "runs/none"}, "runs/none"),
        ({"distill.teacher": "runs/x", "distill.weight": 0.0}, "weight is 0.0 without .*features"),
        ({"distill.temperature": 2.0}, "config.distill.teacher is ''"),
    ],
)
def test_teachers_are_checked_before_compute(keys, message):
    with pytest.raises(UserError, match=message):
        build(run_config(**keys))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("fake:8x8x1:100:256", "has 10 classes, and .* has 100 .*: expected a teacher of the same"),
        ("fake:2x2x1:10:256", "takes images of 3x3 or more, but those of .* are 2x2"),
    ],
)
def test_teachers_must_fit_classes_and_images(teacher, dataset, message):
    config = default_config()
    config.update_from_flattened_dict({"dataset": dataset, "distill.teacher": str(teacher)})
    with pytest.raises(UserError, match=message):
        build(config, model=NormNet())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("stage2", r"stage2 .* has shape \(4, 4, 16\) in the model and \(4, 4, 8\) in the"),
        ("stage9", "config.distill.features is 'stage9': .*'stage9' matches no module"),
    ],
)
def test_features_are_checked_before_compute(teacher, features, message):
    keys = {"distill.teacher": str(teacher), "distill.features": features}
    with pytest.raises(UserError, match=message):
        build(run_config(**keys, **{"spec.widths": (8, 16, 16)}))


@pytest.mark.slow
def test_changed_teacher_is_noticed_at_resume(tmp_path, teacher):
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    config = run_config(schedule="constant", **{"distill.teacher": str(copy)})
    fit(config, tmp_path / "run", silent=True)
    shutil.rmtree(copy)
    fit(run_config(seed=1), copy, silent=True)
    config.epochs = 2
    with pytest.raises(UserError, match="the teacher of the run in .* has changed: restore it"):
        fit(config, tmp_path / "run", silent=True)
