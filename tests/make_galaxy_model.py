"""Make spectra_nn/assets/sdss_mock.safetensors: python tests/make_galaxy_model.py MOCKS.npz…

MOCKS.npz are files of `make_mock_sdss.py --n 2000 --seed S`, several seeds; only their ordinary galaxies are learned from.
Redshifts are those of the catalogue, 7.6 km/s off. With `refine_redshifts`, twice, 3.6 km/s, everything else the same, the model
finds redshifts to 2.7 km/s instead of 3.3, but χ² per pixel at the redshifts of the catalogue is 1.094 instead of 1.091 (two seeds).
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spectra_nn import Spectra
from spectra_nn.galaxy_autoencoder import GalaxyRecipe, encode, save_galaxy_model, train_spender
from spectra_nn.instruments import SDSS
from spectra_nn.restframe_basis import redshifted

HERE = Path(__file__).parents[1] / "spectra_nn" / "assets"


def ordinary(path):
    with np.load(path) as mocks:
        kept = mocks["truth_outlier"] == 0
        spectra = Spectra(mocks["wave"], mocks["spec"][kept], mocks["ivar"][kept], frame="vacuum")
        return redshifted(spectra, mocks["z"][kept], SDSS)


if __name__ == "__main__":
    parts = [ordinary(path) for path in sys.argv[1:]]
    test, training = parts[-1], parts[:-1]
    recipe = GalaxyRecipe(n_latent=8)
    model, _ = train_spender(training, replace(recipe, train=replace(recipe.train, weight_decay=0.3)))  # four times the galaxies need a fourth of the restraint
    found = encode(model, test)
    reached = float((found.chi2 / found.n_valid).mean())
    save_galaxy_model(
        model, HERE / "sdss_mock.safetensors",
        instrument="SDSS", training=f"{sum(map(len, training))} mock galaxies of SDSS, z < 0.5 (BC03-MILES populations, Cloudy emission; seeds {', '.join(Path(p).stem for p in sys.argv[1:-1])})",
        chi2_per_pixel_held_out=round(reached, 4), held_out=f"{len(test)} galaxies of {Path(sys.argv[-1]).stem}", torch=torch.__version__,
    )
    print(f"sdss_mock.safetensors: {(HERE / 'sdss_mock.safetensors').stat().st_size / 1e6:.1f} MB, χ² per pixel held out {reached:.4f}")
