"""A trained run and labelled images in, a judgement out: scores, ``metrics.json`` and ``report.html``."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from deeplense import weights
from deeplense.data.classes import align
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError, DataError
from deeplense.evaluate.explain import heat_maps
from deeplense.evaluate.fidelity_sets import Features
from deeplense.evaluate.finder_report import finder_report
from deeplense.evaluate.generator import features_of, judge_generator
from deeplense.evaluate.inversion import MEASUREMENT, has_truth, judge_inversion
from deeplense.evaluate.pictures import display_of
from deeplense.evaluate.report import classification_report
from deeplense.tasks import Classifier, DiffusionTask, InversionTask, LensTask
from deeplense.tasks.draw import draw
from deeplense.train.callbacks import METRICS
from deeplense.train.folder import ENVIRONMENT

logger = logging.getLogger(__name__)
MOST_DRAWN = 1000  # images, unless told otherwise


def judge(
    run: Path | str,
    lens_set: LensSet,
    out: Path | str | None = None,
    batch_size: int = 128,
    bootstrap: int = 1000,
    prevalence: float | None = None,
    features: Path | str | None = None,
    generated: LensSet | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Judge a finished run on images that it has not seen, and write the report.

    Args:
        lens_set: labelled images.
        out: folder for ``metrics.json`` and ``report.html``; the run folder if None.
        bootstrap: number of resamples for the intervals.
        prevalence: of a finder, the share of lenses that its probabilities are to be for; that of the images if None.
        features: for a diffusion run, an independent substructure run in whose features images are compared.
        generated: for a diffusion run, the images that it has drawn; half as many as ``lens_set``, 1,000 at most, are
            drawn if None.
        progress: show a bar while images are drawn.

    Returns:
        The metrics, as written.

    Raises:
        RunError: there is no such run, or it is not finished.
        DataError: no labels, other classes, or images of another number of channels.
        ConfigError: a prevalence or features that are impossible, or for a run that has none.
    """
    run = Path(run)
    task: LensTask = weights.load_task(run)
    card = weights.load_card(run)
    task.to(weights.find_device())
    if isinstance(task, DiffusionTask):
        if prevalence is not None:
            raise ConfigError(f"prevalence={prevalence:g} for a diffusion run: only a finder has one")
        see = None if features is None else features_of(Path(features), task.preprocess)
        drawn = _drawn(task, lens_set, progress) if generated is None else generated
        return _judge_generator(run, task, card, lens_set, drawn, see, Path(out) if out else run)
    if features is not None or generated is not None:
        raise ConfigError(f"{run} is a {task.config.task} run: features and generated images are for diffusion runs")
    if isinstance(task, InversionTask):
        warn_if_seen(card, lens_set)
        about = {"title": f"inversion: {run.name}", "bootstrap": bootstrap, "history": _history(run)}
        about["provenance"] = _provenance(run, card, lens_set)
        return judge_inversion(Path(out) if out else run, task, lens_set, about)
    assert isinstance(task, Classifier)
    report = REPORTS.get(task.config.task, _judge_classifier)
    if prevalence is not None and (report is not _judge_finder or not 0 < prevalence < 1):
        reason = "the share of lenses lies between 0 and 1" if report is _judge_finder else "only a finder has one"
        raise ConfigError(f"prevalence={prevalence:g} for a {task.config.task} run: {reason}")
    warn_if_seen(card, lens_set)
    if lens_set.label is None:
        raise DataError("the images have no labels: evaluation needs a sub-folder for each class")
    lens_set = align(lens_set, task.classes)
    outputs = torch.cat(list(task.outputs(lens_set.images, batch_size)))
    common: dict[str, Any] = {
        "title": f"{task.config.task}: {run.name}",
        "label": lens_set.label,
        "classes": task.classes,
        "images": lens_set.images,
        "names": lens_set.name,
        "provenance": _provenance(run, card, lens_set),
        "history": _history(run),
        "bootstrap": bootstrap,
    }
    return report(Path(out) if out else run, task, outputs, lens_set, prevalence, common)


