"""The source as a grid of pixels: the light that, seen through a given lens, explains an image best.

With a given lens the image is linear in the source, so that the best source is a matrix equation. A source has more
pixels than the data can tell apart: it is held smooth, as much as the evidence of the data asks for. Brightness has the
unit of the image, per pixel of the image; it may be negative where the noise says so.

References:
    Warren & Dye, Semi-linear Gravitational Lens Inversion (astro-ph/0302587).
    Suyu et al., A Bayesian Analysis of Regularised Source Inversions in Gravitational Lensing (astro-ph/0601493).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, sparse
from scipy.signal import fftconvolve

from deeplense.errors import ConfigError

Array = NDArray[np.float64]
Smoothness = Literal["curvature", "gradient"]
# Strengths of regularisation that are tried: powers of e about the one that weighs as much as the data.
WEAKEST, STRONGEST = -20.0, 12.0
# Added to ln det (F + strength C), so that its root exists and bends little.
VOLUME = 1e6
# Rounds of "which strength?" and "which lens?" in a refinement.
ROUNDS = 2


@dataclass(frozen=True)
class SourceGrid:
    """A square of brightness values in the source plane: linear between four of them, zero outside.

    Attributes:
        center_x, center_y: arcsec.
        width: from the first value of a row to its last, arcsec.
        num_pix: values in a row and in a column.
    """

    center_x: float
    center_y: float
    width: float
    num_pix: int

    @classmethod
    def around(cls, beta_x: Array, beta_y: Array, num_pix: int) -> SourceGrid:
        """The least square that has all of these positions inside, with one pixel to spare on each side.

        Raises:
            ConfigError: fewer than 4 pixels, or no position to cover.
        """
        if num_pix < 4 or beta_x.size == 0:
            raise ConfigError(f"a source of {num_pix} x {num_pix} pixels for {beta_x.size} rays: give 4 or more, and 1")
        (left, right), (bottom, top) = ((float(b.min()), float(b.max())) for b in (beta_x, beta_y))
        side = max(right - left, top - bottom, 1e-6)
        return cls((left + right) / 2, (bottom + top) / 2, side * (num_pix - 1) / (num_pix - 3), num_pix)

    @property
    def spacing(self) -> float:
        """Arcsec between two values."""
        return self.width / (self.num_pix - 1)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the outermost values, arcsec."""
        half = self.width / 2
        return self.center_x - half, self.center_x + half, self.center_y - half, self.center_y + half

    def weights(self, beta_x: Array, beta_y: Array) -> sparse.csr_matrix:
        """What each value adds to the brightness at these positions, shape (rays, num_pix^2)."""
        n, middle = self.num_pix, (self.num_pix - 1) / 2
        column = (beta_x.ravel() - self.center_x) / self.spacing + middle
        row = (beta_y.ravel() - self.center_y) / self.spacing + middle
        ray = np.flatnonzero((column >= 0) & (column <= n - 1) & (row >= 0) & (row <= n - 1))
        column, row = column[ray], row[ray]
        left, below = np.minimum(column.astype(int), n - 2), np.minimum(row.astype(int), n - 2)
        right_share, above_share = column - left, row - below
        corners = [
            (below + dy, left + dx, np.abs(1 - dy - above_share) * np.abs(1 - dx - right_share))
            for dy in (0, 1)
            for dx in (0, 1)
        ]
        values = np.concatenate([share for _, _, share in corners])
        places = np.concatenate([y * n + x for y, x, _ in corners])
        return sparse.csr_matrix((values, (np.tile(ray, 4), places)), shape=(beta_x.size, n * n))


