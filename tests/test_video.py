"""The networks for clips against torchvision's."""

import numpy as np
import pytest
from helpers.networks import apply
from helpers.parity_inputs import draw_array

from resflax import create_model
from resflax.weights import from_torch, load_pretrained, save_file, to_torch
from resflax.weights.torch_reference import torch_logits
from resflax.zoo import get_spec

NAMES = ["r3d_18", "mc3_18", "r2plus1d_18"]


def torchvision_network(name):
    """Returns a network of torchvision with drawn weights, in evaluation mode, and its arrays."""
    torch = pytest.importorskip("torch")
    video = pytest.importorskip("torchvision.models.video")
    model = getattr(video, name)(num_classes=10).eval()
    arrays = {key: draw_array(key, array.shape) for key, array in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    return model, arrays


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_video_networks_match_torchvision(name):
    torch = pytest.importorskip("torch")
    model, arrays = torchvision_network(name)
    clips = np.random.default_rng(0).standard_normal((1, 6, 32, 40, 3)).astype(np.float32)
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(clips.transpose(0, 4, 1, 2, 3)))
        expected = model(x).numpy()
    spec = get_spec(name).override(num_classes=10)
    variables = from_torch(spec, arrays)
    tolerance = 1e-4 * np.abs(expected).max()
    actual = apply(create_model(spec), variables, clips)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    reference = torch_logits(spec, variables, clips)
    np.testing.assert_allclose(reference, expected, rtol=0, atol=tolerance)
    back = to_torch(spec, variables)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[key], array) for key, array in arrays.items())


@pytest.mark.slow
def test_video_weights_load_from_a_file(tmp_path):
    _, arrays = torchvision_network("mc3_18")
    save_file(tmp_path / "mc3.safetensors", arrays)
    weights = load_pretrained(tmp_path / "mc3.safetensors", model="mc3_18")
    assert (weights.model.spec.num_classes, weights.preprocess.channels) == (10, 3)
    kernel = weights.variables["params"]["stage4_block1"]["conv1"]["kernel"]
    expected = arrays["layer4.0.conv1.0.weight"].transpose(2, 3, 4, 1, 0)
    assert np.array_equal(kernel, expected)
