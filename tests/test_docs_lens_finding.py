"""The page about lens finding: its commands exist with these options and settings, and its links lead somewhere."""

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
PAGE = (DOCS / "lens-finding.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


def parsed(line: str) -> dict:
    """The parameters that the command line makes of a line; an unknown option is an error."""
    program, command, *words = shlex.split(line)
    assert program == "deeplense"
    with typer.main.get_command(cli.app).commands[command].make_context(command, words) as context:
        return context.params


@pytest.mark.parametrize("line", LINES)
def test_commands_have_options_and_settings_that_exist(line):
    given, settings = parsed(line), parsed(line).get("settings") or []
    if "preset" in given:
        assert Simulator(given["preset"], settings=configs.parse_settings(settings)).shape == (3, 64, 64)
    elif "config" in given:
        assert configs.load(given["config"], settings).data.path is not None
    elif settings:
        assert configs.parse_data(settings, can_simulate="mine" in line).path is not None


def test_every_command_of_lens_finding_is_shown():
    assert {line.split()[1] for line in LINES} >= {"simulate", "train", "evaluate", "predict", "explain", "mine"}


@pytest.mark.parametrize("setting", sorted(set(re.findall(r"`((?:data|loss|model|train)\.\w+)", PAGE))))
def test_settings_exist(setting):
    assert setting in set(configs.keys())


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", PAGE))
def test_links_lead_somewhere(target):
    assert (DOCS / target).exists()
