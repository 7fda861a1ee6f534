"""Assessment of ensembles: members, calibration, conformal sets and detection, batch by batch."""

from functools import partial

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from resflax.data import EvalTransform, StreamingSplit
from resflax.data.array_source import ArraySource
from resflax.data.in_memory import InMemorySplit
from resflax.evaluate import calibrated, ood
from resflax.evaluate.assess import HELD_OUT, SPLIT_HALVES, Request, assess
from resflax.evaluate.classes import make_label_map
from resflax.evaluate.run import Reduction, evaluate_split
from resflax.evaluate.summary import join_names, summarize_members, summarize_system
from resflax.evaluate.views import Views
from resflax.metrics import (
    apply_temperature,
    bootstrap_interval,
    classification_metrics,
    fit_temperature,
    log_mean_probability,
    log_softmax,
    make_systems,
    means,
)

CLASSES, MEMBERS, SIDE = 4, 3, 2
NAMES = ("runs/x#0", "runs/x#1", "runs/x#2")


def make_source(count, seed):
    """Images of noise, with labels that the pixels determine up to noise."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)
    noisy = images.reshape(count, -1) + rng.normal(0, 60, (count, CLASSES))
    split = InMemorySplit(images, noisy.argmax(-1).astype(np.int32))
    return ArraySource("noise", split, tuple("abcd"[:CLASSES]))


def member_logits(images, indices=None, classes=CLASSES):
    """Returns logits of three members, too confident ones: the pixels plus errors of their own."""
    pixels = np.asarray(images, np.float64).reshape(len(images), -1) / 20
    weights = np.random.default_rng(5).normal(0, 0.3, (MEMBERS, CLASSES, CLASSES))
    logits = pixels @ (np.eye(CLASSES) + weights)
    return np.pad(logits, [(0, 0), (0, 0), (0, classes - CLASSES)])


def runner(source, batch_size=16, classify=member_logits, classes=CLASSES):
    """Returns a function that evaluates a source with a reduction."""
    transform = Views().transform(EvalTransform(size=(SIDE, SIDE), crop_pct=1.0))
    split = StreamingSplit(source, SIDE, 1, eval_transform=transform)
    label_map = make_label_map((), classes, source)
    return partial(evaluate_split, classify, split, Views(), label_map, batch_size=batch_size)


def log_p_of(source):
    return log_softmax(member_logits(source.split.images)), source.split.labels


TEST, HELD = make_source(301, 0), make_source(203, 1)
REQUEST = Request(NAMES, held_out=runner(HELD), alpha=0.1, ood=True)


@pytest.fixture(scope="module")
def assessment():
    return assess(runner(TEST), REQUEST)


@pytest.fixture(scope="module")
def values(assessment):
    return summarize_members(assessment, NAMES)


def assert_metrics(values, log_p, labels):
    expected = classification_metrics(log_p, labels)
    for key in ("accuracy", "top5", "nll", "brier", "ece", "adaptive_ece"):
        np.testing.assert_allclose(values[key], getattr(expected, key), rtol=1e-6, err_msg=key)
    parts = values["brier_decomposition"]
    brier = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    np.testing.assert_allclose(brier, expected.brier, rtol=1e-6)


def test_members_and_ensemble_have_metrics_of_their_own(values):
    log_p, labels = log_p_of(TEST)
    assert_metrics(values["ensemble"], log_mean_probability(log_p), labels)
    for member, own in zip(values["members"], log_p, strict=True):
        assert_metrics(member, own, labels)
    nll = [member["nll"] for member in values["members"]]
    np.testing.assert_allclose(values["members_mean"]["nll"], np.mean(nll))
    np.testing.assert_allclose(values["members_std"]["nll"], np.std(nll, ddof=1))
    gain = values["ensemble"]["minus_mean_member"]["nll"]
    np.testing.assert_allclose(gain["mean"], values["ensemble"]["nll"] - np.mean(nll))
    assert gain["interval"][0] < gain["mean"] < gain["interval"][1]


def test_mutual_information_is_the_difference_of_entropies(values):
    p = np.exp(log_p_of(TEST)[0])
    total = -(p.mean(0) * np.log(p.mean(0))).sum(-1).mean()
    expected = -(p * np.log(p)).sum(-1).mean()
    ensemble = values["ensemble"]
    np.testing.assert_allclose(ensemble["total_entropy"], total)
    np.testing.assert_allclose(ensemble["mutual_information"], total - expected, rtol=1e-6)


def test_temperatures_are_fitted_to_held_out_data(assessment, values):
    held_out, held_labels = log_p_of(HELD)
    log_p, labels = log_p_of(TEST)
    for own, fitted_to, measured in (
        (
            values["ensemble"]["calibrated"],
            log_mean_probability(held_out),
            log_mean_probability(log_p),
        ),
        (values["members"][1]["calibrated"], held_out[1], log_p[1]),
    ):
        temperature = fit_temperature(fitted_to, held_labels)
        np.testing.assert_allclose(own["temperature"], temperature, rtol=1e-5)
        expected = apply_temperature(measured, temperature)
        np.testing.assert_allclose(own["nll"], classification_metrics(expected, labels).nll)
    assert values["ensemble"]["calibrated"]["nll"] < values["ensemble"]["nll"]
    assert (assessment.calibration.data, assessment.calibration.examples) == (HELD_OUT, 203)


def test_halves_of_the_split_calibrate_each_other():
    """The metrics are means over five random splits."""
    result = assess(runner(TEST), Request(NAMES, cross_validate=True, alpha=0.1))
    calibration = result.calibration
    assert (calibration.data, calibration.examples) == (SPLIT_HALVES, 150)
    log_p, labels = log_p_of(TEST)
    ensemble, metrics, temperatures, nll = log_mean_probability(log_p), [], [], np.zeros((5, 301))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(301)
        first, second = np.sort(order[:151]), np.sort(order[151:])
        scaled = np.zeros_like(ensemble)
        for fitted_to, measured in ((first, second), (second, first)):
            temperatures.append(fit_temperature(ensemble[fitted_to], labels[fitted_to]))
            scaled[measured] = apply_temperature(ensemble[measured], temperatures[-1])
        metrics.append(classification_metrics(scaled, labels))
        nll[seed] = -scaled[np.arange(301), labels]
    values = summarize_system(result, 0, intervals=True)
    own = values["calibrated"]
    for key in ("accuracy", "nll", "brier", "ece", "adaptive_ece"):
        expected = np.mean([getattr(m, key) for m in metrics])
        np.testing.assert_allclose(own[key], expected, rtol=1e-5, err_msg=key)
    np.testing.assert_allclose(own["temperature"], np.mean(temperatures), rtol=1e-5)
    np.testing.assert_array_equal(calibration.scores(0)[3].label, labels)
    parts = own["brier_decomposition"]
    assert parts["reliability"] - parts["resolution"] + parts["uncertainty"] == pytest.approx(
        own["brier"]
    )
    low, high = bootstrap_interval(means(nll.mean(0)), 301)
    np.testing.assert_allclose(own["intervals"]["nll"], [low, high], rtol=1e-4)
    for key in ("accuracy", "nll", "brier", "aurc"):
        assert own["intervals"][key][0] < own[key] < own["intervals"][key][1], key
    coverage = [s.scores.sets[0]["lac"].covered.mean() for s in calibration.splits]
    np.testing.assert_allclose(values["conformal"]["lac"]["coverage"], np.mean(coverage))


def test_large_predictions_are_split_once(monkeypatch):
    monkeypatch.setattr(calibrated, "MAX_SPLIT_BYTES", 4 * 301 * MEMBERS * CLASSES * 2 + 1)
    result = assess(runner(TEST), Request(NAMES, cross_validate=True))
    assert len(result.calibration.splits) == 2
    monkeypatch.setattr(calibrated, "MAX_SPLIT_BYTES", 1)
    result = assess(runner(TEST), Request(NAMES, cross_validate=True))
    assert len(result.calibration.splits) == 1
    sizes = summarize_members(result, NAMES)
    calibrated_nll = sizes["ensemble"]["calibrated"]["nll"]
    np.testing.assert_allclose(sizes["size_curve"]["calibrated_nll"][-1], calibrated_nll, rtol=1e-6)


def test_results_do_not_depend_on_the_batch_size(values):
    request = REQUEST._replace(held_out=runner(HELD, 203))
    other = summarize_members(assess(runner(TEST, 301), request), NAMES)
    flat, structure = jax.tree.flatten(values)
    other_flat, other_structure = jax.tree.flatten(other)
    assert structure == other_structure
    for value, expected in zip(other_flat, flat, strict=True):
        assert value == (expected if isinstance(expected, str) else pytest.approx(expected))


def test_size_curve_ends_at_the_ensemble(values):
    curve, members = values["size_curve"], values["members"]
    assert curve["size"] == [1, 2, 3]
    np.testing.assert_allclose(curve["nll"][0], np.mean([m["nll"] for m in members]))
    np.testing.assert_allclose(curve["accuracy"][-1], values["ensemble"]["accuracy"])
    np.testing.assert_allclose(curve["nll"][-1], values["ensemble"]["nll"])
    calibrated_nll = values["ensemble"]["calibrated"]["nll"]
    np.testing.assert_allclose(curve["calibrated_nll"][-1], calibrated_nll, rtol=1e-6)


@pytest.mark.parametrize("data", [HELD_OUT, SPLIT_HALVES])
@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_conformal_sets_cover_the_label(method, data):
    """Within four standard deviations: of the held-out examples and of those that are covered."""
    source, held_out = make_source(4000, 2), make_source(2000, 3)
    request = Request(NAMES, cross_validate=True, alpha=0.2)
    if data == HELD_OUT:
        request = Request(NAMES, held_out=runner(held_out, 500), alpha=0.2)
    sets = summarize_system(assess(runner(source, 500), request), 0)["conformal"]
    deviation = np.sqrt(0.2 * 0.8 * (1 / 4000 + 1 / 2000))
    assert abs(sets[method]["coverage"] - 0.8) < 4 * deviation
    assert 0.8 < sets[method]["mean_size"] < CLASSES


def test_lac_sets_are_the_probable_classes(assessment):
    held_out, held_labels = log_p_of(HELD)
    scores = np.sort(1 - np.exp(log_mean_probability(held_out))[np.arange(203), held_labels])
    threshold = scores[int(np.ceil(204 * 0.9)) - 1]
    sets = 1 - np.exp(log_mean_probability(log_p_of(TEST)[0])) <= threshold + 1e-6
    [split] = assessment.calibration.splits
    np.testing.assert_array_equal(split.scores.sets[0]["lac"].size, sets.sum(-1))


def test_detection_is_that_of_scikit_learn(assessment):
    other = make_source(150, 4)
    other.split.images[:] = other.split.images % 8  # dark: the logits are almost equal
    systems = assessment.targets.systems
    reduction = Reduction(lambda rows: ood.score_rows(systems, rows))
    outside = runner(other)(reduction).examples
    found = ood.compare(systems, assessment.scored.ood, outside)
    logits = [member_logits(source.split.images) for source in (TEST, other)]
    p = [np.exp(log_mean_probability(log_softmax(part))) for part in logits]
    is_out = np.repeat([0, 1], [301, 150])
    expected = {
        "max_probability": [-part.max(-1) for part in p],
        "energy": [-np.log(np.exp(part).sum(-1)).mean(0) for part in logits],
        "entropy": [-(part * np.log(part)).sum(-1) for part in p],
    }
    for name, scores in expected.items():
        own, scores = found["scores"][name], np.concatenate(scores)
        np.testing.assert_allclose(own["auroc"], roc_auc_score(is_out, scores), rtol=1e-9)
        np.testing.assert_allclose(own["aupr"], average_precision_score(is_out, scores), rtol=1e-9)
        for key, (low, high) in own["intervals"].items():
            assert low <= own[key] <= high, (name, key)
    assert found["scores"]["entropy"]["auroc"] > 0.9
    assert "mutual_information" in found["scores"]
    assert "mutual_information" not in found["members_mean"]


def test_selected_members_are_a_system_of_their_own():
    result = assess(runner(TEST), REQUEST._replace(select=2))
    values = summarize_members(result, NAMES)["selected"]
    assert len(values["members"]) == 2
    log_p, labels = log_p_of(TEST)
    assert_metrics(values, log_mean_probability(log_p[values["members"]]), labels)
    held_out, held_labels = log_p_of(HELD)
    singles = [-own[np.arange(203), held_labels].mean() for own in held_out]
    assert int(np.argmin(singles)) in values["members"]
    assert values["where"] == f"runs/x#{values['members'][0]},{values['members'][1]}"


def test_selected_members_have_no_conformal_sets(values):
    """The held-out examples chose them: thresholds on the same examples miss more labels."""
    selected = summarize_members(assess(runner(TEST), REQUEST._replace(select=2)), NAMES)
    assert "conformal" not in selected["selected"]
    assert "temperature" in selected["selected"]["calibrated"]
    assert selected["ensemble"]["conformal"] == values["ensemble"]["conformal"]


def test_single_network_is_one_system():
    one = assess(
        runner(TEST, classify=lambda x, i: member_logits(x)[:1]),
        Request(("net",), held_out=runner(HELD, classify=lambda x, i: member_logits(x)[:1])),
    )
    assert [system.name for system in one.targets.systems] == ["net"]
    assert one.subsets is None
    log_p, labels = log_p_of(TEST)
    assert_metrics(summarize_system(one, 0), log_p[0], labels)


@pytest.mark.parametrize("classes", [CLASSES, 500])
def test_memory_of_the_split_does_not_grow_with_the_classes(classes):
    classify = partial(member_logits, classes=classes)
    source = make_source(64, 0)
    source.classes = ()
    evaluate = runner(source, classify=classify, classes=classes)
    sizes = {}
    for name, request in {
        "held out": Request(NAMES, held_out=evaluate, alpha=0.1, ood=True),
        "nothing": Request(NAMES),
    }.items():
        found = assess(evaluate, request).evaluated.examples
        sizes[name] = sum(leaf.nbytes for leaf in jax.tree.leaves(found)) / 64
    assert sizes["nothing"] < 800
    assert sizes["held out"] < 2000


def test_predictions_are_kept_in_single_precision():
    found = runner(TEST)(Reduction(calibrated.keep)).examples
    assert found.log_p.dtype == np.float32
    np.testing.assert_allclose(found.rows().log_p, log_p_of(TEST)[0], rtol=1e-6, atol=1e-6)


def test_systems_begin_with_what_was_asked_for():
    assert [system.members for system in make_systems("ab", (1,))] == [(0, 1), (0,), (1,), (1,)]
    assert [system.name for system in make_systems("a")] == ["a"]


def test_names_of_members_are_joined_by_run():
    assert join_names(["a#2", "b", "a#0", "c#x"]) == "a#2,0 b c#x"
