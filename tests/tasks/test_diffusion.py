import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import chi2
from skimage.metrics import structural_similarity

from deeplense import config as configs
from deeplense import train, weights
from deeplense.data.module import LensDataModule
from deeplense.data.transform import Preprocess
from deeplense.errors import ConfigError, DataError, ModelError
from deeplense.models.pipeline import noise_levels
from deeplense.tasks.diffusion import DiffusionTask
from deeplense.tasks.draw import Request, draw
from toy import lens_set, write_diffusion, write_folder


def make(*overrides, images=None, classes=("no", "sphere", "vort")):
    settings = configs.load("tiny/diffusion", list(overrides))
    images = lens_set(30).images if images is None else images
    size = images.shape[-1]
    preprocess = Preprocess((size, size), size=16, scale=settings.model.scale).fit(images)
    return DiffusionTask(settings, classes, 1, preprocess).train()


def level(task, time):
    """Signal and noise of a level by diffusers itself."""
    share = task.levels.scheduler.alphas_cumprod[time].item()
    return math.sqrt(share), math.sqrt(1 - share)


def drawn(number=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(number, 1, 16, 16, generator=generator) * 1.6 - 0.8
    return clean, torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine2"])
def test_noisy_images_are_those_of_diffusers(schedule):
    task = make(f"diffusion.schedule={schedule}")
    clean, noise = drawn()
    time = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(
        task.levels.noisy(clean, noise, time), task.levels.scheduler.add_noise(clean, noise, time)
    )


@pytest.mark.parametrize("objective", ["noise", "v"])
def test_the_loss_of_a_perfect_answer_is_zero_and_it_implies_the_clean_image(objective):
    task = make(f"diffusion.objective={objective}", "ssim.weight=1", "diffusion.min_snr=5")
    (clean, noise), time = drawn(), torch.tensor([5, 200, 500, 800])
    v = task.levels.scheduler.get_velocity(clean, noise, time)
    output = v if objective == "v" else noise
    assert task.loss(output, clean, noise, time).abs().max() < 1e-4
    x_t = task.levels.scheduler.add_noise(clean, noise, time)
    torch.testing.assert_close(task.levels.implied_clean(output, x_t, time), clean, rtol=1e-3, atol=1e-3)


def test_an_answer_of_nothing_costs_the_mean_square_of_the_target():
    (clean, noise), time = drawn(), torch.tensor([0, 10, 500, 999])
    task = make("diffusion.objective=noise", "diffusion.min_snr=0")
    torch.testing.assert_close(task.loss(torch.zeros_like(noise), clean, noise, time), noise.square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("objective", "factor"), [("noise", lambda r: min(r, 5) / r), ("v", lambda r: min(r, 5) / (r + 1))]
)
def test_min_snr_weights_are_those_of_the_paper(objective, factor):
    task = make(f"diffusion.objective={objective}", "diffusion.min_snr=5")
    plain = make(f"diffusion.objective={objective}", "diffusion.min_snr=0")
    (clean, noise), time = drawn(), torch.tensor([1, 300, 600, 900])
    ratio = task.loss(torch.zeros_like(noise), clean, noise, time) / plain.loss(
        torch.zeros_like(noise), clean, noise, time
    )
    snr = [(a / s) ** 2 for a, s in (level(task, int(t)) for t in time)]
    np.testing.assert_allclose(ratio, [factor(r) for r in snr], rtol=1e-3)


def test_ssim_is_that_of_scikit_image_on_the_implied_clean_image():
    options = ["diffusion.objective=noise", "diffusion.min_snr=0", "model.size=16"]
    task, plain = make(*options, "ssim.weight=0.5"), make(*options)
    clean, noise = drawn(1)
    output, time = noise + 0.05, torch.tensor([300])
    a, s = level(task, 300)
    implied = ((a * clean + s * noise - s * output) / a).clamp(-1, 1)
    theirs = structural_similarity(
        clean[0, 0].numpy(),
        implied[0, 0].numpy(),
        gaussian_weights=True,
        sigma=1.5,
        data_range=2.0,
        use_sample_covariance=False,
    )
    added = (task.loss(output, clean, noise, time) - plain.loss(output, clean, noise, time)).item()
    # The two cut off the rim in other ways.
    assert added == pytest.approx(0.5 * (1 - theirs), rel=0.15)


def test_ssim_on_noise_compares_noise_with_noise():
    (clean, noise), time = drawn(), torch.full((4,), 500)
    for objective in ("noise", "v"):
        task = make(f"diffusion.objective={objective}", "ssim.weight=1", "ssim.on=noise")
        right = noise if objective == "noise" else task.levels.scheduler.get_velocity(clean, noise, time)
        assert task.loss(right, clean, noise, time).abs().max() < 1e-4
    # A clean image that is wrong everywhere in the same way leaves its structure: SSIM of the noise sees nothing of it.
    literal = make("diffusion.objective=noise", "ssim.weight=1", "ssim.on=noise", "diffusion.min_snr=0")
    implied = make("diffusion.objective=noise", "ssim.weight=1", "diffusion.min_snr=0")
    assert not torch.allclose(
        literal.loss(noise * 0.5, clean, noise, time), implied.loss(noise * 0.5, clean, noise, time)
    )


def test_every_parameter_learns_and_the_loss_is_finite():
    task = make("ssim.weight=1", 'diffusion.given=["theta_E"]')
    images = torch.from_numpy(lens_set(12).images)
    batch = {"image": images, "label": torch.arange(12) % 3, "params": torch.rand(12, 1)}
    loss = task.step(batch, images)["loss"]
    assert loss.shape == (12,) and loss.isfinite().all()
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.network.parameters())


