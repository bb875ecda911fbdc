"""Columns of drawn parameters to what users see: the truth table of images, and one image's row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deeplense.lensing.cosmology import angular_diameter_distances, theta_E_to_mass
from deeplense.simulate import line_of_sight
from deeplense.simulate.preset import Preset
from deeplense.simulate.substructure import HALO_KEYS, Columns

if TYPE_CHECKING:
    import pyarrow as pa

BAND_KEYS = ("psf_fwhm", "exposure_time")
# Lists of haloes, and the column that says how many are there.
NUMBER = dict.fromkeys(HALO_KEYS, "n_sub") | dict.fromkeys(line_of_sight.HALO_KEYS, "n_los")


def _told(columns: Columns) -> Columns:
    return line_of_sight.first_those_that_are_there(columns) if "n_los" in columns else columns


def row(columns: Columns, place: int) -> dict[str, Any]:
    """One image's parameters as plain numbers, its haloes as float64 arrays of their number."""
    columns = _told(columns)
    values = {name: column[place] for name, column in columns.items()}
    for name, number in NUMBER.items():
        if name in values:
            values[name] = values[name][: int(values[number])]
    values |= {name: values[name][0] for name in BAND_KEYS if len(values[name]) == 1}
    return {name: value.item() if np.ndim(value) == 0 else value for name, value in values.items()}


def table(groups: list[Columns], snr: np.ndarray, preset: Preset, bands: tuple[str, ...]) -> pa.Table:
    """The truth of a block's images; image ``i`` is number ``i // len(groups)`` of group ``i % len(groups)``.

    Scalars are columns, haloes lists, and what there is for each band a column for each (``psf_fwhm_g`` ...).
    """
    import pyarrow as pa

    columns, groups = {}, [_told(group) for group in groups]
    for name in [name for name in groups[0] if name != "label"]:  # a column of the store has it already
        values = [group[name] for group in groups]
        if name in NUMBER:
            columns[name] = _lists(values, [group[NUMBER[name]] for group in groups])
        elif name in BAND_KEYS:
            columns |= _by_band(name, _interleave(values), bands)
        elif values[0].ndim == 2:
            columns[name] = _lists(values, [np.full(len(v), v.shape[1]) for v in values])
        else:
            # NaN says that there is no such thing: null in a table.
            columns[name] = pa.array(_interleave(values), from_pandas=True)
    if "sub_theta_E" in columns:
        columns |= _masses(groups, preset)
    return pa.table(columns | {"snr": pa.array(snr)})


def _interleave(values: list[np.ndarray]) -> np.ndarray:
    """(B, ...) of each group -> (groups * B, ...), the groups taking turns."""
    return np.stack(values, 1).reshape(-1, *values[0].shape[1:])


def _by_band(name: str, values: np.ndarray, bands: tuple[str, ...]) -> dict[str, pa.Array]:
    import pyarrow as pa

    if len(bands) == 1:
        return {name: pa.array(values[:, 0])}
    return {f"{name}_{band}": pa.array(values[:, number].copy()) for number, band in enumerate(bands)}


def _lists(values: list[np.ndarray], number: list[np.ndarray]) -> pa.Array:
    """Arrays (B, N) of each group, of which the first ``number`` (B,) of a row count, as lists."""
    import pyarrow as pa

    lengths = _interleave([np.minimum(n, v.shape[1]) for n, v in zip(number, values, strict=True)])
    rows = [v[i, : n[i]] for i in range(len(values[0])) for v, n in zip(values, number, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(rows)))


def _masses(groups: list[Columns], preset: Preset) -> dict[str, pa.Array]:
    """Msun of the haloes and of the vortex."""
    import pyarrow as pa

    distances = angular_diameter_distances(preset.z_lens, preset.z_source)
    haloes = [theta_E_to_mass(group["sub_theta_E"], distances) for group in groups]
    vortex = [theta_E_to_mass(group["vortex_theta_E"], distances) for group in groups]
    return {
        "M_sub": _lists(haloes, [group["n_sub"] for group in groups]),
        "vortex_mass": pa.array(_interleave(vortex)),
    }