@dataclass(frozen=True)
class Regularisation:
    """How smooth a source is: the quadratic form s^T C s, small where neighbours are alike, with zero all around.

    Attributes:
        kind: "gradient" sums squared differences of neighbours, "curvature" squared second differences.
        num_pix: of the source, a side.
    """

    kind: Smoothness
    num_pix: int

    def __post_init__(self) -> None:
        if self.kind not in ("curvature", "gradient"):
            raise ConfigError(f"a source is regularised by curvature or gradient, not by {self.kind!r}")

    @property
    def _power(self) -> int:
        return 2 if self.kind == "curvature" else 1

    @cached_property
    def matrix(self) -> Array:
        """C, shape (num_pix^2, num_pix^2)."""
        n = self.num_pix
        line = sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(n, n)).toarray()
        line = np.linalg.matrix_power(line, self._power)
        one = np.eye(n)
        return np.asarray(np.kron(line, one) + np.kron(one, line))

    @cached_property
    def root(self) -> Array:
        """R with R^T R = C."""
        return np.asarray(linalg.cholesky(self.matrix))

    @cached_property
    def log_det(self) -> float:
        """ln det C: the eigenvectors along a line are sines."""
        frequency = np.arange(1, self.num_pix + 1) * math.pi / (self.num_pix + 1)
        line = (2 - 2 * np.cos(frequency)) ** self._power
        return float(np.log(line[:, None] + line).sum())


@dataclass(frozen=True)
class Reconstruction:
    """The most probable source of an image, and what it explains.

    Attributes:
        source: shape (S, S), rows grow upward.
        grid: where it lies.
        model: its image, shape (H, W), masked pixels included.
        residual: (data - model) / noise, shape (H, W), 0 where the noise is infinite.
        chi2: sum of squared residuals.
        num_data: pixels that count.
        num_effective: free parameters of the source that the data determine, of num_pix^2 (Suyu et al. 2006, eq. 24).
        strength: of the regularisation.
        log_evidence: ln P(data | lens, strength), Suyu et al. 2006, eq. 19.
    """

    source: Array
    grid: SourceGrid
    model: Array
    residual: Array
    chi2: float
    num_data: int
    num_effective: float
    strength: float
    log_evidence: float


