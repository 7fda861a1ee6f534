"""`resflax evaluate` against timm and torchvision, and on ImageNet's layouts."""

import copy
import csv
import json

import numpy as np
import pytest
from helpers.image_folders import write_folder
from PIL import Image

from resflax.cli.main import main
from resflax.data.imagenet import GROUND_TRUTH, development_kit_synsets, synsets

pytestmark = pytest.mark.slow
timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")
transforms = pytest.importorskip("torchvision.transforms")

CLASSES, SIZE = 5, 64
RESIZED = 72  # floor(SIZE / crop_pct)


def save_timm_model(folder, num_classes):
    """Saves timm's smallest ResNet with random weights, and returns it in evaluation mode."""
    torch.manual_seed(0)
    cfg = {"input_size": (3, SIZE, SIZE), "crop_pct": 0.88, "interpolation": "bicubic"}
    model = timm.create_model("test_resnet", num_classes=num_classes, pretrained_cfg_overlay=cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return model.eval()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A model, its folder, and a folder of images of two shapes."""
    root = tmp_path_factory.mktemp("timm")
    rng = np.random.default_rng(0)
    # Resized to 72x90 and 94x72. With odd margins torchvision's crop of the mirror image is not the
    # mirror of the crop, but one pixel beside it.
    shapes = [(80, 100, 3), (100, 76, 3)]
    files = {
        f"{'abcde'[i % 5]}/{i:02}.png": rng.integers(0, 256, shapes[i % 2], np.uint8)
        for i in range(12)
    }
    write_folder(root / "images", files)
    return save_timm_model(root / "model", CLASSES), root


def resize(side):
    return transforms.Resize(side, transforms.InterpolationMode.BICUBIC)


def probabilities(model, images):
    """Returns the mean probabilities of a list of PIL images."""
    config = model.pretrained_cfg
    normalize = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    )
    with torch.inference_mode():
        logits = [model(normalize(image)[None])[0] for image in images]
    return torch.stack(logits).double().softmax(-1).mean(0).numpy()


def with_mirrors(images):
    return [view for image in images for view in (image, transforms.functional.hflip(image))]


VIEWS = {
    "center": ([], lambda x: [transforms.CenterCrop(SIZE)(resize(RESIZED)(x))]),
    "flip": (
        ["--tta=flip"],
        lambda x: with_mirrors([transforms.CenterCrop(SIZE)(resize(RESIZED)(x))]),
    ),
    "ten crops": (["--crops=10"], lambda x: transforms.TenCrop(SIZE)(resize(RESIZED)(x))),
    "scales": (["--scales=48,80"], lambda x: [resize(48)(x), resize(80)(x)]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_give_the_probabilities_of_torch(case, name, tmp_path):
    model, root = case
    options, views_of = VIEWS[name]
    out = tmp_path / "predictions.csv"
    arguments = [str(root / "model"), f"--dataset=folder:{root / 'images'}", "--batch-size=5"]
    assert main(["evaluate", *arguments, f"--predictions={out}", *options]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        with Image.open(row["path"]) as image:
            expected = probabilities(model, views_of(image.convert("RGB")))
        assert int(row["prediction"]) == expected.argmax()
        top5 = np.array([float(p) for p in row["top5_probability"].split()])
        np.testing.assert_allclose(top5, np.sort(expected)[::-1], rtol=1e-4, atol=1e-6)
        label = int(row["label"])
        np.testing.assert_allclose(float(row["label_probability"]), expected[label], rtol=1e-4)


def test_test_time_pooling_gives_the_probabilities_of_timm(case, tmp_path):
    """Of images of 96 pixels: all windows of 2x2 of the feature map of 3x3."""
    model, root = case
    pooled = timm.layers.TestTimePoolHead(copy.deepcopy(model), original_pool=SIZE // 32).eval()
    pooled.pretrained_cfg = model.pretrained_cfg
    arguments = [str(root / "model"), f"--dataset=folder:{root / 'images'}", "--batch-size=5"]
    files = (f"--predictions={tmp_path / 'predictions.csv'}", f"--out={tmp_path}")
    arguments += ["--test-pool", "--size=96", "--crop-pct=1"]
    assert main(["evaluate", *arguments, *files]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["test_pool"] == [SIZE, SIZE]
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        with Image.open(row["path"]) as image:
            crop = transforms.CenterCrop(96)(resize(96)(image.convert("RGB")))
        expected = np.sort(probabilities(pooled, [crop]))[::-1]
        top5 = np.array([float(p) for p in row["top5_probability"].split()])
        np.testing.assert_allclose(top5, expected, rtol=1e-4, atol=1e-6)


TEST_POOL_ERRORS = {
    "same size": (["--test-pool"], "images larger than the model's own input size, 64x64"),
    "one larger side": (["--test-pool", "--size=64x96"], "and they have 64x96 here: expected a"),
    "scales": (["--test-pool", "--scales=96"], "--test-pool and --scales are both given"),
    "dropout": (["--test-pool", "--mc-dropout=3"], "--test-pool and --mc-dropout are both given"),
}


@pytest.mark.parametrize("name", TEST_POOL_ERRORS)
def test_invalid_test_time_pooling_is_refused(case, name, capsys):
    root = case[1]
    options, message = TEST_POOL_ERRORS[name]
    dataset = f"--dataset=folder:{root / 'images'}"
    assert main(["evaluate", str(root / "model"), dataset, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A model of 1,000 classes, and four images in a flat and in a synset folder."""
    root = tmp_path_factory.mktemp("imagenet")
    save_timm_model(root / "model", 1000)
    labels, rng = (65, 970, 230, 809), np.random.default_rng(0)
    for i, label in enumerate(labels, start=1):
        image = Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8))
        name = f"ILSVRC2012_val_{i:08}.JPEG"
        for folder in (root / "flat", root / "synsets" / synsets()[label]):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / name, quality=95)
    ids = [development_kit_synsets().index(synsets()[label]) + 1 for label in labels]
    (root / GROUND_TRUTH).write_text("\n".join(map(str, ids)) + "\n")
    (root / "valid.txt").write_text("\n".join(synsets()[label] for label in labels))
    real = [[label, 1] for label in labels]
    (root / "real.json").write_text(json.dumps(real))
    return root, labels


