from dataclasses import replace

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from scipy.special import expit, logit

from deeplense import config as configs
from deeplense import weights
from deeplense.data import store
from deeplense.data.read import parts, read
from deeplense.data.transform import Preprocess
from deeplense.errors import ConfigError, DataError, RunError
from deeplense.predict import Predictor, check_table, write_tables
from deeplense.tasks import get
from toy import CLASSES, finder_set, lens_set, tiny, tiny_finder, write_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    task = get("substructure")(tiny(folder), CLASSES, 1, Preprocess((24, 24)).fit(lens_set(30).images))
    task.calibration = {"temperature": 0.5}
    weights.save_task(task.eval(), folder)
    return folder


def test_the_table_has_a_row_an_image_and_probabilities_at_the_temperature(run):
    images = lens_set(11, seed=5)
    predictor = Predictor.load(run, device="cpu")
    table = predictor.predict(images, batch_size=4)
    assert table.column_names == ["name", "p_no", "p_sphere", "p_vort", "label_pred", "nan_fraction"]
    assert table["name"].to_pylist() == list(images.name)
    logits = predictor.outputs(images, batch_size=11).double().numpy() / 0.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = np.stack([table[f"p_{name}"].to_numpy() for name in CLASSES], axis=1)
    np.testing.assert_allclose(found, probs, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(table["label_pred"].to_numpy(), probs.argmax(1))


def test_a_table_wants_a_folder_that_exists_and_a_free_name(tmp_path):
    (tmp_path / "a.csv").touch()
    for name, message in (("a.csv", "never overwritten"), ("no/a.csv", "there is no folder"), ("a.txt", "written as")):
        with pytest.raises(RunError, match=message):
            check_table(tmp_path / name)


def test_labels_play_no_part(run):
    predictor, images = Predictor.load(run), lens_set(6)
    assert predictor.predict(images).equals(predictor.predict(replace(images, label=None, classes=())))


def test_other_sizes_warn_once_and_are_predicted(run, caplog):
    table = Predictor.load(run).predict(lens_set(9, size=40), batch_size=2)
    assert table.num_rows == 9
    assert [r.message for r in caplog.records] == ["images of 40x40 pixels are resized to the 24x24 of training"]


def test_other_sizes_warn_once_for_all_parts(run, caplog):
    tables = list(Predictor.load(run).predict_parts(lens_set(9, size=40).parts(2)))
    assert [table.num_rows for table in tables] == [2, 2, 2, 2, 1]
    assert len([r for r in caplog.records if "are resized to" in r.message]) == 1


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("layout", ["store", "folder", "stack"])
def test_a_table_written_in_parts_is_that_of_the_whole_set(run, layout, ending, tmp_path):
    images = lens_set(43, seed=5)
    images.images[7, 0, :5] = np.nan
    if layout == "store":
        store.write(images, tmp_path / "set", shard_size=8)
    elif layout == "folder":
        write_folder(images, tmp_path / "set")
    else:
        np.save(tmp_path / "set.npy", images.images)
    path, out = tmp_path / ("set.npy" if layout == "stack" else "set"), tmp_path / f"table.{ending}"
    predictor = Predictor.load(run, device="cpu")
    whole, found = predictor.predict(read(path)), parts(path, size=10)
    assert write_tables(predictor.predict_parts(found), out, found.num) == 43
    table = pyarrow.csv.read_csv(out) if ending == "csv" else pyarrow.parquet.read_table(out)
    assert table.column_names == whole.column_names
    assert table["name"].to_pylist() == whole["name"].to_pylist()
    for name in table.column_names[1:]:
        np.testing.assert_allclose(table[name].to_numpy(), whole[name].to_numpy(), rtol=0, atol=1e-6)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, out.name}


def test_a_table_is_written_whole_or_not_at_all(run, tmp_path):
    predictor, images = Predictor.load(run), lens_set(8)
    sets = [images, replace(images, images=images.images.repeat(2, axis=1))]
    with pytest.raises(DataError, match="have 2 channels"):
        write_tables(predictor.predict_parts(sets), tmp_path / "table.csv")
    with pytest.raises(DataError, match="there are no images"):
        write_tables([], tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


def test_an_average_and_an_engine_are_for_classifiers_alone(tmp_path):
    config = configs.load("tiny/inversion", [f"out={tmp_path}"])
    weights.save_task(get("inversion")(config, (), 1, Preprocess((48, 48))).eval(), tmp_path)
    with pytest.raises(
        ConfigError, match="is for substructure or finder or lens-equation runs, this is a inversion run"
    ):
        Predictor.load(tmp_path, engine="onnx")
    with pytest.raises(ConfigError, match="a inversion run has no average"):
        Predictor.load(tmp_path, average="none")


def test_no_images_give_an_empty_table(run):
    empty = lens_set(3).select(np.array([], np.int64))
    assert Predictor.load(run).predict(empty).num_rows == 0


def test_images_that_do_not_suit_the_network(run):
    predictor, good = Predictor.load(run), lens_set(4)
    with pytest.raises(DataError, match="have 2 channels; this network was trained on 1"):
        predictor.predict(replace(good, images=good.images.repeat(2, axis=1)))


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("finder")
    images = finder_set(30)
    task = get("finder")(tiny_finder(folder), images.classes, 1, Preprocess((24, 24)).fit(images.images))
    task.calibration = {"temperature": 2.0, "bias": 0.1, "train_prevalence": 0.5, "val_prevalence": 0.25}
    weights.save_task(task.eval(), folder)
    return folder


def test_the_finders_table_has_the_probability_of_a_lens_and_log_odds(finder):
    table = Predictor.load(finder).predict(finder_set(11, seed=5), batch_size=4)
    assert table.column_names == ["name", "p_lens", "score", "label_pred", "nan_fraction"]
    np.testing.assert_allclose(table["p_lens"], expit(table["score"].to_numpy()), rtol=1e-5)
    np.testing.assert_array_equal(table["label_pred"], table["p_lens"].to_numpy() > 0.5)


def test_another_prevalence_moves_the_log_odds_by_as_much(finder):
    images = finder_set(9, seed=5)
    before = Predictor.load(finder).predict(images)["score"].to_numpy()
    after = Predictor.load(finder).retarget(1e-3).predict(images)["score"].to_numpy()
    np.testing.assert_allclose(after - before, logit(1e-3) - logit(0.25), rtol=1e-5)


def test_a_prevalence_is_refused_where_there_is_none_or_out_of_range(run, finder):
    with pytest.raises(ConfigError, match="a substructure run has no prevalence"):
        Predictor.load(run).retarget(0.1)
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        Predictor.load(finder).retarget(1.0)
