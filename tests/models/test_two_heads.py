import pytest
import torch

from deeplense.config import ModelConfig
from deeplense.errors import ModelError
from deeplense.models import backbone, two_heads


@pytest.mark.parametrize("name", ["compact", "brief-cnn", "resnet-18", "convnextv2-atto-1k-224", "efficientnet-b0"])
def test_any_backbone_carries_both_heads_with_gradients_everywhere(name):
    torch.manual_seed(0)
    network = two_heads.build(ModelConfig(name=name, width=8), 1, 3)
    output = network(torch.randn(8, 1, 64, 64))
    assert output.shape == (8, 5) and output.isfinite().all()
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_the_briefs_network_has_the_briefs_heads():
    with torch.device("meta"):
        network = two_heads.build(ModelConfig(name="microsoft/resnet-50"), 1, 3)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    # torchvision's table: 25,557,032 with 1,000 classes and three colours.
    assert count["backbone"] == 25_557_032 - 2049 * 1000 - 2 * 7 * 7 * 64
    assert count["classify"] == 2049 * 512 + 513 * 3
    assert count["physics"] == 2049 * 512 + 513 * 2
    kinds = {
        name: [type(part).__name__ for part in head] for name, head in network.named_children() if name != "backbone"
    }
    assert kinds == {
        "classify": ["Linear", "ReLU", "Dropout", "Linear"],
        "physics": ["Linear", "ReLU", "Linear", "Tanh"],
    }


def test_deflections_are_bounded_and_dropout_is_the_classifications_alone():
    torch.manual_seed(0)
    network = two_heads.build(ModelConfig(width=4), 1, 3)
    network.backbone.eval()
    x = 1e3 * torch.randn(6, 1, 24, 24)
    first, second = network(x), network(x)
    assert first[:, 3:].abs().max() <= 1
    assert torch.equal(first[:, 3:], second[:, 3:]) and not torch.equal(first[:, :3], second[:, :3])
    network.eval()
    assert torch.equal(network(x), network(x))


def test_the_last_layer_is_that_of_the_classes():
    network = two_heads.build(ModelConfig(name="resnet-18"), 2, 5)
    assert backbone.last_layer(network) == "classify.3"
    assert network.state_dict()[backbone.first_convolution(network)].shape[1] == 2


def test_a_stored_architecture_rebuilds_the_same_network():
    network = two_heads.build(ModelConfig(name="resnet-18"), 2, 4).eval()
    gone = ModelConfig(name="gone/from-the-hub", pretrained=True)
    again = two_heads.build(gone, 2, 4, network.architecture).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 2, 48, 48)
    assert torch.equal(again(x), network(x))


def test_a_network_without_a_linear_layer_carries_no_heads():
    with pytest.raises(ModelError, match="Conv2d ends in no linear layer"):
        two_heads.TwoHeads(torch.nn.Conv2d(1, 1, 3), 3)
