"""Sets drawn by a trained diffusion model, on disk: sharded, with a progress bar, continued after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplense import weights
from deeplense.data.files import as_text
from deeplense.data.fill import Advance, fill, find_writer
from deeplense.data.schema import LensSet
from deeplense.simulate.preview import COLUMNS, write_grid
from deeplense.tasks import DiffusionTask
from deeplense.tasks.draw import Request, draw, settled

# Not so many that a stop loses much: they take minutes on a CPU.
SHARD_SIZE = 512
FOLDER, GRID = "drawn", "samples.png"


def sample(
    run: Path | str,
    num: int,
    out: Path | str | None = None,
    *,
    label: str | None = None,
    given: Mapping[str, float] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    format: str = "npy",
    progress: bool = True,
    device: str = "auto",
) -> Path:
    """Draw images 0 to num - 1 of a sequence and write them to a folder; the same call again continues after a kill.

    A picture of the first images of each class, ``samples.png``, lies beside them. The columns of ``params`` are the
    class that was asked for and the values given.

    Args:
        run: a finished run of a diffusion model.
        out: folder for the set; ``drawn`` in the run folder if not given.
        label: the class of all images; without it each class in turn, image by image.
        given: values of parameters in their own units; others are left to chance.
        sampler: "ddpm", "ddim", "dpm++" or "unipc"; that of the run's settings if not given, as are ``steps``.
        guidance: 1 draws from what was learnt; above, images are more typical of their class and less diverse.
        seed: names the sequence; image i depends on it and on i alone, up to rounding.
        batch_size: images drawn together.
        format: "npy" for the DeepLense folders, "parquet" for shards with a dataset card.
        progress: show a bar, in images times steps.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: an unknown class, parameter, sampler or format, or a number out of range.
        RunError: no such run, one of another task, a folder that holds something else, or Ctrl-C.
    """
    run = Path(run)
    task = weights.load_task(run, DiffusionTask).to(weights.find_device(device))
    request = settled(task, Request(label, given or {}, sampler, steps, guidance, seed), num, batch_size)
    make_writer = find_writer(format)
    origin = {
        "run": as_text(run),
        "model": weights.fingerprint(run),
        "pixel_scale": task.calibration.get("pixel_scale"),
    }
    header: dict[str, Any] = {**origin, **request.facts()}
    writer = make_writer(out or run / FOLDER, num, SHARD_SIZE, header)

    def make(shards: list[int], advance: Advance) -> None:
        for shard in shards:
            rows = writer.rows(shard)
            part = draw(task, len(rows), request, first=rows.start, batch_size=batch_size, on_step=advance)
            if shard == 0:
                _picture(part, writer.out / GRID, run.name)
            writer.write(shard, replace(part, provenance=header))

    assert request.steps is not None
    fill(writer, make, "drawing", request.steps, progress)
    return writer.out


def _picture(part: LensSet, path: Path, run: str) -> None:
    """A row of the first images of each class that occurs; a picture that is there is left as it is."""
    if path.exists():
        return
    facts = part.provenance
    given = "".join(f", {name} = {value:g}" for name, value in facts["given"].items())
    title = f"{run}: {facts['sampler']}, {facts['steps']} steps, guidance {facts['guidance']:g}, seed {facts['seed']}"
    label = np.zeros(len(part), np.int64) if part.label is None else part.label
    names = part.classes or ("any class",)
    rows = {names[k]: part.images[label == k][:COLUMNS] for k in np.unique(label)}
    write_grid(list(rows.values()), list(rows), path, title + given)
