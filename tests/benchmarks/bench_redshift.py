"""Redshifts per second, their precision, and what the flags are worth, on mock galaxies; against the same χ²(z) rendered and solved one redshift at a time.

With mock_sdss_*_seed1.npz (training) and another mock_sdss_*.npz (test) in SPECTRA_NN_BENCH_DATA these are thousands of galaxies; the built-in survey has 280.
A basis is learned here and tested, and so is the built-in model; `--model sdss_mock`, or a file, tests that one only: the check, and the calibration of
redshift errors, of a model that is new.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spectra_nn import hub
from spectra_nn.core import SPEED_OF_LIGHT, Spectra, asset
from spectra_nn.instruments import SDSS
from spectra_nn.redshift import ErrorModel, calibrate_errors, estimate_redshift
from spectra_nn.restframe_basis import chi_squared, coefficients_of, fit_population, fit_restframe_basis, project, redshifted
from spectra_nn.spectrum_files import info_column, read_spectra

CATASTROPHIC = 0.0033  # |Δz|/(1+z): 1000 km/s


def read_mocks(path):
    """Spectra of a mock survey with catalogue redshifts, true redshifts, kind of outlier and S/N."""
    with np.load(path) as f:
        spectra = Spectra(f["wave"], f["spec"], f["ivar"], frame="vacuum")
        return spectra, f["z"], f["truth_z_true"], f["truth_outlier"], f["truth_snr"]


def built_in():
    """The survey of the package, as `read_mocks` returns one."""
    survey = read_spectra(asset("mock_galaxies.npz"))
    return survey, *(info_column(survey, name) for name in ("z", "truth_z_true", "truth_outlier", "truth_snr"))


def one_redshift_at_a_time(basis, data, z_grid):
    """The peer: render the basis at every redshift, solve, and take the lowest χ²; a redshift per spectrum."""
    best = []
    for row in range(len(data)):
        there = project(basis, replace(data[[row] * len(z_grid)], z=torch.as_tensor(z_grid)))
        best.append(z_grid[int(chi_squared(there, coefficients_of(there)).argmin())])
    return np.array(best)


def say(name, value, unit, target=None, **more):
    """Print one result."""
    print(json.dumps({"name": f"redshift, {name}", "value": value, "unit": unit, **({"target": target} if target else {}), **more}))


def width(pulls):
    """Standard deviation, as the middle of the distribution has it."""
    return round(float(1.4826 * np.median(np.abs(pulls - np.median(pulls)))), 3)


def measure(model, population, parts):
    """Redshifts of all surveys: columns, spectra per second, and the error model that known redshifts of S/N >= 5 ask for."""
    columns, seconds, wanted = [], 0.0, []
    for survey, (spectra, _, z_true, kind, snr) in enumerate(parts):
        start = time.perf_counter()
        result = estimate_redshift(model, spectra, (0.0, 0.5), instrument=SDSS, population=population, progress=False)
        seconds += time.perf_counter() - start
        columns.append([result.table["z"], result.table["z_err"], z_true, kind, snr, result.flags, np.full(len(snr), survey)])
        usable = np.flatnonzero((kind == 0) & (snr >= 5) & (z_true > 0.01) & (z_true < 0.5))
        formal = estimate_redshift(model, spectra[usable], (0.0, 0.5), instrument=SDSS, population=population, errors=ErrorModel(1, 0), progress=False)
        if len(usable) >= 30:
            wanted.append(calibrate_errors(formal, z_true[usable]))
    return [np.concatenate([np.asarray(c[k]) for c in columns]) for k in range(7)], seconds, wanted


def report(label, columns, wanted):
    """Print what the redshifts of one model are worth."""
    z, error, z_true, kind, snr, flags, survey = columns
    for name, at_least, odd in (("S/N >= 5", 5, (0,)), ("any S/N", 0, (0,)), ("any S/N, blends and broad-line AGN included", 0, (0, 1, 2, 4))):
        chosen = np.isin(kind, odd) & (snr >= at_least) & (z_true > 0.01) & (z_true < 0.5)
        off = ((z - z_true) / (1 + z_true))[chosen]
        wrong, flagged, pull = ~(np.abs(off) <= CATASTROPHIC), flags[chosen] > 0, off / (error / (1 + z_true))[chosen]
        known = np.isfinite(pull) & ~wrong
        say(f"{label}{name}: NMAD of Δz/(1+z)", float(f"{1.4826 * np.median(np.abs(off - np.median(off))):.3g}"), "", "<= 1e-4", galaxies=int(chosen.sum()), km_s=round(1.4826 * np.median(np.abs(off)) * SPEED_OF_LIGHT, 2))
        say(f"{label}{name}: catastrophic among unflagged", round(float(wrong[~flagged].mean()), 5), "of all", "<= 0.01", catastrophic=int(wrong.sum()), of_these_flagged=int((wrong & flagged).sum()), flagged=int(flagged.sum()), right_but_flagged=round(float(flagged[~wrong].mean()), 4))
        say(f"{label}{name}: std of pulls", round(float(np.std(pull[known])), 3), "", "<= 1.1", robust=width(pull[known]))
        if at_least and known.sum() > 400:
            for what, x in (("S/N", snr[chosen]), ("z", z_true[chosen]), ("survey", survey[chosen])):
                ends = np.unique(x) if what == "survey" else np.quantile(x[known], [0, 0.25, 0.5, 0.75])
                part = np.searchsorted(ends, x, "right") - 1
                each = [pull[known & (part == k)] for k in range(len(ends))]
                say(f"{label}{name}: worst std of pulls by {what}", round(float(max((np.std(p) for p in each), key=lambda s: abs(np.log(s)))), 3), "", each=[round(float(np.std(p)), 2) for p in each], robust=[round(width(p), 2) for p in each])
    for k, model in enumerate(wanted):
        say(f"{label}errors that survey {k} asks for: factor", round(model.scale, 3), "", floor_km_s=round(model.floor, 2), default=list(ErrorModel()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--components", type=int, default=8)
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--peer-spectra", type=int, default=2)
    parser.add_argument("--model", help="name or file of a model to test instead")
    options = parser.parse_args()
    folder = os.environ.get("SPECTRA_NN_BENCH_DATA")
    found = sorted(path for path in Path(folder).glob("mock*seed*.npz") if "model" not in path.name) if folder else []
    first = [path for path in found if "seed1.npz" in path.name]
    tests = [path for path in found if path not in first] if first else []
    training = read_mocks(first[0]) if tests else built_in()
    ordinary = np.flatnonzero(training[3] == 0)
    learn = ordinary[: options.train] if tests else ordinary[:-80]
    rest = np.setdiff1d(np.arange(len(training[3])), learn)
    parts = [read_mocks(path) for path in tests] or [tuple(column[rest] for column in training)]
    if not options.model:
        data = redshifted(training[0][learn], training[1][learn], SDSS)
        basis = fit_restframe_basis(data, options.components, progress=False)
        columns, seconds, wanted = measure(basis, fit_population(project(basis, data)), parts)
        few = redshifted(parts[0][0][: options.peer_spectra], 0.0, SDSS)
        start = time.perf_counter()
        one_redshift_at_a_time(basis, few, np.expm1(np.arange(0, np.log(1.5), basis.step)))
        peer = len(few) / (time.perf_counter() - start)
        rate = len(columns[0]) / seconds
        print(json.dumps({"name": "redshift, all of z 0 to 0.5", "value": round(rate, 1), "unit": "spectra/s", "peer": round(peer, 3), "ratio": round(rate / peer, 1), "target": ">= 20", "threads": torch.get_num_threads(), "components": options.components}))
        say("speed alone", round(rate, 1), "spectra/s", ">= 50")
        report("", columns, wanted)
    name = options.model or "sdss_mock"
    model = hub.load(name, progress=False)
    columns, seconds, wanted = measure(model, None, parts)
    say(f"{name}: speed alone", round(len(columns[0]) / seconds, 1), "spectra/s", ">= 50")
    report(f"{name}: ", columns, wanted)


if __name__ == "__main__":
    main()
