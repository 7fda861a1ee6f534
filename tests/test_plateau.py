"""`schedule=plateau`, against PyTorch's scheduler, and runs that follow and resume it."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.records import read_records

from resflax.data import load_dataset
from resflax.run.progress import RunProgress
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.run.trainer_state import TrainerState
from resflax.train import Trainer, Workdir, build, default_config, loop, make_schedule
from resflax.train.config import to_json_dict
from resflax.train.plateau import add_evaluation
from resflax.train.results import MEASURED

DIGITS = load_dataset("digits")
VALIDATED = dataclasses.replace(DIGITS, validation=DIGITS.test, eval_sets={"again": DIGITS.test})
RATE, DECAY, LOWEST = 0.1, 0.5, 0.02


@pytest.mark.parametrize("patience", [0, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_rates_are_those_of_pytorch(patience, threshold):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=DECAY, patience=patience, threshold=threshold, min_lr=LOWEST
    )
    rng = np.random.default_rng(patience)
    accuracies = np.minimum(0.3 + 0.02 * np.arange(30) + 0.1 * rng.standard_normal(30), 0.6)
    state, rates = TrainerState(), []
    for step, accuracy in enumerate([0.0, *accuracies.tolist()]):
        add_evaluation(state, [accuracy], step, patience=patience, threshold=threshold)
        theirs.step(accuracy)
        [reductions] = state.reductions(step + 1)
        schedule = make_schedule(
            "plateau", peak=RATE, steps=9, minimum=LOWEST, decay_rate=DECAY, reductions=reductions
        )
        rates.append(float(schedule(7)))
        assert rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    assert len(set(rates)) == 4  # 0.1, 0.05, 0.025 and the lowest


def test_warmup_is_not_reduced():
    rates = [
        float(make_schedule(
            "plateau", peak=RATE, steps=9, warmup_steps=4, decay_rate=DECAY, reductions=1,
        )(step)) for step in range(6)
    ]  # fmt: skip
    np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, 0.1, 0.05, 0.05], rtol=1e-6)


def make_config(**keys):
    config = default_config()
    config.batch_size, config.epochs, config.log_every_steps = 240, 5, 4  # 6 steps an epoch
    config.schedule, config.decay_rate, config.plateau_patience = "plateau", DECAY, 0
    config.learning_rate, config.min_learning_rate = RATE, LOWEST
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def make_trainer(config, accuracies=None, dataset=DIGITS):
    """Makes a trainer whose evaluations have the given accuracies, of each member."""
    trainer = Trainer(build(config, model=NormNet(), dataset=dataset))
    evaluate, given = trainer.evaluate, accuracies and iter(accuracies)

    def evaluate_and_change(*args):
        metrics = evaluate(*args)
        if given and "members" in metrics:
            metrics["members"]["accuracy"] = list(next(given))
        elif given:
            metrics["accuracy"] = next(given)
        return metrics

    trainer.evaluate = evaluate_and_change
    return trainer


def fit(path, trainer, interrupt=None):
    with Workdir.open(path, to_json_dict(trainer.config)) as workdir:
        return loop.fit(trainer, workdir, RunProgress(trainer.steps, silent=True), interrupt)


def rates_by_step(path, split="train"):
    return {r["step"]: r["learning_rate"] for r in read_records(path, split)}


def test_records_have_the_reduced_rates(tmp_path):
    """Evaluations at steps 6, 12, ..., 30; the one at step 6 is in the warm-up."""
    config = make_config(warmup_epochs=1.0)
    fit(tmp_path, make_trainer(config, [0.9, 0.5, 0.5, 0.6, 0.4]))
    assert rates_by_step(tmp_path, "test") == pytest.approx(
        {6: RATE, 12: RATE, 18: RATE, 24: RATE / 2, 30: RATE / 2}
    )
    assert rates_by_step(tmp_path)[20] == pytest.approx(RATE / 2)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
@pytest.mark.parametrize("size", [1, 2])
def test_step_has_the_rate_of_the_state(optimizer, size):
    """The first update is proportional to the rate, also where momentum includes it."""
    members = {"ensemble__size": 2, "ensemble__learning_rate": (RATE, 2 * RATE)}
    keys = {"optimizer": optimizer, "weight_decay": 0.0, "min_learning_rate": 0.0}
    trainer = make_trainer(make_config(**keys, **(members if size == 2 else {})))
    engine, start, updates = trainer.engine, trainer.init(), []
    for reductions in (0, 3):
        count = np.int32([reductions, 0] if size == 2 else reductions)
        state = engine.put_state(dataclasses.replace(jax.device_get(start), reductions=count))
        new = engine.to_host(trainer.make_step_fn(0)(state)[0])
        assert (new.reductions == count).all()
        updates.append(jax.tree.map(lambda a, b: np.asarray(b - a), start.params, new.params))
    factors = np.array([DECAY**3, 1.0]) if size == 2 else DECAY**3
    for a, b in zip(*map(jax.tree.leaves, updates), strict=True):
        expected = (a.T * factors).T
        np.testing.assert_allclose(b, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"steps_per_call": 5, "parallel": "mesh"},
        {"ensemble__size": 2, "ensemble__learning_rate": (RATE, RATE / 4), "optimizer": "adamw"},
    ],
)
def test_resumed_run_has_the_same_bits(tmp_path, keys, monkeypatch):
    """Interrupted before, at and after the evaluations that reduce the rate of step 13 on."""
    config = make_config(plateau_threshold=5.0, **keys)

    def start(name, interrupt=None):
        return fit(tmp_path / name, make_trainer(config, dataset=VALIDATED), interrupt)

    expected = start("expected")
    assert min(rates_by_step(tmp_path / "expected").values()) == pytest.approx(LOWEST)
    after_call = loop.TrainingLoop._after_call
    for last in (4, 12, 19):
        interrupt = Interrupt()

        def stop(self, state, step, last=last, interrupt=interrupt):
            interrupt.received = 15 * (step >= last)
            return after_call(self, state, step)

        with monkeypatch.context() as patch:
            patch.setattr(loop.TrainingLoop, "_after_call", stop)
            with pytest.raises(InterruptedRunError):
                start("run", interrupt)
    results = start("run")
    assert results["params_sha256"] == expected["params_sha256"]
    records = [
        [{k: v for k, v in r.items() if k not in MEASURED} for r in read_records(tmp_path / name)]
        for name in ("expected", "run")
    ]
    assert records[0] == records[1]


def test_run_without_validation_split_says_what_it_follows():
    def notes(dataset, **keys):
        run = build(make_config(**keys), model=NormNet(), dataset=dataset)
        return [line for line in run.notes if line.startswith("schedule=plateau")]

    assert len(notes(DIGITS)) == 1
    assert notes(VALIDATED) == []
    assert notes(DIGITS, schedule="cosine", plateau_patience=10, decay_rate=0.1) == []
