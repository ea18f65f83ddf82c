"""Make spectra_nn/assets/sdss_mock.safetensors: python tests/make_galaxy_model.py MOCKS.npz…

MOCKS.npz are files of `make_mock_sdss.py --n 2000 --seed S`, several seeds; only their ordinary galaxies are learned from.
Catalogue redshifts are 7.6 km/s off, which a basis would learn as a shape of its own: they are refined first, to 3.6 km/s. Three
files suffice for the bases; the networks learn from all but the last, which is left out to see what they reached.
The latents are blind to 20 km/s of velocity and to 63 km/s of line width: nights of one galaxy differ by that (notebook 22).
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spectra_nn import Spectra
from spectra_nn.galaxy_autoencoder import GalaxyRecipe, encode, save_galaxy_model, train_spender
from spectra_nn.instruments import SDSS
from spectra_nn.redshift import refine_redshifts
from spectra_nn.restframe_basis import Projection, fit_population, fit_restframe_basis, project, redshifted

HERE = Path(__file__).parents[1] / "spectra_nn" / "assets"


def ordinary(path):
    with np.load(path) as mocks:
        kept = mocks["truth_outlier"] == 0
        spectra = Spectra(mocks["wave"], mocks["spec"][kept], mocks["ivar"][kept], frame="vacuum")
        return redshifted(spectra, mocks["z"][kept], SDSS)


def learned(parts, n_component):
    """A basis, and the population of galaxies in it."""
    basis = fit_restframe_basis(parts, n_component)
    return basis, fit_population(Projection(*(torch.cat(each) for each in zip(*(project(basis, part) for part in parts)))))


def with_better_redshifts(parts, others):
    """A basis of 32 spectra, and all galaxies with the redshifts, 3.6 km/s off instead of 7.6, that it and two smaller ones give them."""
    for n_component in (8, 16):
        basis = learned(parts, n_component)
        parts = [refine_redshifts(part, *basis) for part in parts]
    basis = learned(parts, 32)
    return basis[0], [*parts, *(refine_redshifts(part, *basis) for part in others)]


if __name__ == "__main__":
    *parts, test = [ordinary(path) for path in sys.argv[1:]]
    basis, training = with_better_redshifts(parts[:3], parts[3:])
    recipe = GalaxyRecipe(n_latent=6, kinematics=(20., 63.))
    model, _ = train_spender(training, replace(recipe, train=replace(recipe.train, weight_decay=0.2)), basis=basis)  # many galaxies need little restraint
    found = encode(model, test)
    reached = float((found.chi2 / found.n_valid).mean())
    save_galaxy_model(
        model, HERE / "sdss_mock.safetensors",
        instrument="SDSS", training=f"{sum(map(len, training))} mock galaxies of SDSS, z < 0.5 (BC03-MILES populations, Cloudy emission; seeds {', '.join(Path(p).stem for p in sys.argv[1:-1])}; redshifts refined)",
        chi2_per_pixel_held_out=round(reached, 4), held_out=f"{len(test)} galaxies of {Path(sys.argv[-1]).stem}", torch=torch.__version__,
    )
    print(f"sdss_mock.safetensors: {(HERE / 'sdss_mock.safetensors').stat().st_size / 1e6:.1f} MB, χ² per pixel held out {reached:.4f}")
