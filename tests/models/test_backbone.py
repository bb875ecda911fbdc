import pytest
import torch
from torch import nn

from deeplense.config import ModelConfig
from deeplense.errors import ModelError
from deeplense.models import backbone
from deeplense.models.compact import CompactNet

NAMES = ["compact", *backbone.ARCHITECTURES]
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
