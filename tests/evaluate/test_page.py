"""A page that stands alone: valid ids, no links outside, text escaped, written whole or not at all."""

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from deeplense.errors import RunError
from deeplense.evaluate import page, plots
from deeplense.evaluate.page import Picture, Section, Stat, Table, Tile


def full_section():
    figures = [Picture(plots.confusion_matrix(np.eye(2, dtype=int), ("a", "b")), "How to read it") for _ in range(2)]
    return Section(
        "Title <b>",
        "First.\n\nSecond & last.",
        stats=[Stat("AUC", "0.9", "note")],
        notes=["Beware."],
        figures=figures,
        tables=[Table(("Name", "Value"), [("x", "1")], "Caption")],
        tiles=[Tile(np.arange(12.0).reshape(1, 3, 4), "name.npy", ("true a",))],
        details=[Table(("Item", "Value"), [("k", "v")], "folded", prose=True)],
    )


def test_everything_given_is_shown_and_escaped():
    html = page.render("A & B", [full_section()], "sub")
    for text in ("A &amp; B", "sub", "Title &lt;b&gt;", "<p>First.</p>", "<p>Second &amp; last.</p>", "Beware."):
        assert text in html
    for text in ("0.9", "Caption", "How to read it", "name.npy", "true a", "folded"):
        assert text in html


def test_page_needs_nothing_from_outside():
    html = page.render("t", [full_section()])
    assert all(link.startswith(("data:", "#")) for link in re.findall(r'(?:href|src)="([^"]*)"', html))
    assert not re.search(r"@import|url\((?!#)|<script", html)


def test_ids_of_different_figures_do_not_collide():
    html = page.render("t", [full_section()])
    ids = Counter(re.findall(r'\bid="([^"]+)"', html))
    assert max(ids.values()) == 1
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_figures_take_the_colours_of_the_page():
    svg = page.to_svg(plots.confusion_matrix([[1, 0], [0, 1]], ("a", "b")), "f0")
    assert "currentColor" in svg
    assert plots.INK not in svg


def test_same_content_same_bytes():
    assert page.render("t", [full_section()]) == page.render("t", [full_section()])


def test_tile_shows_row_zero_at_the_bottom():
    image = np.zeros((4, 5))
    image[0] = 1
    png = base64.b64decode(page.to_png(image).partition(",")[2])
    shown = matplotlib.image.imread(io.BytesIO(png))[..., :3].sum(axis=2)
    assert shown.shape == (4, 5)
    assert shown[-1].min() > shown[:-1].max()


def test_empty_section_is_only_its_heading():
    html = page.render("t", [Section("Alone")])
    body = html.partition("<section>")[2]
    assert re.fullmatch(r"\s*<h2>Alone</h2>\s*</section>\s*</main>\s*</body>\s*</html>\s*", body)


def test_plain_is_json():
    value = {
        "a": np.float32(1),
        2: (np.int64(3), float("nan")),
        "p": Path("x"),
        "z": np.array([np.inf, 1.0]),
        "n": None,
    }
    assert page.plain(value) == {"a": 1.0, "2": [3, None], "p": "x", "z": [None, 1.0], "n": None}


def test_provenance_folds_groups_away():
    section = page.provenance_section({"seed": 1, "config": {"optim": {"lr": 0.1}, "name": "x", "none": {}}})
    assert list(section.tables[0].rows) == [("seed", "1")]
    assert list(section.details[0].rows) == [("optim.lr", "0.1"), ("name", "x"), ("none", "{}")]


def test_report_and_metrics_lie_side_by_side(tmp_path):
    path = page.write_report(tmp_path / "new", "t", [], {"auc": np.float64(0.5)})
    assert path == tmp_path / "new" / "report.html"
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == {"auc": 0.5}
    assert sorted(file.name for file in path.parent.iterdir()) == ["metrics.json", "report.html"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    page.write_report(tmp_path, "old", [], {})
    before = (tmp_path / "metrics.json").read_text()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        page.write_report(tmp_path, "new", [], {"a": 1})
    assert (tmp_path / "metrics.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_in_the_way_is_a_run_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="taken"):
        page.write_report(tmp_path / "taken", "t", [], {})
