"""Heat maps of networks whose answer is known, the formula by hand, every backbone, and maps over cropped images."""

import numpy as np
import pytest
import torch
from torch import nn

from deeplense.config import ModelConfig
from deeplense.data.transform import Preprocess, d4
from deeplense.errors import ConfigError, DataError, ModelError
from deeplense.evaluate.explain import heat_maps, unframe
from deeplense.evaluate.grad_cam import METHODS, find_layer, grad_cam
from deeplense.models import backbone
from deeplense.tasks import get
from toy import CLASSES, lens_set, tiny


def blob(size, row, column, width=2.0):
    """A bright spot at (row, column) of a dark image, shape (1, size, size)."""
    y, x = np.mgrid[:size, :size]
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2)).astype(np.float32)[None]


class BlobDetector(nn.Module):
    """Bright spots speak for the positive class, by weights that are set by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        with torch.no_grad():
            self.conv.weight[0], self.conv.weight[1] = 1 / 9, -1 / 9
            self.conv.bias[:] = torch.tensor([0.0, 0.5])

    def forward(self, x):
        bright, dark = torch.relu(self.conv(x)).mean(dim=(2, 3)).T
        return (3 * bright - dark)[:, None]


def peak(map_):
    return np.unravel_index(np.argmax(np.asarray(map_)), map_.shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("row", "column"), [(4, 5), (40, 8), (24, 24), (6, 41)])
def test_the_map_peaks_where_the_evidence_is(row, column, method):
    images = torch.from_numpy(np.stack([blob(48, row, column), blob(48, 47 - row, column)]))
    maps = grad_cam(BlobDetector(), images, method=method)
    assert maps.shape == (2, 48, 48)
    np.testing.assert_allclose(peak(maps[0]), (row, column), atol=1.5)
    np.testing.assert_allclose(peak(maps[1]), (47 - row, column), atol=1.5)
    # What speaks against it is the dark rest.
    against = grad_cam(BlobDetector(), images, target=0, method=method)
    assert against[0, row, column] < 0.05 * against[0].max()


def test_the_formula_by_hand():
    """alpha A summed over channels, with gradients from a network that is cut in two."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh())
    tail = nn.Sequential(nn.Flatten(), nn.Linear(5 * 12 * 12, 4))
    images = torch.randn(3, 3, 12, 12)
    activation = head(images).detach().requires_grad_()
    tail(activation)[:, 2].sum().backward()
    alpha = activation.grad.sum(dim=(2, 3)) / 144
    expected = {
        "grad-cam": torch.einsum("bk,bkij->bij", alpha, activation).clamp(min=0),
        "hires-cam": torch.einsum("bkij,bkij->bij", activation.grad, activation).clamp(min=0),
    }
    for method in METHODS:
        found = grad_cam(nn.Sequential(*head, *tail), images, target=2, method=method)
        torch.testing.assert_close(found, expected[method].detach())


def test_only_hires_cam_is_what_the_answer_loses_when_a_cell_is_covered():
    """A dense layer that likes light in one quarter and dislikes it elsewhere, with two blobs in the image."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(24 * 24, 1))
    liked = torch.full((24, 24), -1.0)
    liked[12:, :12] = 1.0
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[2].weight.copy_(liked.flatten()[None])
    image = torch.from_numpy(blob(24, 18, 5) + blob(24, 5, 18))[None]
    rows, columns = np.mgrid[:24, :24]
    covered = image.repeat(576, 1, 1, 1)
    covered[torch.arange(576), 0, rows.ravel(), columns.ravel()] = 0
    loss = (network(image) - network(covered)).reshape(24, 24).detach()
    torch.testing.assert_close(grad_cam(network, image, method="hires-cam")[0], loss.clamp(min=0), atol=1e-4, rtol=0)
    # On average light is disliked, so that this one sees nothing.
    assert not grad_cam(network, image, method="grad-cam").any()


def test_both_agree_where_a_mean_and_a_linear_layer_give_the_answer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    images = torch.randn(3, 1, 20, 20)
    torch.testing.assert_close(*(grad_cam(network, images, method=method) for method in METHODS))


def test_each_image_is_explained_by_itself():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 18, 3))
    network.train()
    images = torch.randn(4, 1, 20, 20)
    together = grad_cam(network, images)
    apart = torch.cat([grad_cam(network, image[None]) for image in images])
    torch.testing.assert_close(together, apart)
    assert network.training  # as before
    assert not network[1].num_batches_tracked  # no statistics were touched
    assert network[0].weight.grad is None


NAMES = ["compact", "resnet-18", "resnet-50", "facebook/convnextv2-atto-1k-224", "google/efficientnet-b0"]


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_has_a_map(name):
    torch.manual_seed(0)
    network = backbone.build(ModelConfig(name=name, width=8), 3, 1)
    images = torch.randn(2, 3, 64, 64)
    layer = find_layer(network, images)
    shapes = {}
    module = dict(network.named_modules())[layer]
    handle = module.register_forward_hook(lambda *given: shapes.update(map=given[2].shape))
    network.eval()(images)
    handle.remove()
    assert shapes["map"][2:] == (8, 8), layer  # the coarsest of 64 pixels that is fine enough
    maps = grad_cam(network, images)
    assert maps.shape == (2, 64, 64)
    assert maps.isfinite().all()
    assert (maps >= 0).all()


def test_a_branch_beside_a_shortcut_is_not_taken():
    """The last map of 8x8 is that of a convolution whose block has a shortcut of its own."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, stride=2, padding=1)

        def forward(self, x):
            return self.second(self.first(x)) + x[:, :, ::2, ::2]

    network = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), Block(), nn.Flatten(), nn.Linear(64, 1))
    assert find_layer(network, torch.randn(1, 1, 16, 16)) == "0"
    assert find_layer(nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.Flatten()), torch.randn(1, 1, 8, 8)) == "0"  # 4x4


