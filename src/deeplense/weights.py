"""Weights in and out: safetensors, JSON, ONNX; and a trained task from its run folder."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from deeplense import config as configs
from deeplense.data.files import replacing, write_json
from deeplense.data.transform import Preprocess
from deeplense.errors import ModelError, RunError
from deeplense.tasks import TASKS, Classifier, DiffusionTask, LensTask, get

WEIGHTS, CARD = "model.safetensors", "model.json"
State = dict[str, Tensor]
T = TypeVar("T", bound=LensTask)
# The types that plain JSON values stand for; others would not come back as they were.
JSON_TYPES = {torch.float32, torch.int64, torch.bool}


def save_task(task: LensTask, run: Path, **facts: Any) -> None:
    """Write ``model.safetensors``, then ``model.json``, which says that the run is finished, into the run folder.

    Args:
        facts: further plain JSON values for the card: scores, the fingerprint of the data.
    """
    save(task.network.state_dict(), run / WEIGHTS)
    card = {
        "config": task.config.model_dump(mode="json"),
        "classes": list(task.classes),
        "in_channels": task.in_channels,
        "preprocess": task.preprocess.to_dict(),
        "calibration": task.calibration,
        "architecture": getattr(task.network, "architecture", None),
    }
    write_json(run / CARD, card | facts)


def load_card(run: Path) -> dict[str, Any]:
    """What ``model.json`` of a finished run says.

    Raises:
        RunError: there is no such run, or it is not finished.
    """
    path = run / CARD
    if not path.is_file():
        state = "is not finished: the training command again continues it" if run.is_dir() else "does not exist"
        raise RunError(f"{run} {state} (there is no {path})")
    try:
        card = json.loads(path.read_text())
        configs.parse(card["config"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged or not ours: {type(error).__name__} {error}") from error
    return card


def load_task(run: Path, kind: type[T] = LensTask) -> T:  # type: ignore[assignment]
    """The trained task of a run folder, ready to predict, from ``model.json`` and ``model.safetensors`` alone.

    Args:
        kind: what the task has to be.

    Raises:
        RunError: there is no such run, it is not finished, or its task is of another kind.
        ModelError: the weights do not fit the card.
    """
    card = load_card(run)
    config = configs.parse(card["config"])
    check_kind(run, config.task, kind)
    task = get(config.task)(
        config,
        tuple(card["classes"]),
        card["in_channels"],
        Preprocess.from_dict(card["preprocess"]),
        card["architecture"],
    )
    load_into(task.network, run)
    task.calibration = card["calibration"]
    for name, part in task.parts.items():
        setattr(task, name, load_task(run / name, part))
    assert isinstance(task, kind)
    return task.eval()


def fingerprint(run: Path) -> str:
    """A hash of the weights of a run: names the model that made something."""
    return hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()[:16]


def find_device(name: str = "auto") -> str:
    """Where a loaded task works: "auto" is a GPU if there is one; else as torch calls it, such as "cuda:1"."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def check_kind(run: Path, task: str, kind: type[LensTask]) -> None:
    """Raises RunError if the task of a run is none of a kind: says which runs are."""
    if not issubclass(get(task), kind):
        able = " or ".join(name for name, each in TASKS.items() if issubclass(each, kind))
        raise RunError(f"{run} is a {task} run; this needs a {able} run")


def load_into(network: nn.Module, path: Path) -> None:
    """Load the weights of a run folder or a weights file into a network of the same architecture.

    Raises:
        ModelError: the names or shapes differ; the first that does is named.
    """
    fill(network, load(path), path)


def fill(network: nn.Module, given: State, path: Path) -> None:
    """Load weights that were read from ``path``; raises as :func:`load_into`."""
    wanted = network.state_dict()
    wrong = sorted(given.keys() ^ wanted.keys()) or [k for k in wanted if given[k].shape != wanted[k].shape]
    if wrong:
        shapes = [tuple(state[wrong[0]].shape) if wrong[0] in state else "absent" for state in (given, wanted)]
        raise ModelError(
            f"the weights in {path} do not fit the network: {wrong[0]} is {shapes[0]} there, {shapes[1]} here; choose "
            "the model.name, model.width (of a UNet diffusion.channels, layers, unshuffle, given) and classes that "
            "they were trained with"
        )
    network.load_state_dict(given)


def save(state: State, path: Path) -> None:
    """Write tensors to ``.safetensors``, ``.json`` or ``.json.gz``, by the ending of the name."""
    ending = _ending(path)
    other = [f"{name} is {tensor.dtype}" for name, tensor in state.items() if tensor.dtype not in JSON_TYPES]
    if other and ending != ".safetensors":
        raise ModelError(f"{other[0]}; JSON keeps float32, int64 and bool: use .safetensors")
    with replacing(path) as temporary:
        if ending == ".safetensors":
            temporary.write_bytes(as_bytes({name: tensor.contiguous() for name, tensor in state.items()}))
            return
        with temporary.open("wb") as file:
            if ending == ".json":
                _write_json(state, file)
            else:
                with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=5) as packed:
                    _write_json(state, packed)


