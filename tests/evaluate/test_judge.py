"""From a run folder and images to the report that suits the task, and from the command line to a picture."""

import json
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn import metrics

from deeplense import cli, weights
from deeplense.config import Config
from deeplense.data.schema import LensSet
from deeplense.data.transform import Preprocess
from deeplense.errors import ConfigError, DataError, ModelError, RunError
from deeplense.evaluate.explain import explain_picture, write_explanation
from deeplense.evaluate.judge import judge
from deeplense.tasks import get
from toy import CLASSES, lens_set, tiny

CALIBRATION = {"temperature": 0.5, "bias": 0.3, "train_prevalence": 0.5, "val_prevalence": 0.2}


def survey_set(num, one_in=4, seed=0):
    """Noise, and in one of a few images a ring."""
    rng = np.random.default_rng(seed)
    label = (np.arange(num) % one_in == 0).astype(np.int64)
    y, x = np.mgrid[:24, :24] - 11.5
    images = rng.normal(size=(num, 3, 24, 24))
    images[label == 1] += 2 * np.exp(-((np.hypot(x, y) - 6) ** 2) / 4)
    return LensSet(images.astype(np.float32), [f"cutout-{i}" for i in range(num)], label, ("nonlens", "lens"))


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    """The folder of a finder with random weights."""
    pytest.importorskip("deeplense.tasks.finder")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("finder")
    config = Config(**{**tiny(folder).model_dump(), "task": "finder"})
    task = get("finder")(config, ("nonlens", "lens"), 3, Preprocess((24, 24)).fit(survey_set(20).images))
    task.calibration = CALIBRATION
    weights.save_task(task.eval(), folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    task = get("substructure")(tiny(folder), CLASSES, 1, Preprocess((24, 24)).fit(lens_set(30).images))
    weights.save_task(task.eval(), folder)
    return folder


def log_odds(folder, images, prevalence):
    """The stated calibration by hand: out with the training mixture, temperature and bias, in with the prevalence."""
    task = weights.load_task(folder)
    logits = torch.cat(list(task.outputs(images.images, 64)))[:, 0].double().numpy()
    prior = np.log(prevalence / (1 - prevalence))
    return logits / CALIBRATION["temperature"] + CALIBRATION["bias"] + prior  # trained on one half: log-odds 0


def test_a_finder_is_judged_at_the_share_of_the_images(finder, tmp_path):
    images = survey_set(60)
    found = judge(finder, images, tmp_path, bootstrap=20)
    for figures, prevalence in ((found["calibration"], 0.25), (found["calibration"]["as_validated"], 0.2)):
        loss = figures["log_loss"]
        expected = metrics.log_loss(images.label, expit(log_odds(finder, images, prevalence)))
        assert (loss["value"] if isinstance(loss, dict) else loss) == pytest.approx(expected, rel=1e-4)
        assert figures["prevalence"] == prevalence
    assert found["auc"]["value"] == pytest.approx(metrics.roc_auc_score(images.label, log_odds(finder, images, 0.5)))
    html = (tmp_path / "report.html").read_text()
    assert "what speaks for a lens" in html and "Top candidates" in html
    assert json.loads((tmp_path / "metrics.json").read_text()) == found


def test_another_prevalence_is_used_and_named(finder, tmp_path):
    images = survey_set(60)
    found = judge(finder, images, tmp_path, bootstrap=0, prevalence=0.01)
    weight = np.where(images.label == 1, 0.01 / 15, 0.99 / 45)
    expected = metrics.log_loss(images.label, expit(log_odds(finder, images, 0.01)), sample_weight=weight)
    assert found["calibration"]["log_loss"]["value"] == pytest.approx(expected, rel=1e-4)
    assert "share of lenses is 0.01 (as asked for)" in (tmp_path / "report.html").read_text()


def test_images_of_one_kind_only(finder, tmp_path):
    images = survey_set(40)
    found = judge(finder, images.select(np.flatnonzero(images.label == 0)), tmp_path, bootstrap=0)
    assert found["auc"] is None
    assert "nothing can be ranked" in found["notes"][0]


def test_impossible_prevalences(finder, classifier, tmp_path):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        judge(finder, survey_set(8), tmp_path, prevalence=1.0)
    with pytest.raises(ConfigError, match="only a finder"):
        judge(classifier, lens_set(6), tmp_path, prevalence=0.1)
    with pytest.raises(DataError, match="no labels"):
        judge(finder, replace(survey_set(8), label=None, classes=()), tmp_path)


def test_a_classifier_has_its_own_report(classifier, tmp_path):
    found = judge(classifier, lens_set(30), tmp_path, bootstrap=20)
    assert "auc_macro" in found and "at_completeness" not in found


def test_a_picture_has_image_heat_map_and_verdict(classifier):
    images = lens_set(5)
    figure = explain_picture(weights.load_task(classifier), images, np.array([1, 4, 2]))
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 6
    titles = [axes.get_title() for axes in shown]
    assert titles[0] == "image-0-1\nsphere"
    assert all(title.startswith("p(") for title in titles[1::2])
    assert {axes.images[0].origin for axes in shown} == {"lower"}


def test_a_finders_picture_names_the_probability_of_a_lens(finder):
    images = survey_set(2)
    figure = explain_picture(weights.load_task(finder), images, np.array([0]))
    p = expit(log_odds(finder, images, 0.2)[0])
    assert figure.axes[1].get_title() == f"p(lens) = {p:.3g}"


def test_explain_from_the_command_line(classifier, tmp_path, monkeypatch, capsys):
    image, out = tmp_path / "image.npy", tmp_path / "picture.png"
    np.save(image, lens_set(1).images[0])

    def run(*words):
        monkeypatch.setattr("sys.argv", ["deeplense", "explain", str(classifier), str(image), *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, capsys.readouterr()

    code, captured = run("--out", out)
    assert (code, captured.out.strip()) == (0, str(out))
    assert matplotlib.image.imread(out).shape[2] in (3, 4)
    before = out.read_bytes()
    other = tmp_path / "b.png"
    mistakes = [
        (("--out", out), "never overwritten"),
        (("--out", tmp_path / "a.jpg"), ".png, .pdf or .svg"),
        (("--out", other, "--layer", "steem"), "did you mean 'stem'"),
        (("--out", other, "--method", "gradcam"), "did you mean 'grad-cam'"),
    ]
    for words, message in mistakes:
        code, captured = run(*words)
        assert code == 2
        assert message in captured.err
        assert captured.err.count("Error") == 1
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.npy", "picture.png"]


def test_nothing_to_explain(classifier, tmp_path):
    task, images = weights.load_task(classifier), lens_set(20)
    with pytest.raises(DataError, match="no images"):
        write_explanation(task, images.select(np.array([], np.int64)), tmp_path / "a.png")
    with pytest.raises(ModelError, match="no layer"):
        write_explanation(task, images, tmp_path / "a.png", layer="nowhere")
    write_explanation(task, images, tmp_path / "many.pdf")
    with pytest.raises(RunError, match="never overwritten"):
        write_explanation(task, images, tmp_path / "many.pdf")
    assert (tmp_path / "many.pdf").read_bytes().startswith(b"%PDF")