@dataclass(frozen=True)
class Frame:
    """An image whose source is looked for, and how light gets into its pixels.

    Attributes:
        data: above the sky, shape (H, W).
        sigma: its noise, shape (H, W); pixels of infinite noise do not count, whatever they say.
        kernel: PSF of sum 1, shape (K, K), K odd; beyond the border the edge pixels go on.
        supersampling: rays per pixel and axis: positions have shape (H * S, W * S).

    Raises:
        ConfigError: noise that is not above 0, no pixel that counts, or an even PSF.
    """

    data: Array
    sigma: Array
    kernel: Array
    supersampling: int = 2

    def __post_init__(self) -> None:
        if not (self.sigma > 0).all():
            raise ConfigError("the noise of an image must be above 0 in each pixel; infinite where it does not count")
        if not np.isfinite(self.sigma).any() or not np.isfinite(self.data[np.isfinite(self.sigma)]).all():
            raise ConfigError("no pixel of the image counts, or one that counts is not finite")
        if self.kernel.ndim != 2 or len(self.kernel) % 2 == 0 or self.kernel.shape[0] != self.kernel.shape[1]:
            raise ConfigError(f"a PSF is an odd square, and this one has the shape {self.kernel.shape}")

    @cached_property
    def used(self) -> NDArray[np.int64]:
        """Numbers of the pixels that count, row by row."""
        return np.flatnonzero(np.isfinite(self.sigma))

    @cached_property
    def _scaled(self) -> Array:
        """Data over noise of the pixels that count."""
        return self.data.ravel()[self.used] / self.sigma.ravel()[self.used]

    @cached_property
    def _blur(self) -> sparse.csr_matrix:
        """Brightness of all pixels to what the telescope puts in those that count, over their noise."""
        height, width = self.data.shape
        offset = np.arange(len(self.kernel)) - len(self.kernel) // 2
        row, column = np.divmod(self.used, width)
        # The kernel's right half brings light from the left.
        rows = np.clip(row[:, None, None] - offset[:, None], 0, height - 1)
        columns = np.clip(column[:, None, None] - offset, 0, width - 1)
        places = np.broadcast_to(rows * width + columns, (len(row), *self.kernel.shape)).reshape(len(row), -1)
        values = self.kernel.ravel() / self.sigma.ravel()[self.used, None]
        numbers = np.repeat(np.arange(len(row)), places.shape[1])
        return sparse.csr_matrix((values.ravel(), (numbers, places.ravel())), shape=(len(row), height * width))

    def grid(self, beta_x: Array, beta_y: Array, num_pix: int = 36) -> SourceGrid:
        """The grid that all rays of the pixels that count land on; positions (H * S, W * S), arcsec."""
        counts = np.isfinite(self.sigma).repeat(self.supersampling, 0).repeat(self.supersampling, 1)
        return SourceGrid.around(beta_x[counts], beta_y[counts], num_pix)

    def _binned(self, grid: SourceGrid, beta_x: Array, beta_y: Array) -> sparse.csr_matrix:
        """Source to brightness of all pixels, the mean of their rays, shape (H * W, S^2)."""
        height, width = self.data.shape
        rays = self.supersampling
        blocks = (height, rays, width, rays)
        order = [np.moveaxis(b.reshape(blocks), 1, 2).reshape(height * width, rays**2) for b in (beta_x, beta_y)]
        each = grid.weights(*order)
        mean = sparse.kron(sparse.eye(height * width), np.full((1, rays**2), 1 / rays**2), format="csr")
        return mean @ each

    def response(self, grid: SourceGrid, beta_x: Array, beta_y: Array) -> Array:
        """Source to pixels that count, over their noise: the matrix f of Warren & Dye, dense, (pixels, num_pix^2)."""
        return np.asarray((self._blur @ self._binned(grid, beta_x, beta_y)).toarray())

    def solve(
        self,
        beta_x: Array,
        beta_y: Array,
        grid: SourceGrid | None = None,
        strength: float | None = None,
        smoothness: Smoothness = "curvature",
    ) -> Reconstruction:
        """The most probable source behind a lens.

        Args:
            beta_x, beta_y: source-plane positions of all rays, arcsec, shape (H * S, W * S).
            grid: of the source; the one that the rays land on if not given.
            strength: of the regularisation; the one of most evidence if not given.
        """
        grid = grid or self.grid(beta_x, beta_y)
        system = self.system(grid, beta_x, beta_y, smoothness)
        strength = system.best_strength() if strength is None else strength
        source, log_evidence, num_effective = system.most_probable(strength)
        light = (self._binned(grid, beta_x, beta_y) @ source).reshape(self.data.shape)
        radius = len(self.kernel) // 2
        model = fftconvolve(np.pad(light, radius, mode="edge"), self.kernel, mode="valid")
        counts = np.isfinite(self.sigma)
        residual = np.divide(self.data - model, self.sigma, out=np.zeros_like(model), where=counts)
        log_evidence -= float(np.log(self.sigma[counts]).sum())
        return Reconstruction(
            source.reshape(grid.num_pix, grid.num_pix),
            grid,
            model,
            residual,
            float(np.square(residual).sum()),
            len(self.used),
            num_effective,
            strength,
            log_evidence,
        )

    def system(
        self, grid: SourceGrid, beta_x: Array, beta_y: Array, smoothness: Smoothness = "curvature"
    ) -> LinearSystem:
        """The equations of the source behind a lens."""
        prior = _regularisation(smoothness, grid.num_pix)
        return LinearSystem(self.response(grid, beta_x, beta_y), self._scaled, prior)


@lru_cache(maxsize=2)
def _regularisation(kind: Smoothness, num_pix: int) -> Regularisation:
    """One matrix for all solutions of a fit."""
    return Regularisation(kind, num_pix)