def load(path: Path) -> State:
    """Tensors from a run folder, ``.safetensors``, ``.json`` or ``.json.gz``.

    Raises:
        ModelError: no such file, a damaged one, or one that could hold more than tensors.
    """
    path = path / WEIGHTS if path.is_dir() else path
    ending = _ending(path)
    if not path.is_file():
        raise ModelError(f"there are no weights at {path}")
    try:
        if ending == ".safetensors":
            return load_file(path)
        with gzip.open(path, "rt") if ending == ".json.gz" else path.open() as file:
            return _read_json(file)
    except (ValueError, TypeError, OSError, EOFError, SafetensorError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def export(task: LensTask, path: Path) -> None:
    """Write the weights of a task as ``.json``, ``.json.gz`` or ``.safetensors``, or the whole of it as ``.onnx``."""
    if path.name.endswith(".onnx"):
        model = as_onnx(task)
        with replacing(path) as temporary:
            temporary.write_bytes(model)
    else:
        save(task.network.state_dict(), path)


class Served(nn.Module):
    """Raw images in, table columns out, with preparation, averaging and calibration: what is served was tested."""

    def __init__(self, task: Classifier) -> None:
        super().__init__()
        self.task = task

    @property
    def names(self) -> list[str]:
        """Of what comes out."""
        return list(self.task.columns(self.task(self.example)))

    @property
    def example(self) -> Tensor:
        """Two images of the size of training."""
        return torch.zeros(2, self.task.in_channels, *self.task.preprocess.input_size)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) as read -> the task's columns, (B,) each, in their order."""
        return tuple(self.task.columns(self.task.averaged(image)).values())


class Answering(Served):
    """The part in the middle: images without missing pixels in, outputs before calibration out."""

    @property
    def names(self) -> list[str]:
        return ["output"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W), completed by ``task.preprocess`` -> outputs, (B, ...)."""
        return (self.task.mean_answer(self.task.preprocess.prepared(image)),)


def as_onnx(task: LensTask, kind: type[Served] = Served) -> bytes:
    """What :class:`Served` does of a task, or :class:`Answering`, as an ONNX model of any number of images.

    Raises:
        ModelError: a task that ONNX cannot run, or the packages for it are not installed.
    """
    if isinstance(task, DiffusionTask):
        raise ModelError("a diffusion run draws images step by step: export it with --format diffusers")
    if not isinstance(task, Classifier) or task.parts:
        raise ModelError(f"a {task.config.task} run fits a lens to each image, which ONNX cannot: use predict")
    served = kind(copy.deepcopy(task).cpu()).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision's operators are absent
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of itself
            program = torch.onnx.export(
                served,
                (served.example,),
                dynamo=True,
                input_names=["image"],
                output_names=served.names,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except ImportError as error:
        raise ModelError(f"ONNX export: {error}; pip install 'deeplense[onnx]'") from error
    assert program is not None  # only the older exporter returns None
    return program.model_proto.SerializeToString()


def _ending(path: Path) -> str:
    for ending in (".safetensors", ".json", ".json.gz"):
        if path.name.endswith(ending):
            return ending
    raise ModelError(
        f"{path.name}: weights are read and written as .safetensors, .json or .json.gz; files such as .pt, .pth, .ckpt "
        "and .bin can run any code when loaded and are refused"
    )


def _write_json(state: State, file: Any) -> None:
    """The state dictionary as lists, one tensor to a line, one slice of it in memory at a time."""
    file.write(b"{")
    for i, (name, tensor) in enumerate(state.items()):
        file.write(f"{',' if i else ''}\n{json.dumps(name)}: ".encode())
        for part in _lists(tensor.detach().cpu()):
            file.write(part.encode())
    file.write(b"\n}\n")


def _lists(tensor: Tensor) -> Iterator[str]:
    """Nested lists as text; Python writes each number so that it reads back to the same double, so to the same bits."""
    if tensor.ndim < 2:
        yield json.dumps(tensor.tolist())
        return
    yield "["
    for i, part in enumerate(tensor):
        yield ", " if i else ""
        yield json.dumps(part.tolist())
    yield "]"


def _read_json(file: Any) -> State:
    """Line by line where one tensor stands on each, as we write it; all at once otherwise."""
    state: State = {}
    try:
        for line in file:
            if line.strip() not in ("{", "}"):
                state |= _tensors(json.loads("{" + line.strip().removesuffix(",") + "}"))
    except ValueError:
        file.seek(0)
        return _tensors(json.load(file))
    return state


def _tensors(values: Any) -> State:
    if not isinstance(values, dict) or any(isinstance(value, str | dict) for value in values.values()):
        raise ValueError("it holds no state dictionary of lists")
    return {name: torch.tensor(value) for name, value in values.items()}
