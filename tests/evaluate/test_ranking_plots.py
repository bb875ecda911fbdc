"""What a finder's figures say: curves, marks and bars, not their looks."""

import matplotlib
import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics
from test_population import survey

from deeplense.evaluate import ranking_plots as plots
from deeplense.evaluate.population import kind_rows, population_scores
from deeplense.evaluate.ranking import ranking_scores
from deeplense.evaluate.rare import reliability


@pytest.fixture(scope="module")
def judged():
    rng = np.random.default_rng(0)
    label = (np.arange(3000) < 300).astype(int)
    score = np.round(rng.normal(size=3000) + 3 * label, 2)
    return score, label, ranking_scores(score, label, bootstrap=50)


def test_roc_is_that_of_scikit_learn_with_the_rates_marked(judged):
    score, label, found = judged
    axes = plots.roc_log(*judged).axes[0]
    assert axes.get_xscale() == "log"
    x, y = axes.get_lines()[0].get_data()
    fpr, tpr, _ = metrics.roc_curve(label, score, drop_intermediate=False)
    np.testing.assert_allclose(y, tpr)
    np.testing.assert_allclose(x[fpr > 0], fpr[fpr > 0])
    assert (x[fpr == 0] < 1 / 2700).all()
    texts = [text.get_text() for text in axes.texts]
    assert texts == [f"{found['tpr_at_fpr'][rate]['value']:.3f}" for rate in ("0.01", "0.001")]


def test_purity_curves_equal_weighted_scikit_learn(judged):
    score, label, _ = judged
    lines = plots.purity_curves(*judged).axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["lenses 1 in 17", "lenses 1 in 100", "lenses 1 in 1,000"]
    for line, prevalence in zip(lines, (1 / 17, 1 / 100, 1 / 1000), strict=True):
        weights = np.where(label == 1, prevalence / 300, (1 - prevalence) / 2700)
        precision, recall, _ = metrics.precision_recall_curve(label, score, sample_weight=weights)
        x, y = line.get_data()
        for completeness, purity in zip(x[::10], y[::10], strict=True):
            assert purity == pytest.approx(precision[np.isclose(recall, completeness)].max())


def test_completeness_and_kinds_are_drawn_as_counted():
    score, label, params = survey()
    found = population_scores(score, label, params)
    axes = plots.completeness_curves(found["completeness"]).axes[0]
    assert axes.get_xlabel() == "Einstein radius (arcsec)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "false positive rate 0.01",
        "false positive rate 0.001",
    ]
    axes = plots.kind_bars(found["false_positives"][0]["kind"]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [5, 5]
    assert sorted(text.get_text() for text in axes.texts) == ["5 of 100 (5.0 %)", "5 of 900 (0.6 %)"]
    rows = kind_rows(np.array(["star", "star"], dtype=object), np.array([False, False]), np.array([0, 0]))
    assert [text.get_text() for text in plots.kind_bars(rows).axes[0].texts] == ["0 of 2"]


@pytest.mark.parametrize("num", [1, 2, 30, 5000])
def test_reliability_has_odds_axes_for_sets_of_any_size(num):
    rng = np.random.default_rng(0)
    label = np.arange(num) % 2
    curve = reliability(expit(3 * (rng.normal(size=num) + 2 * label - 1)), label)
    figure = plots.reliability_odds({"a": curve, "b": curve})
    figure.canvas.draw()
    upper = figure.axes[0]
    assert upper.get_xscale() == upper.get_yscale() == "logit"
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["perfectly calibrated", "a", "b"]


def test_shares_in_words():
    assert [plots.one_in(p) for p in (1 / 17, 0.01, 0.001, 0.5)] == ["1 in 17", "1 in 100", "1 in 1,000", "50 %"]


def test_drawing_leaves_the_global_style_alone(judged):
    before = dict(matplotlib.rcParams)
    plots.roc_log(*judged)
    assert dict(matplotlib.rcParams) == before
