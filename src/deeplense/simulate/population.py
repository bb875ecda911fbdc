"""Who lives in a survey: whole columns of lenses, non-lenses and neighbours, drawn from the priors of a preset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deeplense.simulate.galaxies import (
    DARK,
    Columns,
    arms,
    clumps,
    distance_modulus,
    early,
    either,
    ellipticity,
    galaxy,
    half_light_radius,
    padded,
    polar,
    random_angle,
    take_share,
    velocity_dispersion,
)
from deeplense.simulate.survey_priors import CLUMPS, NEIGHBOURS, Population, SurveyWorld, Visibility


def draw(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    """The parameters of ``num`` images that are independent of one another.

    Returns:
        Columns by name (arcsec, AB mag, km/s), of shape (num,), or with these further axes:

        - ``label`` int64, 1 a lens; ``kind`` and ``artefact``: text.
        - ``theta_E``, ``e1``, ``e2``, ``gamma1``, ``gamma2``, ``center_x``, ``center_y``, ``z_lens``, ``z_source``,
          ``sigma_v``: the lens; theta_E and shear 0, z_source and sigma_v NaN where there is none.
        - ``lens_magnitude`` (bands,), ``lens_R_sersic``, ``lens_n_sersic``, ``lens_e1``, ``lens_e2``: its light, or the
          central galaxy of a non-lens.
        - ``source_magnitude`` (bands,), ``source_x``, ``source_y``, ``source_R_sersic``, ``source_n_sersic``,
          ``source_e1``, ``source_e2``, ``arms_*``, ``ring_*``: the source; the disc, ring or tail of a non-lens.
        - ``clump_x``, ``clump_y``, ``clump_radius``, ``clump_share`` (CLUMPS,): its knots, and how they share the light
          of ``clump_magnitude`` (bands,).
        - ``neighbour_x``, ``neighbour_y``, ``neighbour_R_sersic``, ``neighbour_n_sersic``, ``neighbour_e1``,
          ``neighbour_e2`` (NEIGHBOURS,), ``neighbour_magnitude`` (NEIGHBOURS, bands).
        - ``star_x``, ``star_y``, ``star_magnitude`` (bands,).

        Magnitudes of what is not there are infinite.
    """
    columns = _empty(num, len(world.bands))
    columns["label"] = (rng.random(num) < world.positive_fraction).astype(np.int64)
    kinds, frequency = list(world.kinds), np.array(list(world.kinds.values()))
    columns["kind"] = np.where(columns["label"] == 1, "lens", rng.choice(kinds, num, p=frequency / frequency.sum()))
    _place(columns, world, rng)
    for kind, populate in _POPULATE.items():
        if len(rows := np.flatnonzero(columns["kind"] == kind)):
            given = populate(world, len(rows), rng)
            # Positions are drawn about the centre of the scene.
            for name, value in given.items():
                axis = name[-2:]
                shift = columns["center" + axis][rows] if axis in ("_x", "_y") else None
                columns[name][rows] = value if shift is None else _shifted(value, shift)
    _move_sources(columns)
    _add_neighbours(columns, world, rng)
    _add_star(columns, world, rng)
    _choose_artefacts(columns, world, rng)
    return columns


def truth_columns(columns: Columns, bands: tuple[str, ...]) -> Columns:
    """The columns for a table of truth: ``lens_magnitude`` becomes ``lens_magnitude_<band>``; nothing there is NaN."""
    table: Columns = {}
    if "lens_number" in columns:
        # An observed galaxy has no Sersic index.
        n_sersic = np.where(columns["lens_number"] < 0, columns["lens_n_sersic"], np.nan)
        columns = columns | {"lens_n_sersic": n_sersic}
    for name, column in columns.items():
        if not name.endswith("magnitude"):
            table[name] = column
            continue
        known = np.where(np.isfinite(column), column, np.nan)
        table |= {f"{name}_{band}": known[..., k] for k, band in enumerate(bands)}
    return table


def _empty(num: int, bands: int) -> Columns:
    """Columns of images with nothing in them: shapes that can be evaluated, and no light."""
    zero: tuple[str, ...] = ("theta_E", "e1", "e2", "gamma1", "gamma2", "center_x", "center_y", "lens_e1", "lens_e2")
    zero += (
        "source_e1",
        "source_e2",
        "source_x",
        "source_y",
        "arms_phase",
        "arms_contrast",
        "ring_share",
        "star_x",
        "star_y",
    )
    fixed = {"lens_R_sersic": 0.5, "lens_n_sersic": 4.0, "source_R_sersic": 0.3, "source_n_sersic": 1.0}
    fixed |= {"arms_number": 2.0, "arms_pitch": 0.5 * math.pi, "arms_sharpness": 1.0}
    fixed |= {"ring_radius": 1.0, "ring_width": 0.2, "z_lens": np.nan, "z_source": np.nan, "sigma_v": np.nan}
    columns = {name: np.zeros(num) for name in zero} | {name: np.full(num, v) for name, v in fixed.items()}
    for prefix, width in (("clump", CLUMPS), ("neighbour", NEIGHBOURS)):
        columns |= {f"{prefix}_{axis}": np.zeros((num, width)) for axis in "xy"}
    columns |= {"clump_radius": np.full((num, CLUMPS), 0.1), "clump_share": np.zeros((num, CLUMPS))}
    columns["neighbour_magnitude"] = np.full((num, NEIGHBOURS, bands), DARK)
    columns |= {f"neighbour_{name}": np.zeros((num, NEIGHBOURS)) for name in ("e1", "e2")}
    columns |= {f"neighbour_{name}_sersic": np.ones((num, NEIGHBOURS)) for name in ("R", "n")}
    return columns | {f"{name}_magnitude": np.full((num, bands), DARK) for name in ("lens", "source", "clump", "star")}


def _place(columns: Columns, world: SurveyWorld, rng: np.random.Generator) -> None:
    """Where the scene is centred: near the middle, and in a few images far off."""
    num, given = len(columns["label"]), world.nuisances
    x, y = polar(given.off_shift.sample(rng, num), random_angle(num, rng))
    is_off = rng.random(num) < given.off_fraction
    for axis, far in (("x", x), ("y", y)):
        columns[f"center_{axis}"] = np.where(is_off, far, given.shift.sample(rng, num))


def _lens(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    """A lens that a survey finds, its source, and the light of both."""
    c = _visible(world, num, rng)
    lens, source, bands = world.lens, world.source, world.bands
    c |= early(world, c["lens_magnitude"][:, -1], c["z_lens"], rng, "lens", colours=False)
    for name in ("e1", "e2"):
        c[name] = np.clip(c[f"lens_{name}"] + rng.normal(0, lens.e_scatter, num), -0.45, 0.45)
    c["gamma1"], c["gamma2"] = polar(lens.gamma.sample(rng, num), random_angle(num, rng))
    c["source_e1"], c["source_e2"] = ellipticity(source.q.sample(rng, num), rng)
    c["source_n_sersic"] = source.n_sersic.sample(rng, num)
    return c | arms(source.arms, num, rng) | clumps(source.clumps, c, bands, rng)


def _visible(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    """Masses, distances and magnitudes; of some candidates for each lens, the first whose arcs can be seen."""
    limits, lens, source, size = world.visibility, world.lens, world.source, num * world.visibility.tries
    c = {"z_lens": lens.z.sample(rng, size), "z_source": lens.z_source.sample(rng, size)}
    c["theta_E"] = lens.theta_E.sample(rng, size)
    c["sigma_v"] = velocity_dispersion(c["theta_E"], c["z_lens"], c["z_source"])
    brightness = lens.magnitude_200 - lens.magnitude_slope * np.log10(np.fmax(c["sigma_v"], 1) / 200)
    reference = brightness + distance_modulus(c["z_lens"]) + rng.normal(0, lens.magnitude_scatter, size)
    c["lens_magnitude"] = world.red.sample(reference, c["z_lens"], world.bands, rng)
    blue = source.magnitude.sample(rng, size)
    c["source_magnitude"] = world.blue.sample(blue, c["z_source"], world.bands, rng)
    c["source_R_sersic"] = source.R_sersic.sample(rng, size)
    offset = source.offset.sample(rng, size) * c["theta_E"]
    c["source_x"], c["source_y"] = polar(offset, random_angle(size, rng))
    # In the end a lens that cannot be seen is better than one whose source stands in front.
    rank = 2 * _is_visible(c, offset, limits) + (c["sigma_v"] < limits.sigma_v)
    chosen = rank.reshape(limits.tries, num).argmax(0)
    return {
        name: value.reshape(limits.tries, num, *value.shape[1:])[chosen, np.arange(num)] for name, value in c.items()
    }


def _is_visible(c: Columns, offset: np.ndarray, limits: Visibility) -> np.ndarray:
    """Arcs bright enough, and not lost in the light of a lens that is no monster.

    The magnification is that of an isothermal sphere, 2 theta_E / offset, with the source's radius added to the
    offset in squares: an extended source cannot be magnified without limit.
    """
    magnification = 2 * c["theta_E"] / np.hypot(offset, c["source_R_sersic"])
    arcs = c["source_magnitude"][:, 0] - 2.5 * np.log10(np.fmax(magnification, 1))
    contrast = arcs - c["lens_magnitude"][:, 0]
    # A source in front of the lens has no velocity dispersion: NaN, and every comparison with it is false.
    return (arcs < limits.faintest) & (contrast < limits.contrast) & (c["sigma_v"] < limits.sigma_v)


def _move_sources(columns: Columns) -> None:
    """Put sources behind their lenses: shear about the origin moves what is seen at a lens that is off centre."""
    x, y, gamma1, gamma2 = (columns[name] for name in ("center_x", "center_y", "gamma1", "gamma2"))
    move = {"x": gamma1 * x + gamma2 * y, "y": gamma2 * x - gamma1 * y}
    for axis, moved in move.items():
        columns[f"source_{axis}"] -= moved
        columns[f"clump_{axis}"] -= moved[:, None]


def _elliptical(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    z, magnitude = _population(world.elliptical, num, rng)
    twin, is_twin = _visible(world, num, rng), rng.random(num) < world.elliptical.twin_fraction
    z = np.where(is_twin, twin["z_lens"], z)
    c = early(world, np.where(is_twin, twin["lens_magnitude"][:, -1], magnitude), z, rng, "lens")
    c["lens_magnitude"] = np.where(is_twin[:, None], twin["lens_magnitude"], c["lens_magnitude"])
    return c | {"z_lens": z}


def _spiral(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    given = world.spiral
    z, magnitude = _population(given, num, rng)
    bulge = given.bulge.sample(rng, num)
    c = {"z_lens": z} | _bulge_and_disc(world, magnitude, z, bulge, given_q=None, rng=rng)
    return c | arms(given.arms, num, rng) | clumps(given.clumps, c, world.bands, rng)


def _edge_on(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    given = world.edge_on
    z, magnitude = _population(given, num, rng)
    q = given.q.sample(rng, num)
    return {"z_lens": z} | _bulge_and_disc(world, magnitude, z, given.bulge.sample(rng, num), q, rng)


def _bulge_and_disc(
    world: SurveyWorld,
    magnitude: np.ndarray,
    z: np.ndarray,
    bulge: np.ndarray,
    given_q: np.ndarray | None,
    rng: np.random.Generator,
) -> Columns:
    """A red, rounder bulge in a star-forming disc that lies the same way."""
    num = len(z)
    q = world.late.q.sample(rng, num) if given_q is None else given_q
    phi, radius = rng.uniform(0, math.pi, num), half_light_radius(world.late, magnitude, z, rng)
    e = (1 - q) / (1 + q)
    c: Columns = {"source_R_sersic": radius, "source_n_sersic": world.late.n_sersic.sample(rng, num)}
    c["source_e1"], c["source_e2"] = polar(e, 2 * phi)
    c["source_x"], c["source_y"] = np.zeros(num), np.zeros(num)
    c["source_magnitude"] = world.blue.sample(take_share(magnitude, 1 - bulge), z, world.bands, rng)
    c["lens_magnitude"] = world.red.sample(take_share(magnitude, bulge), z, world.bands, rng)
    c["lens_R_sersic"], c["lens_n_sersic"] = 0.3 * radius, world.early.n_sersic.sample(rng, num)
    c["lens_e1"], c["lens_e2"] = 0.4 * c["source_e1"], 0.4 * c["source_e2"]
    return c


def _ring(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    given = world.ring
    z, magnitude = _population(given, num, rng)
    share, radius = given.share.sample(rng, num), given.radius.sample(rng, num)
    c = {"z_lens": z, "ring_share": np.ones(num), "ring_radius": radius}
    c["ring_width"] = radius * given.width.sample(rng, num)
    c["source_e1"], c["source_e2"] = ellipticity(given.q.sample(rng, num), rng)
    is_red = rng.random(num) < given.red_fraction
    c["source_magnitude"] = either(world, is_red, take_share(magnitude, share), z, rng)
    return c | early(world, take_share(magnitude, 1 - share), z, rng, "lens") | arms(given.arms, num, rng)


def _merger(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    given = world.merger
    z, magnitude = _population(given, num, rng)
    difference, tail = given.difference.sample(rng, num), given.tail.sample(rng, num)
    distance, angle, is_red = (
        given.distance.sample(rng, num),
        random_angle(num, rng),
        rng.random(num) > given.late_fraction,
    )
    c = early(world, magnitude, z, rng, "lens") | {
        "z_lens": z,
        "lens_magnitude": either(world, is_red, magnitude, z, rng),
    }
    x, y = polar(distance, angle)
    companion = {f"neighbour_{k}": v for k, v in galaxy(world, is_red, magnitude + difference, z, rng).items()}
    companion |= {"neighbour_x": x, "neighbour_y": y}
    c |= padded(companion)
    # The tail is a piece of a circle that begins at the central galaxy and bends round its own centre.
    radius, side = given.tail_radius.sample(rng, num), angle + math.pi + rng.normal(0, 0.7, num)
    c["source_x"], c["source_y"] = polar(radius, side + 0.5 * math.pi * rng.choice([-1, 1], num))
    c |= {"ring_share": np.ones(num), "ring_radius": radius, "ring_width": radius * given.tail_width.sample(rng, num)}
    toward = np.arctan2(-c["source_y"], -c["source_x"])
    c |= {"arms_number": np.ones(num), "arms_contrast": np.ones(num), "arms_phase": toward + rng.normal(0, 0.6, num)}
    c["arms_sharpness"] = given.tail_sharpness.sample(rng, num)
    c["source_magnitude"] = either(world, is_red, take_share(magnitude, tail), z, rng)
    return c


def _group(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    given = world.group
    z, magnitude = _population(given, num, rng)
    shape = (num, NEIGHBOURS)
    wide = np.broadcast_to(z[:, None], shape)
    faint = magnitude[:, None] + given.difference.sample(rng, num * NEIGHBOURS).reshape(shape)
    members = galaxy(world, np.ones(shape, dtype=bool), faint, wide, rng)
    distance, angle = given.distance.sample(rng, num * NEIGHBOURS), random_angle(num * NEIGHBOURS, rng)
    members["x"], members["y"] = (v.reshape(shape) for v in polar(distance, angle))
    is_there = np.arange(NEIGHBOURS) < given.number.sample(rng, num)[:, None]
    members["magnitude"] = np.where(is_there[..., None], members["magnitude"], DARK)
    neighbours = {f"neighbour_{name}": value for name, value in members.items()}
    return {"z_lens": z} | early(world, magnitude, z, rng, "lens") | neighbours


def _star(world: SurveyWorld, num: int, rng: np.random.Generator) -> Columns:
    place = rng.random(num)
    magnitude = world.star.track.sample(world.star.magnitude.sample(rng, num), place, world.bands, rng)
    return {"star_magnitude": magnitude, "star_x": np.zeros(num), "star_y": np.zeros(num)}


def _add_neighbours(columns: Columns, world: SurveyWorld, rng: np.random.Generator) -> None:
    """Chance neighbours in the room that companions have left."""
    given, (num, room) = world.neighbours, columns["neighbour_x"].shape
    size, shape = num * room, (num, room)
    z = given.z.sample(rng, size).reshape(shape)
    magnitude = given.magnitude.sample(rng, size).reshape(shape)
    chance = galaxy(world, rng.random(shape) < given.red_fraction, magnitude, z, rng)
    chance["R_sersic"] = given.R_sersic.sample(rng, size).reshape(shape)
    chance["x"], chance["y"] = (
        v.reshape(shape) for v in polar(given.distance.sample(rng, size), random_angle(size, rng))
    )
    is_free = np.isinf(columns["neighbour_magnitude"][..., -1])
    # The first free places, as many as the Poisson number asks for.
    is_there = is_free & (np.cumsum(is_free, 1) <= given.number.sample(rng, num)[:, None])
    for name, value in chance.items():
        column = columns[f"neighbour_{name}"]
        column[is_there] = value[is_there]


def _add_star(columns: Columns, world: SurveyWorld, rng: np.random.Generator) -> None:
    """A star in the field of some images; a field star stands anywhere, and slightly beyond."""
    num, given = len(columns["label"]), world.star
    place, magnitude = rng.random(num), given.field_magnitude.sample(rng, num)
    x, y = polar(world.neighbours.distance.sample(rng, num), random_angle(num, rng))
    light = given.track.sample(magnitude, place, world.bands, rng)
    is_there = (rng.random(num) < given.field_fraction) & (columns["kind"] != "star")
    for name, value in (("star_x", x), ("star_y", y), ("star_magnitude", light)):
        columns[name][is_there] = value[is_there]


def _choose_artefacts(columns: Columns, world: SurveyWorld, rng: np.random.Generator) -> None:
    """Which fault an image has, empty for none; images of the kind ``artefact`` always have one."""
    given, num = world.nuisances, len(columns["label"])
    frequency = np.array(list(given.artefacts.values()))
    fault = rng.choice(list(given.artefacts), num, p=frequency / frequency.sum())
    has_one = (rng.random(num) < given.artefact_fraction) | (columns["kind"] == "artefact")
    columns["artefact"] = np.where(has_one, fault, "")


_POPULATE: dict[str, Any] = {
    "lens": _lens,
    "elliptical": _elliptical,
    "spiral": _spiral,
    "ring": _ring,
    "merger": _merger,
    "group": _group,
    "star": _star,
    "edge_on": _edge_on,
    # What lies under an artefact is an ordinary galaxy.
    "artefact": _elliptical,
}


def _population(given: Population, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return given.z.sample(rng, num), given.magnitude.sample(rng, num)


def _shifted(value: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return value + shift.reshape(-1, *([1] * (value.ndim - 1)))
