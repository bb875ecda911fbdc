"""Other ways to run a trained network in prediction: compiled, or in ONNX Runtime, in floats or in 8 bits."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from deeplense import weights
from deeplense.data.classes import align
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError, DataError, ModelError, did_you_mean
from deeplense.simulate.generate import can_compile
from deeplense.tasks import TASKS, Classifier, LensTask

logger = logging.getLogger(__name__)

ENGINES = ("torch", "compile", "onnx")
CALIBRATED_ON = 256  # images that say how large the numbers in a network become
JUDGED_ON = 2000  # labelled images that the cost of 8 bits is measured on
# What is quantised: the work. Preparation, calibration and the little between layers stay in float.
_QUANTISED = ("Conv", "MatMul", "Gemm")
Outputs = Callable[[Tensor], Tensor]


class Compiled:
    """torch.compile of the network; batches are filled up to one size, for each size would be compiled anew."""

    def __init__(self, task: Classifier) -> None:
        self.task, self.size = task, 0
        # Weights that never change again: batch normalisation goes into the convolutions, on a CPU.
        options = {"freezing": True} if task.device.type == "cpu" else None
        task.network.compile(dynamic=False, options=options)

    def __call__(self, images: Tensor) -> Tensor:
        """Raw images (B, C, H, W) -> outputs (B, ...)."""
        self.size = max(self.size, len(images))
        missing = self.size - len(images)
        filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
        return self.task.averaged(filled)[: len(images)]


class OnnxRuntime:
    """The network, with its preparation, in ONNX Runtime on as many cores as torch uses.

    Missing pixels are filled, and other sizes resized, before: where there are none, that costs nothing.

    Args:
        task: of which the model is.
        model: :class:`deeplense.weights.Answering` of the task.
        plain: the same network in floats, if this one is quantised.

    Raises:
        ModelError: ONNX Runtime is not installed.
    """

    def __init__(self, task: Classifier, model: bytes, plain: OnnxRuntime | None = None) -> None:
        runtime = import_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.task, self.model, self.plain = task, model, plain or self
        self.session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        """Raw images (B, C, H, W) -> outputs (B, ...)."""
        completed = self.task.preprocess.completed(images)
        return torch.from_numpy(self.session.run(None, {"image": completed.numpy()})[0])

    def quantised(self, images: np.ndarray) -> OnnxRuntime:
        """The same with convolutions and matrix products in 8 bits, their ranges found on raw images (N, C, H, W).

        Raises:
            ModelError: this network cannot be quantised.
        """
        import_runtime()
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        how: dict[str, Any] = {"quant_format": quantization.QuantFormat.QDQ, "per_channel": True}
        how |= {"op_types_to_quantize": list(_QUANTISED), "activation_type": quantization.QuantType.QUInt8}
        how |= {"weight_type": quantization.QuantType.QInt8}
        batches = _Batches(self.task, images)
        with tempfile.TemporaryDirectory(prefix="deeplense-") as folder:
            plain, ready, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "small"))
            plain.write_bytes(self.model)
            try:
                quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
                quantization.quantize_static(str(ready), str(small), batches, **how)
                return OnnxRuntime(self.task, small.read_bytes(), plain=self)
            except Exception as error:  # whatever it stumbles over, there is the network in floats
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise ModelError(f"this network cannot be quantised ({reason})") from error


class _Batches:
    """Images as :mod:`onnxruntime.quantization` asks for them: a dictionary of inputs at a time, None at the end."""

    def __init__(self, task: Classifier, images: np.ndarray, size: int = 32) -> None:
        step = task.step_of(size)
        completed = task.preprocess.completed(torch.from_numpy(images)).numpy()
        self.batches = iter([completed[start : start + step] for start in range(0, len(images), step)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def import_runtime() -> Any:
    """The module onnxruntime.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModelError(f"engine=onnx: {error}; pip install 'deeplense[onnx]'") from error
    return onnxruntime


def check(task: LensTask, engine: str, device: str) -> None:
    """Raises ConfigError if there is no such engine, or none for such a task or device."""
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine}; {did_you_mean(engine, ENGINES)}")
    if engine != "torch" and (not isinstance(task, Classifier) or task.parts):
        able = " or ".join(name for name, kind in TASKS.items() if issubclass(kind, Classifier) and not kind.parts)
        raise ConfigError(f"engine={engine} is for {able} runs, this is a {task.config.task} run: leave it out")
    if engine == "onnx" and device not in ("auto", "cpu"):
        raise ConfigError(f"engine=onnx works on the CPU, not on device={device}: leave one of them out")


