import subprocess
import sys
from pathlib import Path

import pytest

from deeplense import config
from deeplense.errors import ConfigError
from deeplense.tasks import TASKS


@pytest.mark.parametrize("name", config.names())
def test_every_shipped_config_loads_and_comes_back_from_its_own_text(name, tmp_path):
    loaded = config.load(name)
    assert loaded.task in TASKS
    assert loaded.out == f"runs/{name}"
    copy = tmp_path / "copy.toml"
    copy.write_text(loaded.to_toml())
    assert config.load(str(copy)) == loaded


def test_names_hold_ours_and_the_brief():
    assert {"substructure", "brief/substructure", "tiny/substructure"} <= set(config.names())


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=7", "train.epochs", 7),
        ("data=images/no such", "data.path", "images/no such"),
        ("data={path='a', fraction=0.5}", "data.fraction", 0.5),
        ("data.path=2024-01-01", "data.path", "2024-01-01"),
        ("data.path=7", "data.path", "7"),
        ("model=microsoft/resnet-50", "model.name", "microsoft/resnet-50"),
        ("augment.flips=false", "augment.flips", False),
        ("augment.scale=[0.5, 2]", "augment.scale", (0.5, 2.0)),
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("out=a=b", "out", "a=b"),
    ],
)
def test_overrides(override, key, value):
    found = config.load("substructure", [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("epochs=3", "unknown setting 'epochs'; did you mean 'train.epochs'?"),
        ("lr=3", "unknown setting 'lr'; did you mean 'optim.lr'?"),
        ("trian.epochs=3", "unknown setting 'trian.epochs'; did you mean 'train.epochs'?"),
        ("train.epochs=0", "train.epochs = 0: input should be greater than or equal to 1"),
        ("train.epochs=many", "train.epochs = 'many': input should be a valid integer"),
        ("optim.schedule=cosin", "optim.schedule = 'cosin': input should be 'constant', 'cosine'"),
        ("data.fraction=1.5", "data.fraction = 1.5: input should be less than or equal to 1"),
        ("augment.blur_sigma=[0,0]", "augment.blur_sigma = [0, 0]: give two numbers above 0, the smaller one first"),
        ("augment.blur_sigma=[2,1]", "augment.blur_sigma = [2, 1]: give two numbers above 0, the smaller one first"),
        ("augment.scale=[-1,1]", "augment.scale = [-1, 1]: give two numbers above 0, the smaller one first"),
        ("augment.crop=[0.5,2]", "augment.crop = [0.5, 2]: give two shares, above 0 and not above 1"),
        ("train", "'train' is not a setting; write key=value"),
        ("seed.x=1", "'seed.x=1': 'seed' is a single value"),
    ],
)
def test_errors_fit_on_one_line_and_say_what_is_allowed(override, message):
    with pytest.raises(ConfigError) as error:
        config.load("substructure", ["seed=1", override])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_unknown_config_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'substructure'"):
        config.load("substruture")


def test_broken_toml_is_a_config_error(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("task = \n")
    with pytest.raises(ConfigError, match="is not TOML"):
        config.load(str(path))


def test_strings_survive_the_round_trip(tmp_path):
    awkward = 'a "quoted" \\ path\twith ümlauts and\nlines'
    changed = config.load("substructure").model_copy(update={"out": awkward})
    path = tmp_path / "x.toml"
    path.write_text(changed.to_toml())
    assert config.load(str(path)) == changed


def test_differences_name_dotted_keys():
    mine = config.load("substructure")
    theirs = config.load("substructure", ["optim.lr=0.5", "data.path=x", "out=elsewhere"])
    assert mine.differences(theirs) == ["data.path", "optim.lr"]


def test_brief_config_is_the_brief():
    brief = config.load("brief/substructure")
    assert brief.model.name == "microsoft/resnet-50"
    assert (brief.train.epochs, brief.data.fraction, brief.optim.name) == (25, 0.1, "adam")
    assert brief.train.export == ["json"]
    assert brief.augment.flips and brief.augment.degrees and brief.augment.blur and brief.model.size


def test_config_imports_no_heavy_library():
    code = "import deeplense.config, sys; print([m for m in ('torch', 'numpy', 'lightning') if m in sys.modules])"
    source = str(Path(config.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_brief_finder_is_the_brief():
    brief = config.load("brief/finder")
    assert (brief.model.name, brief.train.epochs, brief.optim.name, brief.optim.lr) == ("brief-cnn", 5, "adam", 1e-3)
    assert brief.data.balanced != brief.loss.class_weights, "one remedy for rare classes, not two"
    assert (brief.optim.schedule, brief.train.export) == ("constant", ["json"])


def test_brief_physics_is_the_brief():
    brief = config.load("brief/physics")
    assert (brief.model.name, brief.model.pretrained, brief.model.size) == ("microsoft/resnet-50", True, 128)
    assert (brief.data.fraction, brief.data.batch_size, brief.train.epochs) == (0.1, 32, 25)
    assert (brief.optim.name, brief.optim.lr, brief.optim.schedule) == ("adam", 1e-4, "constant")
    assert brief.augment == config.load("brief/substructure").augment