def _drawn(task: DiffusionTask, lens_set: LensSet, progress: bool) -> LensSet:
    """Half as many images as there are held-out ones, by the sampler of the run's settings."""
    num = min(len(lens_set) // 2, MOST_DRAWN)
    with Progress(disable=not progress) as bar:
        shown = bar.add_task("drawing", total=num * task.config.diffusion.sample_steps)
        return draw(task, num, on_step=partial(bar.advance, shown))


def _judge_generator(
    run: Path,
    task: DiffusionTask,
    card: dict[str, Any],
    lens_set: LensSet,
    generated: LensSet,
    features: Features | None,
    out: Path,
) -> dict[str, Any]:
    """What a diffusion run draws, against images that it has not seen."""
    warn_if_seen(card, lens_set)
    held_out, generated = (
        align(part, task.classes) if task.classes and part.label is not None else part for part in (lens_set, generated)
    )
    return judge_generator(
        *(out, task, card, held_out, generated),
        features=features,
        title=f"diffusion: {run.name}",
        provenance=_provenance(run, card, lens_set) | {"generated": generated.provenance},
        history=_history(run),
    )


def _judge_classifier(
    out: Path, task: Classifier, outputs: Tensor, _: LensSet, __: float | None, common: dict[str, Any]
) -> dict[str, Any]:
    """Classes that exclude one another: logits (N, K) and a temperature."""
    return classification_report(out, logits=outputs, temperature=task.calibration.get("temperature", 1.0), **common)


def _judge_finder(
    out: Path, task: Any, outputs: Tensor, lens_set: LensSet, prevalence: float | None, common: dict[str, Any]
) -> dict[str, Any]:
    """Lenses among what is none: log-odds (N,), brought to the share of lenses that is asked for."""
    share = float(np.mean(common["label"]))
    wanted = prevalence if prevalence is not None else share if 0 < share < 1 else None
    log_odds, validated = (task.log_odds(outputs.double(), prevalence=p) for p in (wanted, None))
    return finder_report(
        out,
        score=log_odds,
        probability=log_odds.sigmoid(),
        params=lens_set.params,
        prevalence=prevalence,
        as_validated=(validated.sigmoid(), task.calibration["val_prevalence"]),
        explain=lambda images: heat_maps(task, images, target=1),
        display=display_of(lens_set.name, lens_set.provenance),
        **common,
    )


def _judge_physics(
    out: Path, task: Any, outputs: Tensor, lens_set: LensSet, _: float | None, common: dict[str, Any]
) -> dict[str, Any]:
    """A classifier; where the truth of the lenses is known, a second report says how well they were measured."""
    metrics = _judge_classifier(out, task, outputs[:, : len(task.classes)], lens_set, None, common)
    if has_truth(lens_set):
        about = common | {"title": f"{common['title']}, measured lenses"}
        judge_inversion(out / MEASUREMENT, task.inverter, lens_set, about)
    return metrics


# By the name of the task; what is not here is judged as a classifier.
REPORTS: dict[str, Callable[..., dict[str, Any]]] = {"finder": _judge_finder, "physics": _judge_physics}


def warn_if_seen(card: Mapping[str, Any], lens_set: LensSet) -> None:
    """Say so when the images are those that the run was trained or validated on."""
    data, made = card["config"]["data"], lens_set.provenance
    is_same_stream = data["path"] == f"preset:{made.get('preset')}" and all(
        data[key] == made.get(key) for key in ("fidelity", "seed")
    )
    trained_on = {Path(path).resolve() for path in (data["path"], data["val"]) if path}
    # Of class folders with a prefix, all splits come from one place, and training never reads the test images.
    is_same_place = "source" in made and Path(made["source"]).resolve() in trained_on and made.get("split") != "test"
    if is_same_stream or is_same_place or lens_set.fingerprint() in card.get("data", {}).values():
        logger.warning("these images were used in training: the scores say nothing about new ones")


def _provenance(run: Path, card: Mapping[str, Any], lens_set: LensSet) -> dict[str, Any]:
    environment = json.loads((run / ENVIRONMENT).read_text()) if (run / ENVIRONMENT).is_file() else {}
    judged = {"images": len(lens_set), "fingerprint": lens_set.fingerprint(), **lens_set.provenance}
    return {
        "run": run.name,
        "judged on": judged,
        "trained on": card.get("data", {}),
        "validation": card.get("scores", {}),
        "config": card["config"],
        "environment": environment,
    }


def _history(run: Path) -> list[dict[str, Any]] | None:
    path = run / METRICS
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
