"""Samplers against closed forms: where the data are Gaussian, the best possible network is known."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deeplense.config import Config
from deeplense.data.transform import Preprocess
from deeplense.models.pipeline import SAMPLERS, LensPipeline, UnknownName, noise_levels
from deeplense.tasks import get
from toy import lens_set, tiny_diffusion

SCHEDULES = ("linear", "cosine", "cosine2")
OBJECTIVES = ("noise", "v")
MU, SD = 0.2, 0.15
MEANS = (-0.3, 0.0, 0.4)  # of three classes


class Gaussian(nn.Module):
    """The exact prediction for images whose pixels are independent Gaussians: E[x_0 | x_t] is linear in x_t.

    Attributes:
        first: what it was shown first: the noise that sampling begins with.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, levels, mean: float = MU) -> None:
        super().__init__()
        self.levels, self.mean, self.first = levels, mean, None

    def forward(self, noisy: Tensor, time: Tensor, label: Tensor | None = None, params: Tensor | None = None) -> Tensor:
        self.first = noisy.clone() if self.first is None else self.first
        a, s = signal_and_noise(self.levels, time)
        mean = self.known_mean(len(noisy), label, params)[:, None, None, None]
        clean = mean + a * SD**2 / (a**2 * SD**2 + s**2) * (noisy - a * mean)
        noise = (noisy - a * clean) / s
        return noise if self.levels.config.prediction_type == "epsilon" else a * noise - s * clean

    def known_mean(self, number: int, label: Tensor | None, params: Tensor | None) -> Tensor:
        """That of the class, or the value given; ``mean`` for what is not told."""
        mean = torch.full((number,), self.mean)
        if label is not None:
            mean = torch.tensor([*MEANS, self.mean])[label]
        return mean if params is None else torch.where(params[:, 0].isfinite(), params[:, 0], mean)


def signal_and_noise(levels, time) -> tuple[Tensor, Tensor]:
    a = levels.alphas_cumprod[time].double().sqrt().float()
    return a, (1 - levels.alphas_cumprod[time]).sqrt()


def make(schedule="cosine2", objective="v", mean=MU, size=8, **options) -> LensPipeline:
    levels = noise_levels(1000, schedule, objective)
    return LensPipeline(Gaussian(levels, mean), levels, 1, size, **options)


def silent(_: int) -> None:
    pass


def flowed(pipeline: LensPipeline, steps: int | None = None) -> np.ndarray:
    """The probability flow from the noise that was drawn (Song et al., arXiv:2011.13456, eq. 13): one straight line in
    units of the scatter. With ``steps``, up to the last level that these visit, then on to the mean of x_0."""
    a, s = signal_and_noise(pipeline.scheduler, -1)
    z = (pipeline.unet.first - a * MU) / (a**2 * SD**2 + s**2).sqrt()
    if steps is None:
        return (MU + SD * z).numpy()
    a, s = signal_and_noise(pipeline.scheduler, round(1000 / steps) - 1)
    return (MU + SD * z * a * SD / (a**2 * SD**2 + s**2).sqrt()).numpy()


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def error(sampler: str, steps: int, schedule: str, objective: str = "v", to_end: bool = True) -> float:
    """The rms distance of 16 images from the closed form."""
    pipeline = make(schedule, objective)
    images = pipeline(16, sampler=sampler, steps=steps, on_step=silent)
    return rms(images - flowed(pipeline, None if to_end else steps))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"ddpm"}))
