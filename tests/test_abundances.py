"""Stage 2: abundances in line windows, their errors, limits and flags; and the recipe around it."""
import numpy as np
import pytest
import torch
from astropy.table import QTable

from spectra_nn.abundances import fit_abundances, fit_two_stages, vmic_relation
from spectra_nn.core import Spectra, SpectraError, asset
from spectra_nn.emulator import Emulator
from spectra_nn.fit_results import FitFlag
from spectra_nn.line_masks import LineMask, find_lines
from spectra_nn.observe import LineSpread, Observer


@pytest.fixture(scope="module")
def emulator():
    return Emulator.load(asset("hr10_turbospectrum.safetensors"))


@pytest.fixture(scope="module")
def lines(emulator):
    return {name: find_lines(emulator, name, resolution=20_000) for name in ("C_Fe", "Ca_Fe", "Mn_Fe")}


def observe(emulator, labels, snr, velocity, seed=0, step=0.08, scale=1.0):
    wave = np.arange(5335, 5614, step)
    chain = Observer(emulator.wave, wave, line_spread=LineSpread(20_000), dtype=torch.float64, velocity_range=(-200, 200))
    flux = chain(torch.from_numpy(emulator.predict(labels)).double(), torch.as_tensor(velocity, dtype=torch.float64))[0].numpy()
    noisy = flux + np.random.default_rng(seed).standard_normal(flux.shape) / snr
    return Spectra(wave, noisy * scale, np.full(flux.shape, snr**2 / scale**2), frame="air")


def dwarfs(emulator, n, seed=0, teff=(5000, 6000)):
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, len(emulator.label_names)))
    labels[:, :4] = np.c_[rng.uniform(*teff, n), rng.uniform(4.1, 4.6, n), rng.uniform(-0.4, 0.2, n), rng.uniform(0.9, 1.4, n)]
    labels[:, 4:] = rng.uniform(-0.3, 0.3, (n, 6))
    return labels


def known(emulator, labels, velocity, **more):
    return QTable({name: labels[:, k] for k, name in enumerate(emulator.label_names)} | {"velocity": velocity} | more)


def test_relation_is_the_published_one():
    assert vmic_relation(5777, 4.44, 0) == pytest.approx(1.05 + 2.51e-4 * 277 + 1.5e-7 * 277**2 - 0.14 * 0.44 - 0.005 * 0.44**2)
    assert vmic_relation(4300, 1.6, -0.5) == pytest.approx(1.25 - 4.01e-4 * 1200 + 3.1e-7 * 1200**2 + 0.14 * 2.4 - 0.005 * 2.4**2 - 0.025 + 0.0025)
    assert vmic_relation(4000, 4.6, 0) == vmic_relation(5000, 4.6, 0)
    with pytest.raises(SpectraError, match="not kK"):
        vmic_relation(5.7, 4.4, 0)


def test_abundances_and_their_noise_errors_are_right(emulator, lines):
    labels, velocity = dwarfs(emulator, 40), np.linspace(-80, 80, 40)
    wrong = labels.copy()
    wrong[:, 4:] = 0  # the abundances themselves must not be used
    start = wrong.copy()
    start[:, [5, 7, 8]] = labels[:, [5, 7, 8]]  # Mg, Ti and Y are held, so must be right
    table = fit_abundances(emulator, observe(emulator, labels, 100, velocity), known(emulator, start, velocity), lines, resolution=20_000, passes=2, use_emulator_error=False, progress=False)
    for name in lines:
        measured = table[f"{name}_detected"]
        pull = ((table[name].value - labels[:, emulator.label_names.index(name)]) / table[f"{name}_err"].value)[measured]
        assert measured.sum() > 30 and abs(pull.mean()) < 0.6 and 0.7 < pull.std() < 1.3, (name, pull.mean(), pull.std())
    assert np.median(table["Mn_Fe_chi2"] / table["Mn_Fe_dof"]) == pytest.approx(1, abs=0.15)


