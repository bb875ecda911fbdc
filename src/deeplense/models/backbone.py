"""Image classifiers by name: our own networks, or any that transformers knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deeplense.config import ModelConfig
from deeplense.errors import ModelError, did_you_mean
from deeplense.models.compact import CompactNet
from deeplense.models.finder_cnn import FinderCNN

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OURS = ("compact", "brief-cnn")
# Architectures that build without any network; the numbers are those of each model card's config.json.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "microsoft/resnet-18": {
        "model_type": "resnet",
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
    },
    "microsoft/resnet-34": {
        "model_type": "resnet",
        "layer_type": "basic",
        "depths": [3, 4, 6, 3],
        "hidden_sizes": [64, 128, 256, 512],
    },
    "microsoft/resnet-50": {"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
    "facebook/convnextv2-atto-1k-224": {
        "model_type": "convnextv2",
        "depths": [2, 2, 6, 2],
        "hidden_sizes": [40, 80, 160, 320],
    },
    "facebook/convnextv2-femto-1k-224": {
        "model_type": "convnextv2",
        "depths": [2, 2, 6, 2],
        "hidden_sizes": [48, 96, 192, 384],
    },
    "facebook/convnextv2-tiny-1k-224": {"model_type": "convnextv2"},
    "google/efficientnet-b0": {
        "model_type": "efficientnet",
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 1280,
        "image_size": 224,
        "dropout_rate": 0.2,
        "batch_norm_momentum": 0.1,  # the card's 0.99 is TensorFlow's convention; torch means 1 - momentum
    },
}


class TransformersNet(nn.Module):
    """A transformers classifier as a plain module: images in, logits out.

    Attributes:
        architecture: everything needed to build the same network again without a hub.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        from transformers import AutoModelForImageClassification

        super().__init__()
        self.network = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()  # transformers draws EfficientNet's gains from N(0, 0.02): nothing passes
        self.architecture: dict[str, Any] = config.to_dict()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_outputs)."""
        return self.network(pixel_values=x).logits


def build(
    model: ModelConfig, in_channels: int, num_outputs: int, architecture: dict[str, Any] | None = None
) -> nn.Module:
    """The network that ``model`` names, for images of ``in_channels`` channels: (B, C, H, W) -> (B, num_outputs).

    Args:
        architecture: what a run has stored of a transformers network; then nothing is looked up.

    Raises:
        ModelError: no such network, or its weights cannot be had.
    """
    if model.name in OURS:
        if model.pretrained:
            raise ModelError(f"{model.name} has no ImageNet weights; set model.pretrained=false, or model.init=RUN")
        if model.name == "brief-cnn":
            return FinderCNN(in_channels, num_outputs)
        return CompactNet(in_channels, num_outputs, model.width)
    if architecture is not None:
        return TransformersNet(_from_dict(resized(architecture, in_channels, num_outputs)))
    network = TransformersNet(_architecture(model, in_channels, num_outputs))
    if model.pretrained:
        network.network.load_state_dict(_pretrained_state(model.name, in_channels, num_outputs))
    return network


def _architecture(model: ModelConfig, in_channels: int, num_outputs: int) -> PreTrainedConfig:
    """A known architecture by its full or short name, or what a local folder or the hub says of it."""
    name = _full_name(model.name)
    if name in ARCHITECTURES and not model.pretrained:
        return _from_dict({**ARCHITECTURES[name], "num_channels": in_channels, "num_labels": num_outputs})
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            _full_name(model.name), num_channels=in_channels, num_labels=num_outputs, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _out_of_reach(model.name) from error


def _full_name(name: str) -> str:
    """`resnet-50` -> `microsoft/resnet-50`; other names are left alone."""
    return next((full for full in ARCHITECTURES if name == full.partition("/")[2]), name)


def _from_dict(values: dict[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.for_model(**values)


def _pretrained_state(name: str, in_channels: int, num_outputs: int) -> dict[str, Tensor]:
    """Published weights with a new head, the first convolution's kernels fitted to ``in_channels``."""
    from transformers import AutoModelForImageClassification

    try:
        network = AutoModelForImageClassification.from_pretrained(
            _full_name(name), num_labels=num_outputs, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _out_of_reach(name) from error
    state = network.state_dict()
    first = next(key for key, weight in state.items() if weight.ndim == 4 and weight.shape[1] == 3)
    state[first] = fit_channels(state[first], in_channels)
    return state


def fit_channels(kernels: Tensor, channels: int) -> Tensor:
    """Kernels (O, C, h, w) of a first convolution for another number of channels, (O, channels, h, w).

    A grey image in every channel gives the sum over channels; it is shared out evenly, so that the answer is the same.
    """
    return kernels.sum(dim=1, keepdim=True).repeat(1, channels, 1, 1) / channels


def first_convolution(network: nn.Module) -> str | None:
    """The name of the kernels that images meet first."""
    return next((f"{name}.weight" for name, part in network.named_modules() if isinstance(part, nn.Conv2d)), None)


def last_layer(network: nn.Module) -> str | None:
    """The name of the linear layer that gives the outputs."""
    return next((name for name, part in reversed([*network.named_modules()]) if isinstance(part, nn.Linear)), None)


def resized(architecture: dict[str, Any], in_channels: int, num_outputs: int) -> dict[str, Any]:
    """A stored transformers architecture for other numbers of channels and outputs."""
    names = {"id2label", "label2id", "num_labels"}  # number and names of the outputs contradict one another otherwise
    values = {key: value for key, value in architecture.items() if key not in names}
    return {**values, "num_channels": in_channels, "num_labels": num_outputs}


def _out_of_reach(name: str) -> ModelError:
    known = [*OURS, *ARCHITECTURES]
    if Path(name).is_dir():
        return ModelError(f"{name} holds no image classifier that transformers reads (config.json, model.safetensors)")
    return ModelError(
        f"{name!r} is not here and the Hugging Face hub gives no such model or cannot be reached: give a local folder, "
        f"set HF_HOME to a filled cache, or take one that builds offline with model.pretrained=false "
        f"({did_you_mean(name, known)})"
    )
