import pytest
import torch
from torch import nn

from deeplense.config import ModelConfig
from deeplense.errors import ModelError
from deeplense.models import backbone
from deeplense.models.compact import CompactNet

NAMES = [*backbone.OURS, *backbone.ARCHITECTURES]
# With three colours and 1,000 classes, as published: torchvision's and timm's tables, and the ConvNeXt V2 paper.
PUBLISHED_PARAMETERS = {
    "microsoft/resnet-18": 11_689_512,
    "microsoft/resnet-34": 21_797_672,
    "microsoft/resnet-50": 25_557_032,
    "facebook/convnextv2-atto-1k-224": 3_708_400,
    "facebook/convnextv2-femto-1k-224": 5_233_240,
    "facebook/convnextv2-tiny-1k-224": 28_635_496,
    "google/efficientnet-b0": 5_288_548,
}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_network_maps_images_to_logits_with_gradients_everywhere(name):
    torch.manual_seed(0)
    network = backbone.build(ModelConfig(name=name), 1, 3)
    logits = network(torch.randn(4, 1, 64, 64))
    assert logits.shape == (4, 3)
    assert logits.isfinite().all()
    assert logits.std(dim=0).min() > 1e-3, "the signal dies on its way"
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_architectures_are_the_published_ones(name, parameters):
    with torch.device("meta"):
        network = backbone.TransformersNet(backbone._architecture(ModelConfig(name=name), 3, 1000))
    assert count(network) == parameters


def test_compact_has_the_promised_size():
    assert 0.3e6 < count(CompactNet(1, 3)) < 0.5e6


def test_the_briefs_network_is_two_convolutions_then_dense_layers():
    network = backbone.build(ModelConfig(name="brief-cnn"), 3, 1)
    kinds = [type(part).__name__ for part in network.modules() if not list(part.children())]
    assert kinds.count("Conv2d") == 2 and kinds.count("Linear") == 2 and kinds.count("MaxPool2d") == 2
    # Weights and biases by hand: 3x3 kernels from 3 to 32 to 64 channels, 64 maps of 16x16 to 128 to 1.
    assert count(network) == (27 + 1) * 32 + (288 + 1) * 64 + (64 * 256 + 1) * 128 + 129


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 24, 30), (4, 101, 101), (3, 64, 64)])
def test_the_briefs_network_takes_any_image(shape):
    network = backbone.build(ModelConfig(name="brief-cnn"), shape[0], 1)
    assert network(torch.randn(2, *shape)).shape == (2, 1)
    if shape[-1] == 64:
        features = torch.randn(2, 64, 16, 16)
        assert torch.equal(network.grid(features), features), "at 64 pixels nothing is averaged"


def test_an_ensemble_averages_logits_or_log_probabilities():
    from deeplense.models.ensemble import Ensemble

    x = torch.randn(5, 1, 24, 24)
    for outputs in (1, 3):
        members = [backbone.build(ModelConfig(width=4), 1, outputs).eval() for _ in range(3)]
        answers = [member(x) for member in members]
        mean = Ensemble(members).eval()(x)
        if outputs == 1:
            torch.testing.assert_close(mean, sum(answers) / 3)
        else:  # the geometric mean of their probabilities
            product = (answers[0].softmax(1) * answers[1].softmax(1) * answers[2].softmax(1)) ** (1 / 3)
            torch.testing.assert_close(mean.softmax(1), product / product.sum(1, keepdim=True))


@pytest.mark.parametrize("name", ["brief-cnn", "compact", "resnet-18", "convnextv2-atto-1k-224", "efficientnet-b0"])
def test_first_and_last_layers_are_found(name):
    network = backbone.build(ModelConfig(name=name), 2, 5)
    first = network.state_dict()[backbone.first_convolution(network)]
    last = network.get_submodule(backbone.last_layer(network))
    assert first.shape[1] == 2 and last.out_features == 5


@pytest.mark.parametrize("name", ["resnet-18", "convnextv2-atto-1k-224"])
def test_a_stored_architecture_rebuilds_the_same_network(name):
    network = backbone.build(ModelConfig(name=name), 2, 4).eval()
    again = backbone.build(ModelConfig(name="gone/from-the-hub", pretrained=True), 2, 4, network.architecture).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 2, 48, 48)
    assert torch.equal(again(x), network(x))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A local folder as the hub would give it: a small colour network."""
    from transformers import AutoModelForImageClassification, ResNetConfig

    torch.manual_seed(1)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10)
    folder = tmp_path_factory.mktemp("published")
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("channels", [1, 2])
def test_pretrained_colour_weights_answer_alike_to_grey_images(published, channels):
    from transformers import AutoModelForImageClassification

    colour = AutoModelForImageClassification.from_pretrained(published).eval()
    ours = backbone.build(ModelConfig(name=str(published), pretrained=True), channels, 3).eval()
    grey = torch.randn(2, 1, 32, 32)
    expected = colour.resnet(grey.expand(-1, 3, -1, -1)).pooler_output
    found = ours.network.resnet(grey.expand(-1, channels, -1, -1)).pooler_output
    torch.testing.assert_close(found, expected)
    assert ours(grey.expand(-1, channels, -1, -1)).shape == (2, 3)


def test_what_cannot_be_had_is_a_model_error_that_says_what_to_do(monkeypatch, tmp_path):
    import transformers

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"local folder.*HF_HOME.*pretrained=false.*'microsoft/resnet-50'"):
        backbone.build(ModelConfig(name="microsoft/resnet-500"), 1, 3)
    with pytest.raises(ModelError, match="holds no image classifier"):
        backbone.build(ModelConfig(name=str(tmp_path)), 1, 3)
    with pytest.raises(ModelError, match=r"model\.init=RUN"):
        backbone.build(ModelConfig(pretrained=True), 1, 3)
