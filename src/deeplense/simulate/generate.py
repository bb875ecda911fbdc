"""(preset, fidelity, seed, index) -> one image; whole sets of them, sharded and resumable."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deeplense import __version__
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError
from deeplense.lensing.cosmology import angular_diameter_distances, theta_E_to_mass
from deeplense.simulate import preset as presets
from deeplense.simulate import scene
from deeplense.simulate.preset import Preset
from deeplense.simulate.render import photograph
from deeplense.simulate.scene import Scenes
from deeplense.simulate.substructure import Truth

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Images are always rendered in these blocks, 16 of each class, whatever was asked for: vector units round the last
# bit differently for another place in a batch, and an image must be the same alone and in any shard.
BLOCK = 48
# Raised with every change of the code that changes images, so that a set is not continued with others.
PIXELS = 1
# Where their number varies, haloes are padded to a multiple of this: few shapes occur, and compiled code is reused.
HALO_STEP = 20


class Simulator:
    """Draws image ``index`` of a preset; the same (preset, fidelity, seed, index) is always the same image.

    Args:
        preset: name of a preset (``deeplense simulate --list``), or a :class:`Preset`.
        fidelity: one of the preset's worlds, ``physical`` or ``published``.
        seed: names the sequence of images.
        strength: factor on the mass of all substructure; 1 is the preset's own.
        device: where rays are traced. Noise is always drawn on the CPU.
        compile: use ``torch.compile``: some seconds of set-up, then several times faster. Noiseless values agree
            with the ordinary engine to rounding (2e-5 of the peak), not to the bit.

    Raises:
        ConfigError: an unknown preset or fidelity, a negative seed or strength, or a device that is not there.
    """

    def __init__(
        self,
        preset: str | Preset,
        fidelity: str = "physical",
        seed: int = 0,
        strength: float = 1.0,
        device: str = "cpu",
        compile: bool = False,
    ) -> None:
        if seed < 0 or strength <= 0:
            raise ConfigError(f"seed={seed}, strength={strength}: the seed is 0 or more, the strength above 0")
        self.preset = presets.load(preset) if isinstance(preset, str) else preset
        self.world = self.preset.world(fidelity)
        self.fidelity, self.seed, self.strength, self.device = fidelity, seed, strength, _usable(device)
        self.engine = "compiled" if compile and can_compile() else "eager"
        self._photograph: Callable[..., tuple[Tensor, Tensor]] = (
            torch.compile(photograph, dynamic=False) if self.engine == "compiled" else photograph
        )
        self._mass = angular_diameter_distances(self.preset.z_lens, self.preset.z_source)
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(torch.get_num_threads())
        self._cached_block = lru_cache(maxsize=2)(self.block)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; image ``index`` is of class ``index % 3``."""
        return self.preset.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return 1, self.preset.num_pix, self.preset.num_pix

    def provenance(self) -> dict[str, Any]:
        """What makes these images, in plain values: enough to make them again."""
        return {
            "simulator": f"deeplense {__version__}",
            "pixels": PIXELS,
            "preset": self.preset.name,
            "preset_hash": hashlib.sha256(self.preset.model_dump_json().encode()).hexdigest()[:12],
            "fidelity": self.fidelity,
            "seed": self.seed,
            "strength": self.strength,
            "engine": self.engine,
            "device": self.device,
        }

    def truth(self, index: int) -> Truth:
        """The parameters of one image, without rendering it."""
        kind = index % len(self.classes)
        rng = scene.generator(self.seed, index, scene.SCENE)
        return scene.draw(self.preset, self.world, kind, self.strength, rng)

    def block(self, number: int) -> LensSet:
        """Images ``BLOCK * number`` and on, as many as a block holds."""
        index = np.arange(BLOCK * number, BLOCK * (number + 1))
        truths = [self.truth(int(i)) for i in index]
        # Random numbers are drawn outside the interpreter's lock: threads share the work.
        noise = list(self._pool.map(partial(self._noise, number), range(len(self.classes))))
        images = np.empty((BLOCK, *self.shape), dtype=np.float32)
        snr = np.empty(BLOCK)
        for kind in range(len(self.classes)):
            rows = np.flatnonzero(index % len(self.classes) == kind)
            scenes = self._stack([truths[i] for i in rows])
            layers = noise[kind].to(self.device)
            image, ratio = self._photograph(scenes, self.preset, self.world.observation, kind, layers)
            images[rows, 0], snr[rows] = image.cpu().numpy(), ratio.cpu().numpy()
        return LensSet(
            images=images,
            name=[f"{i:08d}" for i in index],
            label=index % len(self.classes),
            classes=self.classes,
            params=self._table(truths, snr),
            pixel_scale=self.preset.pixel_scale,
            provenance=self.provenance(),
        )

    def images(self, index: np.ndarray | range) -> LensSet:
        """The images at any indices, in the order asked for."""
        index = np.asarray(index, dtype=np.int64)
        numbers, place = np.unique(index // BLOCK, return_inverse=True)
        return concatenate([self._cached_block(int(n)) for n in numbers]).select(place * BLOCK + index % BLOCK)

    def stream(self, start: int, stop: int) -> Iterator[LensSet]:
        """Images start to stop - 1, a block or less at a time."""
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            low, high = max(start, number * BLOCK), min(stop, (number + 1) * BLOCK)
            block = self.block(number)
            yield block if high - low == BLOCK else block.select(np.arange(low, high) % BLOCK)

    def _stack(self, truths: list[Truth]) -> Scenes:
        most = max(len(t["sub_x"]) for t in truths)
        step = 1 if self.world.sphere.number.value is not None else HALO_STEP
        return Scenes.stack(truths, -(-most // step) * step, device=self.device)

    def _noise(self, number: int, kind: int) -> Tensor:
        """Standard normal deviates for the images of one kind in a block, shape (layers, B, H, W).

        The first layer is for photons, the second, where there is one, for read-out.
        """
        seed = np.random.SeedSequence([self.seed, number, kind, scene.NOISE]).generate_state(1)
        layers = 2 if self.world.observation.read_noise else 1
        deviates = torch.empty(layers, BLOCK // len(self.classes), *self.shape[1:])
        return deviates.normal_(generator=torch.Generator().manual_seed(int(seed[0])))

    def _table(self, truths: list[Truth], snr: np.ndarray) -> pa.Table:
        """The truth of each image as a table: scalars, and lists for the subhaloes."""
        import pyarrow as pa

        columns = {name: [t[name] for t in truths] for name in truths[0]}
        columns["M_sub"] = [theta_E_to_mass(t["sub_theta_E"], self._mass) for t in truths]
        columns["vortex_mass"] = [theta_E_to_mass(t["vortex_theta_E"], self._mass) for t in truths]
        columns["snr"] = list(snr)
        return pa.table({name: pa.array(values) for name, values in columns.items()})


@cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed images for the next ones, instead of giving it back at every step.

    Freeing one large block raises its thresholds for that; a third of the time of a block of images went into page
    faults (mallopt(3), dynamic mmap threshold). Elsewhere it does nothing.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


@cache
def can_compile() -> bool:
    """Whether torch.compile finds what it needs, a C++ compiler above all; logs a line if it does not."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning("torch.compile does not work here (%s): images are simulated without it, more slowly", reason)
        return False
    return True


def _usable(device: str) -> str:
    """The device, if rays can be traced on it.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
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
