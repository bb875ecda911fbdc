"""The README's code is run, on the small config of the same name and fewer images."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SMALLER = {'"common-test", ["': '"tiny/common-test", ["', "train common-test": "train tiny/common-test", "1500": "48"}


def blocks(language):
    """The code blocks of one language, made small."""
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    for full, small in SMALLER.items():
        found = [block.replace(full, small) for block in found]
    return found


def run(command, folder):
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_python(tmp_path):
    (code,) = blocks("python")
    assert "tiny/common-test" in code
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    output = run([sys.executable, "-c", code], tmp_path)
    assert "'value'" in output
    assert (tmp_path / "runs/first/report.html").is_file()


def test_shell(tmp_path):
    commands = [line.split("#")[0].strip() for line in blocks("sh")[1].splitlines()]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "deeplense"
        output = run([sys.executable, "-m", "deeplense.cli", *words[1:]], tmp_path)
    assert "macro AUC" in output


def test_the_two_commands_at_the_top_are_targets_of_the_makefile():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in blocks("sh")[0].strip().splitlines():
        assert line.split()[0] == "make"
        assert line.split()[1] in targets


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
