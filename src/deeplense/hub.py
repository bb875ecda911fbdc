"""A diffusion model as a folder that the diffusers library opens, without this package, from a disk or a model hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from deeplense.data.files import check_new_file, making_folder, write_json, write_text
from deeplense.models import pipeline as pipelines
from deeplense.models import unet
from deeplense.models.pipeline import LensPipeline
from deeplense.tasks import DiffusionTask

# Diffusers keeps the code of all folders that it opens in one place: by these names nobody else's is found.
PIPELINE, UNET = "lens_pipeline", "lens_unet"
CARD = """---
license: mit
library_name: diffusers
tags: [astronomy, gravitational-lensing, deeplense]
---

# {title}

A diffusion model that draws images of strong gravitational lenses: {channels} channel(s) of {size} x {size} pixels,
float32, in the values of the images that it was trained on.

- classes: {classes}
- parameters: {params}
- pixel scale: {scale}
- code: `{pipeline}.py` and `unet/{unet}.py`, which need numpy, torch and diffusers; they run only if
  you say that you trust them

```python
import diffusers

pipeline = diffusers.DiffusionPipeline.from_pretrained("{title}", trust_remote_code=True)  # or the path to this folder
images = pipeline({call})
```

Images are float32 arrays (number, channels, rows, columns), row 0 at the bottom. Samplers: {samplers}.

Licence: MIT.

What it draws looks like its training images, which says nothing of how often such lenses occur on the sky; values of
pixels beyond the range of the training images are never drawn.
"""


def write_folder(task: DiffusionTask, out: Path) -> Path:
    """Write the model, its code and a card to a new folder.

    ``diffusers.DiffusionPipeline.from_pretrained(out, trust_remote_code=True)`` opens it.

    Raises:
        RunError: ``out`` exists, its parent does not, or the disk is full.
    """
    check_new_file(out)
    pipeline = task.cpu().pipeline()
    with making_folder(out) as folder:
        pipeline.save_pretrained(folder)
        shutil.copyfile(str(pipelines.__file__), folder / f"{PIPELINE}.py")
        shutil.copyfile(str(unet.__file__), folder / "unet" / f"{UNET}.py")
        index = json.loads((folder / LensPipeline.config_name).read_text())
        classes = {"_class_name": [PIPELINE, "LensPipeline"], "unet": [UNET, "LensUNet"]}
        write_json(folder / LensPipeline.config_name, index | classes)
        write_text(folder / "README.md", _card(pipeline, task, out.name))
        for file in folder.rglob("*.safetensors"):  # which diffusers makes private
            file.chmod((folder / "README.md").stat().st_mode)
    return out


def _card(pipeline: LensPipeline, task: DiffusionTask, title: str) -> str:
    config, diffusion = pipeline.config, task.config.diffusion
    label = f'label="{config.classes[-1]}", ' if config.classes else ""
    return CARD.format(
        title=title,
        channels=config.channels,
        size=config.size,
        classes=", ".join(config.classes) or "none are told",
        params=", ".join(config.params) or "none are told",
        scale="unknown" if config.pixel_scale is None else f'{config.pixel_scale:g}" per pixel',
        call=f'16, {label}sampler="{diffusion.sampler}", steps={diffusion.sample_steps}, seed=7',
        samplers=", ".join(pipelines.SAMPLERS),
        pipeline=PIPELINE,
        unet=UNET,
    )
