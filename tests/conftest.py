"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Spinning OpenMP threads starve the other core's work in a suite of many small tensors.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

from deeplense import cli


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache folder of the suite's own."""
    os.environ["DEEPLENSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real observations and genuine DeepLense files that lie beside the checkout; the test skips without them."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real observations is not beside this checkout")
    return folder


@pytest.fixture
def deeplense_command(monkeypatch, capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["deeplense", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call
