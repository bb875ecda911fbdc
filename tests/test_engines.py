"""Every engine says what torch says; 8 bits cost what the line about them says."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from deeplense import weights
from deeplense.data.transform import SYMMETRIES, Preprocess, d4
from deeplense.engines import auc
from deeplense.errors import ConfigError, ModelError
from deeplense.predict import Predictor
from deeplense.simulate.generate import can_compile
from deeplense.tasks import get
from toy import SETS, finder_set, lens_set, tiny, tiny_finder


def trained(task, images, epochs=60):
    """A few steps of Adam, so that answers differ between images."""
    optimiser = torch.optim.Adam(task.network.parameters(), 3e-3)
    batch = {"image": torch.from_numpy(images.images), "label": torch.from_numpy(images.label)}
    for _ in range(epochs):
        optimiser.zero_grad()
        task.step(batch, batch["image"])["loss"].mean().backward()
        optimiser.step()
    return task.eval()


def write_run(name, folder):
    torch.manual_seed(0)
    images = SETS[name](60)
    settings = {"substructure": tiny, "finder": tiny_finder, "lens-equation": tiny}[name](folder, "model.average=flips")
    settings = settings.model_copy(update={"task": name})
    task = get(name)(settings, images.classes, 1, Preprocess((24, 24), clip=(1, 99)).fit(images.images))
    task.calibration = {"pixel_scale": 0.1} if name == "lens-equation" else {}
    folder.mkdir(exist_ok=True)
    weights.save_task(trained(task, images), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {name: write_run(name, tmp_path_factory.mktemp("runs") / name) for name in SETS}


def numbers(table):
    """All columns of a table but the names and the class, which may jump where two are equally likely."""
    columns = [table[name].to_numpy() for name in table.column_names if name not in ("name", "label_pred")]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("name", SETS)
def test_onnx_runtime_says_what_torch_says(name, runs):
    pytest.importorskip("onnxruntime")
    images = SETS[name](37, seed=5)
    images.images[4, 0, :3] = np.nan
    expected = Predictor.load(runs[name], "cpu").predict(images)
    found = Predictor.load(runs[name], engine="onnx").predict(images, batch_size=16)
    assert found.column_names == expected.column_names
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-4, atol=1e-5)
    assert np.ptp(numbers(expected)[:, 0]) > 0.1


def test_onnx_runtime_takes_images_of_another_size_and_another_prevalence(runs):
    pytest.importorskip("onnxruntime")
    images, loaded = (
        finder_set(9, size=40),
        [Predictor.load(runs["finder"], "cpu", engine) for engine in ("torch", "onnx")],
    )
    expected, found = (numbers(predictor.retarget(1e-3).predict(images)) for predictor in loaded)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not can_compile(), reason="there is no compiler here")
def test_the_compiled_network_says_the_same_whatever_the_batches(runs):
    images = lens_set(37, seed=5)
    expected = numbers(Predictor.load(runs["substructure"], "cpu").predict(images))
    predictor = Predictor.load(runs["substructure"], "cpu", "compile")
    assert predictor.task.engine is not None
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # 5 images in 4 versions at a time, then a rest of 2.
    np.testing.assert_allclose(numbers(predictor.predict(images, batch_size=20)), expected, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled + 1


def test_without_a_compiler_torch_works_on_and_says_so(runs, monkeypatch, caplog):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    can_compile.cache_clear()
    torch._dynamo.reset()
    with torch._inductor.utils.fresh_cache():
        predictor = Predictor.load(runs["substructure"], "cpu", "compile")
    can_compile.cache_clear()
    assert predictor.task.engine is None
    assert len([r for r in caplog.records if "torch.compile does not work here" in r.message]) == 1
    assert predictor.predict(lens_set(3)).num_rows == 3


@pytest.mark.parametrize("name", ["finder", "substructure"])
@pytest.mark.parametrize("has_labels", [True, False])
def test_8_bits_cost_what_the_line_says(name, has_labels, runs):
    pytest.importorskip("onnxruntime")
    images = SETS[name](60, seed=5)
    images = images if has_labels else replace(images, label=None, classes=())
    predictor = Predictor.load(runs[name], engine="onnx")
    before = predictor.predict(images)
    line = predictor.quantise(list(images.parts(32)))
    after = predictor.predict(images)
    kinds = [name for name in before.column_names if name.startswith("p_")]
    probs = [np.stack([table[kind].to_numpy() for kind in kinds], axis=1) for table in (before, after)]
    change = np.abs(probs[1] - probs[0]).max(axis=1)
    assert 0 < change.max() < 0.2  # it is another network now, and not by much
    assert re.search(r"; \d+\.\d times as fast as in float", line)
    if not has_labels:
        found = re.search(r"change by (\S+) \(median\), (\S+) at most \(60 images\)", line)
        np.testing.assert_allclose([float(found[1]), float(found[2])], [np.median(change), change.max()], rtol=0.06)
        return
    kind = {"multi_class": "ovr", "average": "macro"} if name == "substructure" else {}
    scores = [each if name == "substructure" else each[:, 0] for each in probs]
    aucs = [roc_auc_score(images.label, score, **kind) for score in scores]
    found = re.search(r"AUC (\S+), in float (\S+) \(60 labelled images\)", line)
    np.testing.assert_allclose([float(found[2]), float(found[1])], aucs, atol=1e-4)


def test_8_bits_are_for_the_network_alone(runs):
    """Preparation and calibration stay in float: nothing but convolutions and matrix products reads integers."""
    onnx = pytest.importorskip("onnx")
    predictor = Predictor.load(runs["finder"], engine="onnx")
    predictor.quantise([finder_set(32)])
    graph = onnx.load_from_string(predictor.task.engine.model).graph
    made = {output: node for node in graph.node for output in node.output}
    readers = [n for n in graph.node if any(made.get(i) and made[i].op_type == "DequantizeLinear" for i in n.input)]
    worked = [node.op_type for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(worked) > 5
    both = [n for n in readers if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(both) == len(worked)
    assert not {"TopK", "Clip", "Div", "ReduceSum"} & {node.op_type for node in readers}


def test_the_cost_is_told_by_probabilities_where_labels_are_of_one_class_or_of_others(runs):
    pytest.importorskip("onnxruntime")
    images = finder_set(40, seed=5)
    predictor = Predictor.load(runs["finder"], engine="onnx")
    for given in (images.select(np.flatnonzero(images.label == 1)), lens_set(20)):
        assert "probabilities change by" in predictor.quantise([given])


def test_the_auc_of_sure_lenses_is_that_of_their_log_odds(runs):
    task = weights.load_task(runs["finder"])
    outputs = torch.tensor([[200.0], [300.0], [250.0], [100.0]])  # probabilities of 1, all of them
    assert auc(task, outputs, np.array([0, 1, 1, 0])) == 1
    assert auc(task, outputs, np.array([1, 1, 1, 1])) is None


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("average", ["none", "flips", "d4"])
def test_the_average_is_the_mean_over_turned_images_one_after_another(name, average, runs):
    predictor = Predictor.load(runs[name], "cpu", average=average)
    task, num = predictor.task, len(SETS[name](3).classes) if name != "finder" else 1
    images = torch.from_numpy(SETS[name](6, seed=5).images)
    with torch.inference_mode():
        turned = [task(d4(images, element)) for element in SYMMETRIES[average]]  # preparation knows no directions
        found = task.averaged(images)
    torch.testing.assert_close(found[:, :num], torch.stack(turned).mean(0)[:, :num], rtol=1e-4, atol=1e-5)
    assert task.config.model.average == "flips"  # what the run says of itself stays


def test_images_that_are_not_square_are_averaged_too():
    torch.manual_seed(0)
    images = np.random.default_rng(0).normal(size=(5, 1, 24, 32)).astype(np.float32)
    task = get("substructure")(tiny("unused", "model.average=d4"), ("a", "b", "c"), 1, Preprocess((24, 32)).fit(images))
    task.eval()
    with torch.inference_mode():
        prepared = task.preprocess(torch.from_numpy(images))
        expected = torch.stack([task.network(d4(prepared, element)) for element in range(8)]).mean(0)
        torch.testing.assert_close(task.averaged(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-5)


def test_what_there_is_not_is_told(runs, tmp_path, monkeypatch):
    run = runs["finder"]
    for words, message in (
        ({"engine": "tensorrt"}, "engine=tensorrt; allowed: compile, onnx, torch"),
        ({"average": "flip"}, "did you mean 'flips'"),
        ({"engine": "onnx", "device": "cuda"}, "works on the CPU"),
    ):
        with pytest.raises(ConfigError, match=message):
            Predictor.load(run, **words)
    with pytest.raises(ConfigError, match="add --engine onnx"):
        Predictor.load(run, "cpu").quantise([finder_set(3)])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"pip install 'deeplense\[onnx\]'"):
        Predictor.load(run, engine="onnx")
