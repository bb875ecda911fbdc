"""A diffusion run in, a judgement of what it draws out: are its images those of the simulator?"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from deeplense import config as configs
from deeplense import train, weights
from deeplense.data.module import LensDataModule
from deeplense.data.schema import LensSet
from deeplense.data.split import stratified_split
from deeplense.data.transform import Preprocess, chunks
from deeplense.errors import ConfigError, DeepLenseError, RunError
from deeplense.evaluate.fidelity_report import fidelity_report
from deeplense.evaluate.fidelity_sets import Features
from deeplense.models import backbone
from deeplense.simulate.stream import is_preset
from deeplense.tasks import DiffusionTask
from deeplense.tasks.substructure import SubstructureTask

logger = logging.getLogger(__name__)
SETS = ("held-out", "generated")


def judge_generator(
    out: Path,
    task: DiffusionTask,
    card: Mapping[str, Any],
    held_out: LensSet,
    generated: LensSet,
    features: Features | None = None,
    seed: int = 0,
    **common: Any,
) -> dict[str, Any]:
    """Compare what a diffusion model draws with images that it has not seen, and write the report.

    Args:
        card: what ``model.json`` says of the run.
        held_out: images as read, of the kind that the model was trained on.
        generated: images that the model has drawn.
        features: of an independent classifier (:func:`features_of`); without them, what needs them is left out.
        common: title, provenance, history.

    Returns:
        The metrics, as written.
    """
    return fidelity_report(
        out,
        generated=generated.images,
        held_out=framed(task.preprocess, held_out.images),
        train=trained_on(task, card),
        features=features,
        label=generated.label,
        held_label=held_out.label,
        classes=task.classes,
        pixel_scale=generated.pixel_scale,
        pixel_auc=network_auc,
        seed=seed,
        **common,
    )


def framed(preprocess: Preprocess, images: np.ndarray) -> np.ndarray:
    """The part and size of raw images (N, C, H, W) that a model sees, in the values as read."""
    parts = [preprocess.framed(chunk).numpy() for chunk in chunks(images)]
    return np.concatenate(parts)


def trained_on(task: DiffusionTask, card: Mapping[str, Any]) -> np.ndarray | None:
    """The training images of a run as its model saw them; None where they are gone or were new in every epoch."""
    config = configs.parse(card["config"])
    if is_preset(config.data.path) and config.data.fresh:
        logger.info("every training image was new: none could be memorised by seeing it twice")
        return None
    try:
        data = train.load_data(config, progress=False)
    except DeepLenseError as error:
        logger.warning("whether training images were memorised is left out: %s", error)
        return None
    if data.fingerprint() != card["data"]:
        logger.warning("%s holds other images than those of training: memorisation is left out", config.data.path)
        return None
    return framed(task.preprocess, data.train.images)


def features_of(run: Path, preprocess: Preprocess) -> Features:
    """What an independent classifier sees in framed images: its last features (n, D) and probabilities (n, K).

    Args:
        run: a substructure run.
        preprocess: of the model whose images are judged: both must see the same part of an image.

    Raises:
        ConfigError: they do not.
        RunError: no finished run, or of another task.
    """
    task = weights.load_task(run, SubstructureTask)
    if task.parts:
        raise RunError(f"{run} fits a lens to each image before it looks: give a substructure run")
    seen, wanted = ((p.input_size, p.crop, p.size) for p in (task.preprocess, preprocess))
    if seen != wanted:
        raise ConfigError(
            f"{run} sees another part of the images (size, crop, resized: {seen}) than the generator ({wanted}): train "
            f"it with model.crop={wanted[1]} model.size={wanted[2]}"
        )
    return lambda images: _features(task, images)


@torch.inference_mode()
def _features(task: SubstructureTask, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features are what the last linear layer is given."""
    last = backbone.last_layer(task.network)
    assert last is not None
    kept: list[Tensor] = []
    layer = task.network.get_submodule(last)
    hook = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].cpu()))
    try:
        logits = [task.network(task.preprocess.normalised(chunk.to(task.device))).cpu() for chunk in chunks(images)]
    finally:
        hook.remove()
    columns = task.columns(torch.cat(logits))
    probs = torch.stack([columns[f"p_{name}"] for name in task.classes], dim=1)
    return torch.cat(kept).flatten(1).numpy(), probs.numpy()


def network_auc(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """How well a network learns to tell two sets of images (N, C, H, W) apart: its AUC on halves that it has not seen.

    0.5 means that it finds no difference. The network is the compact one, from scratch, 25 passes over half of the
    images; a tenth of that half chooses the epoch.
    """
    logger.info("training a network to tell %d from %d images", len(a), len(b))
    images, label = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    half, test = stratified_split(label, 0.5, seed, SETS)
    fit, val = (half[rows] for rows in stratified_split(label[half], 0.1, seed, SETS))
    data = LensDataModule(_set(images[fit], label[fit]), _set(images[val], label[val]), 64, seed)
    stretch = "sqrt" if images.min() >= 0 else "asinh"
    settings = [f"model.stretch={stretch}", "model.width=32", "model.average=none", "augment.quarter_turns=false"]
    with tempfile.TemporaryDirectory() as folder:
        config = configs.load("substructure", [*settings, "train.epochs=25", f"seed={seed}", f"out={folder}/run"])
        config = config.model_copy(update={"model": config.model.model_copy(update={"crop": None})})
        with _silent():
            run = train.fit(config, data, progress=False)
        task = weights.load_task(run, SubstructureTask)
    logits = torch.cat(list(task.outputs(images[test], 256)))
    return float(roc_auc_score(label[test], logits[:, 1] - logits[:, 0]))


def _set(images: np.ndarray, label: np.ndarray) -> LensSet:
    return LensSet(images.astype(np.float32), [str(i) for i in range(len(images))], label.astype(np.int64), SETS)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the messages of a training that is only a means."""
    log = logging.getLogger("deeplense.train")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
