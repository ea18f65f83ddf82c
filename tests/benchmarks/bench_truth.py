"""What fits are worth: stars whose labels are known, fitted, and the differences divided by the errors that the fit states.

A label counts as constrained where its error, that of a fit to the same spectrum without noise, is below a fifth of its range. The error of the noisy fit would not do for
that choice: it is smaller where noise makes a line look stronger, and whoever picks by it picks stars whose lines look too strong.
"""

import json
import warnings
from dataclasses import replace

import numpy as np
import torch
from bench_emulator import load_grid
from bench_fit import RESOLUTION, find_emulator
from bench_fit import observe as noisy_stars

from spectra_nn.core import Spectra
from spectra_nn.fitting import fit
from spectra_nn.line_masks import LineMask
from spectra_nn.observe import BroadenedEmulator, LineSpread, ObservedEmulator, Observer

OPTIONS = dict(resolution=RESOLUTION, progress=False)


def say(name, value, unit="", target=None, **details):
    print(json.dumps({"name": name, "value": value, "unit": unit, "target": target, **details}), flush=True)


def noiseless(emulator, wave, labels, velocity):
    """Flux (n, n_pix) of the emulator as the spectrograph sees it, in double precision."""
    model = ObservedEmulator(emulator, Observer(emulator.wave, wave, line_spread=LineSpread(RESOLUTION), rest_resolution=emulator.resolution, dtype=torch.float64))
    parts = zip(*(torch.as_tensor(a, dtype=torch.float64).split(100) for a in (labels, velocity)))
    return np.concatenate([model.flux(*part).numpy() for part in parts])


def with_noise(wave, flux, snr, seed):
    return Spectra(wave, flux + np.random.default_rng(seed).standard_normal(flux.shape) / snr, np.full(flux.shape, float(snr) ** 2), frame="air")


def values(result, suffix=""):
    return np.stack([np.asarray(result.table[name + suffix].value) for name in result.parameter_names], 1)


def noise_alone(emulator, n_star=3000, n_pix=5800):
    """Emulator spectra and noise: pulls of every label, the model being exact; and how errors follow the noise."""
    stars, labels, velocity = noisy_stars(emulator, n_star, n_pix)
    flux, truth, errors = noiseless(emulator, stars.wave, labels, velocity), np.c_[labels, velocity], []
    for snr in (30, 100):
        options = OPTIONS | dict(use_emulator_error=False)
        seen = with_noise(stars.wave, flux, snr, seed=snr)
        found, quiet = fit(emulator, seen, **options), fit(emulator, replace(seen, flux=flux), **options)
        pull, part = (values(found) - truth) / values(found, "_err"), values(quiet, "_err")[:, :-1] / np.ptp(emulator.label_bounds, axis=0)
        known = np.c_[part < 0.2, np.ones(len(pull), bool)]
        mean, width = (np.array([f(pull[k, j]) for j, k in enumerate(known.T)]) for f in (np.mean, np.std))
        table = {name: f"{m:+.2f} ± {w:.2f} ({k.mean():.0%})" for name, m, w, k in zip(found.parameter_names, mean, width, known.T)}
        say(f"pulls at S/N {snr}, noise alone: largest mean of a constrained label", round(float(abs(mean).max()), 2), "", "<= 0.1", stars=n_star, labels=table)
        say(f"pulls at S/N {snr}, noise alone: standard deviation furthest from 1", round(float(width[abs(width - 1).argmax()]), 2), "", "0.95-1.05")
        errors.append(values(quiet, "_err"))
    say("errors at S/N 30 over those at 100, median", round(float(np.median(errors[0] / errors[1])), 2), "", "3.2-3.5")


def velocities(emulator, n_star=200, n_pix=5800):
    """+45 and −480 km/s at S/N 100, searched for over ±1000 km/s."""
    stars, labels, _ = noisy_stars(emulator, n_star, n_pix)
    truth = np.where(np.arange(n_star) % 2, 45.0, -480.0)
    found = fit(emulator, with_noise(stars.wave, noiseless(emulator, stars.wave, labels, truth), 100, seed=1), **OPTIONS | dict(use_emulator_error=False))
    say("velocities of +45 and -480 km/s at S/N 100: largest error", round(float(np.abs(found.table["velocity"].value - truth).max()), 3), "km/s", "<= 0.1", stars=n_star)


def rotation(emulator, n_star=40, n_pix=5800):
    """v sin i from windows of ±1.25 Å around lines."""
    stars, labels, velocity = noisy_stars(emulator, n_star, n_pix)
    turning = BroadenedEmulator(emulator)
    mean = emulator.predict(labels).mean(0)
    centre = emulator.wave[1:-1][(mean[1:-1] < mean[:-2]) & (mean[1:-1] < mean[2:]) & (mean[1:-1] < 0.6)]
    centre = centre[(centre > stars.wave[0] + 8) & (centre < stars.wave[-1] - 8)]
    mask = LineMask(centre[np.r_[True, np.diff(centre) > 1.0]], 1.25, 1.25)
    pulls, table = [], {}
    for vsini in (5.0, 10.0, 20.0, 50.0, 100.0):
        seen = with_noise(stars.wave, noiseless(turning, stars.wave, np.c_[labels, np.full(n_star, vsini)], velocity), 100, seed=2)
        found = fit(emulator, seen, free=[*emulator.label_names, "vsini"], line_mask=mask, **OPTIONS | dict(use_emulator_error=False))
        pull = (found.table["vsini"].value - vsini) / found.table["vsini_err"].value
        pulls.append(pull)
        table[f"{vsini:g} km/s"] = f"{np.median(found.table['vsini'].value):.2f} ± {np.median(found.table['vsini_err'].value):.2f}, pulls {np.mean(pull):+.2f} ± {np.std(pull):.2f}"
    say("v sin i of 5 to 100 km/s from windows of ±1.25 Å: standard deviation of pulls", round(float(np.std(np.concatenate(pulls))), 2), "", "0.8-1.2", lines=len(mask.centre), median_found=table)


def held_out(emulator, snr=100):
    """Turbospectrum spectra that the emulator has not seen, its errors included."""
    grid, full = load_grid()
    if not full:
        print("the grid that the emulator was trained on is not here")
        return
    unseen = sorted(int(name.removesuffix(".spec")) for name in emulator.info.provenance["training_set"]["held_out_names"])  # named after their rows
    wave = np.arange(grid.wave[0] + 5, grid.wave[-1] - 5, 0.05)
    chain = Observer(grid.wave, wave, line_spread=LineSpread(RESOLUTION), dtype=torch.float64)
    flux = chain(torch.from_numpy(np.asarray(grid.flux[unseen], np.float64)), 0.0)[0].numpy()
    found = fit(emulator, with_noise(wave, flux, snr, seed=3), velocity=(-100, 100), **OPTIONS)
    error = values(found, "_err")[:, :-1]
    pull, known = (values(found)[:, :-1] - grid.labels[unseen]) / error, error < 0.2 * np.ptp(emulator.label_bounds, axis=0)
    width = np.array([pull[k, j].std() for j, k in enumerate(known.T)])
    say(f"pulls of {len(unseen)} Turbospectrum spectra held out, S/N {snr}: standard deviation furthest from 1", round(float(width[abs(width - 1).argmax()]), 2), "", "0.8-1.2",
        labels={name: f"{w:.2f}" for name, w in zip(emulator.label_names, width)})


def main():
    warnings.simplefilter("ignore")
    emulator = find_emulator(None)
    for part in (noise_alone, velocities, rotation, held_out):
        part(emulator)


if __name__ == "__main__":
    main()
