"""The pages on tasks: their commands exist with these options and settings, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from deeplense import cli
from deeplense import config as configs
from deeplense.simulate.generate import Simulator

DOCS = Path(__file__).resolve().parents[1] / "docs"
# The commands that a page must show.
COMMANDS = {
    "lens-finding.md": {"simulate", "train", "evaluate", "predict", "explain", "mine"},
    "diffusion.md": {"simulate", "train", "sample", "evaluate", "export"},
    "performance.md": {"profile", "train"},
    "physics.md": {"simulate", "train", "evaluate", "predict", "fit"},
}
PAGES = {name: (DOCS / name).read_text() for name in COMMANDS}
SECTIONS = "|".join(
    name for name, field in configs.Config.model_fields.items() if isinstance(field.default, configs.Section)
)


def lines(page: str) -> list[str]:
    """The lines of all shell blocks."""
    return [
        line for block in re.findall(r"```sh\n(.*?)```", PAGES[page], flags=re.DOTALL) for line in block.splitlines()
    ]


def found(pattern: str) -> list[tuple[str, str]]:
    """What a pattern finds on each page."""
    return [(page, match) for page, text in PAGES.items() for match in sorted(set(re.findall(pattern, text)))]


def parsed(line: str) -> dict:
    """The parameters that the command line makes of a line; an unknown option is an error."""
    program, command, *words = shlex.split(line)
    assert program == "deeplense"
    with typer.main.get_command(cli.app).commands[command].make_context(command, words) as context:
        return context.params


@pytest.mark.parametrize("line", [line for page in PAGES for line in lines(page)])
def test_commands_have_options_and_settings_that_exist(line):
    given, settings = parsed(line), parsed(line).get("settings") or []
    if "preset" in given:
        assert len(Simulator(given["preset"], given["fidelity"], settings=configs.parse_settings(settings)).shape) == 3
    elif "config" in given:
        assert configs.load(given["config"], settings).data.path is not None
    elif settings:
        assert configs.parse_data(settings, can_simulate="mine" in line).path is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_task_is_shown(page):
    assert {line.split()[1] for line in lines(page)} >= COMMANDS[page]


@pytest.mark.parametrize(("page", "setting"), found(rf"`((?:{SECTIONS})\.\w+)"))
def test_settings_exist(page, setting):
    assert setting in set(configs.keys())


@pytest.mark.parametrize(("page", "target"), found(r"\]\(([^)#:]+)\)"))
def test_links_lead_somewhere(page, target):
    assert (DOCS / target).exists()
