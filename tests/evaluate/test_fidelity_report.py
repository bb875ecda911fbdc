"""The report of generated images, whole and with parts left out, and what its figures say."""

import json
import re

import matplotlib
import numpy as np
import pytest
from sklearn.decomposition import PCA
from test_fidelity import CLASSES, judge, lenses

from deeplense.errors import DataError
from deeplense.evaluate import fidelity_plots as plots
from deeplense.evaluate.fidelity_report import fidelity_report
from deeplense.evaluate.fidelity_sections import TITLES, figures, nearest_rows
from deeplense.evaluate.fidelity_sets import measure
from deeplense.evaluate.morphology import pixel_sample
from deeplense.evaluate.pictures import Display

HISTORY = [{"epoch": k, "train_loss": 1 / (k + 1), "val_loss": 1.2, "val_score": -1.2, "lr": 0.1} for k in range(3)]
SECTIONS = (
    "Side by side",
    "Generated against held out, beside the floor",
    "What can be measured in the images",
    "What an independent classifier sees",
    "Memorisation",
    "Training",
    "Provenance",
)


def report(out, **changes):
    (generated, label), (held_out, held_label) = lenses(42, 1), lenses(90, 2)
    given = {
        "title": "Diffusion <1>",
        "generated": generated,
        "held_out": held_out,
        "train": lenses(60, 3)[0],
        "features": judge,
        "label": label,
        "held_label": held_label,
        "classes": CLASSES,
        "pixel_scale": 0.05,
        "pixel_auc": lambda a, b, seed: 0.625,
        "provenance": {"seed": 4, "data": {"fingerprint": "abc123"}},
        "history": HISTORY,
        "splits": 2,
    }
    return fidelity_report(out, **given | changes)


def words(out):
    html = (out / "report.html").read_text()
    return html, re.sub(r"<svg.*?</svg>|data:[^\"]+", "", html.partition("<main>")[2], flags=re.DOTALL)


