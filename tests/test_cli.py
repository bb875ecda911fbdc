"""The command line: what a user sees when things go right and when they go wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.csv
import pytest

import deeplense as dl
from deeplense import cli
from deeplense.data.read import read
from toy import finder_set, lens_set, tiny_finder, write_folder


@pytest.fixture
def deeplense(deeplense_command):
    return deeplense_command


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(lens_set(48), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    """A run trained from the command line."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "tiny/substructure", f"data={images}", f"out={out}", "train.epochs=1", "--quiet"]
    subprocess.run([sys.executable, "-m", "deeplense.cli", *words], check=True)
    return out


def test_simulate_again_changes_nothing_and_reads_back(deeplense, tmp_path):
    words = ("simulate", "common-test", "--num", 50, "--out", tmp_path / "set", "--seed", 4, "--quiet")
    assert deeplense(*words)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    assert deeplense(*words)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before
    images = read(tmp_path / "set")
    assert images.class_counts() == {"no": 17, "sphere": 17, "vort": 16}
    assert images.provenance["fidelity"] == "physical"
    code, _, error = deeplense(*words[:-2], 5, "--quiet")
    assert (code, "seed=4, not seed=5" in error) == (2, True)


def test_simulate_writes_the_deeplense_layout(deeplense, tmp_path):
    words = ("simulate", "common-test", "--num", 6, "--fidelity", "published", "--format", "npy", "--quiet")
    assert deeplense(*words, "--out", tmp_path / "set")[0] == 0
    image = np.load(tmp_path / "set" / "vort" / "00000002.npy")
    assert image.shape == (1, 150, 150)
    assert (image.min(), image.max()) == (0, 1)


def test_evaluate_predict_and_export(deeplense, run, images, tmp_path):
    code, output, _ = deeplense("evaluate", run, f"data={images}", "--out", tmp_path)
    assert code == 0
    assert output.startswith("macro AUC ")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert f"{metrics['auc_macro']['value']:.4f}" in output
    assert deeplense("predict", run, f"data={images}", "--out", tmp_path / "table.csv")[0] == 0
    table = pyarrow.csv.read_csv(tmp_path / "table.csv")
    assert table.num_rows == 48
    assert sum(table[f"p_{name}"][0].as_py() for name in ("no", "sphere", "vort")) == pytest.approx(1, abs=1e-5)
    assert deeplense("export", run, "--gzip", "--out", tmp_path / "weights.json.gz")[0] == 0
    assert (tmp_path / "weights.json.gz").stat().st_size > 0


def test_profile_shows_the_parts_of_a_step_and_leaves_no_run(deeplense, images, tmp_path):
    words = ("profile", "tiny/substructure", f"data={images}", f"out={tmp_path / 'run'}", "--steps", 2)
    code, output, error = deeplense(*words, "--out", tmp_path)
    assert code == 0, error
    assert output.startswith("2 steps of 16 images on cpu\n")
    rows = {line.split()[0] for line in output.splitlines() if line.split()}
    assert {"data", "augment", "forward", "backward", "optimiser", "other", "all", "aten::convolution_backward"} <= rows
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    code, _, error = deeplense(*words, "--out", tmp_path)
    assert (code, "trace.json exists and is never overwritten" in error) == (2, True)


@pytest.fixture(scope="module")
def finder_images(tmp_path_factory):
    return write_folder(finder_set(48), tmp_path_factory.mktemp("finder-images"))


@pytest.fixture(scope="module")
def finder(tmp_path_factory, finder_images):
    """A finder's run."""
    settings = tiny_finder(tmp_path_factory.mktemp("runs") / "finder", f"data={finder_images}", "train.epochs=1")
    return dl.fit(settings, dl.load_data(settings), progress=False)


def test_mine_writes_a_set_of_non_lenses_and_lenses(deeplense, finder, finder_images, tmp_path):
    code, output, _ = deeplense("mine", finder, f"data={finder_images}", "--out", tmp_path / "hard", "--num", 5)
    assert (code, output) == (0, f"5 nonlens, 12 lens images are in {tmp_path / 'hard'}\n")
    assert read(tmp_path / "hard").class_counts() == {"nonlens": 5, "lens": 12}


