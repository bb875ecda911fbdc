"""A diffusion model taken elsewhere: a folder that diffusers opens where this package is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from deeplense import hub, weights
from deeplense.errors import RunError
from deeplense.tasks import DiffusionTask
from deeplense.tasks.draw import Request, draw
from test_weights import task as classifier
from toy import write_diffusion

# Another process, in which importing the package is an error.
ELSEWHERE = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "deeplense":
            raise AssertionError("the package was imported")

sys.meta_path.insert(0, Forbidden())
import diffusers, numpy as np
pipeline = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
told = {"label": "vort", "given": {"theta_E": 1.2}, "guidance": 2}
np.save(sys.argv[2], pipeline(4, **told, sampler=sys.argv[3], steps=8, seed=7))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_diffusion(
        tmp_path_factory.mktemp("runs") / "run", 'diffusion.given=["theta_E", "gamma1"]', "model.stretch=asinh"
    )


def elsewhere(program, tmp_path, *arguments):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-I", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("sampler", ["dpm++", "ddpm"])
def test_the_folder_draws_the_same_images_without_this_package(run, tmp_path, sampler):
    folder = hub.write_folder(weights.load_task(run, DiffusionTask), tmp_path / "model")
    done = elsewhere(ELSEWHERE, tmp_path, folder, tmp_path / "images.npy", sampler)
    assert "type" not in done.stderr, "diffusers warns of types that it does not understand"
    request = Request("vort", {"theta_E": 1.2}, sampler, 8, 2.0, 7)
    ours = draw(weights.load_task(run, DiffusionTask), 4, request)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), ours.images, rtol=1e-6, atol=1e-6)


def test_the_lines_of_the_card_run(run, tmp_path):
    hub.write_folder(weights.load_task(run, DiffusionTask), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "no, sphere, vort" in card and "theta_E, gamma1" in card and '0.1" per pixel' in card and "MIT" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(code.splitlines()) == 4
    elsewhere(f"{code}\nassert images.shape == (16, 1, 16, 16)", tmp_path)


def test_export_writes_the_folder_and_never_over_another(deeplense_command, run, tmp_path):
    words = ("export", run, "--format", "diffusers", "--out", tmp_path / "model")
    code, output, _ = deeplense_command(*words)
    assert (code, output) == (0, f"{tmp_path / 'model'}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*.*") if path.is_file()}
    assert len(modes) == 1  # all can be read by those who can read one of them
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, _, errors = deeplense_command(*words)
    assert code == 2 and "never overwritten" in errors
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    code, _, errors = deeplense_command("export", run, "--format", "diffusers", "--out", tmp_path / "no" / "model")
    assert code == 2 and "there is no folder" in errors


def test_a_failure_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "UNET", "no-such-folder/unet")
    with pytest.raises(RunError, match="cannot be written"):
        hub.write_folder(weights.load_task(run, DiffusionTask), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_classifiers_are_no_pipelines_and_diffusion_runs_no_onnx_files(deeplense_command, run, tmp_path):
    weights.save_task(classifier(), tmp_path)
    code, _, errors = deeplense_command("export", tmp_path, "--format", "diffusers", "--out", tmp_path / "model")
    assert code == 2 and "is a substructure run; this needs a diffusion run" in errors
    code, _, errors = deeplense_command("export", run, "--format", "onnx", "--out", tmp_path / "model.onnx")
    assert code == 2 and "--format diffusers" in errors
    assert not (tmp_path / "model").exists() and not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("format", ["json", "safetensors"])
def test_plain_weights_of_a_diffusion_run_come_back_to_the_bit(deeplense_command, run, tmp_path, format):
    path = tmp_path / f"weights.{format}"
    assert deeplense_command("export", run, "--format", format, "--out", path)[0] == 0
    there, stored = weights.load(path), weights.load(run)
    assert there.keys() == stored.keys()
    assert all(there[name].numpy().tobytes() == stored[name].numpy().tobytes() for name in stored)
