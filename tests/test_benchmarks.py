"""The benchmarks run: in a small form here, for what needs a GPU or an hour."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_everything_that_a_gpu_is_for_runs_in_small(tmp_path):
    done = run("gpu.py", "--quick", "--out", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"machine", "parameters", "training", "recipe", "simulation", "sampling", "prediction"} == set(found)
    # ResNet-50 with one channel and three classes: torchvision's 25,557,032 less the differences of both ends.
    assert found["parameters"]["resnet-50"] == 25_557_032 - 2 * 64 * 49 - 997 * 2049
    assert 0 <= found["recipe"]["auc"]["value"] <= 1
    rates = [found["training"]["resnet-18, 64 px"], *found["simulation"].values(), *found["prediction"].values()]
    assert all(row["images_per_second"] > 0 for row in rates)


def test_without_a_gpu_the_whole_of_it_says_what_to_do():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("gpu.py")
    assert done.returncode == 2 and "--quick" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["choices.py", "time_to_auc.py"])  # these import most of the others
def test_the_others_say_how_they_are_called(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage" in done.stdout
