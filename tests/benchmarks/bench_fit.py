"""Stars fitted per second: `fit` against one `scipy.optimize.curve_fit` per star, the same emulator, pixels and free parameters.

The peer is what the Payne family does: finite-difference Jacobians, one star at a time, the model smeared by FFT and shifted by linear
interpolation. It has no cross-correlation and is given the true velocity to start from; so is `fit`, and once more it searches ±1000 km/s as it
does for its users. Both get one thread and are compared by the processor time they take, so that what else the machine does has no say. The steps of the peer's differences are right for a
network in single precision: with SciPy's own, 1e-8, its derivatives would be noise and its chi2 twice as large.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import curve_fit

from spectra_nn.core import SPEED_OF_LIGHT, Spectra, SpectraError, asset
from spectra_nn.emulator import Emulator
from spectra_nn.fitting import fit
from spectra_nn.observe import LineSpread, Observer

RESOLUTION, SNR = 19_800, 100.0


def find_emulator(path):
    """The emulator asked for, one among the benchmark data, or the built-in one; None without any."""
    folder = os.environ.get("SPECTRA_NN_BENCH_DATA")
    candidates = [path] if path else [*(sorted(Path(folder).glob("*.safetensors")) if folder else ())]
    try:
        candidates.append(asset("hr10_turbospectrum.safetensors"))
    except (SpectraError, FileNotFoundError):
        pass
    return next((Emulator.load(p) for p in candidates if Path(p).is_file()), None)


def observe(emulator, n_star, n_pix, seed=0):
    """Noisy stars inside the training domain at velocities to ±200 km/s."""
    rng = np.random.default_rng(seed)
    low, high = emulator.label_bounds
    labels = low + (high - low) * rng.uniform(0.15, 0.85, (20 * n_star, len(low)))
    check = emulator.domain(labels)
    labels = labels[np.asarray(getattr(check, "inside", check))][:n_star]
    velocity = rng.uniform(-200, 200, len(labels))
    wave = np.linspace(emulator.wave[0] + 5, emulator.wave[-1] - 5, n_pix)
    chain = Observer(emulator.wave, wave, line_spread=LineSpread(RESOLUTION), rest_resolution=emulator.resolution, dtype=torch.float64)
    flux = chain(torch.tensor(emulator.predict(labels)).double(), torch.tensor(velocity))[0].numpy()
    flux = flux + rng.standard_normal(flux.shape) / SNR
    return Spectra(wave, flux, np.full(flux.shape, SNR**2), frame=emulator.frame), labels, velocity


def one_star_at_a_time(emulator, spectra, velocity):
    """The peer: labels, velocity and three continuum coefficients by `curve_fit`; chi2 of each star."""
    low, high = emulator.label_bounds
    wave, x = spectra.wave, np.linspace(-1, 1, spectra.flux.shape[1])
    log_grid = np.exp(np.linspace(*np.log(emulator.wave[[0, -1]]), len(emulator.wave)))
    step = SPEED_OF_LIGHT * np.log(log_grid[1] / log_grid[0])
    frequency = np.fft.rfftfreq(len(log_grid), step)
    smear = np.exp(-2 * (np.pi * SPEED_OF_LIGHT / RESOLUTION / 2.3548 * frequency) ** 2)

    def model(_, *parameters):
        scaled, v, continuum = np.array(parameters[: len(low)]), parameters[len(low)], parameters[len(low) + 1 :]
        flux = emulator.predict((low + (high - low) * scaled)[None], outside="ignore")[0]
        flux = np.fft.irfft(np.fft.rfft(np.interp(log_grid, emulator.wave, flux)) * smear, n=len(log_grid))
        return np.interp(wave, log_grid * (1 + v / SPEED_OF_LIGHT), flux) * np.polynomial.chebyshev.chebval(x, continuum)

    chi2 = []
    for flux, v in zip(spectra.flux, velocity):
        start = np.r_[np.full(len(low), 0.5), v, 1.0, 0.0, 0.0]
        bounds = np.r_[np.zeros(len(low)), v - 5, 0.5, -0.5, -0.5], np.r_[np.ones(len(low)), v + 5, 1.5, 0.5, 0.5]
        best, _ = curve_fit(model, None, flux, start, sigma=np.full(flux.shape, 1 / SNR), absolute_sigma=True, bounds=bounds, ftol=5e-4, xtol=5e-4, diff_step=1e-3)
        chi2.append(np.sum(((flux - model(None, *best)) * SNR) ** 2))
    return np.array(chi2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulator", help="an emulator file")
    parser.add_argument("--stars", type=int, default=4096)
    parser.add_argument("--peer-stars", type=int, default=24)
    parser.add_argument("--pixels", type=int, default=5800)
    options = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # else NumPy's threads wait for each other, and the peer's time doubles
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}).returncode)
    warnings.simplefilter("ignore")
    emulator = find_emulator(options.emulator)
    if emulator is None:
        print("no emulator: put one into SPECTRA_NN_BENCH_DATA or name it with --emulator")
        return
    spectra, labels, velocity = observe(emulator, options.stars, options.pixels)
    settings = dict(resolution=RESOLUTION, use_emulator_error=False, progress=False)
    fit(emulator, spectra[:2], **settings)
    threads = torch.get_num_threads()
    start = time.perf_counter()
    fit(emulator, spectra, **settings)
    everything = len(spectra) / (time.perf_counter() - start)
    torch.set_num_threads(1)
    start = time.process_time()
    searched = fit(emulator, spectra, **settings)
    searching = len(spectra) / (time.process_time() - start)
    start = time.process_time()
    result = fit(emulator, spectra, start={"velocity": velocity}, **settings)
    ours = len(spectra) / (time.process_time() - start)
    few = options.peer_stars
    start = time.process_time()
    peer_chi2 = one_star_at_a_time(emulator, spectra[:few], velocity[:few])
    peer = few / (time.process_time() - start)
    lead = peer_chi2 - np.asarray(result.table["chi2"][:few])
    agree = np.abs(lead) < 30
    details = {"pixels": options.pixels, "parameters": len(result.parameter_names), "median chi2/dof": round(float(np.median(result.table["chi2"] / result.table["dof"])), 3),
               "peer's chi2 minus ours, median where both found the same minimum": round(float(np.median(lead[agree])), 2) if agree.any() else None,
               "stars that the peer left in a worse minimum": int((lead >= 30).sum()), "stars that we did": int((lead <= -30).sum()), "of": few}
    print(json.dumps({"name": "fit, stars from their true velocity", "value": round(ours, 2), "unit": "stars/s and core",
                      "peer": round(peer, 3), "ratio": round(ours / peer, 1), "target": ">= 100", **details}))
    print(json.dumps({"name": "fit, the same with velocities searched over ±1000 km/s", "value": round(searching, 2), "unit": "stars/s and core", "peer": round(peer, 3), "ratio": round(searching / peer, 1)}))
    print(json.dumps({"name": "fit, stars on all cores of this moment", "value": round(everything, 1), "unit": "stars/s", "threads": threads, "target": ">= 300 on two cores"}))
    error = np.abs(searched.table["velocity"].value - velocity)
    print(json.dumps({"name": "fit, velocities found within 1 km/s of ±1000 searched", "value": round(float(np.mean(error < 1)), 4), "unit": "of all", "target": ">= 0.99"}))


if __name__ == "__main__":
    main()
