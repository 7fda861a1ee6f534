"""Evaluation of a split: every example once, for any views, batch size and number of devices."""

import jax
import numpy as np
import pytest
from helpers.image_folders import write_folder

from resflax import UserError, create_model
from resflax.data import EvalTransform, StreamingSplit, load_split, normalize
from resflax.data.array_source import ArraySource
from resflax.data.in_memory import InMemorySplit
from resflax.evaluate.classes import make_label_map
from resflax.evaluate.classifier import Classifier
from resflax.evaluate.run import Reduction, evaluate_split
from resflax.evaluate.views import Views, resize_shorter_side
from resflax.metrics import log_softmax, score_examples

CLASSES = 5
CENTER = EvalTransform(size=(8, 8), crop_pct=0.8)


def linear_classifier(images, indices=None):
    """Returns logits that depend on position and color, and differ for the mirror image."""
    pixels = np.asarray(images, np.float64) / 255
    columns = np.linspace(0, 1, pixels.shape[2])[None, None, :, None]
    features = np.concatenate([(pixels * columns).mean((1, 2)), pixels.mean((1, 2))], -1)
    weights = np.random.default_rng(1).standard_normal((features.shape[-1], CLASSES))
    return [20 * features @ weights]  # one member


def make_source(count=23, shape=(10, 13, 3), classes=CLASSES):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    labels = rng.integers(0, classes, count, np.int32)
    return ArraySource("noise", InMemorySplit(images, labels), tuple("abcde"[:classes]))


# Scores of the first member, and the number of examples.
SCORES = Reduction(
    lambda rows: score_examples(rows.log_p[0], rows.labels),
    lambda rows: {"rows": len(rows.labels)},
)
CENTER_CROP = Views()


def evaluate(
    source, views=CENTER_CROP, batch_size=6, classify=linear_classifier, valid=(), **options
):
    label_map = make_label_map((), CLASSES, source, valid)
    split = StreamingSplit(source, 8, 3, eval_transform=views.transform(CENTER), **options)
    return evaluate_split(classify, split, views, label_map, SCORES, batch_size=batch_size)


def expected_probabilities(source, views_of):
    """Returns the mean probabilities of the views of each example, one view at a time."""
    means = []
    for i in range(len(source)):
        views = views_of(source.read(i, 3)[0])
        means.append(
            np.mean([np.exp(log_softmax(linear_classifier(v[None])[0][0])) for v in views], 0)
        )
    return np.stack(means)


def with_mirrors(images):
    return [view for image in images for view in (image, image[:, ::-1])]


