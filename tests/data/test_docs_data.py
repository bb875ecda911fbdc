"""The page about data: its code runs, its settings exist, and its lists are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from deeplense import config
from deeplense.data import formats, table

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
(SHELL,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("line", SHELL.splitlines())
def test_commands_have_settings_that_exist(line):
    _, command, first, *settings = shlex.split(line)
    data = config.load(first, settings).data if command == "train" else config.parse_data(settings)
    assert data.path is not None


@pytest.mark.parametrize("setting", sorted(set(re.findall(r"data\.(\w+)", PAGE)) - {"read"}))
def test_settings_exist(setting):
    assert setting in config.DataConfig.model_fields


def test_columns_are_listed_in_their_order():
    for columns in (table.FILE_COLUMNS, table.LABEL_COLUMNS):
        assert ", ".join(f"`{name}`" for name in columns) in " ".join(PAGE.split())


def test_every_format_is_named():
    names = {"npy": ".npy", "picture": "PNG, JPEG"}
    assert all(names.get(form.name, form.name) in PAGE for form in formats.FORMATS)


def test_python_code_runs(tmp_path, monkeypatch):
    names = [f"{i}.npy" for i in range(127)]
    for name in names:
        np.save(tmp_path / name, np.random.default_rng(0).random((8, 8)))
    columns = {"file": names, "label": ["lens"] * 45 + ["nonlens"] * 82, "sky_group": names}
    pa.csv.write_csv(pa.table(columns), tmp_path / "catalogue.csv")
    monkeypatch.chdir(tmp_path)
    counts = re.search(r"class_counts\(\)  # (.*)", PYTHON)
    values: dict = {}
    exec(PYTHON, values)
    assert values["lenses"].class_counts() == eval(counts[1])
