"""The whole path in a few minutes, for each purpose: simulate a test set, train on fresh images, judge, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplense import config as configs
from deeplense import train
from deeplense.data.files import replacing
from deeplense.data.read import read
from deeplense.evaluate.judge import judge
from deeplense.evaluate.lens_pictures import gallery
from deeplense.lensing.smooth import Camera, SmoothLens
from deeplense.measure import Cutout, MeasuredLens, fit_cutout
from deeplense.simulate.dataset import write_set
from deeplense.simulate.generate import Simulator
from deeplense.simulate.stream import PREFIX
from deeplense.weights import CARD

logger = logging.getLogger(__name__)
TEST_SEED = 1000  # the training images are of the seed in the config; these are others


@dataclass(frozen=True)
class Chapter:
    """One purpose: the config that is trained, the folders of its run and test images, and what these are."""

    config: str
    run: str
    test: str
    num_test: int
    settings: Mapping[str, Any] = field(default_factory=dict)


CHAPTERS = {
    "substructure": Chapter("demo", "run", "test", 1488),
    # Half of the training images are lenses, one in twenty of these: as if for a survey, where they are rarer still.
    "finder": Chapter("demo-finder", "finder", "finder-test", 1920, {"positive_fraction": 0.05}),
    # Draws a few hundred images and compares them with those of the first chapter.
    "diffusion": Chapter("demo-diffusion", "diffusion", "test", 1488),
}


def run(
    out: Path | str, settings: list[str] | None = None, progress: bool = True, chapter: str = "substructure"
) -> dict[str, Any]:
    """Do it all below one folder; what is already there is used again, and an interrupted demo continues.

    Args:
        settings: ``key=value`` changes to the chapter's config.
        chapter: "substructure" (tell dark matter apart), "finder" (find rare lenses) or "diffusion" (draw new ones).

    Returns:
        The metrics of the test set, which also stand in ``metrics.json`` of the run's folder.
    """
    out, part = Path(out), CHAPTERS[chapter]
    config = configs.load(part.config, [*(settings or []), f"out={out / part.run}"])
    preset = str(config.data.path).removeprefix(PREFIX)
    simulator = Simulator(preset, config.data.fidelity, TEST_SEED, settings=part.settings)
    logger.info("%s, 1 of 3: simulate %d test images into %s", chapter, part.num_test, out / part.test)
    write_set(simulator, part.num_test, out / part.test, progress=progress)
    fresh, epochs = config.data.num, config.train.epochs
    logger.info("%s, 2 of 3: train on %d fresh images in each of %d epochs", chapter, fresh, epochs)
    if not (out / part.run / CARD).is_file():
        train.fit(config, train.load_data(config), progress=progress)
    logger.info("%s, 3 of 3: judge the run on the test images", chapter)
    return judge(out / part.run, read(out / part.test))


PHYSICS, CROP = "physics.png", slice(25, 125)


def measure_three(out: Path | str) -> list[tuple[float, float]]:
    """Fit a smooth lens to one image of each class, and write data, model and residual to ``physics.png``.

    Returns:
        The true and the measured Einstein radius of each, arcsec.
    """
    simulator = Simulator("common-test", "physical", TEST_SEED)
    images, scale = simulator.images(np.arange(3)), simulator.preset.pixel_scale
    truth = [simulator.truth(i) for i in range(3)]
    cut = torch.from_numpy(images.images[:, 0, CROP, CROP]).double()
    exposure = simulator.exposure
    background = exposure.sky[0] * truth[0]["exposure_time"] + exposure.read_variance[0]
    found: list[MeasuredLens] = []
    for image, facts in zip(cut, truth, strict=True):
        camera = Camera((len(image), len(image)), scale, exposure.supersampling, exposure.psf_radius)
        lens = SmoothLens(camera, {"psf_fwhm": facts["psf_fwhm"]})
        found.append(fit_cutout(Cutout(image, (image.clamp_min(0) + background).sqrt(), camera), lens, None, False))
    radii = [(facts["theta_E"], fit.values["theta_E"]) for facts, fit in zip(truth, found, strict=True)]
    names = [
        f"{name}: theta_E {true:.3f}, fit {fit:.3f}" for name, (true, fit) in zip(images.classes, radii, strict=True)
    ]
    model, residual = (np.stack([getattr(fit, part) for fit in found]) for part in ("model", "residual"))
    title = "What a smooth lens explains, and what it leaves (arcsec)"
    figure = gallery(cut.numpy(), model, residual, names, scale, title)
    with replacing(Path(out) / PHYSICS) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return radii