@pytest.fixture(scope="module")
def lens_places(finder, finder_images):
    return {"finder": finder, "lenses": finder_images}


def test_predict_for_another_prevalence(deeplense, finder, finder_images, tmp_path):
    words = ("predict", finder, f"data={finder_images}")
    assert deeplense(*words, "--out", tmp_path / "a.csv")[0] == 0
    assert deeplense(*words, "--out", tmp_path / "b.csv", "--prevalence", "1e-3")[0] == 0
    a, b = (pyarrow.csv.read_csv(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert a.column_names == ["name", "p_lens", "score", "label_pred", "nan_fraction"]
    assert all(rare < common for rare, common in zip(b["p_lens"].to_pylist(), a["p_lens"].to_pylist(), strict=True))


def test_predict_by_another_engine_says_what_8_bits_cost(deeplense, finder, finder_images, tmp_path):
    pytest.importorskip("onnxruntime")
    words = ("predict", finder, f"data={finder_images}", "--average", "none", "--quiet")
    assert deeplense(*words, "--out", tmp_path / "a.csv")[0] == 0
    code, output, _ = deeplense(*words, "--out", tmp_path / "b.csv", "--engine", "onnx", "--int8")
    cost, rows = output.splitlines()
    assert (code, rows) == (0, f"48 rows are in {tmp_path / 'b.csv'}")
    assert cost.startswith("int8: AUC ") and "(48 labelled images)" in cost
    a, b = (pyarrow.csv.read_csv(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert a["name"].equals(b["name"])
    np.testing.assert_allclose(b["p_lens"].to_numpy(), a["p_lens"].to_numpy(), atol=0.1)
    code, _, error = deeplense(*words, "--out", tmp_path / "c.csv", "--int8")
    assert (code, "add --engine onnx" in error) == (2, True)


def one_class(folder):
    images = lens_set(30)
    return write_folder(images.select(np.flatnonzero(images.label == 1)), folder)


def two_sizes(folder):
    write_folder(lens_set(30, size=24), folder)
    for i in range(10):
        np.save(folder / "no" / f"other-{i}.npy", np.random.default_rng(i).normal(size=(1, 20, 20)))
    return folder


def broken(folder):
    write_folder(lens_set(30), folder)
    (folder / "no" / "broken.npy").write_bytes(b"no image at all")
    (folder / "no" / "nan.npy").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tiny/substructure", "data={good}", "train.epoch=3"], "did you mean 'train.epochs'?"),
        (["train", "tiny/substructur", "data={good}"], "did you mean 'tiny/substructure'?"),
        (["train", "tiny/substructure", "data={good}", "optim.lr=-1"], "optim.lr = -1"),
        (["train", "tiny/substructure"], "add data=DIR"),
        (["train", "tiny/substructure", "data={out}/nowhere"], "nowhere"),
        (["train", "tiny/substructure", "data={one_class}"], "class"),
        (["train", "tiny/substructure", "data={two_sizes}"], "20"),
        (["train", "tiny/substructure", "data={broken}"], "broken.npy"),
        (["train", "tiny/substructure", "data={good}", "data.fraction=0.01"], "fraction"),
        (["train", "tiny/common-test", "data=preset:comon-test"], "did you mean 'common-test'?"),
        (["train", "tiny/common-test", "data.fidelity=publishd"], "did you mean 'published'?"),
        (["train", "tiny/common-test", "data.num=100"], "multiple|blocks of 48"),
        (["train", "tiny/substructure", "data={good}", "out={run}"], "is finished"),
        (["train", "tiny/substructure", "data={good}", "out={good}"], "not a run"),
        (["train", "tiny/substructure", "data={good}", "model.pretrained=true", "model=/nowhere/at/all"], "nowhere"),
        (["evaluate", "{out}/norun", "data={good}"], "does not exist"),
        (["evaluate", "{run}"], "add data=DIR"),
        (["evaluate", "{run}", "data={good}", "train.epochs=3"], "no meaning"),
        (["predict", "{run}", "data={good}", "--out", "{out}/table.fits"], ".csv"),
        (["predict", "{run}", "data={good}", "--out", "{good}/no/image-0-0.npy"], "are written as"),
        (["predict", "{run}", "data={good}", "--prevalence", "0.1", "--out", "{out}/t.csv"], "has no prevalence"),
        (["predict", "{finder}", "data={lenses}", "--prevalence", "1", "--out", "{out}/t.csv"], "below 1"),
        (["train", "tiny/finder", "data={good}"], "two classes apart"),
        (["mine", "{run}", "data={good}", "--out", "{out}/hard"], "a run of substructure"),
        (["mine", "{finder}", "--out", "{out}/hard"], "add data=DIR"),
        (["mine", "{finder}", "data={lenses}", "--out", "{good}"], "never overwritten"),
        (["mine", "{finder}", "data={lenses}", "data.seed=3", "--out", "{out}/hard"], "no meaning here"),
        (["mine", "{finder}", "data=preset:hsc-gri", "data.num=48", "--out", "{out}/hard"], "3 channels"),
        (["mine", "{finder}", "data=preset:hsc", "--out", "{out}/hard"], "did you mean 'hsc-gri'"),
        (["train", "finetune", "data={lenses}"], "add init=RUN"),
        (["export", "{run}", "--format", "pickle"], "json"),
        (["profile", "tiny/physics"], "trains in stages"),
        (["profile", "tiny/substructure", "data={good}", "--out", "{run}/model.json"], "never overwritten"),
        (["profile", "tiny/substructure", "data={good}", "--out", "{out}/none/trace.json"], "there is no folder"),
        (["profile", "tiny/substructure", "data={good}", "--out", "{out}/trace.txt"], ".json"),
        (["simulate", "comon-test", "--out", "{out}/set"], "did you mean 'common-test'?"),
        (["simulate", "common-test", "--num", "0", "--out", "{out}/set"], "num=0"),
        (["simulate", "common-test", "--num", "3", "--out", "{good}"], "not empty"),
        (["simulate", "common-test", "--seed", "-1", "--out", "{out}/set"], "seed=-1"),
        (["simulate", "common-test", "--device", "gpu", "--out", "{out}/set"], "device"),
        (["convert", "{out}/nowhere", "{out}/new"], "nowhere"),
        (["convert", "{good}", "{good}"], "never overwritten"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line_and_exit_code_2(
    deeplense, words, message, run, images, finder, finder_images, tmp_path
):
    places = {"good": images, "run": run, "out": tmp_path, "finder": finder, "lenses": finder_images}
    for make in (one_class, two_sizes, broken):
        places[make.__name__] = tmp_path / make.__name__
        if f"{{{make.__name__}}}" in words[-1]:
            make(places[make.__name__])
    given = [word.format(**places) for word in words]
    if given[0] == "train" and not any(word.startswith("out=") for word in given):
        given.append(f"out={tmp_path / 'new'}")
    code, _, error = deeplense(*given)
    lines = [line for line in error.strip().splitlines() if line.startswith("Error: ")]
    assert code == 2, error
    assert len(lines) == 1, error
    assert any(part in lines[0] for part in message.split("|")), lines
    assert "Traceback" not in error


def test_debug_shows_the_traceback(monkeypatch):
    from deeplense.errors import ConfigError

    monkeypatch.setattr(sys, "argv", ["deeplense", "simulate", "nothing", "--out", "x", "--debug"])
    with pytest.raises(ConfigError):
        cli.main()


@pytest.mark.parametrize(
    "code", ["import deeplense", "import deeplense.cli; deeplense.cli.app(['--help'], standalone_mode=False)"]
)
def test_heavy_packages_are_imported_where_they_are_used(code):
    check = "import sys; assert not {'torch', 'numpy', 'lightning', 'pyarrow', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, capture_output=True)
