"""Pages in docs/: links lead somewhere, commands and code are valid, and a claim about a genuine image holds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from deeplense import cli
from deeplense import config as configs
from deeplense.simulate import preset as presets
from deeplense.simulate.generate import Simulator

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [DOCS / "presets.md", *sorted((DOCS / "datasheets").glob("*.md"))]
LINKS = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)]+)\)", page.read_text())]
PRESETS = DOCS / "presets.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PRESETS.read_text(), flags=re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """The words of each `deeplense <name>` line on the page about presets."""
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines() if line]
    return [words[2:] for words in lines if words[:2] == ["deeplense", name]]


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda value: Path(value).name)
def test_links_lead_somewhere(page, target):
    file, _, anchor = target.partition("#")
    assert (page.parent / file).exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", (page.parent / file).read_text(), flags=re.MULTILINE)
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_data_sheet_a_row_and_pictures(name):
    assert (DOCS / "datasheets" / f"{name}.md").is_file()
    assert f"| `{name}` | {presets.load(name).num_pix} of {presets.load(name).pixel_scale:g}" in PRESETS.read_text()
    for fidelity in presets.load(name).fidelities:
        ending = "" if fidelity == "physical" else f"-{fidelity}"
        assert (DOCS / "pictures" / f"preset-{name}{ending}.png").stat().st_size < 260_000


@pytest.mark.parametrize("words", commands("simulate"), ids=" ".join)
def test_simulate_commands_are_valid(words, tmp_path):
    (tmp_path / "mine.toml").write_text(blocks("toml")[0])
    with typer.main.get_command(cli.app).commands["simulate"].make_context("simulate", [*words]) as context:
        given = context.params
    name = given["preset"].replace("mine.toml", str(tmp_path / "mine.toml"))
    simulator = Simulator(name, given["fidelity"], settings=configs.parse_settings(given["settings"] or []))
    assert len(simulator.groups(0)) in (1, len(simulator.classes))


@pytest.mark.parametrize("words", commands("train"), ids=" ".join)
def test_train_commands_are_valid(words):
    data = configs.load(words[0], words[1:]).data
    settings = configs.parse_settings(data.settings)
    assert Simulator(str(data.path).removeprefix("preset:"), data.fidelity, settings=settings).shape


def test_python_code_runs(tmp_path):
    make, read, _ = blocks("python")
    code = (
        make + "\ndl.write_set(dl.Simulator('model-2'), 48, 'm2')\n" + read + "\nassert images.shape == (48, 1, 64, 64)"
    )
    code += "\nassert lenses.images.shape == (96, 3, 64, 64) and len(truth) == 48 and 0 < len(many) < 48"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_published_model_3_is_the_genuine_image(shared_data):
    """A genuine image without substructure, to 1e-5 of the peak, given the place of its source."""
    genuine = np.load(shared_data / "deeplense-singles" / "ml4sci-lensiformer-data" / "nosub.npy")
    place = {"source.center_x": -0.061699575, "source.center_y": 0.084467881}
    ours = Simulator("model-3", "published", settings=place).images([0]).images[0, 0].astype(np.float64)
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    assert np.abs(ours - genuine).max() < 1e-5