def test_validation_is_the_same_each_time_and_covers_all_levels_and_training_is_not():
    task = make()
    images = torch.from_numpy(lens_set(12).images)
    batch = {"image": images, "label": torch.arange(12) % 3}
    with torch.no_grad():
        task.eval()
        before = torch.random.get_rng_state()
        twice = [task.step(batch, images)["loss"] for _ in range(2)]
        assert torch.equal(*twice) and torch.equal(before, torch.random.get_rng_state())
        time = task._drawn(images)[0]
        assert torch.equal(time * 12 // 1000, torch.arange(12))
        task.train()
        assert not torch.equal(*[task.step(batch, images)["loss"] for _ in range(2)])


def test_of_the_dropped_images_nothing_is_told_and_of_the_others_the_class_always():
    task = make("diffusion.drop=0.3", 'diffusion.given=["a", "b"]')
    torch.manual_seed(0)
    number = 4000
    label, params = task._told({"label": torch.ones(number, dtype=torch.long), "params": torch.ones(number, 2)}, number)
    is_dropped = label == 3
    assert set(label.tolist()) == {1, 3}
    spread = math.sqrt(number * 0.3 * 0.7)
    assert abs(is_dropped.sum() - 0.3 * number) < 4 * spread
    assert params[is_dropped].isnan().all()
    # Of the others each number of parameters that are told is equally likely: hidden with a chance u, u uniform.
    told = params[~is_dropped].isfinite().sum(dim=1)
    counts = np.bincount(told, minlength=3)
    expected = counts.sum() / 3
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-4, 2)
    label, params = task.eval()._told({"label": torch.ones(5, dtype=torch.long), "params": torch.ones(5, 2)}, 5)
    assert (label == 1).all() and params.isfinite().all()


def test_parameters_are_standardised_by_those_of_the_training_images():
    rng = np.random.default_rng(0)
    sets = [
        replace(lens_set(60, seed), params=pa.table({"theta_E": rng.normal(1.2, 0.2, 60), "one": np.ones(60)}))
        for seed in (1, 2)
    ]
    task = make('diffusion.given=["theta_E"]')
    task.know(LensDataModule(*sets, 10, params=["theta_E"]))
    values = sets[0].params["theta_E"].to_numpy()
    assert task.network.param_mean.item() == pytest.approx(values.mean(), rel=1e-5)
    assert task.network.param_std.item() == pytest.approx(values.std(), rel=1e-4)
    with pytest.raises(DataError, match="'one' is the same for all"):
        make('diffusion.given=["one"]').know(LensDataModule(*sets, 10, params=["one"]))
    with pytest.raises(DataError, match="did you mean 'theta_E'"):
        make('diffusion.given=["thetaE"]').know(LensDataModule(*sets, 10, params=["thetaE"]))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.name=compact", "model.name=unet"),
        ("model.scale=standard", "model.scale=range"),
        ("model.size=18", "multiple of 4, such as 16"),
        ("diffusion.channels=[12, 24]", "multiples of 8"),
        ("train.ensemble=2", "tasks that tell classes"),
        ("model.clip=[1, 99]", "without model.clip"),
    ],
)
def test_settings_that_cannot_work_say_what_does(setting, words):
    settings = configs.load("tiny/diffusion", [setting])
    preprocess = Preprocess((24, 24), size=settings.model.size, scale=settings.model.scale)
    with pytest.raises(ConfigError, match=words):
        DiffusionTask(settings, ("a", "b"), 1, preprocess)


