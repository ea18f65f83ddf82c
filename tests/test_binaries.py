"""Two stars in a spectrum: both found, their light and velocities right, and single stars left alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fitting import PIXELS, AnalyticEmulator

from spectra_nn.binaries import BinaryEmulator, BinaryResult, fit_binary, prefer_binary
from spectra_nn.core import Spectra, SpectraError
from spectra_nn.fitting import FitFlag, fit, fit_problem
from spectra_nn.observe import LineSpread, Observer

torch.set_num_threads(1)
OPTIONS = dict(resolution=20_000, use_emulator_error=False, progress=False)


@pytest.fixture(scope="module")
def emulator():
    return AnalyticEmulator()


def observe_pairs(emulator, one, two, ratio, velocity, separation, snr=100.0, seed=0):
    """The sum of two stars, each observed by itself: another route than the model under test."""
    chain = Observer(emulator.wave, PIXELS, line_spread=LineSpread(20_000), dtype=torch.float64)
    velocity, separation, ratio = (np.asarray(a, float) for a in (velocity, separation, ratio))
    first, second = (chain(torch.tensor(emulator.predict(np.array(rows, float))).double(), torch.as_tensor(v))[0].numpy()
                     for rows, v in ((one, velocity), (two, velocity + separation)))
    flux = (first + ratio[:, None] * second) / (1 + ratio[:, None])
    noisy = flux * 300 + 3 * np.random.default_rng(seed).standard_normal(flux.shape)
    return Spectra.from_error(PIXELS, noisy, np.full(flux.shape, 300 / snr), frame="air", ids=[f"s{k}" for k in range(len(flux))])


ONE, TWO = [[5800.0, 4.2, -0.3]] * 4, [[5000.0, 4.5, -0.3]] * 4


def test_both_stars_are_found(emulator):
    ratio, velocity, separation = [0.12, 0.3, 0.6, 0.0], [20.0, -40.0, 5.0, 30.0], [50.0, -70.0, 35.0, 0.0]
    result = fit_binary(emulator, observe_pairs(emulator, ONE, TWO, ratio, velocity, separation), **OPTIONS)
    table = result.table
    assert table["is_binary"].tolist() == [True, True, True, False]
    for name, truth in (("flux_ratio", ratio), ("velocity", velocity), ("separation", separation), ("velocity_2", np.add(velocity, separation)), ("feh", [-0.3] * 3)):
        pull = (table[name].value[:3] - truth[:3]) / table[f"{name}_err"].value[:3]
        assert np.abs(pull).max() < 4.5, (name, pull)
    assert (table["chi2"] / table["dof"] < 1.15).all() and (table["delta_chi2"][:3] > 200).all() and table["delta_chi2"][3] < 30
    assert isinstance(result, BinaryResult) and "3 of 4 need two stars" in result.summary()


def test_a_binary_is_a_problem_like_any_other(emulator):
    """What the fit minimised can be evaluated again, for samplers and joint fits."""
    result = fit_binary(emulator, observe_pairs(emulator, ONE[:1], TWO[:1], [0.3], [10.0], [60.0]), **OPTIONS)
    problem = fit_problem(result)
    best = torch.tensor([[result.table[name].value[0] for name in problem.names]])
    found = problem.evaluate(best, torch.tensor([0]))
    np.testing.assert_allclose(found.chi2, result.table["chi2"], rtol=1e-4)
    np.testing.assert_allclose(torch.linalg.inv(found.hessian)[0].diagonal().sqrt(), np.sqrt(np.diagonal(result.covariance[0])), rtol=0.02)


def test_rotation_of_each(emulator):
    """Two rotators: their v sin i are fitted apart."""
    chain = Observer(emulator.wave, PIXELS, line_spread=LineSpread(20_000), dtype=torch.float64)
    from spectra_nn.observe import BroadenedEmulator

    pair = BinaryEmulator(BroadenedEmulator(emulator))
    known = dict(zip(emulator.label_names, ONE[0])) | dict(teff_2=5200.0, logg_2=4.5, vsini=25.0, vsini_2=8.0, flux_ratio=0.5, separation=90.0)
    row = torch.tensor([[known[name] for name in pair.label_names]], dtype=torch.float64)
    flux = pair.observed(chain)(row, torch.tensor([0.0]).double())[0].numpy()
    star = Spectra.from_error(PIXELS, flux + 0.005 * np.random.default_rng(3).standard_normal(flux.shape), np.full(flux.shape, 0.005), frame="air")
    table = fit_binary(emulator, star, free=[*emulator.label_names, "vsini"], **OPTIONS).table
    assert table["is_binary"][0]
    for name in ("vsini", "vsini_2", "separation", "flux_ratio"):
        assert abs(table[name].value[0] - known[name]) < 4.5 * table[f"{name}_err"].value[0]


def test_single_stars_stay_single(emulator):
    rng = np.random.default_rng(7)
    one = rng.uniform([4500, 2.0, -1.0], [6500, 4.5, 0.2], (40, 3))
    result = fit_binary(emulator, observe_pairs(emulator, one, one, np.zeros(40), rng.uniform(-50, 50, 40), np.zeros(40), seed=1), n_start=2, **OPTIONS)
    assert not result.table["is_binary"].any() and (result.single.flags == 0).all()


def test_damaged_rows_touch_nobody(emulator):
    stars = observe_pairs(emulator, ONE[:3], TWO[:3], [0.3, 0.3, 0.0], [0.0] * 3, [60.0, 60.0, 0.0])
    flux = stars.flux.copy()
    flux[0] = np.nan
    result, clean = (fit_binary(emulator, s, n_start=1, **OPTIONS) for s in (replace(stars, flux=flux, mask=None), stars))
    assert result.flags[0] == FitFlag.BAD_INPUT and not result.table["is_binary"][0] and result.table["is_binary"].tolist()[1:] == [True, False]
    np.testing.assert_allclose(result.table["separation"].value[1], clean.table["separation"].value[1], rtol=1e-4)  # the rounding of single precision
    nothing = fit_binary(emulator, replace(stars, flux=flux * np.nan, mask=None), **OPTIONS)
    assert (nothing.flags == FitFlag.BAD_INPUT).all() and not nothing.table["is_binary"].any()


def test_refusals(emulator):
    stars = observe_pairs(emulator, ONE[:2], TWO[:2], [0.3] * 2, [0.0] * 2, [60.0] * 2)
    one = fit(emulator, stars, **OPTIONS)
    with pytest.raises(SpectraError, match="1 fits of one star and 2"):
        prefer_binary(fit(emulator, stars[:1], **OPTIONS), one)
    with pytest.raises(SpectraError, match="Did you mean 'teff'"):
        fit_binary(emulator, stars, free=["tef"], **OPTIONS)
