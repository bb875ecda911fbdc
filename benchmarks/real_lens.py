"""Observed lenses with a published Einstein radius, measured: JWST NIRCam F150W, two lenses of COSMOS-Web.

    python benchmarks/real_lens.py FOLDER

FOLDER holds a folder for each lens with result.json and F150W/{data,noise_map,psf}.fits, 0.03" a pixel. Writes
real_lens.json beside this file and docs/pictures/real-lens.png. The light of each lens is fitted as a Sersic profile,
and a disc in its middle left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from deeplense.measure import PICTURE, measure

HERE = Path(__file__).parent
SHOWN = HERE.parent / "docs" / "pictures" / "real-lens.png"
INVERTER = HERE.parent / "weights" / "inverter-physical"
# Radii, arcsec, inside which pixels are left out and beyond which none counts.
LENSES = {"COSJ100018+022138": (0.0, 1.2), "COSJ095921+020638": (0.15, 1.6)}


def main() -> None:
    """Fit, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder, rows = parser.parse_args().folder, {}
    for name, (inner, outer) in LENSES.items():
        band = folder / name / "F150W"
        published = json.loads((folder / name / "result.json").read_text())["einstein_radius"]
        rows[name] = {"published": published}
        for source in ("sersic", "pixels"):
            with tempfile.TemporaryDirectory() as place:
                out = Path(place) / "lens"
                radii = {"mask_radius": inner, "outer_radius": outer}
                files = {"psf": str(band / "psf.fits"), "noise_map": band / "noise_map.fits"}
                image = band / "data.fits"
                found = measure(
                    INVERTER, image, out, pixel_scale=0.03, **files, **radii, lens_light=True, source=source
                )
                if name == next(iter(LENSES)) and source == "sersic":
                    shutil.copyfile(out / PICTURE, SHOWN)
            theta_E, std = found.values["theta_E"], found.std["theta_E"]
            rows[name][source] = {"theta_E": theta_E, "std": std, "chi2": found.chi2, "start": found.start}
            print(name, source, rows[name][source], "published", published, flush=True)
    (HERE / "real_lens.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