def test_the_layer_can_be_named_and_mistakes_are_explained():
    network = backbone.build(ModelConfig(name="compact", width=8), 1, 3)
    images = torch.randn(2, 1, 64, 64)
    assert grad_cam(network, images, layer="stem").shape == (2, 64, 64)
    for layer, message in (("stam", "did you mean 'stem'"), ("head", "is no map")):
        with pytest.raises(ModelError, match=message):
            grad_cam(network, images, layer=layer)
    with pytest.raises(ConfigError, match="did you mean 'grad-cam'"):
        grad_cam(network, images, method="gradcam")
    with pytest.raises(ModelError, match="no class 3"):
        grad_cam(network, images, target=3)
    with pytest.raises(ModelError, match="nothing shows where"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 2)), images)


def test_a_network_of_frozen_weights_inside_inference_mode():
    network = BlobDetector().requires_grad_(False)
    with torch.inference_mode():
        maps = grad_cam(network, torch.from_numpy(blob(32, 9, 20)[None]))
    np.testing.assert_allclose(peak(maps[0]), (9, 20), atol=1.5)


def test_an_ensemble_is_the_mean_of_its_members():
    class Ensemble(nn.Module):
        def __init__(self, members):
            super().__init__()
            self.members = nn.ModuleList(members)

        def forward(self, x):
            return torch.stack([member(x) for member in self.members]).mean(dim=0)

    torch.manual_seed(0)
    members = [backbone.build(ModelConfig(name="compact", width=4), 1, 1) for _ in range(2)]
    images = torch.randn(2, 1, 32, 32)
    expected = (grad_cam(members[0], images) + grad_cam(members[1], images)) / 2
    torch.testing.assert_close(grad_cam(Ensemble(members), images), expected)


@pytest.mark.parametrize("element", range(8))
def test_frames_are_undone(element):
    """A map that is the prepared image itself comes back over the raw one: crop, resize, turn."""
    from deeplense.evaluate.explain import _turned_back

    raw = torch.from_numpy(blob(50, 22, 31, width=3.0))[None]
    preprocess = Preprocess((50, 50), crop=30, size=60)
    prepared = preprocess(raw)
    back = unframe(_turned_back(d4(prepared, element)[:, 0], element), preprocess, (50, 50))
    np.testing.assert_allclose(peak(back[0]), (22, 31), atol=1)
    inside = np.s_[12:38, 12:38]  # but for the rim, of which a resize knows only one side
    np.testing.assert_allclose(back[0][inside], raw[0, 0][inside], atol=0.05)
    assert not back[0, :10].any()
    assert not back[0, :, 40:].any()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A finder of blobs behind a crop, a resize and an average over all symmetries."""
    config = tiny(tmp_path_factory.mktemp("run"), "model.crop=32", "model.size=48", "model.average=d4")
    task = get("substructure")(config, CLASSES, 1, Preprocess((48, 48), crop=32, size=48))

    class Three(BlobDetector):
        def forward(self, x):
            z = super().forward(x)
            return torch.cat([torch.zeros_like(z), z, -z], dim=1)

    task.network = Three()
    return task.train()


def test_a_tasks_map_lies_over_the_raw_image(task):
    images = np.stack([blob(48, 15, 28), blob(48, 30, 12), np.zeros((1, 48, 48), np.float32)])
    maps = heat_maps(task, images, target=1, batch_size=2)
    assert maps.shape == (3, 48, 48)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(peak(maps[0]), (15, 28), atol=1.5)
    np.testing.assert_allclose(peak(maps[1]), (30, 12), atol=1.5)
    np.testing.assert_allclose(maps.max(axis=(1, 2))[:2], 1, atol=1e-6)
    assert not maps[2].any()  # nothing in it speaks for the class
    assert not maps[0, :7].any()  # cropped away
    assert task.training


def test_images_of_another_size_keep_their_own(task):
    maps = heat_maps(task, np.stack([blob(96, 30, 57, width=4.0)]), target=1)
    assert maps.shape == (1, 96, 96)
    np.testing.assert_allclose(peak(maps[0]), (30, 57), atol=3)


def test_the_likely_class_is_explained_where_none_is_named(task):
    images = np.stack([9 * blob(48, 15, 28, width=4.0), blob(48, 15, 28)])
    found = heat_maps(task, images)
    np.testing.assert_array_equal(found[0], heat_maps(task, images, target=1)[0])
    np.testing.assert_array_equal(found[1], heat_maps(task, images, target=2)[1])


def test_bad_images_and_none(task):
    assert heat_maps(task, lens_set(3).images[:0]).shape == (0, 24, 24)
    with pytest.raises(DataError, match="2 channels"):
        heat_maps(task, np.zeros((1, 2, 48, 48), np.float32))