@pytest.mark.parametrize("stretch", ["none", "sqrt", "asinh"])
def test_the_pipeline_undoes_the_preparation(stretch):
    images = lens_set(40).images
    settings = configs.load("tiny/diffusion", [f"model.stretch={stretch}"])
    preprocess = Preprocess((24, 24), crop=20, size=16, stretch=stretch, scale="range").fit(images)
    task = DiffusionTask(settings, ("a", "b", "c"), 1, preprocess)
    raw = torch.from_numpy(images)
    prepared = preprocess(raw)
    assert prepared.min() == -1 and prepared.max() == 1
    torch.testing.assert_close(task.pipeline().restored(prepared), preprocess.framed(raw), rtol=1e-4, atol=1e-4)


def test_cosine2_visits_the_noise_of_pixels_in_twenty_steps():
    """Of twenty even steps it has five below a noise of 0.1, the other schedules at most one."""
    visited = {}
    for name in ("linear", "cosine", "cosine2"):
        share = noise_levels(1000, name, "v").alphas_cumprod[49::50]
        visited[name] = int(((1 - share).sqrt() < 0.1).sum())
    assert visited["cosine2"] >= 4 and max(visited["linear"], visited["cosine"]) <= 1


def test_images_without_labels_train_and_are_drawn(tmp_path):
    images = lens_set(40)
    for i, image in enumerate(images.images):
        np.save(tmp_path / f"{i}.npy", image)
    settings = configs.load("tiny/diffusion", [f"data={tmp_path}", f"out={tmp_path / 'run'}", "train.epochs=1"])
    run = train.fit(settings, train.load_data(settings), progress=False)
    drawn = draw(weights.load_task(run, DiffusionTask), 3)
    assert drawn.images.shape == (3, 1, 16, 16) and drawn.label is None and drawn.classes == ()
    with pytest.raises(ConfigError, match="the model knows no class 'no'; it was trained without"):
        draw(weights.load_task(run, DiffusionTask), 3, Request(label="no"))


def test_simulated_images_come_with_the_parameters_that_are_told(tmp_path):
    words = ["data=preset:common-test", "data.fidelity=physical", "data.num=96", "data.num_val=48", "train.epochs=1"]
    settings = configs.load(
        "tiny/diffusion", [*words, 'diffusion.given=["theta_E", "gamma1"]', f"out={tmp_path / 'r'}"]
    )
    module = train.load_data(settings)
    batch = next(iter(module.train_dataloader()))
    truth = module.simulators[0].images(batch["index"].numpy()).params
    np.testing.assert_allclose(batch["params"][:, 0], truth["theta_E"].to_numpy(), rtol=1e-6)
    run = train.fit(settings, module, progress=False)
    task = weights.load_task(run, DiffusionTask)
    theta_E = train.load_data(settings).train.params["theta_E"].to_numpy()
    assert task.network.param_mean[0].item() == pytest.approx(theta_E.mean(), rel=1e-5)
    told = [draw(task, 3, Request(given={"theta_E": value})).images for value in (0.9, 1.6)]
    assert not np.allclose(*told)


def test_training_goes_on_from_a_run_of_the_same_shape_only(tmp_path):
    first = write_diffusion(tmp_path / "first")
    folder = write_folder(lens_set(60), tmp_path / "images")
    words = [f"data={folder}", f"init={first}", "optim.lr=1e-30", "train.epochs=1", "train.ema=0", "data.fraction=0.5"]
    settings = configs.load("tiny/diffusion", [*words, f"out={tmp_path / 'second'}"])
    run = train.fit(settings, train.load_data(settings), progress=False)
    before, after = (weights.load(path) for path in (first, run))
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-20) for name in before)
    other = configs.load("tiny/diffusion", [*words, "diffusion.channels=[8, 24]", f"out={tmp_path / 'third'}"])
    with pytest.raises(ModelError, match=r"of a UNet diffusion\.channels"):
        train.fit(other, train.load_data(other), progress=False)
