import gzip
import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from deeplense import weights
from deeplense.data.transform import Preprocess
from deeplense.errors import ModelError, RunError
from deeplense.tasks import get
from toy import CLASSES, lens_set, tiny


def state():
    torch.manual_seed(0)
    awkward = torch.tensor([0.1, 1 / 3, 1e-45, -0.0, 3.4028235e38, 1.0, float("inf"), 16777217.0])
    return {
        "conv.weight": torch.randn(4, 3, 2, 2),
        "linear.weight": torch.randn(3, 5),
        "bias": awkward,
        "norm.num_batches_tracked": torch.tensor(2**60 + 1),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(0.3),
    }


def bits(tensor):
    return tensor.numpy().tobytes(), tensor.dtype, tensor.shape


def task(**config_changes):
    torch.manual_seed(0)
    config = tiny("unused").model_copy(update=config_changes)
    preprocess = Preprocess((24, 24), crop=20, size=16, stretch="asinh").fit(lens_set(30).images)
    made = get("substructure")(config, CLASSES, 1, preprocess)
    made(torch.randn(8, 1, 24, 24))  # batch statistics that differ from the initial ones
    made.calibration = {"temperature": 1.3}
    return made.eval()


@pytest.mark.parametrize("ending", ["safetensors", "json", "json.gz"])
def test_every_format_is_exact_to_the_bit(ending, tmp_path):
    path = tmp_path / f"weights.{ending}"
    weights.save(state(), path)
    again = weights.load(path)
    assert {k: bits(v) for k, v in again.items()} == {k: bits(v) for k, v in state().items()}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_json_is_the_state_dictionary_as_lists(tmp_path):
    weights.save({k: v for k, v in state().items() if v.isfinite().all()}, tmp_path / "w.json")
    plain = json.loads((tmp_path / "w.json").read_text())
    np.testing.assert_array_equal(np.float32(plain["conv.weight"]), state()["conv.weight"])
    assert plain["mask"] == [True, False]


def test_json_written_by_others_is_read(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({k: v.tolist() for k, v in state().items()}, indent=1))
    (tmp_path / "v.json").write_text(json.dumps({k: v.tolist() for k, v in state().items()}))
    for name in ("v.json", "w.json"):
        again = weights.load(tmp_path / name)
        assert {k: bits(v) for k, v in again.items()} == {k: bits(v) for k, v in state().items()}


def test_gzip_gives_equal_bytes_for_equal_weights(tmp_path):
    for name in ("a.json.gz", "b.json.gz"):
        weights.save(state(), tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()).startswith(b"{")


def test_json_memory_is_bounded_by_a_tensor_not_by_the_model(tmp_path):
    one = {"0": torch.randn(50, 400)}
    many = {str(i): torch.randn(50, 400) for i in range(20)}

    def peak(tensors, path):
        tracemalloc.start()
        weights.save(tensors, path)
        weights.load(path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(one, tmp_path / "warm.json")
    assert peak(many, tmp_path / "many.json") < 2 * peak(one, tmp_path / "one.json")


def test_types_that_json_would_change_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"w is torch\.float64; JSON keeps"):
        weights.save({"w": torch.zeros(2, dtype=torch.float64)}, tmp_path / "w.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "last.ckpt", "pytorch_model.bin", "model.pkl"])
def test_pickles_are_refused_unopened(name, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code in a weights file was run",))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="can run any code when loaded and are refused"):
        weights.load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.safetensors", b"\x10\0\0\0\0\0\0\0{"),
        ("w.json", b'{\n"a": [1.0, 2'),
        ("w.json", b'{"a": {"b": 1}}'),
        ("w.json", b"[1, 2]"),
        ("w.json.gz", b"not gzip"),
        ("w.json.gz", gzip.compress(b'{\n"a": [1.0]\n}\n' * 50)[:20]),
    ],
)
def test_damaged_files_are_model_errors(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        weights.load(tmp_path / name)


def test_absent_files_and_runs(tmp_path):
    with pytest.raises(ModelError, match="there are no weights at"):
        weights.load(tmp_path / "w.json")
    with pytest.raises(RunError, match="is not finished: the training command again continues it"):
        weights.load_task(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        weights.load_task(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["compact", "resnet-18"])
def test_a_saved_task_comes_back_with_the_same_predictions(name, tmp_path):
    saved = task(model=tiny("unused").model.model_copy(update={"name": name}))
    weights.save_task(saved, tmp_path, scores={"val_score": 0.9})
    loaded = weights.load_task(tmp_path)
    x = torch.from_numpy(lens_set(5, seed=7).images)
    assert torch.equal(loaded(x), saved(x))
    assert loaded.calibration == saved.calibration and loaded.classes == CLASSES
    assert weights.load_card(tmp_path)["scores"] == {"val_score": 0.9}


def test_weights_of_another_network_name_the_first_difference(tmp_path):
    weights.save_task(task(), tmp_path)
    with pytest.raises(ModelError, match=r"do not fit the network: head.weight is \(3, \d+\) there, \(5, \d+\) here"):
        weights.load_into(type(task().network)(1, 5, width=4), tmp_path)
    with pytest.raises(ModelError, match="absent"):
        weights.load_into(torch.nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("average", ["none", "d4"])
def test_onnx_gives_the_tasks_own_columns_from_raw_images(average, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = task(model=tiny("unused").model.model_copy(update={"average": average}))
    weights.export(exported, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for num in (1, 7):
        images = lens_set(num, seed=3).images * 50 + 10
        found = session.run(None, {"image": images})
        with torch.inference_mode():
            expected = exported.columns(exported.averaged(torch.from_numpy(images)))
        assert [output.name for output in session.get_outputs()] == list(expected)
        for ours, theirs in zip(expected.values(), found, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)
