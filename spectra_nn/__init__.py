"""Fast, differentiable models of astronomical spectra."""

__version__ = "0.1.0"