def test_errors_scale_with_noise_and_counts_do_not_matter(emulator, lines):
    labels, velocity = dwarfs(emulator, 3), np.zeros(3)
    stars, mask = known(emulator, labels, velocity), {"Ca_Fe": lines["Ca_Fe"]}
    options = dict(resolution=20_000, use_emulator_error=False, progress=False)
    fine, coarse = (fit_abundances(emulator, observe(emulator, labels, snr, velocity), stars, mask, **options) for snr in (400, 40))
    ratio = coarse["Ca_Fe_err_noise"] / fine["Ca_Fe_err_noise"]
    assert np.all((ratio > 6) & (ratio < 16))
    counts = fit_abundances(emulator, observe(emulator, labels, 400, velocity, scale=3000.0), stars, mask, order=0, **options)
    assert np.abs((counts["Ca_Fe"] - fine["Ca_Fe"]).value).max() < 0.02
    assert np.all(counts["Ca_Fe_err_noise"] > fine["Ca_Fe_err_noise"])  # a free level costs


def test_errors_of_the_star_are_passed_on(emulator, lines):
    labels, velocity = dwarfs(emulator, 2), np.zeros(2)
    spectra, mask = observe(emulator, labels, 200, velocity), {"Ca_Fe": lines["Ca_Fe"]}
    with_error = known(emulator, labels, velocity, teff_err=np.array([0.0, 100.0]))
    options = dict(resolution=20_000, progress=False)
    table = fit_abundances(emulator, spectra, with_error, mask, **options)
    hotter = labels + np.eye(len(emulator.label_names))[0] * 100
    moved = fit_abundances(emulator, spectra, known(emulator, hotter, velocity), mask, **options)
    assert table["Ca_Fe_err"][0] == table["Ca_Fe_err_noise"][0]
    passed_on = np.sqrt(table["Ca_Fe_err"][1] ** 2 - table["Ca_Fe_err_noise"][1] ** 2)
    assert passed_on.value == pytest.approx(abs(moved["Ca_Fe"][1] - table["Ca_Fe"][1]).value, rel=0.25)


def test_what_is_not_seen_gets_a_limit_that_covers_the_truth(emulator, lines):
    labels = dwarfs(emulator, 40, teff=(4400, 5000))  # C I is weak in cool dwarfs
    labels[:, 4], velocity = -0.2, np.zeros(40)
    table = fit_abundances(emulator, observe(emulator, labels, 60, velocity), known(emulator, labels, velocity), {"C_Fe": lines["C_Fe"]}, resolution=20_000, progress=False)
    limit, unseen = table["C_Fe_upper_limit"].value, ~table["C_Fe_detected"]
    assert unseen.sum() > 30 and np.isnan(table["C_Fe"].value[unseen]).all() and np.isnan(table["C_Fe_err"].value[unseen]).all()
    given = unseen & np.isfinite(limit)
    open_end = FitFlag.UNCONSTRAINED_LABEL.value & table["C_Fe_flags"] != 0
    assert given.sum() > 10 and (limit[given] > -0.2).all() and (open_end == unseen & ~given).all()


def test_disagreeing_lines_widen_the_error(emulator, lines):
    labels, velocity = dwarfs(emulator, 1), np.zeros(1)
    spectra, stars, mask = observe(emulator, labels, 300, velocity), known(emulator, labels, velocity), lines["Mn_Fe"]
    flux = spectra.flux.copy()
    for k, centre in enumerate(mask.centre):  # every second line is from a list with wrong strengths
        near = np.abs(spectra.wave - centre) < 0.5
        flux[:, near] = 1 + (flux[:, near] - 1) * (1.25 if k % 2 else 0.8)
    wrong = Spectra(spectra.wave, flux, spectra.ivar, frame="air")
    good, bad = (fit_abundances(emulator, s, stars, {"Mn_Fe": mask}, resolution=20_000, progress=False) for s in (spectra, wrong))
    assert good["Mn_Fe_line_scatter"][0].value < 0.03 and 0.1 < bad["Mn_Fe_line_scatter"][0].value < 0.5
    apart = abs(bad["Mn_Fe"][0] - labels[0, emulator.label_names.index("Mn_Fe")] * bad["Mn_Fe"].unit)
    assert bad["Mn_Fe_err"][0] > 2 * good["Mn_Fe_err"][0] and apart < 3 * bad["Mn_Fe_err"][0]