def test_deterministic_samplers_tend_to_the_probability_flow(sampler, objective, schedule):
    # Steps that do not divide the levels are among them: diffusers' own DDIM goes astray there.
    errors = [error(sampler, steps, schedule, objective) for steps in (10, 30, 90)]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2  # of first order at least: a third, nearly
    assert error(sampler, 1000, schedule, objective) < 0.015 * SD


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm++", 2), ("unipc", 3)])
def test_samplers_have_the_order_that_their_papers_prove(sampler, order):
    # DDIM: arXiv:2206.00927; DPM-Solver++(2M): arXiv:2211.01095; UniPC-2, which is of order 3: arXiv:2302.04867.
    few, many = (error(sampler, steps, "cosine2", to_end=False) for steps in (20, 100))
    assert math.log(few / many) / math.log(5) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_is_that_of_diffusers_where_steps_divide_the_levels(steps):
    pipeline = make()
    images = pipeline(3, sampler="ddim", steps=steps, on_step=silent)
    theirs = diffusers.DDIMScheduler.from_config(dict(pipeline.scheduler.config), timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    x = pipeline.unet.first
    for time in theirs.timesteps:
        x = theirs.step(pipeline.unet(x, time), time, x).prev_sample
    np.testing.assert_allclose(images, x.numpy(), atol=1e-5)


def ancestral(levels, steps: int) -> tuple[float, float]:
    """Mean and scatter of ancestral sampling: of each step the Gaussian of Ho et al., arXiv:2006.11239, eq. 6 and 7."""
    kept = np.append(
        1.0, levels.alphas_cumprod.double().numpy()[np.round(np.arange(1, steps + 1) * 1000 / steps).astype(int) - 1]
    )
    mean, variance = 0.0, 1.0
    for now, before in zip(kept[:0:-1], kept[-2::-1], strict=True):
        beta = 1 - now / before
        of_clean, of_noisy = np.sqrt(before) * beta / (1 - now), np.sqrt(now / before) * (1 - before) / (1 - now)
        gain = np.sqrt(now) * SD**2 / (now * SD**2 + 1 - now)
        mean = of_clean * (MU + gain * (mean - np.sqrt(now) * MU)) + of_noisy * mean
        variance = (of_clean * gain + of_noisy) ** 2 * variance + beta * (1 - before) / (1 - now)
    return mean, float(np.sqrt(variance))


@pytest.mark.parametrize("steps", [30, 1000])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_has_the_mean_and_scatter_of_its_chain(schedule, objective, steps):
    pipeline = make(schedule, objective, size=16)
    images = pipeline(64, sampler="ddpm", steps=steps, on_step=silent)
    mean, scatter = ancestral(pipeline.scheduler, steps)
    assert images.mean() == pytest.approx(mean, abs=4 * scatter / np.sqrt(images.size))
    assert images.std() == pytest.approx(scatter, abs=4 * scatter / np.sqrt(2 * images.size))


def test_ddpm_with_all_levels_draws_the_data():
    images = make("cosine2", size=16)(64, sampler="ddpm", steps=1000, on_step=silent)
    assert images.mean() == pytest.approx(MU, abs=4 * SD / np.sqrt(images.size))
    assert images.std() == pytest.approx(SD, abs=4 * SD / np.sqrt(2 * images.size))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_depends_on_seed_and_number_alone(sampler):
    draw = make(size=4)
    told = {"sampler": sampler, "steps": 10, "on_step": silent}
    whole = draw(7, seed=3, batch_size=64, **told)
    for batch_size in (1, 3):
        np.testing.assert_allclose(draw(7, seed=3, batch_size=batch_size, **told), whole, atol=1e-5)
    np.testing.assert_allclose(draw(3, seed=3, first=2, **told), whole[2:5], atol=1e-5)
    others = [*draw(7, seed=4, **told), *draw(7, seed=5, **told), *whole]
    distances = [rms(a - b) for i, a in enumerate(others) for b in others[:i]]
    assert min(distances) > SD / 2  # of two images that are drawn apart: sqrt(2) SD


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_moves_the_mean_away_from_that_of_all(sampler, guidance):
    # Of Gaussians with the same scatter, the guided prediction is that for a Gaussian at m + w (m_class - m).
    told = {"sampler": sampler, "steps": 20, "seed": 1, "on_step": silent}
    guided = make(mean=0.1, classes=("a", "b", "c"))(5, label=[0, "b", "c", "a", None], guidance=guidance, **told)
    for image, mean, number in zip(guided, (*MEANS, MEANS[0], 0.1), range(5), strict=True):
        expected = make(mean=0.1 + guidance * (mean - 0.1))(1, first=number, **told)[0]
        np.testing.assert_allclose(image, expected, atol=2e-5)


def test_given_values_reach_the_network_in_their_own_units():
    pipeline = make(mean=0.1, params=("mean",))
    told = {"steps": 20, "seed": 1, "on_step": silent}
    each = pipeline(2, given={"mean": [0.3, math.nan]}, **told)
    np.testing.assert_allclose(each[0], pipeline(1, given={"mean": 0.3}, **told)[0], atol=1e-6)
    np.testing.assert_allclose(each[0], make(mean=0.3)(1, **told)[0], atol=1e-5)
    np.testing.assert_allclose(each[1], make(mean=0.1)(1, first=1, **told)[0], atol=1e-5)


def test_steps_are_counted_in_images():
    counted: list[int] = []
    make(size=4)(5, steps=7, batch_size=3, on_step=counted.append)
    assert counted == [3] * 7 + [2] * 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label": "d"}, "no class 'd'; allowed: a, b, c"),
        ({"label": 3}, "no class 3"),
        ({"label": ["a", "b"]}, "2 classes for 4 images"),
        ({"given": {"mass": 1}}, "no parameter 'mass'; allowed: mean"),
        ({"sampler": "euler"}, "no sampler 'euler'; allowed: ddpm"),
        ({"steps": 0}, "steps=0.*1 to 1000"),
        ({"steps": 1001}, "steps=1001.*1 to 1000"),
        ({"num": 0}, "num=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"guidance": math.inf}, "guidance=inf"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(given, message):
    pipeline = make(classes=("a", "b", "c"), params=("mean",))
    for call in (pipeline, pipeline.check):
        with pytest.raises(ValueError, match=message):
            call(**{"num": 4, **given})
    assert pipeline.unet.first is None


def test_a_model_that_is_told_nothing_says_so():
    with pytest.raises(UnknownName, match="no class 'a'; allowed: none, for it was trained without"):
        make()(1, label="a")
    with pytest.raises(ValueError, match="nothing guides"):
        make()(1, guidance=2.0)


def test_cosine2_spans_the_angles_that_it_names():
    kept = noise_levels(1000, "cosine2", "v").alphas_cumprod.double()
    angle = torch.acos(kept.sqrt())
    assert (angle.diff() > 0).all()
    assert angle[0].item() == pytest.approx(0.004, rel=1e-2)
    assert torch.tan(angle[-1]).item() == pytest.approx(1e3, rel=1e-2)
    # The second half of the angle begins where 0.05 t + 0.95 t^2 = 1/2.
    assert (angle > (0.004 + math.pi / 2) / 2).sum() == pytest.approx(
        1000 * (1 - (math.sqrt(1.9025) - 0.05) / 1.9), abs=3
    )


@pytest.mark.parametrize("stretch", ["none", "sqrt", "asinh"])
@pytest.mark.parametrize("channels", [1, 2])
def test_restored_undoes_the_preparation(stretch, channels):
    images = np.concatenate([50 * lens_set(12, seed).images for seed in range(channels)], axis=1)
    config: Config = tiny_diffusion("unused", f"model.stretch={stretch}")
    preprocess = Preprocess((24, 24), size=16, stretch=stretch, scale="range").fit(images)
    task = get("diffusion")(config, ("no", "sphere", "vort"), channels, preprocess)
    raw = torch.from_numpy(images)
    prepared = task.preprocess(raw)
    torch.testing.assert_close(prepared.aminmax(), (torch.tensor(-1.0), torch.tensor(1.0)))
    framed = task.preprocess.framed(raw)
    off = task.pipeline().restored(prepared) - framed
    assert off.abs().max() < 1e-5 * framed.abs().max()
