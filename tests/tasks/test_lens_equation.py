"""The lens equation as a loss, against round lenses whose deflection is known."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import expit, huber

from deeplense import config, train, weights
from deeplense.config import PhysicsConfig
from deeplense.data.module import LensDataModule, LensDataset
from deeplense.data.schema import LensSet
from deeplense.data.transform import Preprocess, d4, d4_matrices
from deeplense.errors import ConfigError, DataError, ModelError
from deeplense.evaluate.explain import heat_maps
from deeplense.evaluate.judge import judge
from deeplense.lensing.deflection import deflect_sie
from deeplense.lensing.raytrace import make_grid, trace
from deeplense.predict import Predictor
from deeplense.tasks import get
from deeplense.tasks.arc import agree, brightest_pixels, deflect_alike
from deeplense.tasks.schedule import rising_weight
from toy import CLASSES, lens_set, tiny

SIZE, SCALE = 48, 0.1
NONE = torch.zeros(1, 2)


def round_lenses(num, seed=0, noise=0.002, offsets=(0.05, 0.3), sizes=(0.9, 1.5)):
    """Singular isothermal spheres in the middle, their sources round and of 0.12 arcsec, behind a PSF; any classes."""
    rng = np.random.default_rng(seed)
    theta_E, radius, angle = rng.uniform(*sizes, num), rng.uniform(*offsets, num), rng.uniform(0, 2 * np.pi, num)
    source = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    x, y = make_grid(SIZE, SCALE, dtype=torch.float64)
    nothing = torch.zeros(num, dtype=torch.float64)
    beta_x, beta_y = trace(x, y, deflect_sie(x, y, torch.from_numpy(theta_E), *[nothing] * 4))
    dx, dy = (beta.numpy() - s[:, None, None] for beta, s in zip((beta_x, beta_y), source.T, strict=True))
    # The PSF takes less of the wide, outer image: it has the brightest pixel. Without one, chance would decide.
    images = gaussian_filter(np.exp(-(dx**2 + dy**2) / (2 * 0.12**2)), 1.0, axes=(1, 2))[:, None]
    images = (images + noise * rng.normal(size=images.shape)).astype(np.float32)
    params = pa.table({"source_x": source[:, 0], "source_y": source[:, 1], "theta_E": theta_E})
    names = [f"round-{seed}-{i}" for i in range(num)]
    return LensSet(images, names, np.arange(num) % 3, CLASSES, params, SCALE)


def settings(out="unused", *overrides):
    """Of the smallest network."""
    words = ["model.width=4", "model.size=48", "data.batch_size=16", "train.export=[]", f"out={out}"]
    return config.load("tiny/brief-physics", [*words, "data.fraction=1.0", *overrides])


def module(chosen, num=48, **lenses):
    images = round_lenses(num, 1, **lenses), round_lenses(24, 2, **lenses)
    return LensDataModule(*images, 16, params=get("lens-equation").wanted(chosen))


def make(against="source", *overrides):
    chosen = settings("unused", f"physics.against={against}", *overrides)
    torch.manual_seed(0)
    return train.build_task(chosen, module(chosen)).eval()


def batch_of(images, task):
    return LensDataset(images, task.wanted(task.config)).__getitems__(range(len(images)))


def outputs(task, alpha):
    """What the network would have to say for a deflection (B, 2) in arcsec."""
    return torch.cat([torch.zeros(len(alpha), 3), alpha / task.config.physics.largest], dim=1)


def true_alpha(images):
    """theta_E along the direction of the brightest pixel: the definition of the round isothermal lens."""
    theta = brightest_pixels(torch.from_numpy(images.images), 1, torch.zeros(len(images), 2))[0][:, 0]
    theta_E = torch.tensor(images.params["theta_E"].to_numpy()).float()
    return theta_E[:, None] * theta / theta.norm(dim=1, keepdim=True)


def rows(run):
    with (run / "metrics.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def physics_loss(task, images, alpha):
    return task.losses(outputs(task, alpha), batch_of(images, task))["physics_loss"]


# Against the true source position.


def test_the_true_deflection_costs_nothing_and_no_lensing_what_theory_says():
    task, images = make("source"), round_lenses(60)
    alpha = true_alpha(images)
    at_truth = physics_loss(task, images, alpha)
    assert at_truth.max() < 0.005 and at_truth.mean() < 0.001, "pixels of a tenth of an arcsecond"
    # beta is off by alpha itself; Smooth-L1 is Huber's function with its bend at 1.
    expected = huber(1.0, alpha.numpy()).mean(axis=1)
    nothing = physics_loss(task, images, 0 * alpha).numpy()
    np.testing.assert_allclose(nothing, expected, atol=0.08)
    assert nothing.min() > 20 * at_truth.max()


def test_a_constant_turn_and_a_wrong_length_cost_in_source_mode():
    task, images = make("source"), round_lenses(30)
    alpha = true_alpha(images)
    turn = torch.tensor([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]).float()
    for wrong in (alpha @ turn, 0.85 * alpha, 1.15 * alpha):
        expected = huber(1.0, (wrong - alpha).numpy()).mean()
        assert physics_loss(task, images, wrong).mean() == pytest.approx(expected, abs=0.005)


def test_an_image_of_unknown_source_or_without_arc_counts_by_its_class_alone():
    task, images = make("source"), round_lenses(3)
    images.images[1] = np.random.default_rng(0).normal(size=(1, SIZE, SIZE))
    params = images.params.set_column(0, "source_x", pa.array([None, 0.1, 0.1]))
    batch = batch_of(replace(images, params=params), task)
    output = outputs(task, torch.zeros(3, 2)).requires_grad_()
    found = task.losses(output, batch)
    assert found["physics_loss"].isnan().tolist() == [True, True, False]
    torch.testing.assert_close(found["loss"][:2], torch.full((2,), np.log(3)).float())
    assert found["loss"][2] > np.log(3) + 0.1
    found["loss"].sum().backward()
    assert output.grad.isfinite().all() and not output.grad[:2, 3:].any()


@pytest.mark.parametrize(
    "words",
    [
        ["augment.degrees=0", "augment.translate=0", "augment.scale=[1,1]", "augment.blur=0"],
        ["augment.degrees=60", "augment.translate=0.05", "augment.scale=[0.9,1.1]", "augment.blur=0"],
    ],
)
def test_the_truth_moves_with_the_image(words):
    task = make("source", "augment.flips=true", *words)
    task.augment.config = task.augment.config.model_copy(update={"quarter_turns": words[0].endswith("=0")})
    images = round_lenses(120, sizes=(0.6, 0.9))  # well inside: beyond its edges an image is mirrored
    alpha = true_alpha(images)
    batch = batch_of(images, task)
    torch.manual_seed(0)
    changed, moved = task.augment.traced(batch["image"])
    turned = (moved[..., :2] * alpha[:, None]).sum(-1)
    # The brightest pixel may now be that of another image of the source: there alpha has the same length.
    theta = brightest_pixels(changed, 1, moved[..., 2])[0][:, 0] - moved[..., 2]
    turned = turned.norm(dim=1, keepdim=True) * theta / theta.norm(dim=1, keepdim=True)
    found = {
        name: task.losses(outputs(task, turned), {**batch, "image": changed, **more})["physics_loss"]
        for name, more in (("moved", {"moved": moved}), ("still", {}))
    }
    assert found["moved"].mean() < 0.002, "as exact as the pixels"
    assert found["still"].mean() > 5 * found["moved"].mean(), "and so only if the truth moves too"


# Against the other pixels of the arc.


def ridge(theta_E, source, angles):
    """Where an isothermal sphere shows a source brightest in each direction, (1, S, 2)."""
    e = torch.stack([torch.cos(angles), torch.sin(angles)], dim=-1)
    return ((theta_E + e @ source)[:, None] * e)[None], e


def arc_loss(theta, alpha):
    beta = theta - deflect_alike(alpha, theta, NONE.to(alpha))
    return agree(beta, torch.ones(theta.shape[:2], dtype=torch.bool))[0].item()


@pytest.mark.parametrize("source", [(0.0, 0.0), (0.2, -0.1)])
def test_a_whole_ring_costs_what_was_derived(source):
    """(theta_E - a)^2 + b^2 + |beta|^2 / 4 in the mean; Smooth-L1 is half of that, the mean of two components again."""
    source = torch.tensor(source, dtype=torch.float64)
    theta, e = ridge(1.2, source, torch.arange(16, dtype=torch.float64) * 2 * np.pi / 16)
    across = torch.stack([-e[0, 1], e[0, 0]])
    floor = (source @ source).item() / 4
    for a in (0.9, 1.2, 1.4):
        for b in (-0.3, 0.0, 0.2):
            expected = ((1.2 - a) ** 2 + b**2 + floor) / 4
            assert arc_loss(theta, (a * e[0] + b * across)[None]) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_neither_no_lensing_nor_a_collapse_nor_a_turn_is_free():
    source = torch.tensor([0.2, -0.1], dtype=torch.float64)
    theta, e = ridge(1.2, source, torch.arange(16, dtype=torch.float64) * 2 * np.pi / 16)
    truth = arc_loss(theta, 1.2 * e[:1])
    assert arc_loss(theta, 0 * e[:1]) > 20 * truth, "alpha = 0"
    assert arc_loss(theta, theta[:, 0]) > 1.5 * truth, "alpha = theta: the source in a point"
    turned = 1.2 * e[:1] @ torch.tensor([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    assert arc_loss(theta, turned) > 20 * truth, "alpha turned by a constant"


def test_a_short_arc_hardly_constrains():
    """By (1 - |mean of e|^2), the spread of the directions."""
    nothing = torch.zeros(2, dtype=torch.float64)
    for half_width in (0.1, 0.5, np.pi / 2):
        theta, e = ridge(1.2, nothing, torch.linspace(-half_width, half_width, 8, dtype=torch.float64))
        spread = 1 - e.mean(dim=0).norm().item() ** 2
        assert arc_loss(theta, 0.9 * e[:1]) == pytest.approx(0.3**2 * spread / 4, rel=1e-6)
    assert spread > 0.5
    theta, e = ridge(1.2, nothing, torch.linspace(-0.1, 0.1, 8, dtype=torch.float64))
    assert arc_loss(theta, 0.9 * e[:1]) < 0.005 * 0.3**2 / 4 * 2


def test_in_images_the_least_cost_is_at_the_einstein_radius():
    task, images = make("arc"), round_lenses(40, offsets=(0.05, 0.15))
    direction = torch.nn.functional.normalize(true_alpha(images), dim=1)
    lengths = torch.arange(0, 2.0, 0.02)
    costs = torch.stack([physics_loss(task, images, length * direction) for length in lengths])
    ratio = lengths[costs.argmin(dim=0)] / torch.tensor(images.params["theta_E"].to_numpy()).float()
    assert abs(ratio.mean() - 1) < 0.02 and ratio.std() < 0.04
    assert (costs[0] / costs.min(dim=0).values).min() > 10, "no lensing"


def test_a_lens_that_was_moved_is_turned_about_where_it_is_now():
    images = round_lenses(20, offsets=(0.05, 0.1))
    task = make("arc", "augment.degrees=0", "augment.scale=[1,1]", "augment.translate=0.1", "augment.blur=0")
    batch = batch_of(images, task)
    torch.manual_seed(0)
    changed, moved = task.augment.traced(batch["image"])
    theta = brightest_pixels(changed, 1, moved[..., 2])[0][:, 0] - moved[..., 2]
    theta_E = torch.tensor(images.params["theta_E"].to_numpy()).float()
    output = outputs(task, theta_E[:, None] * torch.nn.functional.normalize(theta, dim=1))
    about = [task.losses(output, {**batch, "image": changed, **m})["physics_loss"] for m in ({"moved": moved}, {})]
    assert about[0].mean() < 0.005 < 0.01 < about[1].mean()


# Pixels.


def test_pixels_of_an_arc_are_the_brightest_of_their_sectors_to_a_part_of_a_pixel():
    axis = torch.arange(31.0) - 15
    places = torch.tensor([[12.3, 0.2], [0.4, 8.6], [-9.0, 0.0], [-0.4, -8.8]])
    heights = [1.0, 0.8, 0.2, 0.5]
    blobs = [
        h * torch.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / 2)
        for h, (x, y) in zip(heights, places, strict=True)
    ]
    theta, is_arc = brightest_pixels(sum(blobs)[None, None], 4, NONE)
    torch.testing.assert_close(theta[0], places, atol=0.2, rtol=0)
    assert is_arc[0].tolist() == [True, True, False, True], "a fifth of the brightest is too faint"
    cropped, _ = brightest_pixels(sum(blobs)[None, None], 1, NONE, crop=23)
    torch.testing.assert_close(cropped[0, 0], places[1], atol=0.2, rtol=0)


def test_sectors_turn_with_the_image():
    images = torch.from_numpy(round_lenses(10, noise=0.0).images)
    theta, is_arc = brightest_pixels(images, 8, torch.zeros(10, 2))
    for element in (1, 2, 3):
        again = brightest_pixels(d4(images, element), 8, torch.zeros(10, 2))
        turned = theta @ d4_matrices()[element].T
        # Equally bright pixels may be taken for one another: the same light, not always the same order.
        torch.testing.assert_close(
            again[0].norm(dim=2)[again[1]].mean(), turned.norm(dim=2)[is_arc].mean(), rtol=0.01, atol=0
        )


def test_missing_pixels_are_no_light():
    images = torch.from_numpy(round_lenses(2).images)
    images[:, :, :3] = torch.nan
    theta, is_arc = brightest_pixels(images, 8, torch.zeros(2, 2))
    assert theta.isfinite().all() and is_arc[:, 0].all()


# The task.


def test_the_weight_rises_along_a_sigmoid():
    physics = PhysicsConfig(weight=2.0, midpoint=0.4, rise=0.05)
    assert rising_weight(physics, 0.4) == pytest.approx(1.0)
    for share in (0.1, 0.3, 0.45, 0.6):
        w = rising_weight(physics, share)
        assert np.log(w / (2 - w)) == pytest.approx((share - 0.4) / 0.05)  # the logistic function's inverse
    assert make("arc").weight == pytest.approx(expit((1 - 0.25) / 0.1)), "of the end, where nothing is trained"


@pytest.mark.parametrize("against", ["source", "arc"])
def test_gradients_reach_every_parameter(against):
    task = make(against).train()
    batch = batch_of(round_lenses(24), task)
    losses = task.losses(task(batch["image"]), batch)
    losses["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in task.network.parameters())
    task.zero_grad()
    task.losses(task(batch["image"]), batch)["physics_loss"].mean().backward()
    reached = {
        name.partition(".")[0] for name, p in task.network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached == {"backbone", "physics"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    chosen = settings(tmp_path_factory.mktemp("runs") / "run", "physics.against=source", "train.epochs=3")
    return train.fit(chosen, module(chosen))


def test_three_losses_are_kept_of_each_epoch_and_make_up_the_total(run):
    assert len(rows(run)) == 3
    for row in rows(run):
        w = expit((row["epoch"] / 3 - 0.25) / 0.1)
        assert row["val_loss"] == pytest.approx(row["val_class_loss"] + w * row["val_physics_loss"], rel=1e-5)


def test_a_stored_run_says_the_same_and_remembers_its_pixels(run):
    task, images = weights.load_task(run), round_lenses(6, 5)
    assert task.pixel_scale == SCALE
    again = train.build_task(task.config, module(task.config))
    again.network.load_state_dict(task.network.state_dict())
    x = torch.from_numpy(images.images)
    torch.testing.assert_close(again.eval()(x), task(x), rtol=1e-5, atol=1e-6)
    table = Predictor.load(run, device="cpu").predict(images)
    assert table.column_names[1:7] == ["p_no", "p_sphere", "p_vort", "label_pred", "alpha_x", "alpha_y"]
    alpha = np.stack([table["alpha_x"], table["alpha_y"]], axis=1)
    np.testing.assert_allclose(alpha, 3.0 * task(x)[:, 3:].detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sum(np.asarray(table[f"p_{name}"]) for name in CLASSES), 1, rtol=1e-5)


def test_the_deflection_is_learnt(tmp_path):
    """Of sources so far off that the brightest pixel is on their side, where a network can know it."""
    words = ["physics.against=source", "physics.midpoint=0", "train.epochs=6", "model=brief-cnn", "model.size=24"]
    still = ["augment.degrees=0", "augment.translate=0", "augment.scale=[1,1]", "augment.blur=0"]
    chosen = settings(tmp_path / "run", *words, *still)
    data = module(chosen, 240, offsets=(0.3, 0.5))
    last = rows(train.fit(chosen, data))[-1]["val_physics_loss"]
    assert last < 0.2 * physics_loss(make("source"), data.val, torch.zeros(24, 2)).mean(), "less than without lensing"


def test_the_judgement_holds_the_three_losses(run, tmp_path):
    images = round_lenses(30, 8)
    found = judge(run, images, tmp_path / "a", bootstrap=0)
    task = weights.load_task(run)
    output = torch.cat(list(task.outputs(images.images, 64)))
    logits = output[:, :3].double().log_softmax(dim=1).numpy()
    expected = -logits[np.arange(30), images.label].mean()
    source = np.stack([images.params["source_x"], images.params["source_y"]], axis=1)
    theta = SCALE * brightest_pixels(torch.from_numpy(images.images), 1, torch.zeros(30, 2))[0][:, 0].numpy()
    physics = huber(1.0, theta - 3.0 * output[:, 3:].numpy() - source).mean()
    assert found["losses"] == pytest.approx(
        {"classification": expected, "physics": physics, "total": expected + expit(7.5) * physics}, rel=1e-4
    )
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == found
    assert "Loss: physics" in (tmp_path / "a" / "report.html").read_text()
    assert set(found["per_class"]) == set(CLASSES)


def test_without_truth_or_with_other_pixels_only_the_classification_is_judged(run, tmp_path, caplog):
    images = round_lenses(30, 8)
    for i, other in enumerate((replace(images, params=None), replace(images, pixel_scale=0.2))):
        found = judge(run, other, tmp_path / str(i), bootstrap=0)
        assert found["losses"]["classification"] > 0
        assert found["losses"]["physics"] is None and found["losses"]["total"] is None
    assert 'of 48x48 pixels of 0.2", and the run learnt from 48x48 of 0.1"' in caplog.text
    with pytest.raises(ConfigError, match="only a finder has one"):
        judge(run, images, tmp_path / "b", prevalence=0.1)


def test_a_run_without_truth_learns_from_the_arc_and_takes_pixels_for_those_of_the_common_test(tmp_path, caplog):
    chosen = settings(tmp_path / "run", "train.epochs=1")
    data = LensDataModule(*(replace(round_lenses(30, i), pixel_scale=None, params=None) for i in (1, 2)), 16)
    run = train.fit(chosen, data)
    assert "do not say their pixel scale" in caplog.text
    assert weights.load_task(run).pixel_scale == 0.05
    images = replace(round_lenses(30, 8), pixel_scale=None, params=None)
    assert judge(run, images, tmp_path / "a", bootstrap=0)["losses"]["physics"] > 0


def test_averaging_turns_deflections_back():
    task = make("arc", "model.average=d4")
    images = torch.from_numpy(round_lenses(6).images)
    with torch.no_grad():
        for _ in range(30):
            task.train()(images)  # until batch statistics are those of the images
        task.eval()
        plain = task.averaged(images)
        for element in (1, 4, 7):
            turned = task.averaged(d4(images, element))
            torch.testing.assert_close(turned[:, :3], plain[:, :3], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(turned[:, 3:], plain[:, 3:] @ d4_matrices()[element].T, rtol=1e-4, atol=1e-5)
    assert plain[:, 3:].abs().max() > 1e-3


def test_a_heat_map_explains_a_class_never_the_deflection():
    task = make("arc")
    last = task.network.classify[-1]
    last.bias.data -= 50  # logits below anything that tanh can say
    images = round_lenses(3).images
    best = [int(output[:3].argmax()) for output in torch.cat(list(task.outputs(images, 8)))]
    expected = np.concatenate([heat_maps(task, images[i : i + 1], target=c) for i, c in enumerate(best)])
    np.testing.assert_allclose(heat_maps(task, images), expected, atol=1e-5)


def test_onnx_says_the_same(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    task, images = make("arc", "model.average=flips"), round_lenses(5).images
    weights.export(task, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = task.columns(task.averaged(torch.from_numpy(images)))
    assert [output.name for output in session.get_outputs()] == list(expected)
    for ours, theirs in zip(expected.values(), session.run(None, {"image": images}), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-5)


def test_auto_takes_the_truth_where_images_are_simulated():
    task = get("lens-equation")
    assert task.wanted(settings("unused", "data=preset:common-test")) == ("source_x", "source_y")
    assert task.wanted(settings("unused", "data=some/folder")) == ()
    assert task.wanted(settings("unused", "data=some/folder", "physics.against=source")) == ("source_x", "source_y")
    assert task.wanted(settings("unused", "data=preset:common-test", "physics.against=arc")) == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.ensemble=2", r"set train\.ensemble=1"),
        ("train.freeze=1", r"train\.freeze=0"),
        ("augment.shift=2", "flips, quarter_turns, degrees, translate, scale, blur and noise are allowed"),
        ("augment.crop=[0.5,0.9]", "are allowed"),
        ("augment.shear=5", "are allowed"),
    ],
)
def test_what_it_cannot_do_is_refused_before_images_are_read(override, message):
    chosen = settings("unused", override, "data=no/such/folder")
    with pytest.raises(ConfigError, match=message):
        get("lens-equation").wanted(chosen)
    with pytest.raises(ConfigError, match=message):
        get("lens-equation")(chosen, CLASSES, 1, Preprocess((24, 24)))


def test_a_source_position_that_is_not_there_is_named(tmp_path):
    chosen = settings(tmp_path / "run", "physics.against=source")
    with pytest.raises(DataError, match="without 'source_x' in their truth table"):
        train.fit(
            chosen, LensDataModule(lens_set(30, 1), lens_set(30, 2), 8, params=get("lens-equation").wanted(chosen))
        )


def test_a_run_starts_from_another_with_two_heads_only(run, tmp_path):
    two = replace(round_lenses(24, 3), label=np.arange(24) % 2, classes=("no", "some"))
    chosen = settings(tmp_path / "a", f"init={run}")
    task = train.build_task(chosen, LensDataModule(two, replace(two, name=two.name[::-1]), 8))
    given, found = weights.load(run), task.network.state_dict()
    anew = {
        name for name in given if given[name].shape != found[name].shape or not torch.equal(given[name], found[name])
    }
    assert anew == {"classify.3.weight", "classify.3.bias"}
    plain = train.fit(
        tiny(tmp_path / "plain", "train.epochs=1", "model.size=48"), LensDataModule(lens_set(30, 1), lens_set(30, 2), 8)
    )
    with pytest.raises(ModelError, match="do not fit the network"):
        train.build_task(settings("unused", f"init={plain}"), module(settings()))
