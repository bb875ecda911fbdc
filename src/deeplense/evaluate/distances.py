"""How far apart are two sets of points? Pure functions of arrays, of a classifier's features or of pixels.

Every one of them depends on how many points there are: compare sets of equal size, and with what two halves of the
real set give.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import svdvals
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deeplense.evaluate.bootstrap import percentile_interval, resample_weights

DRAWS = 5  # of equally many images from the larger set
CHUNK = 1024  # rows of a matrix of distances in memory at a time


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the Gaussians fitted to two sets.

    With centred rows X / sqrt(n - 1) = Q R, the last trace is the sum of the singular values of R_a R_b^T: no root of
    a matrix is taken, so that fewer points than dimensions and constant features do no harm.

    Args:
        a, b: features, shape (N, D) and (M, D).

    References:
        Heusel et al., GANs trained by a two time-scale update rule, arXiv:1706.08500, equation 6.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    roots = [np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1)).R for x in (a, b)]
    variance = sum(float(np.square(root).sum()) for root in roots)
    shift = float(np.square(a.mean(0) - b.mean(0)).sum())
    return max(0.0, shift + variance - 2 * float(svdvals(roots[0] @ roots[1].T).sum()))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3; 0 on average for like sets.

    Args:
        a, b: features, shape (N, D) and (M, D).

    References:
        Binkowski et al., Demystifying MMD GANs, arXiv:1801.01401, section 4.
    """
    # scikit-learn's default kernel is this one: degree 3, gamma 1 / D, coef0 1.
    within = [_mean_off_diagonal(polynomial_kernel(x)) for x in (a.astype(np.float64), b.astype(np.float64))]
    return sum(within) - 2 * float(polynomial_kernel(a.astype(np.float64), b.astype(np.float64)).mean())


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def precision_recall_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> dict[str, float]:
    """``precision``, ``recall``, ``density`` and ``coverage`` of a generated set, from balls that reach to the k-th
    neighbour within the same set.

    ``precision``: share of generated points inside a real ball. ``recall``: share of real points inside a generated
    ball. ``density``: real balls that hold a generated point, over k; 1 on average for like sets, and no upper bound.
    ``coverage``: share of real balls that hold a generated point.

    Args:
        real, generated: features, shape (N, D) and (M, D), with more than k points each.

    References:
        Kynkaanniemi et al., Improved precision and recall metric, arXiv:1904.06991, equations 1 and 2; Naeem et al.,
        Reliable fidelity and diversity metrics, arXiv:2002.09797, equations 3 and 4.
    """
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    real_radius, generated_radius = _radii(real, k), _radii(generated, k)
    balls, recalled = np.zeros(len(generated)), np.zeros(len(real), bool)
    is_covered = np.zeros(len(real), bool)
    for rows in np.array_split(np.arange(len(real)), max(1, len(real) // CHUNK)):
        distance = pairwise_distances(real[rows], generated)
        is_inside = distance <= real_radius[rows, None]
        balls += is_inside.sum(0)
        is_covered[rows] = is_inside.any(1)
        recalled[rows] = (distance <= generated_radius).any(1)
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(balls.mean() / k),
        "coverage": float(is_covered.mean()),
    }


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point to its k-th neighbour, itself not counted."""
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[0][:, -1]


def nearest(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each query to the nearest key, and which one that is, shape (Q,) each.

    Args:
        queries, keys: images or features, shape (Q, ...) and (K, ...); Euclidean distance of all values.
    """
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(keys.reshape(len(keys), -1))
    distance, index = search.kneighbors(queries.reshape(len(queries), -1))
    return distance[:, 0], index[:, 0]


def memorisation_ratio(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray, seed: int = 0, resamples: int = 1000
) -> dict[str, float]:
    """Mean distance to the nearest training image over that to the nearest of equally many held-out images.

    1: the training images are no nearer than others. Below 1: copied. The larger set is drawn down to the size of the
    smaller one, up to five times without overlap, and the distances are averaged over the draws. Of T training images
    beside H < T held-out ones, a draw holds a copied image only with a chance of H / T: see `near_copies`.

    Args:
        generated, train, held_out: images or features, shape (N, ...), (T, ...), (H, ...).
        resamples: bootstrap resamples of the generated images for the interval.

    Returns:
        ``value``, and ``low`` and ``high``, the 95 % interval over the generated images.
    """
    rng = np.random.default_rng(seed)
    number = min(len(train), len(held_out))
    near_train, near_held = (_drawn_nearest(generated, keys, number, rng) for keys in (train, held_out))
    weights = np.concatenate(list(resample_weights(np.zeros(len(generated)), resamples, seed)))
    low, high = percentile_interval(_ratio(weights @ near_train, weights @ near_held))
    value = _ratio(near_train.sum(), near_held.sum())
    return {"value": float(value), "low": float(low), "high": float(high)}


def _ratio(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    return near / np.maximum(far, np.finfo(np.float64).tiny)


def _drawn_nearest(queries: np.ndarray, keys: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Nearest distance among `number` of the keys, the mean over draws without overlap, shape (Q,)."""
    order = rng.permutation(len(keys))
    draws = [order[k * number : (k + 1) * number] for k in range(min(DRAWS, len(keys) // number))]
    return np.mean([nearest(queries, keys[np.sort(draw)])[0] for draw in draws], axis=0)


def near_copies(generated: np.ndarray, others: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> int:
    """Generated images that are relatively nearer to a training image than any image known to be no copy.

    Relatively: the distance to the nearest of all training images over that to the nearest held-out one, in which the
    noise and the rarity of an image cancel. Where nothing is copied, of equally many generated and other images one is
    expected.

    Args:
        generated: shape (N, ...).
        others: images that the model cannot have copied and that are not among `held_out`, shape (N, ...).
        train, held_out: shape (T, ...), (H, ...).
    """
    ratios = [_ratio(nearest(images, train)[0], nearest(images, held_out)[0]) for images in (generated, others)]
    return int((ratios[0] < ratios[1].min()).sum())


def two_sample_auc(a: np.ndarray, b: np.ndarray, seed: int = 0, folds: int = 5) -> float:
    """Area under the ROC curve of telling two sets apart by a linear classifier: 0.5 not at all, 1 always.

    The mean over cross-validation folds; the classifier never saw the points that it is judged on.

    Args:
        a, b: features, shape (N, D) and (M, D).

    References:
        Lopez-Paz & Oquab, Revisiting classifier two-sample tests, arXiv:1610.06545.
    """
    # A strong penalty: there may be as many features as points.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    is_first = np.repeat([1, 0], [len(a), len(b)])
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    points = np.concatenate([a, b]).astype(np.float64)
    return float(cross_val_score(model, points, is_first, cv=parts, scoring="roc_auc").mean())