def start(task: LensTask, engine: str) -> None:
    """Have a task that is on its device, its average set, answer by an engine that :func:`check` found fit for it."""
    if engine == "torch" or not isinstance(task, Classifier):
        return
    if engine == "onnx":
        import_runtime()  # before the work of an export
        task.engine = OnnxRuntime(task, weights.as_onnx(task, weights.Answering))
    elif can_compile():
        task.engine = Compiled(task)


def quantise(task: LensTask, first: Sequence[LensSet]) -> str:
    """Have a task that answers by ONNX Runtime do so in 8 bits; says in a line what that costs and brings.

    Args:
        first: the images that ranges are found on (the first of these sets), and the cost.

    Raises:
        ConfigError: the engine is another one.
        DataError: there are no images.
    """
    engine = task.engine if isinstance(task, Classifier) else None
    if not isinstance(task, Classifier) or not isinstance(engine, OnnxRuntime):
        raise ConfigError("int8 is a matter of ONNX Runtime: add --engine onnx")
    if not first:
        raise DataError("there are no images to find the ranges of 8 bits on")
    images, plain = _evenly(first[0], CALIBRATED_ON).images, engine.plain
    try:
        small = plain.quantised(images)
    except ModelError as error:
        task.engine = plain
        return f"int8: {error}: the network stays in float"
    task.engine = small
    return f"int8: {_cost(task, plain, small, first)}; {_gain(task, plain, small, images)}"


def _cost(task: Classifier, plain: Outputs, small: Outputs, first: Sequence[LensSet]) -> str:
    """What becomes worse, in words: the AUC where labels tell, else the probabilities."""
    labelled = _labelled(task, first)
    sets = [_evenly(each, -(-JUDGED_ON // len(labelled or first))) for each in labelled or first]
    before, after = (_outputs(task, engine, sets) for engine in (plain, small))
    total = len(before)
    if labelled:
        label = np.concatenate([each.label for each in sets if each.label is not None])
        aucs = [auc(task, outputs, label) for outputs in (before, after)]
        if aucs[0] is not None:
            return f"AUC {aucs[1]:.4f}, in float {aucs[0]:.4f} ({total} labelled images)"
    change = np.abs(_probabilities(task, after) - _probabilities(task, before)).max(axis=1)
    return f"probabilities change by {np.median(change):.2g} (median), {change.max():.2g} at most ({total} images)"


def _gain(task: Classifier, plain: Outputs, small: Outputs, images: np.ndarray, rounds: int = 3) -> str:
    """How much faster it is, in words, by the best of a few turns."""
    times: dict[Outputs, float] = {}
    batch = torch.from_numpy(images[: task.step_of(128)])
    for _ in range(rounds):
        for engine in (plain, small):
            begin = time.perf_counter()
            engine(batch)
            times[engine] = min(times.get(engine, np.inf), time.perf_counter() - begin)
    ratio = times[plain] / times[small]
    return f"{ratio:.1f} times as fast as in float" + ("" if ratio > 1 else ": no gain, leave --int8 out")


def auc(task: Classifier, outputs: Tensor, label: np.ndarray) -> float | None:
    """One-vs-rest AUC of outputs (N, ...), the mean over the classes that occur in ``label``; None if only one does."""
    columns = task.columns(outputs)
    if len(present := np.unique(label)) < 2:
        return None
    if "score" in columns:  # log-odds, which keep their order where probabilities are 1 to all digits
        return float(roc_auc_score(label == 1, columns["score"]))
    probs = _probabilities(task, outputs)
    return float(np.mean([roc_auc_score(label == k, probs[:, k]) for k in present]))


def _probabilities(task: Classifier, outputs: Tensor) -> np.ndarray:
    """Shape (N, K), or (N, 1) of a finder."""
    columns = [column for name, column in task.columns(outputs).items() if name.startswith("p_")]
    return torch.stack(columns, dim=1).double().numpy()


def _outputs(task: Classifier, engine: Outputs, sets: Sequence[LensSet]) -> Tensor:
    task.engine, kept = engine, task.engine
    outputs = torch.cat([part for each in sets for part in task.outputs(each.images, 128)])
    task.engine = kept
    return outputs


def _labelled(task: Classifier, sets: Sequence[LensSet]) -> list[LensSet]:
    """The sets with labels, as the task numbers them; none if one of its labels is no class of the task."""
    try:
        return [align(each, task.classes) for each in sets if each.label is not None]
    except DataError:
        return []


def _evenly(lens_set: LensSet, num: int) -> LensSet:
    """Up to ``num`` images at even distances."""
    return lens_set.select(np.unique(np.linspace(0, len(lens_set) - 1, num).astype(np.int64)))
