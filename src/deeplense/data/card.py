"""The dataset card: a README.md that tells people, and the Hugging Face hub, what a data set is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_MEANING = {
    "name": "file name or object id",
    "label": "class number, in the order of the classes below; null where the truth is not known",
    "image": "pixel values as made or read, not normalised, in C order; NaN: nothing measured",
    "m_axion": "axion mass as stored beside the image; null where there is none",
}


def dataset_card(paths: Sequence[Path], common: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter.

    Args:
        paths: the shards.
        common: shape, classes, pixel_scale and provenance of the set.
        settings: what the set was made with; its ``num`` is the number of images.
    """
    channels, height, width = common["shape"]
    scale = "unknown" if common["pixel_scale"] is None else f'{common["pixel_scale"]:g}"'
    return "\n".join(
        [
            _front_matter(settings["num"], common["classes"]),
            "# Images of strong gravitational lenses",
            "",
            f"{settings['num']:,} images, {channels} channel(s), {height} x {width} pixels, pixel scale {scale}.",
            "",
            "```python\nfrom deeplense.data.read import read\n\nlenses = read('.')  # this folder\n```",
            "",
            "Other libraries open it with one call: `datasets.load_dataset('.')`, `pandas.read_parquet('data')`, "
            f"`pyarrow.parquet.read_table('data')`; reshape `image` to {channels} x {height} x {width}.",
            "",
            *_classes(paths, common["classes"]),
            *_columns(pq.read_schema(paths[0])),
            "## How it was made",
            "",
            f"```json\n{json.dumps({**settings, 'provenance': common['provenance']}, indent=2, sort_keys=True)}\n```",
            "",
            "## What not to use it for",
            "",
            "- Physical conclusions about real lenses from simulated images alone: a network that works here "
            "may fail on the sky, where galaxies, noise and selection differ.",
            "- A test of a model that saw any of these images, or images of the same seed, in training.",
            "- Fluxes, unless the description above says that the values are calibrated.",
            "",
        ]
    )


def _front_matter(num: int, classes: Sequence[str]) -> str:
    # JSON strings are valid YAML, whatever they hold; so no YAML library is needed.
    lines = ["---", "pretty_name: Strong gravitational lenses", f"size_categories: [{json.dumps(_size(num))}]"]
    if classes:
        lines.append("task_categories: [image-classification]")
    lines += ["tags: [astronomy, gravitational-lensing, deeplense]"]
    lines += ["configs:", "- config_name: default", "  data_files: data/part-*.parquet", "---", ""]
    return "\n".join(lines)


def _size(num: int) -> str:
    """The hub's word for a number of rows."""
    for limit, word in ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M")):
        if num < limit:
            return word
    return "1M<n<10M"


def _classes(paths: Sequence[Path], classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    counts: Counter[int | None] = Counter()
    for path in paths:
        counts.update(pq.read_table(path, columns=["label"], use_threads=False)["label"].to_pylist())
    rows = [f"| {number} | {_cell(name)} | {counts[number]:,} |" for number, name in enumerate(classes)]
    return ["## Classes", "", "| label | class | images |", "|---|---|---|", *rows, ""]


def _columns(schema: pa.Schema) -> list[str]:
    rows = [
        f"| {_cell(field.name)} | {field.type} | {_MEANING.get(field.name, 'simulation truth')} |" for field in schema
    ]
    return ["## Columns", "", "| column | type | meaning |", "|---|---|---|", *rows, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
