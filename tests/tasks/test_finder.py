"""The finder's loss, score, calibration and columns, against closed forms and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from deeplense.config import Config, LossConfig
from deeplense.data.transform import Preprocess
from deeplense.errors import ConfigError, DataError
from deeplense.tasks import get
from toy import finder_set, tiny


def make(classes=("nonlens", "lens"), **changes):
    settings = Config(**{**tiny("unused").model_dump(), "task": "finder", **changes})
    return get("finder")(settings, classes, 1, Preprocess((24, 24)).fit(finder_set(8).images))


def column(*values):
    return torch.tensor(values)[:, None]


def test_the_network_gives_one_logit_an_image():
    assert make()(torch.from_numpy(finder_set(5).images)).shape == (5, 1)


def test_unknown_class_names_are_said_aloud(caplog):
    for names, is_said in ((("nonlens", "lens"), False), (("0", "1"), False), (("arc", "noarc"), True)):
        caplog.clear()
        make(names).know_mixture(np.full(2, 0.5), np.ones(2))
        assert ("'noarc' count as lenses" in caplog.text) == is_said


@pytest.mark.parametrize("label", [0, 1])
def test_loss_is_binary_cross_entropy(label):
    p = 1 / (1 + math.exp(-1.5))
    expected = -math.log(p if label else 1 - p)
    assert make().loss(column(1.5), {"label": torch.tensor([label])}).item() == pytest.approx(expected, rel=1e-6)


def test_smoothing_weights_and_focal_factor():
    task = make(loss=LossConfig(label_smoothing=0.2, focal=2.0))
    task.know_mixture(np.array([0.9, 0.1]), np.array([0.5, 5.0]))
    output, batch = column(1.5), {"label": torch.tensor([1])}
    p = 1 / (1 + math.exp(-1.5))
    smooth = -0.9 * math.log(p) - 0.1 * math.log(1 - p)
    assert task.train().loss(output, batch).item() == pytest.approx(5 * (1 - p) ** 2 * smooth, rel=1e-6)
    assert task.eval().loss(output, batch).item() == pytest.approx(-5 * math.log(p), rel=1e-6)
    assert task.train_shares[1] == pytest.approx(0.1 * 5 / (0.1 * 5 + 0.9 * 0.5))


def test_score_is_scikit_learns_average_precision():
    rng = np.random.default_rng(0)
    label = (rng.random(500) < 0.05).astype(np.int64)
    logits = np.round(rng.normal(size=500) + 2 * label, 1)  # with ties
    found = make().score({"output": torch.from_numpy(logits)[:, None], "label": torch.from_numpy(label)})
    assert found == pytest.approx(average_precision_score(label, logits), rel=1e-6)


def test_score_tells_sure_from_surer():
    """A sigmoid of 40 and of 50 are both one; the order of the logits is not lost."""
    wrong, right = column(50.0, 40.0, 0.0), column(40.0, 50.0, 0.0)
    label = torch.tensor([0, 1, 0])
    assert make().score({"output": right, "label": label}) == 1
    assert make().score({"output": wrong, "label": label}) == pytest.approx(0.5)


def test_score_without_lenses_is_the_lowest():
    assert make().score({"output": column(1.0, 2.0), "label": torch.tensor([0, 0])}) == 0


def test_calibration_undoes_the_mixture_of_training():
    """Gaussian scores, whose log-odds are known: from a balanced network to lenses that are one in twenty."""
    rng = np.random.default_rng(1)
    label = (np.arange(100_000) < 5000).astype(np.int64)
    ratio = 2 * (rng.normal(size=100_000) + 2 * (label - 0.5))
    task = make()
    task.know_mixture(np.array([0.5, 0.5]), np.ones(2))
    output = torch.from_numpy(ratio)[:, None]
    task.calibration = task.calibrate({"output": output, "label": torch.from_numpy(label)})
    assert task.calibration["train_prevalence"] == 0.5 and task.calibration["val_prevalence"] == 0.05
    truth = output[:, 0] + math.log(0.05 / 0.95)
    torch.testing.assert_close(task.log_odds(output), truth, atol=0.3, rtol=0)
    rare = output[:, 0] + math.log(1e-3 / 0.999)
    torch.testing.assert_close(task.log_odds(output, 1e-3), rare, atol=0.3, rtol=0)
    assert task.columns(output)["p_lens"].mean().item() == pytest.approx(0.05, rel=0.02)


def test_columns_follow_the_prevalence_and_keep_their_order_at_certainty():
    task = make()
    task.calibration = {"temperature": 2.0, "bias": 0.5, "train_prevalence": 0.5, "val_prevalence": 0.1}
    output = column(-3.0, 0.0, 8.0, 90.0, 100.0)
    columns = task.columns(output)
    assert list(columns) == ["p_lens", "score", "label_pred"]
    expected = output[:, 0] / 2 + 0.5 + math.log(0.1 / 0.9)
    torch.testing.assert_close(columns["score"], expected)
    torch.testing.assert_close(columns["p_lens"], expected.sigmoid())
    assert columns["label_pred"].tolist() == [0, 0, 1, 1, 1]
    task.retarget(1e-3)
    shifted = task.columns(output)
    torch.testing.assert_close(shifted["score"], expected - math.log(0.1 / 0.9) + math.log(1e-3 / 0.999))
    assert shifted["p_lens"][-1] == shifted["p_lens"][-2] == 1 and shifted["score"][-1] > shifted["score"][-2]
    assert shifted["label_pred"].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("prevalence", [0, 1, -1, 1.5, float("nan")])
def test_a_prevalence_lies_between_0_and_1(prevalence):
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        make().retarget(prevalence)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("no", "sphere", "vort"), "two classes apart, and these are 3: no, sphere, vort"),
        (("lens", "star"), "come before 'star'"),
    ],
)
def test_other_sets_are_refused_in_one_line(classes, message):
    with pytest.raises(DataError, match=message) as error:
        make(classes)
    assert "\n" not in str(error.value)


def test_any_two_classes_will_do():
    images = replace(finder_set(8), classes=("galaxy", "lens"))
    assert list(make(images.classes).columns(column(0.0))) == ["p_lens", "score", "label_pred"]