def test_bad_stars_are_flagged_and_disturb_nobody(emulator, lines):
    labels, velocity = dwarfs(emulator, 4), np.array([0.0, 10.0, np.nan, -20.0])
    spectra = observe(emulator, labels, 100, np.nan_to_num(velocity))
    ivar, mask = spectra.ivar.copy(), lines["Ca_Fe"]
    ivar[1] = 0
    ivar[3, mask.covers(spectra.wave, 5.0)] = 0  # all that is left lies outside the windows
    hurt = Spectra(spectra.wave, spectra.flux, ivar, frame="air")
    options = dict(resolution=20_000, progress=False)
    table = fit_abundances(emulator, hurt, known(emulator, labels, velocity), {"Ca_Fe": mask}, **options)
    flags = [FitFlag(int(flag)) for flag in table["Ca_Fe_flags"]]
    assert not flags[0] and flags[1] == flags[2] == FitFlag.BAD_INPUT and flags[3] == FitFlag.FEW_PIXELS
    assert np.isnan(table["Ca_Fe"].value[1:]).all() and np.isnan(table["Ca_Fe_upper_limit"].value[1:]).all() and not table["Ca_Fe_detected"][1:].any()
    for others, atol in (([0, 3], 1e-9), ([0], 1e-5)):  # a star that is fitted may change the working grid
        alone = fit_abundances(emulator, hurt[others], known(emulator, labels[others], velocity[others]), {"Ca_Fe": mask}, **options)
        assert table["Ca_Fe"][0].value == pytest.approx(alone["Ca_Fe"][0].value, abs=atol)


def test_equivalent_width_slope_is_that_of_the_spectrum(emulator):
    labels, velocity = dwarfs(emulator, 1), np.array([30.0])
    mask = LineMask([5588.75], 0.8, 0.8)
    table = fit_abundances(emulator, observe(emulator, labels, 1000, velocity, step=0.02), known(emulator, labels, velocity), {"Ca_Fe": mask}, resolution=20_000, progress=False)
    at = emulator.label_names.index("Ca_Fe")
    inside = np.abs(emulator.wave - 5588.75) < 0.8  # sharp here, smeared there; nearly all of the light is in the window
    expected = -1000 * np.trapezoid(emulator.jacobian(labels)[0, at, inside], emulator.wave[inside])
    assert table["Ca_Fe_ew_slope"][0].value == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("masks, what", [
    ({"ca_fe": LineMask([5588.75])}, "Did you mean 'Ca_Fe'"), ({"Ca_Fe": LineMask([6122.2])}, "none of the 1 lines"), ({}, "no element")])
def test_masks_that_cannot_be(emulator, masks, what):
    labels, velocity = dwarfs(emulator, 1), np.zeros(1)
    with pytest.raises(SpectraError, match=what):
        fit_abundances(emulator, observe(emulator, labels, 100, velocity), known(emulator, labels, velocity), masks)


def test_recipe_recovers_stars_and_flags_the_empty_one(emulator):
    labels = dwarfs(emulator, 4)
    labels[:, 3], labels[:, [4, 8, 9]] = vmic_relation(*labels[:, :3].T), 0
    spectra = observe(emulator, labels, 150, np.full(4, 25.0), step=0.12)
    ivar = spectra.ivar.copy()
    ivar[2] = 0
    masks = {name: find_lines(emulator, name) for name in ("feh", "Mg_Fe", "Ca_Fe", "Ti_Fe")}
    options = dict(resolution=20_000, velocity=(-100, 100), progress=False)
    empty = Spectra(spectra.wave, spectra.flux, ivar, frame="air", ids=list("abcd"))
    result = fit_two_stages(emulator, empty, masks, broadening=(), fixed=dict(C_Fe=0.0, Y_Fe=0.0, Mn_Fe=np.zeros(4)), iterations=2, **options)
    table, good = result.table, np.array([0, 1, 3])
    assert list(table["id"]) == list("abcd") and FitFlag.BAD_INPUT in FitFlag(int(table["flags"][2])) and np.isnan(table["teff"][2])
    assert (np.abs(table["teff"].value - labels[:, 0])[good] < 60).all() and (np.abs(table["feh"].value - labels[:, 2])[good] < 0.05).all()
    for name in ("Ca_Fe", "Ti_Fe"):
        assert (np.abs(table[name].value - labels[:, emulator.label_names.index(name)]) < 5 * table[f"{name}_err"].value)[good].all(), name
    assert np.abs(table["velocity"].value[good] - 25).max() < 0.3 and (table["iterations"][good] > 1).all()
