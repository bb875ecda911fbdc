"""What a run is made of: TOML files, ``key=value`` overrides, and errors that name the nearest valid key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from deeplense.errors import ConfigError, did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
PositiveInt = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if not 0 < span[0] <= span[1]:
        raise ValueError("give two numbers above 0, the smaller one first")
    return span


def _shares(span: tuple[float, float]) -> tuple[float, float]:
    if span[1] > 1:
        raise ValueError("give two shares, above 0 and not above 1")
    return span


Span = Annotated[tuple[float, float], AfterValidator(_ordered)]
# What of a DataConfig says which images are simulated.
SIMULATING = {"fidelity", "seed", "num", "settings", "galaxies", "lens_galaxies", "compile"}
# A section may be given by its most telling key alone: `data=DIR`, `model=microsoft/resnet-50`.
SHORTHAND = {"data": "data.path", "model": "model.name", "init": "model.init"}


# What of a DataConfig says how images are read; the rest is about training on them.
READING = {
    "path",
    "max_bad_fraction",
    "max_nan_fraction",
    "max_memory_gb",
    "cache",
    "mask_value",
    "bands",
    "file_column",
    "label_column",
}


class Section(BaseModel):
    """A table of settings; unknown keys are errors, values do not change after they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which images a run learns from, and how they are split."""

    path: str | None = None  # a folder, a file, or "preset:common-test" for images simulated on the spot
    val: str | None = None  # images to validate on; without it a part of `path` is split off
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the training images, the same share of every class
    val_of_fraction: bool = False  # validation images are split off what `fraction` leaves, not off the whole
    max_bad_fraction: Fraction = 0.01
    max_nan_fraction: Fraction = 0.5  # of an image's pixels; those that are left are filled, beyond it the image is bad
    mask_value: float | None = None  # pixels of this value were not measured and become NaN
    bands: list[str] | None = None  # FITS extensions, `_g` endings or colours (R, G, B) that become the channels
    file_column: str | None = None  # of a table: the images' files; looked for if not given
    label_column: str | None = None  # of a table: the classes; looked for if not given, "" = no labels
    balanced: bool = False  # a weighted random sampler: every class is drawn equally often
    batch_size: PositiveInt = 64
    max_memory_gb: Annotated[float, Field(gt=0)] = 8.0
    cache: bool = True  # keep thousands of files, once read, as one array in the cache folder (docs/data.md)
    # For a path "preset:NAME":
    fidelity: str = "physical"
    seed: Annotated[int, Field(ge=0)] = 1  # of the simulated images; a test set wants another one
    num: PositiveInt = 9600  # images an epoch
    num_val: PositiveInt = 960
    fresh: bool = True  # new images in every epoch, or the same ones again
    settings: list[str] = []  # values of the preset that are to be others, as ["positive_fraction=0.05", ...]
    galaxies: str | None = None  # a folder of observed galaxies as sources, other ones for validation
    lens_galaxies: str | None = None  # the same for the light of lens galaxies, in presets for lens finding
    strength: list[float] = [1.0]  # factor on the substructure's mass in each of the first epochs; the last one stays
    compile: bool = False  # trace rays with torch.compile: several times faster after some seconds of set-up

    def reading(self) -> dict[str, Any]:
        """How images are read: the keyword arguments of ``data.read.read``."""
        return self.model_dump(include=READING - {"path"})


class ModelConfig(Section):
    """The network, and what happens to an image before it; everything here travels with the weights."""

    name: str = "compact"  # our own, or any transformers image classifier
    width: PositiveInt = 48  # channels of the compact network's first stage
    pretrained: bool = False
    init: str | None = None  # a run or a weights file to start from
    crop: PositiveInt | None = None  # centre crop, pixels
    size: PositiveInt | None = None  # resize (after the crop) to this many pixels
    clip: tuple[Percent, Percent] | None = None  # percentiles of each image, mapped to 0 and 1, the rest cut off
    clip_by: Literal["channel", "image"] = "channel"  # one scale for each channel, or one for all, which keeps colours
    stretch: Literal["none", "sqrt", "asinh"] = "none"
    scale: Literal["standard", "range"] = "standard"  # mean 0 and scatter 1, or the training images' range to [-1, 1]
    average: Literal["none", "flips", "d4"] = "none"  # predict the mean over an image's 1, 4 or 8 mirrorings and turns


class AugmentConfig(Section):
    """Random changes to training images; all off unless asked for."""

    flips: bool = False
    quarter_turns: bool = False
    shift: Annotated[int, Field(ge=0)] = 0  # pixels, whole, edges repeated
    degrees: Annotated[float, Field(ge=0, le=360)] = 0.0  # affine: rotation within +-degrees
    translate: Fraction = 0.0  # affine: shift within +-this share of the image
    scale: Span = (1.0, 1.0)  # affine: zoom
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0  # affine: degrees
    crop: Annotated[Span, AfterValidator(_shares)] = (1.0, 1.0)  # share of the area that a random crop keeps, resized
    blur: Fraction = 0.0  # probability of a Gaussian blur
    blur_sigma: Span = (0.1, 1.5)  # pixels
    noise: NotNegative = 0.0  # largest Gaussian noise that is added, in standard deviations of the image's channel


class LossConfig(Section):
    """Details of the loss."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: bool = False  # rare classes count more, in inverse proportion to their frequency
    focal: NotNegative = 0.0  # exponent by which images that are already right count less (focal loss); 0 = none


