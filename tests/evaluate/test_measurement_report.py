"""The whole report of measured lenses: what stands in it, what its figures show, and sets of any size."""

import json
import re

import matplotlib
import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from test_measurements import CLASSES, measured

from deeplense.errors import DataError
from deeplense.evaluate import measurement_plots as plots
from deeplense.evaluate.measurement_report import measurement_report
from deeplense.evaluate.measurement_sections import value_and_interval
from deeplense.evaluate.measurements import gather
from deeplense.evaluate.paired import side_by_side

HISTORY = [{"epoch": "0", "train_loss": "1.1", "val_score": "0.5"}, {"epoch": "1", "train_loss": "0.9"}]


def judge(out, num=90, **changes):
    rng = np.random.default_rng(1)
    given = measured(num)
    label = given["label"]
    model = rng.random((num, 8, 8), dtype=np.float32)
    residual = rng.normal(size=model.shape).astype(np.float32)
    probs = softmax(rng.normal(size=(num, 3)) + 2 * np.eye(3)[label], axis=1)
    given |= {
        "title": "Test <1>",
        "names": [f"lens_{i}.npy" for i in range(num)],
        "chi2": (residual**2).mean((1, 2)),
        "images": (model + residual)[:, None],
        "model": model,
        "residual": residual,
        "pixel_scale": 0.05,
        "deflection": {"fit": np.full(num, 0.012), "no lensing": given["truth"]["theta_E"] / 3},
        "controls": side_by_side({"physics": probs, "shuffled residual": probs[:, [1, 0, 2]]}, label, bootstrap=20)
        if num > 2
        else None,
        "provenance": {"seed": 4, "data": {"fingerprint": "abc123"}},
        "history": HISTORY,
        "bootstrap": 40,
    }
    given |= changes
    return given, measurement_report(out, **given)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(what was given, what was returned, the folder)."""
    out = tmp_path_factory.mktemp("report")
    return *judge(out), out


def page(out):
    """The text of the report, without pictures."""
    html = (out / "report.html").read_text()
    return re.sub(r"<svg.*?</svg>|data:[^\"]+", "", html.partition("<main>")[2], flags=re.DOTALL)


def test_files_say_what_was_returned(report):
    given, result, out = report
    assert json.loads((out / "metrics.json").read_text()) == result
    error = given["estimate"]["theta_E"] / given["truth"]["theta_E"] - 1
    scatter = result["parameters"]["theta_E"]["all"]["scatter"]
    assert scatter["value"] == pytest.approx(100 * np.std(error))
    text = page(out)
    for words in (
        *("What is measured, and how well", "Are the uncertainties right?", "Do the models explain the images?"),
        *("Is the deflection right?", "Data, model, residual", "Controls", "Training", "abc123", "0.0120"),
        *("class no", "class sphere", "class vort", "shuffled residual", "naive baseline"),
    ):
        assert words in text
    lead = value_and_interval(scatter, "%").partition(" (")[0]
    assert f"Einstein radius: scatter of the error</span><b>{lead}</b>" in text
    # Alike in every image, it has no interval.
    assert result["deflection"][0]["mean"] == pytest.approx({"value": 0.012, "low": 0.012, "high": 0.012})
    assert result["deflection"][1]["median"]["value"] == pytest.approx(np.median(given["truth"]["theta_E"]) / 3)
    assert (out / "report.html").read_text().count("<svg") == 2 + 2 + 1 + 3 + 1  # the history has losses alone


def test_every_number_of_the_tables_stands_in_its_row(report):
    _, result, out = report
    text = page(out)
    for name, title in (("theta_E", "Einstein radius (%)"), ("gamma1", "Shear γ₁")):
        row = text[text.index(f'<th scope="row">{title}</th>') :].partition("</tr>")[0]
        scores = result["parameters"][name]["all"]
        assert re.findall("<td>(.*?)</td>", row)[:2] == [value_and_interval(scores[key]) for key in ("bias", "scatter")]
    uncertain = text[text.index("Are the uncertainties right?") :]
    row = uncertain[uncertain.index('<th scope="row">Shear γ₁</th>') :].partition("</tr>")[0]
    shares = result["parameters"]["gamma1"]["all"]["coverage"].values()
    expected = [value_and_interval({key: 100 * number for key, number in share.items()}, "%") for share in shares]
    assert re.findall("<td>(.*?)</td>", row)[:2] == expected


def test_values_have_two_figures_of_their_interval():
    told = {
        (0.12345, 0.1, 0.15): "0.123 (0.100 to 0.150)",
        (-1.5, -3.2, 0.1): "−1.5 (−3.2 to 0.1)",
        (1234.5, 1200, 1300): "1234 (1200 to 1300)",
        (0.5, 0.5, 0.5): "0.500",
        (2.0, None, None): "2.00",
    }
    for (value, low, high), text in told.items():
        assert value_and_interval({"value": value, "low": low, "high": high}) == text
    assert value_and_interval(None) == "–"
    assert value_and_interval({"value": 3.0, "low": 2.0, "high": 4.0}, "%") == "3.0\u00a0% (2.0 to 4.0)"


@pytest.mark.parametrize("num", [1, 2, 4, 200])
def test_sets_of_any_size(tmp_path, num):
    _, result = judge(tmp_path, num)
    assert result["n"] == num
    assert not re.search(r"\b(nan|None|inf)\b", page(tmp_path))


def test_a_network_alone(tmp_path):
    """No refinement: no model, no chi^2, and nothing else that may be left out."""
    absent = ("chi2", "images", "model", "residual", "pixel_scale", "deflection", "controls", "names", "history")
    _, result = judge(tmp_path, **dict.fromkeys(absent), provenance=None, bootstrap=0)
    assert result["chi2"] is None
    text = page(tmp_path)
    for words in ("Do the models", "Is the deflection", "Data, model", "Controls", "Training", "Provenance"):
        assert words not in text
    assert "Are the uncertainties right?" in text


def test_a_perfect_fit_can_be_drawn(tmp_path):
    given = measured(30)
    judge(tmp_path, 30, estimate={name: given["truth"][name] for name in given["estimate"]})
    assert "scatter of the error</span><b>0\u00a0%</b>" in page(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["a"]}, "1 names, but 90 labels"),
        ({"model": np.zeros((5, 8, 8), np.float32)}, "5 model images, but 90 labels"),
        ({"images": np.zeros((90, 3, 8, 8), np.float32)}, r"need \(N, H, W\)"),
        ({"model": np.zeros((90, 9, 9), np.float32)}, "of one shape"),
        ({"deflection": {"fit": np.full(90, np.nan)}}, "errors of the deflection, fit, are NaN"),
        ({"deflection": {"fit": np.ones(3)}}, "3 errors of the deflection, fit, but 90 labels"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        judge(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def parts():
    given = measured(3000)
    return gather(*(given[name] for name in ("truth", "estimate", "sigma", "label")))


def test_coverage_curves_are_the_shares_that_were_counted(parts):
    upper, lower = plots.coverage_curves(list(parts.values()), ["theta_E"]).axes
    lines = {line.get_label(): line for line in upper.get_lines()}
    x, y = lines["Einstein radius"].get_data()
    pull = np.abs(parts["theta_E"].pull)
    for level, share in zip(x[::10], y[::10], strict=True):
        assert share == pytest.approx(np.mean(pull <= stats.norm.interval(level)[1]))
    assert "other parameters" in lines
    band = lower.collections[0].get_paths()[0].vertices[:, 1].max()
    assert band == pytest.approx(stats.binom.std(3000, 0.5) / 3000 * 1.96, rel=1e-6)


def test_pulls_are_a_density_beside_the_gaussian(parts):
    parts["theta_E"].estimate[0] = 1e9  # beyond the axis, but counted
    axes = plots.pull_histograms(list(parts.values())).axes[0]
    values, edges, _ = axes.patches[-1].get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    x, y = axes.get_lines()[0].get_data()
    np.testing.assert_allclose(y, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


@pytest.mark.parametrize("num", [300, 3000])
def test_truth_and_fit_has_units_and_the_running_median(num):
    given = measured(num)
    part = gather(*(given[name] for name in ("truth", "estimate", "sigma", "label")))["theta_E"]
    upper, lower = plots.truth_and_fit(part).axes
    assert upper.get_ylabel() == "Einstein radius, fit (arcsec)"
    assert lower.get_ylabel() == "Fit − truth (% of the truth)"
    x, y = next(line for line in lower.get_lines() if line.get_label() == "median").get_data()
    order = np.argsort(part.truth)[: -(-num // len(x))]
    assert (x[0], y[0]) == pytest.approx((np.median(part.truth[order]), np.median(part.error[order])))
    if num > plots.FEW_POINTS:
        shown = lower.collections[0].get_array()
        assert np.sum(shown**2) == pytest.approx(num)  # every lens, though the axes end before some


def test_chi2_of_noise_follows_its_curve():
    chi2, label = stats.chi2.rvs(400, size=6000, random_state=0) / 400, np.arange(6000) % 2
    axes = plots.chi2_histograms(chi2, label, ("no", "vort"), pixels=400).axes[0]
    shares = {patch.get_label(): patch.get_data().values for patch in axes.patches}
    assert list(shares) == ["no", "vort", "noise alone"]
    for name in ("no", "vort"):
        assert shares[name].sum() == pytest.approx(1)
        np.testing.assert_allclose(shares[name][:-1], shares["noise alone"][:-1], atol=5 * np.sqrt(0.06 / 3000))


def test_gallery_shows_data_model_and_residual():
    images, model = np.random.default_rng(0).random((2, 2, 6, 8))
    figure = plots.fit_gallery(images, ["a", "b"], model, images - model, pixel_scale=0.5)
    grid = figure.axes[:6]
    shown = [axes.images[0] for axes in grid]
    for row in range(2):
        data, fit, left = shown[3 * row : 3 * row + 3]
        for image, expected in ((data, images), (fit, model), (left, images - model)):
            np.testing.assert_array_equal(image.get_array(), expected[row])
            assert image.origin == "lower"
        assert data.get_clim() == fit.get_clim()
        assert left.get_clim() == (-5, 5)
    assert shown[0].get_extent() == [-2, 2, -1.5, 1.5]
    assert [axes.get_title() for axes in grid[:3]] == ["Data", "Model", "Residual / noise"]
    alone = plots.fit_gallery(images, ["a", "b"], model)
    assert [axes.get_title() for axes in alone.axes] == ["Data", "Model", "", ""]
    assert alone.get_supxlabel() == "pixels"


def test_drawing_leaves_the_global_style_alone(parts):
    before = dict(matplotlib.rcParams)
    plots.pull_histograms(list(parts.values()))
    assert dict(matplotlib.rcParams) == before


def test_classes_without_images_have_no_gallery_and_no_row(tmp_path):
    label = np.minimum(measured(90)["label"], 1)
    _, result = judge(tmp_path, label=label)
    assert list(result["chi2"]["by_class"]) == list(CLASSES[:2])
    assert "Class vort" not in page(tmp_path)
