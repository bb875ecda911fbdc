"""(preset, fidelity, seed, index) -> one image; whole sets of them, sharded and resumable."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deeplense import __version__
from deeplense.data import memory
from deeplense.data.galaxies import GalaxyBank, read_galaxies
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError
from deeplense.simulate import line_of_sight, scene, sources, survey, truth
from deeplense.simulate import preset as presets
from deeplense.simulate.preset import Preset, World
from deeplense.simulate.render import photograph, render, scale
from deeplense.simulate.scene import Scenes
from deeplense.simulate.substructure import Columns

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Images are always rendered in these blocks, whatever was asked for: vector units round the last bit differently for
# another place in a batch, and an image must be the same alone and in any shard. 48 images stay in the cache.
BLOCK = 48
# The noise of a group is drawn in this many parts at once, whatever the number of threads.
NOISE_PARTS = 2
# Raised with every change of the code that changes images, so that a set is not continued with others.
PIXELS = 3


class Simulator:
    """Draws image ``index`` of a preset; the same (preset, fidelity, seed, index) is always the same image.

    Args:
        preset: name of a preset (``deeplense simulate --list``), path of one's own, or a :class:`Preset`.
        fidelity: one of the preset's worlds, ``physical`` or ``published``.
        seed: names the sequence of images.
        strength: factor on the mass of all substructure; 1 is the preset's own.
        device: where images are rendered.
        compile: use ``torch.compile``: some seconds of set-up, then several times faster. Noiseless values agree
            with the ordinary engine to rounding (2e-5 of the peak), not to the bit.
        settings: values of the preset to be changed, by dotted name: ``{"positive_fraction": 0.05}``.
        galaxies: a folder of galaxy cutouts that serve as sources (``data.galaxies.read_galaxies``).
        part: which of them: ``train``, ``val`` or ``test``; no galaxy is in two parts. All of them if not given.
        lens_galaxies: a folder of cutouts of early-type galaxies: the light of lenses, and of other galaxies of that
            type, in presets for lens finding.

    Raises:
        ConfigError: an unknown preset, fidelity or setting, a negative seed or strength, a device that is not there,
            lens galaxies in a preset without their light, or too many haloes along the line of sight.
    """

    def __init__(
        self,
        preset: str | Path | Preset,
        fidelity: str = "physical",
        seed: int = 0,
        strength: float = 1.0,
        device: str = "cpu",
        compile: bool = False,
        settings: Mapping[str, Any] | None = None,
        galaxies: Path | str | None = None,
        part: str | None = None,
        lens_galaxies: Path | str | None = None,
    ) -> None:
        if not isinstance(seed, int) or seed < 0 or not 0 < strength < float("inf"):
            raise ConfigError(
                f"seed={seed}, strength={strength}: a seed is a whole number from 0 on, a strength is above 0"
            )
        if part is not None and galaxies is None and lens_galaxies is None:
            raise ConfigError(f"part={part!r} says which galaxies are taken: name their folder, galaxies=DIR")
        given = preset if isinstance(preset, Preset) else presets.load(preset)
        self.preset = given.changed(fidelity, settings) if settings else given
        self._recipe: dict[str, Any] = {
            "preset": preset,
            "fidelity": fidelity,
            "seed": seed,
            "strength": strength,
            "device": device,
        }
        self._recipe |= {"compile": compile, "settings": settings, "galaxies": galaxies, "part": part}
        self._recipe |= {"lens_galaxies": lens_galaxies}
        self.world = self.preset.world(fidelity)
        if lens_galaxies is not None and isinstance(self.world, World):
            raise ConfigError(f"{self.preset.name} has no light of lenses: lens_galaxies is for hsc-gri and euclid-vis")
        if isinstance(self.world, World):
            line_of_sight.check(self.preset, self.world)
        self.bank, self.lens_bank = (
            None if folder is None else read_galaxies(folder, pixel_scale=1.0, part=part)
            for folder in (galaxies, lens_galaxies)
        )
        self.exposure = self.world.observation.exposure(self.preset.pixel_scale)
        if isinstance(self.world, World) and len(self.exposure.bands) > 1:
            bands = ", ".join(self.exposure.bands)
            raise ConfigError(f"{self.preset.name} has one band: set observation.bands to one of {bands}")
        self.fidelity, self.seed, self.strength, self.device = fidelity, seed, strength, _usable(device)
        self.settings = dict(settings or {})
        self.engine = "compiled" if compile and can_compile() else "eager"
        self._photograph: Callable[..., tuple[Tensor, Tensor]] = (
            torch.compile(photograph, dynamic=False) if self.engine == "compiled" else photograph
        )
        memory.keep_freed()
        self._pool = ThreadPoolExecutor(torch.get_num_threads())
        self._cached_block = lru_cache(maxsize=2)(self.block)
        self._cached_groups = lru_cache(maxsize=2)(self.groups)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; of lenses with substructure, image ``index`` is of class ``index % 3``."""
        return self.preset.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return len(self.exposure.bands), self.preset.num_pix, self.preset.num_pix

    def recipe(self) -> dict[str, Any]:
        """The arguments that make this simulator again, in another process too."""
        return dict(self._recipe)

    def provenance(self) -> dict[str, Any]:
        """What makes these images, in plain values: enough to make them again."""
        return {
            "simulator": f"deeplense {__version__}",
            "pixels": PIXELS,
            "preset": self.preset.name,
            "preset_hash": hashlib.sha256(self.preset.model_dump_json(exclude_unset=True).encode()).hexdigest()[:12],
            "exposure_hash": self.exposure.fingerprint(),
            "fidelity": self.fidelity,
            "seed": self.seed,
            "strength": self.strength,
            "engine": self.engine,
            "device": self.device,
            "settings": self.settings,
            "bands": list(self.exposure.bands),
            "galaxies": self._bank_provenance(self.bank),
            "lens_galaxies": self._bank_provenance(self.lens_bank),
        }

    def _bank_provenance(self, bank: GalaxyBank | None) -> dict[str, Any] | None:
        if bank is None:
            return None
        return {"part": self._recipe["part"], "number": len(bank), "fingerprint": bank.fingerprint()}

    def groups(self, number: int) -> list[Columns]:
        """The parameters of a block's images, in groups that are rendered together: one for each class of substructure.

        Image ``i`` of the block is number ``i // len(groups)`` of group ``i % len(groups)``.
        """
        if isinstance(self.world, World):
            return [self._lenses(self.world, number, kind) for kind in range(len(self.classes))]
        rng = scene.generator(self.seed, number, 0, scene.SCENE)
        columns = survey.draw(self.world, BLOCK, rng) | self.exposure.draw(BLOCK, rng)
        if self.lens_bank is not None:
            rng = scene.generator(self.seed, number, 0, scene.LENS_GALAXIES)
            columns |= sources.draw_lenses(self.lens_bank, columns, rng)
        return [columns | self._galaxies(columns["source_R_sersic"], number, 0)]

    def _lenses(self, world: World, number: int, kind: int) -> Columns:
        rng = scene.generator(self.seed, number, kind, scene.SCENE)
        columns = scene.draw(self.preset, world, self.exposure, kind, BLOCK // len(self.classes), self.strength, rng)
        return columns | self._galaxies(columns["R_sersic"], number, kind)

    def _galaxies(self, R_sersic: np.ndarray, number: int, kind: int) -> Columns:
        if self.bank is None:
            return {}
        return sources.draw(self.bank, R_sersic, scene.generator(self.seed, number, kind, scene.GALAXIES))

    def _scenes(self, columns: Columns, dtype: torch.dtype = torch.float32) -> Scenes:
        scenes = Scenes.of(columns, dtype, self.device)
        if self.bank is not None:
            scenes = sources.add_images(scenes, self.bank, columns)
        if self.lens_bank is None:
            return scenes
        spacing = self.preset.pixel_scale / self.exposure.supersampling
        return sources.add_images(scenes, self.lens_bank, columns, "lens", spacing)

    def truth(self, index: int) -> dict[str, Any]:
        """The parameters of one image, without rendering it: numbers, and arrays of its haloes.

        Raises:
            ConfigError: the number is negative, or no whole one.
        """
        index = int(_checked([index])[0])
        groups = self._cached_groups(index // BLOCK)
        place = index % BLOCK
        return truth.row(groups[place % len(groups)], place // len(groups))

    def noiseless(self, index: Sequence[int] | np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
        """Mean electrons per second and pixel of any images behind the PSF, without sky, shape (N, C, H, W)."""
        index = _checked(index)
        images = np.empty((len(index), *self.shape), dtype=torch.empty(0, dtype=dtype).numpy().dtype)
        for row, i in enumerate(index.tolist()):
            groups = self._cached_groups(i // BLOCK)
            kind, place = i % BLOCK % len(groups), i % BLOCK // len(groups)
            scenes = self._scenes(scene.select(groups[kind], slice(place, place + 1)), dtype)
            images[row] = render(scenes, self.preset, self.world, self.exposure, kind)[0].cpu().numpy()
        return images

    def block(self, number: int) -> LensSet:
        """Images ``BLOCK * number`` and on, as many as a block holds."""
        groups = self.groups(number)
        images = np.empty((BLOCK, *self.shape), dtype=np.float32)
        snr = np.empty(BLOCK)
        for kind, columns in enumerate(groups):
            rows = slice(kind, None, len(groups))
            scenes = self._scenes(columns)
            layers = self._noise(number, kind, len(scenes)).to(self.device)
            image, ratio = self._photograph(scenes, self.preset, self.world, self.exposure, kind, layers)
            images[rows], snr[rows] = image.cpu().numpy(), ratio.cpu().numpy()
        if not isinstance(self.world, World):
            images = self._spoil(images, groups[0], number)
        return LensSet(
            images=images,
            name=[f"{i:08d}" for i in range(BLOCK * number, BLOCK * (number + 1))],
            label=self._label(groups),
            classes=self.classes,
            params=self._table(groups, snr),
            pixel_scale=self.preset.pixel_scale,
            provenance=self.provenance(),
        )

    def images(self, index: np.ndarray | range) -> LensSet:
        """The images at any indices, in the order asked for."""
        index = _checked(index)
        numbers, place = np.unique(index // BLOCK, return_inverse=True)
        return concatenate([self._cached_block(int(n)) for n in numbers]).select(place * BLOCK + index % BLOCK)

    def stream(self, start: int, stop: int) -> Iterator[LensSet]:
        """Images start to stop - 1, a block or less at a time.

        Raises:
            ConfigError: an end is negative, or no whole number.
        """
        _checked([start, stop])
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            low, high = max(start, number * BLOCK), min(stop, (number + 1) * BLOCK)
            block = self.block(number)
            yield block if high - low == BLOCK else block.select(np.arange(low, high) % BLOCK)

    def _label(self, groups: list[Columns]) -> np.ndarray:
        if len(groups) == 1:
            return groups[0]["label"].astype(np.int64)
        return np.arange(BLOCK) % len(groups)

    def _table(self, groups: list[Columns], snr: np.ndarray) -> pa.Table:
        bands = self.exposure.bands
        if not isinstance(self.world, World):
            groups = [survey.truth_columns(columns, bands) for columns in groups]
        return truth.table(groups, snr, self.preset, bands)

    def _spoil(self, electrons: np.ndarray, columns: Columns, number: int) -> np.ndarray:
        """Flaws of the detector in the few images that have one, and the preset's scaling."""
        rng = scene.generator(self.seed, number, 0, scene.FLAWS)
        survey.spoil(electrons, columns, self.preset.pixel_scale, rng)
        return scale(torch.from_numpy(electrons)).numpy() if self.exposure.scaling == "minmax" else electrons

    def _noise(self, number: int, kind: int, size: int) -> Tensor:
        """Standard normal deviates for a group of images, shape (B, layers, C, H, W): see ``Exposure.num_layers``."""
        deviates = torch.empty(size, self.exposure.num_layers, *self.shape)
        seeds = np.random.SeedSequence([self.seed, number, kind, scene.NOISE]).generate_state(NOISE_PARTS)
        # Random numbers are drawn outside the interpreter's lock: threads share the work.
        list(self._pool.map(_fill_normal, deviates.chunk(NOISE_PARTS), seeds.tolist()))
        return deviates


def check_number(num: Any) -> None:
    """Raises ConfigError if ``num`` is no number of images to be made."""
    if not isinstance(num, int | np.integer) or num < 1:
        raise ConfigError(f"num={num!r}: simulate one image or more, a whole number")


def _checked(index: Any) -> np.ndarray:
    """Numbers of images, shape (N,).

    Raises:
        ConfigError: there are none, or one is negative or no whole number.
    """
    numbers = np.asarray(index)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ConfigError(f"images {index!r}: give a list of whole numbers, 0 or more")
    return numbers.astype(np.int64)


def _fill_normal(deviates: Tensor, seed: int) -> None:
    # The caller may have made the tensor in inference mode, which is a thread's own.
    with torch.inference_mode():
        deviates.normal_(generator=torch.Generator().manual_seed(seed))


@cache
def can_compile() -> bool:
    """Whether torch.compile finds what it needs, a C++ compiler above all; logs a line if it does not."""
    # Presets, classes and halo numbers are graphs of their own; at its limit of 8 the compiler would silently give up.
    torch._dynamo.config.recompile_limit = 256
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning("torch.compile does not work here (%s): going on without it, more slowly", reason)
        return False
    return True


def _usable(device: str) -> str:
    """The device, if rays can be traced on it.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("not a device that renders")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device!r} cannot be used here: give cpu, or cuda where there is a GPU") from error
    return device


def concatenate(parts: list[LensSet]) -> LensSet:
    """Sets of the same kind, one after the other."""
    import pyarrow as pa

    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return LensSet(
        images=np.concatenate([p.images for p in parts]),
        name=[n for p in parts for n in p.name],
        label=None if first.label is None else np.concatenate([p.label for p in parts if p.label is not None]),
        classes=first.classes,
        params=None if first.params is None else pa.concat_tables([p.params for p in parts if p.params is not None]),
        pixel_scale=first.pixel_scale,
        provenance=first.provenance,
    )