class SsimConfig(Section):
    """Structural similarity as a part of the loss of a diffusion model: weight * (1 - SSIM)."""

    weight: NotNegative = 0.0
    on: Literal["x0", "noise"] = "x0"  # the clean image that a prediction implies, or literally the predicted noise


class DiffusionConfig(Section):
    """How a diffusion model is built, what it is told of an image, and how it is sampled unless asked otherwise."""

    channels: Annotated[list[PositiveInt], Field(min_length=2)] = [32, 64, 96, 128]  # of the UNet's levels
    layers: PositiveInt = 1  # residual blocks a level
    unshuffle: PositiveInt = 1  # pixels along x and y that become channels before the UNet: 2 is four times faster
    steps: Annotated[int, Field(ge=10)] = 1000  # noise levels
    objective: Literal["noise", "v"] = "noise"  # what the network predicts
    schedule: Literal["linear", "cosine", "cosine2"] = "linear"  # of the noise levels
    min_snr: NotNegative = 0.0  # largest signal-to-noise ratio that counts in the loss; 0 = all levels count equally
    conditional: bool = True  # tell the network the class of an image, where images have labels
    given: list[str] = []  # columns of the truth table that the network is told too: theta_E, gamma1, ...
    drop: Fraction = 0.1  # share of training images of which it is told nothing, for guidance
    sampler: Literal["ddpm", "ddim", "dpm++", "unipc"] = "dpm++"
    sample_steps: PositiveInt = 20
    grid_every: Annotated[int, Field(ge=0)] = 5  # epochs between grids of samples in the run folder; 0 = none


class PhysicsConfig(Section):
    """The lens equation in training, for the tasks lens-equation, inversion and physics."""

    # lens-equation: a second head says the deflection at the brightest pixel of the arc.
    weight: NotNegative = 1.0  # of the lens equation beside the cross-entropy, once it has risen
    midpoint: Fraction = 0.5  # share of all steps at which the weight has risen by half, along a sigmoid
    rise: Annotated[float, Field(gt=0)] = 0.1  # share of all steps that the rise takes: the sigmoid's scale
    against: Literal["auto", "source", "arc"] = "auto"  # the true source position, or what several arc pixels agree on
    pixels: Annotated[int, Field(ge=2)] = 8  # of the arc that have to agree
    largest: Annotated[float, Field(gt=0)] = 3.0  # arcsec: the deflection that tanh = 1 means
    # inversion: a network that measures lens and source; physics trains one first, in inverter/ of its run folder.
    forward: NotNegative = 0.05  # weight of the rendered mean's misfit beside the likelihood of the truth
    inverter: str | None = None  # a finished inversion run to use in place of training one
    inverter_epochs: PositiveInt = 30
    # The telescope, where neither preset nor data set say it.
    supersampling: PositiveInt = 2  # rays per pixel and axis
    psf_radius: PositiveInt = 4  # pixels at which the PSF is cut off
    background_variance: NotNegative = (
        0.0  # electrons^2 of sky and read-out in a pixel; 0 = noise is the same everywhere
    )
    # physics: what is done to each image before the classifier sees it.
    steps: Annotated[int, Field(ge=0)] = 12  # of Levenberg-Marquardt, from what the inverter says; 0 = none
    see: list[Literal["image", "residual", "model", "kappa"]] = ["image", "residual", "kappa"]
    control: Literal["none", "no-lensing", "shuffled"] = "none"  # alpha = 0, or the residual of another image


