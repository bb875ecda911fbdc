"""What the figures say: curves and numbers in them, not their looks."""

import matplotlib
import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from deeplense.evaluate import plots
from deeplense.evaluate.calibrate import reliability_curve

CLASSES = ("no", "sphere", "vort")


@pytest.fixture
def judged():
    label = np.arange(90) % 3
    return softmax(np.random.default_rng(0).normal(size=(90, 3)) + np.eye(3)[label], axis=1), label


def test_roc_has_each_class_the_macro_average_and_the_random_line(judged):
    probs, label = judged
    lines = plots.roc_curves(probs, label, CLASSES).axes[0].get_lines()
    auc = [metrics.roc_auc_score(label == k, probs[:, k]) for k in range(3)]
    expected = [f"{name}, AUC {value:.3f}" for name, value in zip(CLASSES, auc, strict=True)]
    expected += [f"macro average, AUC {np.mean(auc):.3f}", "random, AUC 0.500"]
    assert [line.get_label() for line in lines] == expected


def test_macro_average_keeps_the_mean_area(judged):
    probs, label = judged
    curves = [metrics.roc_curve(label == k, probs[:, k])[:2] for k in range(3)]
    area = np.mean([metrics.auc(*curve) for curve in curves])
    assert metrics.auc(*plots.macro_average(curves)) == pytest.approx(area, abs=1e-6)


def test_roc_leaves_out_an_absent_class(judged):
    probs, label = judged
    labels = [line.get_label() for line in plots.roc_curves(probs, label % 2, CLASSES).axes[0].get_lines()]
    assert not any("vort" in text for text in labels)


def test_confusion_matrix_shows_counts_and_row_shares():
    texts = [text.get_text() for text in plots.confusion_matrix([[3, 1], [0, 0]], ("a", "b")).axes[0].texts]
    assert texts == ["3", "75.0%", "1", "25.0%", "0", "0.0%", "0", "0.0%"]


def test_reliability_diagram_draws_both_curves(judged):
    curve = reliability_curve(*judged)
    upper = plots.reliability_diagram(curve, curve).axes[0]
    names = [text.get_text() for text in upper.get_legend().get_texts()]
    assert names == ["perfectly calibrated", "before scaling", "after scaling"]
    assert len(plots.reliability_diagram(curve).axes[0].get_legend().get_texts()) == 2


ROWS = [
    {"epoch": "0", "step": "9", "train_loss": "1.1", "val_loss": "", "train_loss_step": "7"},
    {"epoch": "0", "step": "9", "train_loss": "", "val_loss": "1.2", "val_auc": "0.5"},
    {"epoch": "1", "step": "19", "train_loss": "0.9", "val_loss": "nan", "val_auc": None, "lr": "0.1"},
]


def test_history_reads_a_csv_with_holes():
    assert plots.history(ROWS) == {
        "train_loss": ([0, 1], [1.1, 0.9]),
        "val_loss": ([0], [1.2]),
        "val_auc": ([0], [0.5]),
        "lr": ([1], [0.1]),
    }


def test_learning_curves_split_losses_from_scores():
    for quantity, names in (("loss", ["train loss", "val loss"]), ("score", ["val auc"])):
        axes = plots.learning_curves(ROWS, quantity).axes[0]
        assert [line.get_label() for line in axes.get_lines()] == names
    assert plots.learning_curves([{"epoch": 1, "lr": 0.1}]) is None


def test_drawing_leaves_the_global_style_alone(judged):
    before = dict(matplotlib.rcParams)
    plots.roc_curves(*judged, CLASSES)
    assert dict(matplotlib.rcParams) == before