@dataclass(frozen=True)
class LinearSystem:
    """The source s that makes |d - f s|^2 + strength s^T C s least, all in units of the noise.

    Attributes:
        response: f, shape (N, S^2).
        data: d, shape (N,).
        prior: with the matrix C.
    """

    response: Array
    data: Array
    prior: Regularisation

    @cached_property
    def curvature(self) -> Array:
        """F = f^T f."""
        return np.asarray(self.response.T @ self.response)

    @cached_property
    def pull(self) -> Array:
        """f^T d."""
        return np.asarray(self.response.T @ self.data)

    def best_strength(self) -> float:
        """The strength of most evidence."""
        middle = math.log(np.trace(self.curvature) / np.trace(self.prior.matrix))
        found = optimize.minimize_scalar(
            lambda power: -self.evidence(math.exp(power))[1],
            bounds=(middle + WEAKEST, middle + STRONGEST),
            method="bounded",
            options={"xatol": 0.05},
        )
        return math.exp(found.x)

    def evidence(self, strength: float) -> tuple[Array, float]:
        """Most probable source, and ln P(d | strength) where d has unit noise."""
        _, source, log_det = self.factorised(strength)
        misfit = np.square(self.data - self.response @ source).sum() + strength * source @ self.prior.matrix @ source
        volume = log_det - len(source) * math.log(strength) - self.prior.log_det
        return source, -0.5 * float(misfit + volume + len(self.data) * math.log(2 * math.pi))

    def most_probable(self, strength: float) -> tuple[Array, float, float]:
        """Most probable source, ln evidence, and the effective number of its free parameters."""
        source, log_evidence = self.evidence(strength)
        factor = self.factorised(strength)[0]
        free = np.trace(linalg.cho_solve(factor, self.curvature, check_finite=False))
        return source, log_evidence, float(free)

    def factorised(self, strength: float) -> tuple[tuple[Array, bool], Array, float]:
        """Cholesky factor of F + strength C, most probable source, ln det (F + strength C)."""
        matrix = self.curvature + strength * self.prior.matrix
        factor = linalg.cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        source = linalg.cho_solve(factor, self.pull, check_finite=False)
        return factor, source, 2 * float(np.log(factor[0].diagonal()).sum())

    def residuals(self, strength: float) -> Array:
        """A vector whose square is -2 ln evidence, up to what no lens changes: misfit, roughness, volume."""
        _, source, log_det = self.factorised(strength)
        rough = math.sqrt(strength) * self.prior.root @ source
        # Gauss and Newton see the slope of the volume, and next to none of its curvature, which has no square root.
        return np.concatenate([self.data - self.response @ source, rough, [math.sqrt(VOLUME + log_det)]])


@dataclass(frozen=True)
class Refinement:
    """The lens whose source on a grid explains an image best.

    Attributes:
        parameters: shape (P,).
        covariance: of these, by the curvature of the evidence at a given grid and strength, shape (P, P).
        reconstruction: the source behind this lens.
    """

    parameters: Array
    covariance: Array
    reconstruction: Reconstruction


def refine(
    frame: Frame,
    trace: Callable[[Array], tuple[Array, Array]],
    start: Array,
    scale: Array,
    bounds: tuple[Array, Array],
    grid: SourceGrid | None = None,
    smoothness: Smoothness = "curvature",
    max_steps: int = 12,
) -> Refinement:
    """Improve a lens by the evidence of the source behind it.

    The strength is that of the lens at the start of each of two rounds, and the grid stays: one that followed the lens
    would change what the evidence means. From a poor start, it ends in a lens without magnification that maps the image
    onto itself: start from a fit with a Sersic source.

    Args:
        trace: parameters (P,) -> beta_x, beta_y of all rays, arcsec, shape (H * S, W * S).
        start: shape (P,).
        scale: about the uncertainty of each parameter: derivatives are differences over a quarter of it.
        grid: of the source; the one that the rays of the first lens land on if not given.
        bounds: least and largest value of each parameter, shape (P,) each; the start lies between them.
        max_steps: of least squares in a round.
    """
    p = np.asarray(start, dtype=np.float64)
    square = grid or frame.grid(*trace(p))
    for _ in range(ROUNDS):
        strength = frame.system(square, *trace(p), smoothness).best_strength()

        def residuals(p: Array, strength: float = strength) -> Array:
            return frame.system(square, *trace(p), smoothness).residuals(strength)

        found = optimize.least_squares(
            residuals, p, lambda p, r=residuals: _slopes(r, p, scale / 4), bounds, x_scale=scale, max_nfev=max_steps
        )
        p = found.x
    covariance = linalg.pinvh(found.jac.T @ found.jac)
    return Refinement(p, covariance, frame.solve(*trace(p), square, None, smoothness))


def _slopes(function: Callable[[Array], Array], p: Array, step: Array) -> Array:
    """Derivatives by central differences, shape (N, P)."""
    moves = np.diag(step)
    return np.stack([(function(p + m) - function(p - m)) / (2 * h) for m, h in zip(moves, step, strict=True)], 1)