class OptimConfig(Section):
    """The optimiser and its learning-rate schedule."""

    name: Literal["adam", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: NotNegative = 0.0
    schedule: Literal["constant", "cosine", "onecycle", "plateau"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of all steps over which the rate rises
    plateau_patience: Annotated[int, Field(ge=0)] = 3  # epochs without a better score before the rate falls
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.3


class TrainConfig(Section):
    """How long and on what the run trains, and what it leaves behind."""

    epochs: PositiveInt = 10
    accumulate: PositiveInt = 1  # batches to an optimiser step
    clip: NotNegative = 0.0  # largest gradient norm; 0 = no limit
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights; 0 = none are kept
    patience: Annotated[int, Field(ge=0)] = 0  # epochs without a better score before stopping; 0 = never
    freeze: Annotated[int, Field(ge=0)] = 0  # first epochs in which only the last layer learns (for model.init)
    ensemble: PositiveInt = 1  # networks that are trained one after another and predict as one
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: PositiveInt = 1
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    channels_last: bool = True
    # Of the network, by torch.compile; reduce-overhead replays CUDA graphs. On a CPU the gain is small (docs).
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = []
    export: list[Literal["json", "json.gz", "onnx"]] = []


class Config(Section):
    """Everything that decides a run."""

    task: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    out: str = "runs/run"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    ssim: SsimConfig = SsimConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    physics: PhysicsConfig = PhysicsConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    def to_toml(self) -> str:
        """The resolved settings as a TOML file that :func:`load` reads back to an equal Config."""
        values = self.model_dump(mode="json", exclude_none=True)
        top = {k: v for k, v in values.items() if not isinstance(v, dict)}
        tables = {k: v for k, v in values.items() if isinstance(v, dict)}
        return "\n".join([_toml_lines(top), *(f"[{name}]\n{_toml_lines(table)}" for name, table in tables.items())])

    def differences(self, other: Config, ignore: Sequence[str] = ("out",)) -> list[str]:
        """Dotted keys on which two configs disagree."""
        mine, theirs = dict(_flatten(self.model_dump())), dict(_flatten(other.model_dump()))
        return [key for key in mine if mine[key] != theirs[key] and key not in ignore]


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """The settings of a shipped config (``substructure``) or a TOML file, changed by ``key=value`` overrides.

    Raises:
        ConfigError: no such config, an unknown key, or a value out of range.
    """
    path = find(name)
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    values.setdefault("out", f"runs/{path.relative_to(folder()).with_suffix('') if _is_shipped(path) else path.stem}")
    for override in overrides:
        _apply(values, override)
    return parse(values)


def parse(values: Mapping[str, Any]) -> Config:
    """A Config from nested plain values.

    Raises:
        ConfigError: the first unknown key, or the first value out of range, in one line.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["positive_fraction=0.05", ...]`` -> a value for each dotted name.

    Raises:
        ConfigError: one of them is no ``key=value``.
    """
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"{setting!r} is not a setting; write key=value, for example positive_fraction=0.05")
        values[key] = _value(text)
    return values


def parse_data(overrides: Sequence[str], can_simulate: bool = False) -> DataConfig:
    """The images that ``data=DIR data.key=value`` mean, for commands that need no more than images.

    Args:
        can_simulate: they may be ``data=preset:NAME`` too, with all that says which.

    Raises:
        ConfigError: an unknown key, a key that is not about data, or a value out of range.
    """
    values: dict[str, Any] = {"task": ""}
    for override in overrides:
        _apply(values, override)
    given = values.get("data", {})
    is_simulated = can_simulate and str(given.get("path", "")).startswith("preset:")
    known = {"path", *SIMULATING} if is_simulated else READING
    useless = sorted(given.keys() & DataConfig.model_fields.keys() - known)
    if useless:
        what = "these are simulated images" if is_simulated else "this command reads every image of data=DIR"
        raise ConfigError(f"'data.{useless[0]}' has no meaning here: {what}")
    other = sorted(values.keys() - {"task", "data"} & set(Config.model_fields))
    if other:
        raise ConfigError(f"{other[0]!r} has no meaning here: this command reads only data=DIR and data.* settings")
    return parse(values).data


def folder() -> Path:
    """Where the shipped configs lie: inside an installed package, or in the repository."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def names() -> list[str]:
    """The names of all shipped configs."""
    return sorted(p.relative_to(folder()).with_suffix("").as_posix() for p in folder().rglob("*.toml"))


def find(name: str) -> Path:
    """The TOML file that a name or a path means.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"there is no config {name!r}; {did_you_mean(name, names())} or give a .toml file")
    return path


def keys() -> list[str]:
    """Every dotted key that a config may hold."""
    return [key for key, _ in _flatten(Config(task="").model_dump())]


def _is_shipped(path: Path) -> bool:
    return path.is_relative_to(folder())


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _toml_lines(table: Mapping[str, Any]) -> str:
    # JSON's strings, numbers, booleans and arrays of these are TOML as well.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items())


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one ``key=value`` in nested values; the value is TOML, or else a plain string."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is not a setting; write key=value, for example train.epochs=5")
    value = _value(text)
    key = SHORTHAND.get(key, key) if not isinstance(value, dict) else key
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent!r} is a single value, not a table")
    values[last] = value


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def _one_line(error: ValidationError) -> str:
    """The first thing wrong, unknown keys before bad values."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        below = first["input"] if isinstance(first["input"], dict) else {}
        key = ".".join([key, *(name for name, _ in list(_flatten(below))[:1])])
        return f"unknown setting {key!r}; {_nearest(key)}"
    text = first["msg"].removeprefix("Value error, ")  # pydantic's word before ours
    message = text[0].lower() + text[1:]
    return f"{key} = {first['input']!r}: {message}" if first["type"] != "missing" else f"{key} is missing"


def _nearest(key: str) -> str:
    """The nearest valid key, found by its last part first: `epochs` means `train.epochs`."""
    section, _, last = key.rpartition(".")
    same = [k for k in keys() if k.rpartition(".")[2] == last]
    beside = [k for k in keys() if section and k.startswith(f"{section}.")]
    return f"did you mean {same[0]!r}?" if same else did_you_mean(key, beside or keys())