VIEWS = {
    "center": (Views(), lambda x: [CENTER.apply(x)]),
    "flip": (Views(tta="flip"), lambda x: with_mirrors([CENTER.apply(x)])),
    "scales": (
        Views(scales=(8, 12)),
        lambda x: [resize_shorter_side(x, side, "bilinear") for side in (8, 12)],
    ),
    "scales and flip": (
        Views(scales=(8, 12), tta="flip"),
        lambda x: with_mirrors([resize_shorter_side(x, side, "bilinear") for side in (8, 12)]),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_average_the_probabilities(name):
    views, views_of = VIEWS[name]
    source = make_source()
    scores = evaluate(source, views).examples
    p = expected_probabilities(source, views_of)
    rows = np.arange(len(source))
    assert scores.prediction.tolist() == p.argmax(-1).tolist()
    np.testing.assert_allclose(scores.confidence, p.max(-1), rtol=1e-9)
    labels = source.split.labels
    np.testing.assert_allclose(np.exp(scores.label_log_probability), p[rows, labels], rtol=1e-9)


def test_ten_crops_average_ten_views():
    source = make_source(4)
    views = Views(crops=10)
    crops = views.transform(CENTER)
    p = expected_probabilities(source, lambda x: with_mirrors(list(crops.apply(x))))
    np.testing.assert_allclose(evaluate(source, views).examples.confidence, p.max(-1), rtol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 4, 23, 30])
@pytest.mark.parametrize("views", [Views(), Views(scales=(8,))], ids=str)
def test_every_example_counts_once_for_any_batch_size(batch_size, views):
    source = make_source()
    result = evaluate(source, views, batch_size)
    assert result.indices.tolist() == list(range(23))
    np.testing.assert_array_equal(result.examples.label, source.split.labels)
    reference = evaluate(source, views, 7)
    np.testing.assert_allclose(result.examples.confidence, reference.examples.confidence, rtol=1e-9)


def test_images_of_many_shapes_are_all_evaluated(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sides = rng.integers(8, 14, (30, 2))
    files = {
        f"{'abcde'[i % 5]}/{i:02}.png": rng.integers(0, 256, (*sides[i], 3), np.uint8)
        for i in range(30)
    }
    source = load_split(write_folder(tmp_path, files))
    monkeypatch.setattr("resflax.evaluate.log_probabilities.MAX_WAITING", 7)
    result = evaluate(source, Views(scales=(8, 10)), batch_size=2)
    assert result.indices.tolist() == list(range(30))
    p = expected_probabilities(
        source, lambda x: [resize_shorter_side(x, side, "bilinear") for side in (8, 10)]
    )
    np.testing.assert_allclose(result.examples.confidence, p.max(-1), rtol=1e-9)


def test_unreadable_files_are_skipped_and_counted(tmp_path):
    rng = np.random.default_rng(0)
    files = {
        f"{'abcde'[i % 5]}/{i:02}.png": rng.integers(0, 256, (9, 9, 3), np.uint8) for i in range(20)
    } | {"a/00.png": b"", "c/12.png": b"\x89PNG not an image"}
    source = load_split(write_folder(tmp_path, files))
    with pytest.raises(UserError, match="a/00.png: is empty.*--on-bad-example=skip"):
        evaluate(source)
    for views in (Views(), Views(scales=(8,))):
        result = evaluate(source, views, on_bad_example="skip")
        assert len(result.indices) == 18
        assert len(result.skipped) == 2
        skipped = {source.location(i) for i in set(range(20)) - set(result.indices.tolist())}
        assert {line.split(":")[0] for line in result.skipped} == skipped


def test_valid_labels_restrict_the_logits():
    source = make_source(classes=2)
    scores = evaluate(source, valid=("3", "1")).examples
    logits = linear_classifier(np.stack([CENTER.apply(x) for x in source.split.images]))[0][
        :, [3, 1]
    ]
    assert scores.prediction.tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(scores.confidence, np.exp(log_softmax(logits)).max(-1), rtol=1e-9)


def test_valid_labels_exclude_examples_of_other_classes():
    source = make_source()
    result = evaluate(source, valid=("3", "1"))
    labels = source.split.labels
    assert result.indices.tolist() == np.flatnonzero(np.isin(labels, (1, 3))).tolist()
    assert result.excluded == 23 - len(result.indices)
    assert result.sums["rows"] == len(result.indices)
    assert result.examples.label.tolist() == [{3: 0, 1: 1}[i] for i in labels[result.indices]]


def test_label_beyond_the_classes_is_an_error():
    source = make_source()
    source.classes = ()
    source.split.labels[5] = 7
    with pytest.raises(UserError, match=r"noise\[5\] has label 7: expected from 0 to 4"):
        evaluate(source)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(UserError, match="logits are not finite"):
        evaluate(make_source(), classify=lambda x, i: [linear_classifier(x)[0] * np.inf])


def test_split_without_examples_that_count_is_an_error():
    source = make_source()
    source.split.labels[:] = 0
    with pytest.raises(UserError, match="no example that counts"):
        evaluate(source, valid=("3", "1"))


def test_progress_counts_every_example():
    counts = []
    source = make_source()
    for views in (Views(), Views(scales=(8,))):
        split = StreamingSplit(source, 8, 3, eval_transform=views.transform(CENTER))
        label_map = make_label_map((), CLASSES, source)
        evaluate_split(
            linear_classifier,
            split,
            views,
            label_map,
            SCORES,
            batch_size=6,
            on_batch=counts.append,
        )
        assert sum(counts) == 23
        counts.clear()


def test_classifier_on_eight_devices_equals_the_model():
    """The devices share a batch, also one that they cannot share evenly."""
    model = create_model("cifar_resnet8", num_classes=CLASSES)
    images = make_source(11, (8, 8, 3)).split.images
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    classify = Classifier(model.spec, variables, mean=mean, std=std)
    assert len(classify.devices) == 8
    expected = model.apply(variables, normalize(images, mean=mean, std=std), train=False)
    np.testing.assert_allclose(np.asarray(classify(images))[:11], expected, rtol=1e-4, atol=1e-5)