def evaluate(root, *arguments):
    """Evaluates the model; returns `evaluation.json` and the rows of the predictions."""
    out = root / "out"
    files = (f"--out={out}", f"--predictions={out / 'predictions.csv'}")
    assert main(["evaluate", str(root / "model"), *arguments, *files]) == 0
    with (out / "predictions.csv").open() as file:
        return json.loads((out / "evaluation.json").read_text()), list(csv.DictReader(file))


def test_flat_validation_folder_has_the_labels_of_its_synsets(imagenet):
    root, labels = imagenet
    ground_truth = f"--labels-file={root / GROUND_TRUTH}"
    real = f"--real-labels={root / 'real.json'}"
    values, rows = evaluate(root, f"--dataset=folder:{root / 'flat'}", ground_truth, real)
    assert [int(row["label"]) for row in rows] == list(labels)
    assert values["real_examples"] == values["examples"] == 4
    assert len(values["per_class"]) == 1000
    assert [i for i, count in enumerate(values["class_examples"]) if count] == sorted(labels)


def test_synset_folders_evaluate_on_a_subset(imagenet):
    root, labels = imagenet
    dataset = f"--dataset=folder:{root / 'synsets'}"
    values, rows = evaluate(root, dataset, f"--valid-labels={root / 'valid.txt'}")
    assert sorted(int(row["label"]) for row in rows) == sorted(labels)
    assert {int(row["prediction"]) for row in rows} <= set(labels)
    assert len(values["per_class"]) == 4
    np.testing.assert_allclose(
        [sum(map(float, row["top5_probability"].split())) for row in rows], 1, rtol=1e-6
    )


def test_synset_folders_without_valid_labels_are_refused(imagenet, capsys):
    root, _ = imagenet
    dataset = f"--dataset=folder:{root / 'synsets'}"
    assert main(["evaluate", str(root / "model"), dataset]) == 2
    assert "has 4 classes, the model 1000" in capsys.readouterr().err
