"""`published` images against the statistics of genuine Common Test images, class by class.

The reference is the mean and scatter over 68 genuine images of all classes (docs/datasheets/common-test.md); these were
recovered from published figures with 256 grey levels, so simulated images pass through the same levels first.
"""

from __future__ import annotations

import numpy as np
import pytest

from deeplense.data.read import read
from deeplense.evaluate.fidelity import describe
from deeplense.simulate.stream import simulated_set

GENUINE = {
    "mean": (0.0579, 0.0068),
    "std": (0.1122, 0.0120),
    "corner_median": (0.0093, 0.0017),
    "radius": (28.9, 3.7),
    "fraction": (0.151, 0.022),
    "center_x": (74.4, 3.5),
    "center_y": (73.7, 6.8),
    "elongation": (1.71, 0.39),
    "angle": (-2.0, 9.0),
}
ROBUST_ANGLE = 7.2
# The noise in the corner was given with the fits to single images, not with its scatter over the 68.
CORNER_STD = (0.0042, 0.0004)


def grey_levels(images):
    return np.minimum(np.floor(images * 256), 255) / 255


def robust(values):
    """Standard deviation without the few images that have no long axis to speak of: from the central 90 %."""
    low, high = np.percentile(values, [5, 95])
    return values[(values >= low) & (values <= high)].std() / 0.79


@pytest.fixture(scope="module")
def statistics():
    simulated = simulated_set("common-test", "published", seed=3, num=960)
    return [describe(grey_levels(simulated.images[simulated.label == k, 0])) for k in range(3)]


@pytest.mark.parametrize("name", GENUINE)
@pytest.mark.parametrize("kind", range(3))
def test_means_and_scatters_are_those_of_genuine_images(statistics, kind, name):
    values, (mean, scatter) = statistics[kind][name], GENUINE[name]
    assert abs(values.mean() - mean) <= scatter / 2
    spread = values.std()
    if name == "angle":  # like with like: the scatter of the 35 genuine images at hand, by the same formula
        spread, scatter = robust(values), ROBUST_ANGLE
    assert 0.7 <= spread / scatter <= 1.3


@pytest.mark.parametrize("kind", range(3))
def test_sky_noise_is_that_of_genuine_images(statistics, kind):
    assert statistics[kind]["corner_std"].mean() == pytest.approx(CORNER_STD[0], abs=CORNER_STD[1] / 2)


def test_the_genuine_images_at_hand_agree_with_the_reference(shared_data):
    genuine = read(shared_data / "common-test-figures")
    values = describe(genuine.images[:, 0])
    for name, (mean, scatter) in GENUINE.items():
        # Half of the 68: their mean lies within three standard errors.
        assert abs(values[name].mean() - mean) < 3 * scatter / np.sqrt(len(genuine)), name
