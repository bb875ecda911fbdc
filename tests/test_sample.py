"""Sets drawn by a diffusion model: what lies in the folder, and what stops or refuses."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image as pictures

import deeplense
from deeplense import sample as sampling
from deeplense import weights
from deeplense.errors import ConfigError, RunError
from deeplense.sample import sample
from deeplense.tasks import DiffusionTask
from deeplense.tasks.draw import Request, draw
from test_weights import task as classifier
from toy import write_diffusion


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Knows three classes and theta_E."""
    return write_diffusion(
        tmp_path_factory.mktemp("runs") / "told", "diffusion.steps=50", 'diffusion.given=["theta_E"]'
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Knows nothing."""
    return write_diffusion(tmp_path_factory.mktemp("runs") / "plain", "diffusion.conditional=false")


@pytest.fixture
def _small_shards(monkeypatch):
    monkeypatch.setattr(sampling, "SHARD_SIZE", 4)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_a_set_reads_back_as_it_was_drawn(run, tmp_path, format):
    given = {"theta_E": 1.2}
    out = sample(run, 10, tmp_path / "set", given=given, seed=7, format=format, batch_size=4, progress=False)
    task = weights.load_task(run, DiffusionTask)
    drawn, there = draw(task, 10, Request(given=given, seed=7), batch_size=4), deeplense.read(out)
    names = [Path(name).stem for name in there.name]  # those of files are in folders of classes
    place = np.argsort(names)
    assert sorted(names) == list(drawn.name) == [f"sample-7-{i:08d}" for i in range(10)]
    np.testing.assert_array_equal(there.images[place], drawn.images)
    np.testing.assert_array_equal(there.label[place], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    assert there.classes == ("no", "sphere", "vort")
    assert drawn.pixel_scale == 0.1 and drawn.images.dtype == np.float32
    table = pd.read_parquet(out / "data") if format == "parquet" else pd.read_parquet(out / "truth-00000.parquet")
    assert list(table["class"]) == [drawn.classes[k] for k in drawn.label] and set(table["theta_E"]) == {1.2}


def test_the_record_says_what_made_the_set(run, tmp_path):
    out = sample(run, 3, tmp_path / "set", label="vort", sampler="ddim", steps=3, guidance=2, seed=5, progress=False)
    record = weights.json.loads((out / "dataset.json").read_text())["settings"]
    wanted = {"class": "vort", "given": {}, "sampler": "ddim", "steps": 3, "guidance": 2, "seed": 5, "num": 3}
    digest = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert wanted.items() <= record.items()
    assert record["run"] == str(run) and digest.startswith(record["model"]) and record["pixel_scale"] == 0.1
    assert deeplense.read(out).class_counts() == {"vort": 3}


def test_sampler_and_steps_are_those_of_the_run_unless_given(run):
    task = weights.load_task(run, DiffusionTask)
    assert draw(task, 1).provenance == draw(task, 1, Request(sampler="dpm++", steps=5)).provenance
    assert not np.array_equal(draw(task, 1).images, draw(task, 1, Request(steps=4)).images)


def test_draw_goes_on_where_another_stopped_with_classes_and_noise(run):
    task = weights.load_task(run, DiffusionTask)
    whole, rest = draw(task, 7), draw(task, 3, first=4)
    np.testing.assert_allclose(rest.images, whole.images[4:], atol=1e-4)
    assert list(rest.name) == list(whole.name)[4:]
    np.testing.assert_array_equal(rest.label, whole.label[4:])


def test_a_model_that_knows_nothing_draws_without_labels(plain, tmp_path, caplog):
    out = sample(plain, 2, tmp_path / "set", progress=False)
    there = deeplense.read(out)
    assert there.label is None and there.images.shape == (2, 1, 16, 16)
    assert sorted(path.name for path in out.glob("*.npy")) == ["sample-0-00000000.npy", "sample-0-00000001.npy"]
    assert draw(weights.load_task(plain, DiffusionTask), 2).params is None


def test_the_picture_shows_each_class_and_does_not_count_as_an_image(run, tmp_path, caplog):
    out = sample(run, 4, tmp_path / "set", progress=False)
    assert len(deeplense.read(out)) == 4 and not caplog.records
    height, width, _ = pictures.imread(out / "samples.png").shape
    one = sample(run, 1, tmp_path / "one", progress=False)  # one row instead of three, one column instead of two
    assert pictures.imread(one / "samples.png").shape[0] < height - 200
    assert pictures.imread(one / "samples.png").shape[1] < width - 100


@pytest.mark.parametrize("format", ["npy", "parquet"])
@pytest.mark.usefixtures("_small_shards")
def test_ctrl_c_keeps_complete_shards_and_the_same_call_continues(run, tmp_path, monkeypatch, format):
    calls = []

    def interrupted(*args, **options):
        calls.append(options["first"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*args, **options)

    monkeypatch.setattr(sampling, "draw", interrupted)
    again = {"seed": 2, "format": format, "progress": False}
    with pytest.raises(RunError, match=r"stopped: complete shards are kept in .*cut; the same command continues"):
        sample(run, 14, tmp_path / "cut", **again)
    kept = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("*.*") if path.suffix in (".npy", ".png")
    }
    kept |= {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("part-*")}
    sample(run, 14, tmp_path / "cut", **again)
    assert calls == [0, 4, 8, 8, 12]
    assert len(kept) >= 3 and {path: path.stat().st_mtime_ns for path in kept} == kept
    sample(run, 14, tmp_path / "whole", **again)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")}
    sample(run, 14, tmp_path / "whole", **again)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")} == before


@pytest.mark.slow
def test_a_real_ctrl_c_ends_in_one_line(run, tmp_path):
    words = ["sample", run, "--num", 1_000_000, "--out", tmp_path / "set", "--steps", 1, "--format", "parquet"]
    env = {**os.environ, "PYTHONPATH": str(Path(deeplense.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deeplense.cli", *map(str, words)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        while not list(tmp_path.rglob("part-*.parquet")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert (
        errors.strip() == f"Error: stopped: complete shards are kept in {tmp_path / 'set'}; the same command continues"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "vrt"], "no class 'vrt'; did you mean 'vort'?"),
        (["--sampler", "dmp++"], "no sampler 'dmp++'; did you mean 'dpm++'?"),
        (["--given", "theta_e=1"], "no parameter 'theta_e'; did you mean 'theta_E'?"),
        (["--given", "theta_E=large"], "theta_E='large': give a finite number"),
        (["--given", "theta_E=nan"], "give a finite number"),
        (["--given", "theta_E"], "write key=value"),
        (["--steps", "0"], "steps=0: the model was trained with 50 noise levels; allowed: 1 to 50"),
        (["--steps", "51"], "steps=51"),
        (["--num", "0"], "num=0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--guidance", "nan"], "guidance=nan"),
        (["--format", "parket"], "did you mean 'parquet'?"),
    ],
)
def test_mistakes_end_in_one_line_and_nothing_is_made(deeplense_command, run, tmp_path, words, message):
    code, _, errors = deeplense_command("sample", run, "--out", tmp_path / "set", *words)
    assert code == 2 and len(errors.strip().splitlines()) == 1 and errors.startswith("Error: "), errors
    assert message in errors
    assert not (tmp_path / "set").exists()


def test_runs_that_cannot_draw_are_refused(deeplense_command, plain, tmp_path):
    weights.save_task(classifier(), tmp_path)
    (tmp_path / "begun").mkdir()
    for where, words, message in (
        (tmp_path, [], "is a substructure run; this needs a diffusion run"),
        (tmp_path / "begun", [], "is not finished"),
        (tmp_path / "nowhere", [], "does not exist"),
        (plain, ["--class", "vort"], "no class 'vort'; it was trained without"),
        (plain, ["--guidance", "3"], "nothing guides"),
    ):
        code, _, errors = deeplense_command("sample", where, "--out", tmp_path / "set", *words)
        assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1, errors
    assert not (tmp_path / "set").exists()


def test_guidance_that_was_not_learnt_is_refused(tmp_path):
    task = weights.load_task(write_diffusion(tmp_path / "run", "diffusion.drop=0"), DiffusionTask)
    with pytest.raises(ConfigError, match=r"nothing guides a model of diffusion\.drop=0"):
        draw(task, 1, Request(guidance=2))
    assert len(draw(task, 1)) == 1


def test_what_lies_in_the_folder_is_never_overwritten(deeplense_command, run, tmp_path):
    words = ("sample", run, "--num", 2, "--out", tmp_path / "set", "--quiet")
    code, output, _ = deeplense_command(*words)
    assert (code, output) == (0, f"2 images are in {tmp_path / 'set'}\n")
    before = digests(tmp_path / "set")
    code, _, errors = deeplense_command(*words, "--seed", 3)
    assert code == 2 and "seed=0, not seed=3" in errors
    (tmp_path / "notes.txt").write_text("mine")
    code, _, errors = deeplense_command("sample", run, "--out", tmp_path)
    assert code == 2 and "is not empty" in errors
    assert digests(tmp_path / "set") == before


def test_the_default_folder_is_in_the_run(tmp_path):
    run = write_diffusion(tmp_path / "run")
    assert sample(run, 1, progress=False) == run / "drawn"