def test_every_section_is_there(tmp_path):
    metrics = report(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["n"] == metrics["fidelity"]["n"] == 42
    assert metrics["fidelity"]["unit"] == "arcsec"
    html, text = words(tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", html) == list(SECTIONS)
    assert html.count("<svg") == 10
    assert "Diffusion &lt;1&gt;" in html
    assert "42 generated images judged against 90 held-out ones" in html
    assert not re.search(r"\b(nan|None|inf)\b", text)
    assert 'class="notes"' not in text
    assert set(metrics["fidelity"]["scores"]) == set(TITLES)
    for name, title in TITLES.items():
        score = metrics["fidelity"]["scores"][name]
        row = re.search(rf"{re.escape(title.format(unit='arcsec'))}</th>(.*?)</tr>", text).group(1)
        cells = re.findall("<td>(.*?)</td>", row)
        assert cells == [figures(score["value"]), figures(score["floor"]), figures(score["ratio"])], name


def test_headline_says_how_many_times_the_floor(tmp_path):
    found = report(tmp_path)["fidelity"]
    _, text = words(tmp_path)
    ratio = found["scores"]["frechet"]["value"] / found["scores"]["frechet"]["floor"]
    assert f"<b>{ratio:.2f} × floor</b>" in text
    assert f"<b>{found['memorisation']['value']:.3f}</b>" in text
    assert "<b>0.625</b>" in text
    assert f"<b>{100 * found['recovered']['generated']['accuracy']:.1f}\u00a0%</b>" in text


def test_bare_minimum_says_what_is_missing(tmp_path):
    bare = dict.fromkeys(("train", "features", "label", "held_label", "pixel_scale", "pixel_auc", "provenance"))
    metrics = report(tmp_path, **bare, classes=(), history=None)
    html, text = words(tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", html) == list(SECTIONS[:3])
    assert (
        len(metrics["fidelity"]["notes"]) == text.partition('class="notes"')[2].partition("</ul>")[0].count("<li>") == 4
    )
    assert "--features" in text
    assert "pixels" in text
    assert not re.search(r"\b(nan|None|inf)\b", text)


@pytest.mark.parametrize("display", [None, Display("last", "asinh")])
def test_images_of_three_bands(tmp_path, display):
    parts = {"generated": lenses(42, 1)[0], "held_out": lenses(90, 2)[0], "train": lenses(60, 3)[0]}
    report(tmp_path, **{name: np.repeat(images, 3, axis=1) for name, images in parts.items()}, display=display)
    assert (tmp_path / "report.html").is_file()


def test_bad_input_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="at equal numbers"):
        report(tmp_path, held_out=lenses(9, 2)[0], held_label=lenses(9, 2)[1])
    assert not list(tmp_path.iterdir())


def test_mosaic_has_its_first_row_at_the_top():
    first, second = np.ones((1, 2, 2)), np.full((1, 2, 2), 2.0)
    whole = plots.mosaic([[first, first, first], [second, second, second]])
    assert whole.shape == (1, 8, 12)
    assert np.nanmax(whole[0, :4]) == np.nanmin(whole[0, :4]) == 2  # row 0 is at the bottom
    assert np.isnan(whole[0, 0]).all()


def test_grids_share_their_stretch_and_name_the_classes():
    faint, bright = lenses(42, 1), lenses(90, 2)
    figures_of = plots.image_grids(measure(0.1 * faint[0], faint[1]), measure(*bright), CLASSES, Display())
    held_out, generated = (figure.axes[0].get_images()[0].get_array() for figure in figures_of)
    assert generated.max() < held_out.max()
    assert [label.get_text() for label in figures_of[1].axes[0].get_yticklabels()] == list(CLASSES)


def test_a_class_without_images_leaves_its_row_blank():
    generated, held_out = lenses(20, 1, label=np.zeros(20, int)), lenses(90, 2)
    _, figure = plots.image_grids(measure(*generated), measure(*held_out), CLASSES, Display())
    image = figure.axes[0].get_images()[0].get_array()
    lowest, highest = image[: len(image) // 3], image[-len(image) // 3 :]
    assert (lowest == lowest[0, 0]).all()
    assert not (highest == highest[0, 0]).all()


def test_histograms_count_every_image_and_pixel():
    generated, held_out = measure(lenses(42, 1, mean_radius=9)[0]), measure(lenses(90, 2)[0])
    figure = plots.number_histograms(generated.numbers, held_out.numbers, "arcsec")
    assert figure.axes[0].get_xlabel() == "Ring radius (arcsec)"
    for axes in figure.axes:
        assert [sum(patch.get_data().values) for patch in axes.patches] == pytest.approx([1, 1])
    shares = plots.pixel_values(generated.images, held_out.images).axes[0].patches[1].get_data()
    expected = np.histogram(pixel_sample(generated.images), shares.edges)[0]
    np.testing.assert_allclose(shares.values * expected.sum(), expected)


def test_neighbours_are_the_nearest_in_order():
    generated, held_out, train = (lenses(n, seed)[0] for n, seed in ((42, 1), (90, 2), (60, 3)))
    generated[[30, 7]] = train[[5, 8]] + np.array([0.001, 0.002], np.float32)[:, None, None, None]
    rows, titles = nearest_rows(generated, train, held_out)
    assert {len(row) for row in rows.values()} == {len(titles)} == {6}
    np.testing.assert_array_equal(rows["generated"][:2], generated[[30, 7]])
    np.testing.assert_array_equal(rows["training"][:2], train[[5, 8]])
    distances = np.sqrt(np.square(held_out - generated[30]).sum((1, 2, 3)))
    np.testing.assert_array_equal(rows["held out"][0], held_out[distances.argmin()])
    # The copies are 0.001 and 0.002 brighter in each of 32 x 32 pixels.
    assert titles[0] == f"{0.032 / distances.min():.2f}"
    figure = plots.neighbours(rows, titles, Display())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["generated", "training", "held out"]


def test_projection_is_that_of_the_held_out_features():
    generated, held_out = (judge(lenses(n, seed)[0])[0] for n, seed in ((42, 1), (90, 2)))
    points = plots.projection(generated, held_out).axes[0].collections
    assert [len(part.get_offsets()) for part in points] == [90, 42]
    expected = PCA(2).fit(held_out).transform(generated)
    np.testing.assert_allclose(np.abs(points[1].get_offsets()), np.abs(expected), rtol=1e-5)


def test_power_ratio_and_its_floor_are_drawn(tmp_path):
    row = {"x": np.arange(1.0, 17), "ratio": np.linspace(0.8, 1.2, 16)}
    row |= {"floor_low": np.full(16, 0.95), "floor_high": np.full(16, 1.05)}
    curves = measure(lenses(20, 1)[0]).power
    _, lower = plots.power_spectra(row, curves, curves).axes
    np.testing.assert_array_equal(lower.get_lines()[0].get_ydata(), row["ratio"])
    assert lower.get_xlabel() == "Frequency (cycles per image)"
    assert lower.get_ylim()[0] < 0.8
    assert lower.get_ylim()[1] > 1.2


def test_figures_of_numbers_of_any_size():
    given = (None, 0.0, 0.48, -0.0012, 12.345, 1234567.0, 5e-6)
    assert [figures(value) for value in given] == ["–", "0", "0.480", "−0.00120", "12.3", "1,234,567", "5.00e−06"]


def test_drawing_leaves_the_global_style_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    report(tmp_path)
    assert dict(matplotlib.rcParams) == before
