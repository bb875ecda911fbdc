"""deeplense: simulate, classify, find, generate and measure strong gravitational lenses."""

__version__ = "0.1.0"
