"""A report page from sections of text, figures, tables and pictures: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from deeplense.errors import RunError
from deeplense.evaluate.pictures import to_rgb
from deeplense.evaluate.plots import COLOURS, INK, MUTED


@dataclass(frozen=True)
class Stat:
    """A headline number: what it is, its value, and the interval or remark that belongs under it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read; the first column names the row, the others are set as numbers unless `prose`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    prose: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure with the sentence that says how to read it."""

    figure: Figure
    caption: str = ""


@dataclass(frozen=True)
class Tile:
    """A small image with row 0 at the bottom; a heading and a few lines below it.

    Attributes:
        image: values, shape (C, H, W) or (H, W), or colours, uint8, shape (H, W, 3).
    """

    image: np.ndarray
    heading: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A part of a report; whatever is empty is left out.

    Attributes:
        title: the heading; empty for none.
        text: plain text, paragraphs separated by an empty line.
        stats: headline numbers, the most important first.
        notes: warnings that the reader must see.
        details: tables that stay folded away until asked for.
    """

    title: str
    text: str = ""
    stats: Sequence[Stat] = ()
    notes: Sequence[str] = ()
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    tiles: Sequence[Tile] = ()
    details: Sequence[Table] = ()

    @property
    def has_wide_tiles(self) -> bool:
        """Whether a tile shows two pictures side by side."""
        return any(tile.image.ndim == 3 and tile.image.shape[-1] == 3 and tile.image.shape[1] > 1.5 * len(tile.image)
                   for tile in self.tiles)  # fmt: skip

    @property
    def paragraphs(self) -> list[str]:
        return [paragraph.strip() for paragraph in self.text.split("\n\n") if paragraph.strip()]


def write_report(
    out: Path, title: str, sections: Iterable[Section], metrics: Mapping[str, Any], subtitle: str = ""
) -> Path:
    """Write `metrics.json` and the self-contained `report.html` into a folder, each as a whole or not at all.

    Returns:
        The path of `report.html`.

    Raises:
        RunError: the folder cannot be made or written to.
    """
    page = render(title, sections, subtitle)
    _write(out / "metrics.json", json.dumps(plain(metrics), indent=2, allow_nan=False) + "\n")
    return _write(out / "report.html", page)


def render(title: str, sections: Iterable[Section], subtitle: str = "") -> str:
    """The HTML of a report, the same to the byte for the same content."""
    count = iter(range(10**6))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["svg"] = lambda figure: Markup(to_svg(figure, f"f{next(count)}"))
    environment.filters["png"] = to_png
    source = resources.files("deeplense.evaluate").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(title=title, subtitle=subtitle, sections=list(sections))


def to_svg(figure: Figure, prefix: str) -> str:
    """A figure as inline SVG in the colours of the page around it; `prefix` keeps its ids apart from other figures'."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "deeplense", "svg.fonttype": "path"}):
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg[svg.index("<svg") :])
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return functools.reduce(lambda text, pair: text.replace(*pair), _page_colours(), svg)


def _page_colours() -> list[tuple[str, str]]:
    series = [(colour, f"var(--series-{k}, {colour})") for k, colour in enumerate(COLOURS)]
    return [(INK, "currentColor"), (MUTED, f"var(--muted, {MUTED})"), *series]


def to_png(image: np.ndarray) -> str:
    """An image as a data URI, row 0 at the bottom."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, to_rgb(image), format="png", origin="lower", metadata={"Software": "deeplense"})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plain(value: Any) -> Any:
    """The same in plain JSON values: arrays and tuples become lists, NaN and infinity None, anything else its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def provenance_section(provenance: Mapping[str, Any]) -> Section:
    """Where a result comes from: single values in one table, nested groups folded away beneath it."""
    values = plain(provenance)
    single = {key: value for key, value in values.items() if not isinstance(value, dict)}
    groups = {key: value for key, value in values.items() if isinstance(value, dict)}
    top = [_key_values("", single)] if single else []
    return Section("Provenance", tables=top, details=[_key_values(name, group) for name, group in groups.items()])


def _key_values(caption: str, values: Mapping[str, Any]) -> Table:
    return Table(("Item", "Value"), [(key, _text(item)) for key, item in _flat(values)], caption=caption, prose=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write(path: Path, text: str) -> Path:
    """Write beside the target first, so that a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error
    return path
