"""deeplense: simulate, classify, find, generate and measure strong gravitational lenses."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# The public names and where they live; imported when first used, so that `import deeplense` costs nothing.
_PUBLIC = {
    "Simulator": "deeplense.simulate.generate:Simulator",
    "write_set": "deeplense.simulate.dataset:write_set",
    "LensSet": "deeplense.data.schema:LensSet",
    "read": "deeplense.data.read:read",
    "convert": "deeplense.data.convert:convert",
    "load_config": "deeplense.config:load",
    "load_data": "deeplense.train:load_data",
    "fit": "deeplense.train:fit",
    "judge": "deeplense.evaluate.judge:judge",
    "Predictor": "deeplense.predict:Predictor",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"deeplense has no attribute {name!r}; public names are {', '.join(__all__)}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
