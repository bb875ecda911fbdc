import json
import math

import numpy as np
import pytest
import torch

from deeplense.config import Config, LossConfig, OptimConfig
from deeplense.data.module import LensDataset
from deeplense.data.transform import Preprocess, d4
from deeplense.errors import ConfigError
from deeplense.tasks import TASKS, Classifier, get, schedule
from toy import SETS, lens_set, tiny


def make(name="substructure", **changes):
    settings = Config(**{**tiny("unused").model_dump(), "task": name, **changes})
    images = SETS[name](30)
    return get(name)(settings, images.classes, 1, Preprocess((24, 24)).fit(images.images))


# Those that work with another trained task have tests of their own.
CLASSIFIERS = [name for name, task in TASKS.items() if issubclass(task, Classifier) and not task.parts]


def test_every_classifier_has_images_here():
    assert set(SETS) == set(CLASSIFIERS)


@pytest.mark.parametrize("loss", [{}, {"focal": 2.0, "class_weights": True, "label_smoothing": 0.1}])
@pytest.mark.parametrize("ensemble", [1, 2])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_keeps_the_contract(name, ensemble, loss):
    if name == "lens-equation" and ensemble > 1:
        pytest.skip("two heads have no ensemble: tests/tasks/test_lens_equation.py")
    task = make(name, loss=loss, train={**tiny("unused").train.model_dump(), "ensemble": ensemble})
    images = SETS[name](12)
    batch = LensDataset(images).__getitems__(range(12))
    output = task(batch["image"])
    loss = task.loss(output, batch)
    assert loss.shape == (12,) and loss.isfinite().all()
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.network.parameters())
    validated = task.validated_on(images, batch_size=5)
    assert all(len(column) == 12 for column in validated.values())
    torch.testing.assert_close(validated["loss"], task.eval().loss(validated["output"], batch), rtol=1e-4, atol=1e-5)
    assert 0 <= task.score(validated) <= 1
    before = task.columns(validated["output"])
    task.calibration = json.loads(json.dumps(task.calibrate(validated)))
    columns = task.columns(torch.cat(list(task.outputs(images.images, batch_size=5))))
    assert all(column.shape == (12,) and column.isfinite().all() for column in columns.values())
    assert list(columns) == list(before) and columns["label_pred"].dtype == torch.int64
    assert any(name.startswith("p_") for name in columns)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'substructure'"):
        get("substruct")


def test_loss_is_cross_entropy_of_the_right_class():
    logits, batch = torch.tensor([[0.0, 1.0, -2.0]]), {"label": torch.tensor([1])}
    expected = math.log(1 + math.exp(-1) + math.exp(-3))
    assert make().loss(logits, batch).item() == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_acts_in_training_only():
    task = make(loss=LossConfig(label_smoothing=0.3))
    logits, batch = torch.tensor([[0.0, 1.0, -2.0]]), {"label": torch.tensor([1])}
    each = -logits.log_softmax(1)[0]
    smooth = 0.7 * each[1] + 0.3 * each.mean()  # Szegedy et al., arXiv:1512.00567, section 7
    torch.testing.assert_close(task.train().loss(logits, batch)[0], smooth)
    torch.testing.assert_close(task.eval().loss(logits, batch)[0], each[1])


def test_class_weights_and_the_focal_factor_multiply_the_loss():
    logits, batch = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.0, 0.0]]), {"label": torch.tensor([1, 2])}
    plain = make().loss(logits, batch)
    task = make(loss=LossConfig(focal=2.0))
    task.know_mixture(np.array([0.5, 0.3, 0.2]), np.array([1.0, 3.0, 0.5]))
    np.testing.assert_allclose(task.train_shares, np.array([0.5, 0.9, 0.1]) / 1.5)
    p = logits.softmax(dim=1)[[0, 1], batch["label"]]
    weighted = torch.tensor([3.0, 0.5]) * plain  # Lin et al., arXiv:1708.02002, eq. 4
    torch.testing.assert_close(task.train().loss(logits, batch), (1 - p) ** 2 * weighted)
    torch.testing.assert_close(task.eval().loss(logits, batch), weighted)


def test_a_focal_exponent_below_one_has_a_gradient_at_certainty():
    task, logits = make(loss=LossConfig(focal=0.5)).train(), torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    task.loss(logits, {"label": torch.tensor([0])}).sum().backward()
    assert logits.grad.isfinite().all()


def test_no_prevalence_can_be_set_where_there_is_none():
    with pytest.raises(ConfigError, match="a substructure run has no prevalence"):
        make().retarget(0.1)


def test_score_is_the_mean_one_vs_rest_auc():
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    perfect = torch.eye(3)[label] * 5
    assert make().score({"output": perfect, "label": label}) == pytest.approx(1)
    # Class 0 by chance: one of four pairs... its probabilities tie everywhere; the others are still told apart.
    tied = perfect.clone()
    tied[label == 0] = torch.tensor([0.0, 5.0, 0.0])
    # By hand: class 0 has equal probability for all images, AUC 1/2; class 1 beats the two of class 2 and ties with
    # the two of class 0, AUC 3/4; class 2 is found, AUC 1.
    assert make().score({"output": tied, "label": label}) == pytest.approx((0.5 + 0.75 + 1) / 3)


def test_columns_are_probabilities_at_the_calibrated_temperature():
    task = make()
    task.calibration = {"temperature": 2.0}
    columns = task.columns(torch.tensor([[2.0, 0.0, -2.0]]))
    weights = [math.e, 1, 1 / math.e]
    assert list(columns) == ["p_no", "p_sphere", "p_vort", "label_pred"]
    for name, weight in zip(list(columns)[:3], weights, strict=True):
        assert columns[name].item() == pytest.approx(weight / sum(weights), rel=1e-6)
    assert columns["label_pred"].item() == 0


@pytest.mark.parametrize(("average", "element"), [("flips", 4), ("flips", 2), ("d4", 5)])
def test_averaging_makes_outputs_symmetric(average, element):
    task = make(model={**tiny("unused").model.model_dump(), "average": average})
    images = torch.from_numpy(lens_set(6).images)
    turned = d4(images, element)
    task.eval()
    assert not torch.allclose(task(images), task(turned), atol=1e-4)
    averaged = [torch.cat(list(task.outputs(x.numpy(), batch_size=4))) for x in (images, turned)]
    torch.testing.assert_close(*averaged, rtol=1e-4, atol=1e-5)


def test_cosine_rises_then_falls_to_nothing():
    config = OptimConfig(schedule="cosine", warmup=0.1)
    rates = [schedule.factor(config, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_constant_stays():
    assert {schedule.factor(OptimConfig(schedule="constant"), step, 10) for step in range(11)} == {1.0}


@pytest.mark.parametrize("name", ["constant", "cosine", "onecycle", "plateau"])
def test_every_schedule_starts_and_only_kernels_decay(name):
    task = make()
    found = schedule.configure(OptimConfig(schedule=name, weight_decay=0.1), task.network, steps=20)
    decayed, free = found["optimizer"].param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(task.network.parameters()))


def test_onecycle_peaks_at_the_given_rate():
    found = schedule.configure(OptimConfig(schedule="onecycle", lr=0.01), make().network, steps=50)
    rates = []
    for _ in range(50):
        rates.append(found["optimizer"].param_groups[0]["lr"])
        found["optimizer"].step()
        if len(rates) < 50:
            found["lr_scheduler"]["scheduler"].step()
    assert max(rates) == pytest.approx(0.01, rel=0.02)
    assert 0.25 < rates.index(max(rates)) / 50 < 0.35
