"""Fast, differentiable models of astronomical spectra.

Stars: labels -> emulator -> spectrum, and back by fitting. The main names are here (`spectra_nn.Emulator`,
`spectra_nn.fit`), the rest in the modules (`spectra_nn.core`, `spectra_nn.fitting`); both are loaded when first used,
so that `import spectra_nn` is quick and does not import torch.
"""

__version__ = "0.1.0"

from importlib import import_module as _import_module

# module -> the names that `spectra_nn` itself offers from it
_NAMES = {
    "core": ("Spectra", "SpectraError", "air_to_vacuum", "asset", "log_grid", "vacuum_to_air"),
    "resample": ("broaden",),
    "read_text": (),
    "label_tables": ("sample_labels",),
    "training_set": ("LabelScaler", "SpectralGrid"),
    "download": (),
    "sky": (),
    "named_arrays": (),
    "report": (),
    "survey_files": (),
    "data_prep": ("PrepReport", "prepare_grid"),
    "training": ("TrainConfig",),
    "least_squares": (),
    "networks": (),
    "reliability": (),
    "sampling": (),
    "emulator": ("DomainWarning", "Emulator", "Recipe", "distil", "train_emulator"),
    "validation": ("Validation", "plot_pixel_error", "plot_recovery", "suggest_labels", "validate"),
    "observe": ("Observer",),
    "fit_results": ("FitFlag", "FitResult"),
    "line_masks": ("LineMask",),
    "fitting": ("fit",),
    "joint": ("fit_joint",),
    "binaries": ("fit_binary",),
    "abundances": ("fit_abundances",),
    "posterior": ("sample_posterior",),
    "spectrum_files": ("read_spectra",),
    "archives": (),
    "apogee": (),
    "instruments": ("Instrument",),
    "forecast": ("simulate",),
    "galaxy_shards": (),
    "spender": (),
    "spender_files": (),
    "restframe_basis": (),
    "galaxy_autoencoder": ("GalaxyAutoencoder", "train_spender"),
    "galaxy_properties": (),
    "redshift": ("estimate_redshift",),
    "outliers": ("outlier_score",),
    "hub": (),
    "demo_galaxies": (),
    "survey": ("SurveyJob",),
    "demo": ("run_demo",),
    "command_words": (),
    "galaxy_commands": (),
    "cli": (),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_EXTRAS = {  # package -> the extra that brings it
    "specutils": "specutils", "tensorboard": "track", "h5py": "formats", "pyarrow": "formats",
    "emcee": "sample", "nautilus": "sample", "zuko": "flow", "dust_extinction": "dust", "distributed": "dask",
}

__all__ = ["__version__", *_NAMES, *_HOME]


def _load(module: str):
    """Import `spectra_nn.<module>`; a missing package is named with the command that installs it."""
    try:
        return _import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __name__):
            raise
        wanted = f"'spectra_nn[{_EXTRAS[package]}]'" if package in _EXTRAS else package
        raise ImportError(
            f"spectra_nn.{module} needs {package}, which is not installed: pip install {wanted}", name=package
        ) from error


def __getattr__(name: str):
    if name in _NAMES:
        value = _load(name)
    elif name in _HOME:
        value = getattr(_load(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
