"""Where the light of an arc is, and how a round lens deflects there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.data.transform import fill_missing

SIGNIFICANT = 5.0  # standard deviations of the background by which a pixel of the arc stands out
FAINTEST = 0.25  # of the brightest pixel's height above the background, for other pixels to count


def brightest_pixels(images: Tensor, sectors: int, center: Tensor, crop: int | None = None) -> tuple[Tensor, Tensor]:
    """The brightest pixel in each angular sector about a centre; the first is the brightest of the image.

    The image's brightest pixel lies in the middle of the first sector. Pixels are chosen on the grid, which depends on
    the image alone; their position is the centroid of the light in the 3x3 pixels around, to a part of a pixel.

    Args:
        images: (B, C, H, W) as read; channels are added up.
        sectors: S, of equal angle.
        center: x and y about the middle of the image, pixels, (B, 2).
        crop: only this central part is looked at, pixels.

    Returns:
        theta: x and y about the middle of the image, pixels, (B, S, 2).
        is_arc: whether there is light at all, and not much less than in the brightest pixel, (B, S).
    """
    light = fill_missing(images).sum(dim=1)
    seen = _cropped(light, crop)
    sector = _sectors(light, seen.flatten(1).argmax(dim=1), center, sectors)
    found = [seen.masked_fill(sector != s, -torch.inf).flatten(1).max(dim=1) for s in range(sectors)]
    peak, chosen = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
    return _centroid(light, chosen), _stand_out(light, peak)


def deflect_alike(alpha: Tensor, theta: Tensor, center: Tensor) -> Tensor:
    """The deflection at several positions, from that at the first, of a round isothermal lens.

    It has the same length everywhere and turns with the position angle about the lens's centre.

    Args:
        alpha: at the first position, (B, 2), any unit.
        theta: positions, (B, S, 2).
        center: of the lens, in the same unit, (B, 2).

    Returns:
        Of the shape of ``theta``, in the unit of ``alpha``.

    References: Narayan & Bartelmann (astro-ph/9606001), section 3.1.5: alpha = theta_E theta / |theta|.
    """
    axis = F.normalize(theta - center[:, None], dim=-1)
    first, (ax, ay) = axis[:, :1], alpha[:, None].unbind(-1)
    cos = (axis * first).sum(-1)
    sin = first[..., 0] * axis[..., 1] - first[..., 1] * axis[..., 0]
    return torch.stack([cos * ax - sin * ay, sin * ax + cos * ay], dim=-1)


def agree(beta: Tensor, is_arc: Tensor) -> tuple[Tensor, Tensor]:
    """How far the source positions of one arc's pixels are from their mean: Smooth-L1, and whether it says anything.

    What it constrains, where ``beta`` comes of :func:`deflect_alike`: let alpha be a along theta and b across, and the
    pixels lie evenly around on the ridge |theta| = theta_E + beta_s.e of a source at beta_s, e being the direction of
    theta. The mean squared residual is then (theta_E - a)^2 + b^2 + |beta_s|^2 / 4. It is least at a = theta_E, b = 0:
    no lensing costs theta_E^2, a constant turn of alpha b^2, alpha = theta at the first pixel what the ridge is off a
    circle; nothing collapses, for two numbers cannot follow each pixel. On a short arc, where |mean of e| is near 1,
    the cost of a wrong a or b is (1 - |mean of e|^2) times as much: near nothing. It measures the radius of the ring,
    and says nothing of the source, of ellipticity, the profile (a sheet of mass) or substructure.

    Args:
        beta: arcsec, (B, S, 2).
        is_arc: which of them count, (B, S).

    Returns:
        The loss (B,), and whether two pixels or more count, (B,).
    """
    number = is_arc.sum(dim=1)
    share = is_arc / number.clamp(min=1)[:, None]
    mean = (share[..., None] * beta).sum(dim=1, keepdim=True).expand_as(beta)
    losses = F.smooth_l1_loss(beta, mean, reduction="none").mean(dim=-1)
    return (share * losses).sum(dim=1), number > 1


def _axes(light: Tensor) -> tuple[Tensor, Tensor]:
    """x of the columns (W,) and y of the rows (H,) about the middle of the image, pixels."""
    height, width = light.shape[-2:]
    x, y = (torch.arange(n, device=light.device) - (n - 1) / 2 for n in (width, height))
    return x, y


def _cropped(light: Tensor, crop: int | None) -> Tensor:
    """The light that a central crop leaves, minus infinity outside, (B, H, W)."""
    if crop is None:
        return light
    top, left = ((side - crop) // 2 for side in light.shape[-2:])  # as Preprocess cuts it
    rows, columns = slice(top, top + crop), slice(left, left + crop)
    seen = torch.full_like(light, -torch.inf)
    seen[:, rows, columns] = light[:, rows, columns]
    return seen


def _sectors(light: Tensor, first: Tensor, center: Tensor, number: int) -> Tensor:
    """The sector in which each pixel lies, (B, H, W); the pixel ``first`` (B,) is in the middle of sector 0."""
    x, y = _axes(light)
    angle = torch.atan2(y[:, None] - center[:, 1, None, None], x - center[:, 0, None, None])
    turn = (angle - angle.flatten(1).gather(1, first[:, None])[..., None]) / (2 * torch.pi)
    return (turn * number + 0.5).floor().long().remainder(number)


def _centroid(light: Tensor, chosen: Tensor) -> Tensor:
    """Centroid of the light above the faintest of the 3x3 pixels around each chosen one (B, S), (B, S, 2)."""
    x, y = _axes(light)
    row, column = chosen // len(x), chosen % len(x)
    step = torch.tensor([-1, 0, 1], device=light.device)
    dy, dx = step.repeat_interleave(3), step.repeat(3)
    around = (row[..., None] + 1 + dy) * (len(x) + 2) + column[..., None] + 1 + dx  # (B, S, 9)
    padded = F.pad(light[:, None], (1, 1, 1, 1), mode="replicate").flatten(1)
    patch = padded.gather(1, around.flatten(1)).view(around.shape)
    weight = patch - patch.amin(dim=-1, keepdim=True)
    weight = weight / weight.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.stack([x[column] + (weight * dx).sum(-1), y[row] + (weight * dy).sum(-1)], dim=-1)


def _stand_out(light: Tensor, peak: Tensor) -> Tensor:
    """Whether peaks (B, S), the first of them the highest, are light of an arc, (B, S)."""
    values = light.flatten(1)
    level = values.median(dim=1, keepdim=True).values
    scatter = 1.4826 * (values - level).abs().median(dim=1, keepdim=True).values  # sigma of a normal distribution
    height = peak - level
    return (height > SIGNIFICANT * scatter) & (height > 0) & (height >= FAINTEST * height[:, :1])
