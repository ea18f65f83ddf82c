"""Redshifts: found, honest, flagged, and each row on its own."""

import numpy as np
import pytest
import torch
from astropy.table import QTable

from spectra_nn.core import SPEED_OF_LIGHT, Spectra, SpectraError, asset, log_grid, stack_spectra
from spectra_nn.galaxy_autoencoder import load_galaxy_model
from spectra_nn.instruments import SDSS
from spectra_nn.redshift import (
    ErrorModel, RedshiftFlag, RedshiftResult, Template, calibrate_errors, chi_squared_curve, estimate_redshift, find_minima, find_spikes,
    leading_components, narrow_redshift_axes, one_grid_each, prepare_scan, prior_penalty, redshift_axes, refine_redshifts, refine, sharpen, template_basis,
)
from spectra_nn.restframe_basis import Population, RestBasis, redshifted, render
from spectra_nn.spectrum_files import info_column, read_spectra

torch.set_num_threads(1)
LINES = {3728: 8.0, 4341: 1.0, 4862: 3.0, 5008: 6.0, 6565: 10.0}
WAVE = 10 ** (3.58 + 1e-4 * np.arange(3800))


@pytest.fixture(scope="module")
def basis():
    """A continuum with a break, a slope, and emission lines, 2400–9500 Å."""
    rest = log_grid(2400.0, 9500.0, 69.03)
    wide = lambda at, width: np.exp(-0.5 * ((np.log(rest / at)) / width) ** 2)  # noqa: E731
    absorbed = 1 - 0.3 * sum(wide(at, 6e-4) for at in (3934, 3969, 4305, 5176, 5895))
    old = (1 - 0.5 / (1 + np.exp((rest - 4000) / 15))) * absorbed
    lines = sum(height * wide(at, 3.5e-4) for at, height in LINES.items())
    return RestBasis(rest, torch.as_tensor(np.stack([old, (rest / 5000) ** -2, lines])).float())


@pytest.fixture(scope="module")
def population():
    return Population(torch.tensor([0.8, 0.2, 0.1]).double(), torch.diag(torch.tensor([0.2, 0.2, 0.1]).double()), torch.tensor([1.0, 1.0, 0.0]).double())


def observe(basis, z, snr, seed=0, wave=WAVE):
    """Noisy galaxies of random mixtures."""
    rng = np.random.default_rng(seed)
    n = len(z)
    c = torch.as_tensor(np.stack([rng.uniform(0.5, 1, n), rng.uniform(0, 0.5, n), rng.uniform(0.02, 0.2, n)], 1)).float()
    flux = (render(basis.view(wave), torch.as_tensor(z))[0] @ c[..., None])[..., 0].numpy().astype(float)
    return Spectra(wave, flux + rng.standard_normal(flux.shape) / snr, np.full(flux.shape, snr**2), frame="vacuum", ids=[f"g{k}" for k in range(n)])


@pytest.fixture(scope="module")
def galaxies(basis):
    z = np.random.default_rng(3).uniform(0.02, 0.45, 60)
    return z, observe(basis, z, 6.0)


@pytest.fixture(scope="module")
def result(basis, galaxies):
    return estimate_redshift(basis, galaxies[1], (0.0, 0.5), errors=ErrorModel(1, 0), error_floor=0, progress=False)


def test_redshifts_and_errors(result, galaxies):
    z, _ = galaxies
    off = (result.table["z"] - z) / (1 + z)
    assert np.abs(off).max() < 5e-4 and (result.flags == 0).all()
    pulls = off / (result.table["z_err"] / (1 + z))
    assert 0.75 < np.std(pulls) < 1.3 and np.abs(pulls).max() < 4.5
    assert 0.9 < np.median(result.table["chi2"] / result.table["dof"]) < 1.1
    found = calibrate_errors(result, z)
    assert 0.7 < found.scale < 1.4 and found.floor < 10


def test_air_and_vacuum_are_the_same_galaxy(basis, galaxies, result):
    there = estimate_redshift(basis, galaxies[1][:3].to_frame("air"), (0.0, 0.5), errors=ErrorModel(1, 0), error_floor=0, progress=False)
    assert np.allclose(there.table["z"], result.table["z"][:3], atol=1e-6)


@pytest.mark.parametrize("wave", [np.arange(3800.0, 9200.0, 1.7), np.arange(3800.0, 9200.0, 0.6), 10 ** (3.58 + 1e-4 * np.arange(3800) + 3.3e-5)], ids=["wide", "narrow", "half a pixel off"])
def test_any_grid(basis, wave):
    z = np.array([0.07, 0.31, 0.44])
    there = estimate_redshift(basis, observe(basis, z, 8.0, wave=wave), (0.0, 0.5), progress=False)
    assert np.abs(there.table["z"] - z).max() < 2e-4


def test_a_bad_spectrum_spoils_no_other(basis, galaxies):
    _, spectra = galaxies
    few = spectra[:6]
    flux, ivar = few.flux.copy(), few.ivar.copy()
    flux[1], ivar[2], flux[4] = np.nan, 0, 1e30
    flux[5, 100], ivar[3, 200:] = 1e25, 0
    broken = estimate_redshift(basis, Spectra(few.wave, flux, ivar, frame="vacuum"), (0.0, 0.5), progress=False)
    alone = estimate_redshift(basis, few[[0]], (0.0, 0.5), progress=False)
    assert broken.table["z"][0] == pytest.approx(alone.table["z"][0], abs=1e-8)
    for name in ("z_err", "chi2", "delta_chi2"):
        assert broken.table[name][0] == pytest.approx(alone.table[name][0], rel=1e-4)
    assert broken.flags[1] == broken.flags[2] == RedshiftFlag.BAD_INPUT and np.isnan(broken.table["z"][[1, 2]]).all()
    assert broken.flags[3] & RedshiftFlag.SMALL_DELTA_CHI2 and broken.flags[4] and broken.flags[0] == 0
    assert np.isnan(broken.probability[1]).all() and np.isfinite(broken.probability[0]).all()


def test_order_and_grids_do_not_matter(basis, galaxies, result):
    _, spectra = galaxies
    parts = [Spectra(WAVE[k : k + 3600], s.flux[0, k : k + 3600], s.ivar[0, k : k + 3600], frame="vacuum", ids=s.ids) for k, s in ((0, spectra[[0]]), (50, spectra[[1]]), (150, spectra[[2]]))]
    linear = observe(basis, np.array([0.2]), 5.0, wave=np.linspace(3900.0, 9000.0, 3600))
    mixed = stack_spectra([parts[2], linear, parts[0], parts[1]])
    assert len(one_grid_each(stack_spectra(parts))) == 1 and len(one_grid_each(mixed)) > 1
    there = estimate_redshift(basis, mixed, (0.0, 0.5), progress=False)
    assert there.table["id"].tolist() == ["g2", "g0", "g0", "g1"]
    assert np.allclose(there.table["z"][[2, 3, 0]], result.table["z"][:3], atol=3e-4) and abs(there.table["z"][1] - 0.2) < 2e-4


def test_covering_less_never_wins(basis):
    "Half of the pixels are beyond the basis at most redshifts, and the spectrum is bright."
    short = RestBasis(basis.rest_wave[1200:3600], basis.basis[:, 1200:3600])
    z = np.array([0.05, 0.2, 0.35])
    there = estimate_redshift(short, observe(basis, z, 30.0), (0.0, 0.5), progress=False)
    assert np.abs(there.table["z"] - z).max() < 1e-3
    data = redshifted(observe(basis, z, 30.0), 0.0)
    curve = chi_squared_curve(prepare_scan(short, data.wave, np.arange(0, 0.4, basis.step)), data.flux, data.ivar)
    assert torch.isfinite(curve).all() and (curve >= 0).all()


def test_minima():
    x = torch.arange(200.0).double()
    curve = torch.stack([(x - 50.3).square().clamp_max(400) + 0.0 * x, 100 - 90 * torch.exp(-0.5 * ((x - 120.2) / 6) ** 2) - 40 * torch.exp(-0.5 * ((x - 30) / 6) ** 2)])
    where, value = find_minima(curve, 2)
    assert where[:, 0].tolist() == pytest.approx([50.3, 120.2], abs=0.02) and value[1].tolist() == pytest.approx([10, 60], abs=0.1)
    where, value = find_minima(torch.arange(50.0)[None], 3)
    assert where[0, 0] == 0 and torch.isinf(value[0, 1:]).all()


def test_cosmic_rays(basis, galaxies):
    z, spectra = galaxies
    flux = spectra.flux[:3].copy()
    flux[:, 2000] += 20
    spikes = find_spikes(redshifted(Spectra(spectra.wave, flux, spectra.ivar[:3], frame="vacuum"), 0.0, SDSS))
    assert spikes[:, 1999:2002].all() and spikes.sum() < 15
    bright = redshifted(observe(basis, z, 50.0), 0.0, SDSS)
    assert find_spikes(bright).float().sum(1).mean() < 1


def test_prior_decides_what_data_do_not(basis):
    z = np.array([0.25])
    noisy = observe(basis, z, 0.05)
    free = estimate_redshift(basis, noisy, (0.0, 0.5), progress=False)
    assert free.flags[0] & RedshiftFlag.SMALL_DELTA_CHI2
    near = lambda z: np.exp(-0.5 * ((z - 0.31) / 0.003) ** 2)  # noqa: E731
    grid = np.linspace(0, 0.5, 300)
    for prior in (near, (grid, near(grid))):
        told = estimate_redshift(basis, noisy, (0.0, 0.5), prior=prior, progress=False)
        assert abs(told.table["z"][0] - 0.31) < 0.01 and told.probability[0][np.abs(told.z_grid - 0.31) < 0.02].sum() > 0.99


def test_population_and_models(basis, population, galaxies, result):
    class Model:
        pass

    model = Model()
    model.basis, model.population = basis, population
    through = estimate_redshift(model, galaxies[1][:4], (0.0, 0.5), progress=False)
    given = estimate_redshift(basis, galaxies[1][:4], (0.0, 0.5), population=population, progress=False)
    assert np.array_equal(through.table["z"], given.table["z"]) and np.allclose(given.table["z"], result.table["z"][:4], atol=3e-4)


def test_leading_components_find_the_same(basis, population, galaxies):
    "A population of little width in its last axis needs two of three spectra; galaxies of the first two are found as well."

    class Model:
        pass

    model = Model()
    model.basis, model.population = basis, population
    z = np.random.default_rng(8).uniform(0.05, 0.4, 6)
    both = [estimate_redshift(model, observe(basis, z, 20.0, seed=6), (0.0, 0.5), n_component=n, n_sharpen=n, progress=False) for n in (3, 2)]
    assert both[0].coefficients.shape[1] == 3 and both[1].coefficients.shape[1] == 2 and np.abs(both[0].table["z"] - z).max() < 1e-3
    fewer, narrow = leading_components(basis, population, 2)
    assert torch.allclose(fewer.basis[0].double(), population.mean @ basis.basis.double(), rtol=1e-5) and narrow.direction.tolist() == [1, 0]
    right = estimate_redshift(fewer, observe(basis, z, 20.0, seed=6), (0.0, 0.5), population=narrow, progress=False)
    assert np.array_equal(right.table["z"], both[1].table["z"])
    mixed = estimate_redshift(model, observe(basis, z, 20.0, seed=6), (0.0, 0.5), n_component=2, n_sharpen=3, progress=False)
    assert mixed.coefficients.shape[1] == 3 and np.allclose(mixed.table["z"], both[0].table["z"], atol=2e-6) and np.allclose(mixed.table["z_err"], both[0].table["z_err"], rtol=0.02)
    assert np.isfinite(mixed.model_flux(0)).sum() > 3000


@pytest.fixture(scope="module")
def blurred(basis, population):
    "A basis with one spectrum more, as errors of 60 km/s in the redshifts of a catalogue make one, and its population."
    slope = torch.gradient(basis.basis[2])[0] / basis.step * 60 / SPEED_OF_LIGHT
    axes = torch.diag(torch.tensor([0.2, 0.2, 0.1, 0.1]).double())
    return RestBasis(basis.rest_wave.numpy(), torch.cat([basis.basis, slope[None]])), Population(torch.tensor([0.8, 0.2, 0.1, 0.0]).double(), axes, torch.tensor([1.0, 1.0, 0.0, 0.0]).double())


def test_axes_that_are_redshifts(basis, population, blurred, galaxies):
    "What a catalogue's errors have put into a basis is found, and is not to spoil redshifts."
    z, spectra = galaxies
    share = redshift_axes(*blurred)
    assert share[3] > 0.9 and share[:3].max() < 0.1
    narrowed = narrow_redshift_axes(*blurred)
    assert torch.allclose(narrowed.axes.diagonal() / blurred[1].axes.diagonal(), torch.tensor([1.0, 1.0, 1.0, 0.25]).double())
    assert narrow_redshift_axes(basis, population) is population
    data = redshifted(spectra, z)
    offsets = []
    for basis_, population_ in ((basis, population), (blurred[0], narrowed), blurred):
        view, penalty = basis_.view(data.wave), prior_penalty(population_, len(basis_))
        found = sharpen(view, data.flux, data.ivar, refine(view, data.flux, data.ivar, torch.log1p(data.z), penalty), penalty)
        offsets.append(float(((found.log_z - torch.log1p(data.z)) * SPEED_OF_LIGHT).std()))
    assert offsets[1] < 0.8 * offsets[2] and offsets[0] <= 1.1 * offsets[1], offsets


def test_training_redshifts_get_better(basis, population, galaxies):
    z, spectra = galaxies
    off = np.random.default_rng(2).normal(0, 60, len(z)) * (1 + z) / SPEED_OF_LIGHT
    wrong = np.arange(len(z)) < 3
    data = redshifted(spectra, np.where(wrong, z + 0.05, z + off))
    better = refine_redshifts(data, basis, population)
    left = (better.z.numpy() - z) / (1 + z) * SPEED_OF_LIGHT
    assert np.std(left[~wrong]) < 0.4 * np.std(off[~wrong]) * SPEED_OF_LIGHT and np.abs(left[wrong]).min() > 5000
    moved = np.log1p(better.z.numpy()) - np.log1p(data.z.numpy())
    assert abs(np.median(moved)) * SPEED_OF_LIGHT < 30 and torch.equal(better.flux, data.flux), "on average the catalogue is right"
    assert np.array_equal(refine_redshifts(data[:0], basis, population).z, data.z[:0])
    bad = redshifted(Spectra(spectra.wave, spectra.flux[:2], np.zeros_like(spectra.ivar[:2]), frame="vacuum"), z[:2])
    assert np.array_equal(refine_redshifts(bad, basis, population).z, bad.z), "nothing to see, nothing to change"


def test_flat_valleys_are_measured_over_two_pixels(basis):
    "A faint spectrum's χ² has ripples from one pixel to the next; its error must still be one."
    z = np.random.default_rng(5).uniform(0.05, 0.4, 40)
    data = redshifted(observe(basis, z, 0.7, seed=7), z)
    better = refine_redshifts(data, basis, furthest=1000.0, worst=1000.0)
    assert ((better.z - data.z) != 0).sum() >= 32, "valleys are found"
    view, penalty = basis.view(data.wave), prior_penalty(None, len(basis))
    near = refine(view, data.flux, data.ivar, torch.log1p(data.z), penalty)
    one, two = (sharpen(view, data.flux, data.ivar, near, penalty, apart).curvature for apart in (1.0, torch.full((40,), 2.0)))
    assert (two > 0).sum() > (one > 0).sum() and (two > 0).sum() >= 36


def test_errors_of_the_built_in_model():
    "Strong lines that few spectra cannot make are moved instead; twenty make them, and errors are what they say."
    survey = read_spectra(asset("mock_galaxies.npz"), progress=False)
    z, kind, snr, ew = (info_column(survey, f"truth_{name}") for name in ("z_true", "outlier", "snr", "ew_halpha"))
    usable = np.flatnonzero((kind == 0) & (snr >= 5) & (z > 0.01))
    lively = usable[np.argsort(-(ew * snr)[usable])][:25]
    rows = np.concatenate([lively, np.setdiff1d(usable, lively)[:75]])
    model, _ = load_galaxy_model(asset("sdss_mock.safetensors"))
    found = estimate_redshift(model, survey[rows], (0.0, 0.5), instrument=SDSS, keep_curves=False, progress=False)
    off = (found.table["z"] - z[rows]) / (1 + z[rows])
    pulls = off / (found.table["z_err"] / (1 + z[rows]))
    assert 0.75 < np.std(pulls) < 1.25 and np.abs(pulls).max() < 4.5 and 0.5 < np.std(pulls[:25]) < 1.5
    assert 1.4826 * np.median(np.abs(off)) < 2e-5 and np.std(off[:25]) < 1e-5


def test_negative_light_and_the_edge(basis, galaxies):
    z, spectra = galaxies
    upside_down = Spectra(spectra.wave, -spectra.flux[:2], spectra.ivar[:2], frame="vacuum")
    assert (estimate_redshift(basis, upside_down, (0.0, 0.5), progress=False).flags & RedshiftFlag.NEGATIVE_AMPLITUDE).all()
    beyond = estimate_redshift(basis, observe(basis, np.array([0.101]), 20.0), (0.1015, 0.3), progress=False)
    assert beyond.flags[0] & RedshiftFlag.AT_EDGE


def test_classes(basis, galaxies):
    rng = np.random.default_rng(0)
    wave = np.linspace(4200.0, 7000.0, 3000)
    stars = 1 - sum(rng.uniform(0.1, 0.5, (40, 1)) * np.exp(-0.5 * ((wave - at) / 4) ** 2) for at in rng.uniform(4300, 6900, 30))
    template = template_basis(Spectra(wave, stars, 1.0, frame="vacuum"), 6)
    star = np.interp(WAVE, wave * (1 + 2e-4), stars[7], left=1, right=1)
    both = Spectra(WAVE, np.stack([star + rng.standard_normal(len(WAVE)) / 10, galaxies[1].flux[0]]), np.stack([np.full(len(WAVE), 100.0), galaxies[1].ivar[0]]), frame="vacuum")
    for given in (template, Template(template), Spectra(wave, stars, 1.0, frame="vacuum")):
        found = estimate_redshift(basis, both, (0.0, 0.5), templates={"STAR": given}, progress=False)
        assert found.table["class"].tolist() == ["STAR", "GALAXY"] and found.table["class_margin"][0] < 0 < found.table["class_margin"][1]
        assert found.flags[0] & RedshiftFlag.OTHER_CLASS and not found.flags[1] & RedshiftFlag.OTHER_CLASS


def test_second_source(basis):
    galaxies = observe(basis, np.array([0.1, 0.3]), 20.0)
    other = render(basis.view(WAVE), torch.tensor([0.25]))[0][0] @ torch.tensor([0.1, 0.05, 0.05])
    blend = Spectra(WAVE, galaxies.flux + np.outer([1, 0], other), galaxies.ivar, frame="vacuum")
    found = estimate_redshift(basis, blend, (0.0, 0.5), progress=False)
    assert found.flags[0] & RedshiftFlag.SECOND_SOURCE and not found.flags[1] & RedshiftFlag.SECOND_SOURCE
    assert abs(found.table["z"][0] - 0.1) < 1e-3 and abs(found.table["second_z"][0] - 0.25) < 2e-3


def test_the_fainter_galaxy_with_lines_does_not_win_unnoticed():
    "Bright mock galaxies without lines and fainter ones full of them in one fibre: whichever redshift is found, the other is named."
    survey = read_spectra(asset("mock_galaxies.npz"), progress=False)
    z, forming, kind, snr = (info_column(survey, f"truth_{name}") for name in ("z_true", "ssfr", "outlier", "snr"))
    usable = (kind == 0) & (snr > 6) & (z > 0.05) & (z < 0.4)
    quiet, lively = np.flatnonzero(usable & (forming < -11.5))[:12], np.flatnonzero(usable & (forming > -10.0))[:12]
    lively = lively[np.argsort(z[lively])][::-1] if abs(z[quiet] - z[lively]).min() < 0.02 else lively
    keep = np.abs(z[quiet] - z[lively]) > 0.02
    quiet, lively = quiet[keep], lively[keep]
    share = 0.7 * np.median(survey.flux[quiet], 1) / np.median(survey.flux[lively], 1)
    variance = 1 / np.where(survey.ivar > 0, survey.ivar, np.inf)
    good = (survey.ivar[quiet] > 0) & (survey.ivar[lively] > 0)
    ivar = np.where(good, 1 / np.maximum(variance[quiet] + (share**2)[:, None] * variance[lively], 1e-30), 0.0)
    blends = Spectra(survey.wave, survey.flux[quiet] + share[:, None] * survey.flux[lively], ivar, frame="vacuum")
    model, _ = load_galaxy_model(asset("sdss_mock.safetensors"))
    found = estimate_redshift(model, blends, (0.0, 0.5), instrument=SDSS, progress=False)
    alone = estimate_redshift(model, survey[np.concatenate([quiet, lively])], (0.0, 0.5), instrument=SDSS, progress=False)
    lines_won = np.abs(found.table["z"] - z[lively]) < 1e-3
    assert len(quiet) >= 8 and lines_won.sum() >= 3, "otherwise this test is none"
    assert ((found.flags & RedshiftFlag.SECOND_SOURCE) > 0).mean() > 0.85 and (found.flags[lines_won] > 0).all()
    other = np.where(lines_won, z[quiet], z[lively])
    assert (np.abs(found.table["second_z"] - other) < 2e-3).mean() > 0.8
    assert ((alone.flags & RedshiftFlag.SECOND_SOURCE) > 0).sum() <= 1


def test_a_calibration_that_is_off_is_no_second_galaxy(basis, population):
    z = np.random.default_rng(5).uniform(0.05, 0.4, 20)
    x = np.linspace(-1, 1, len(WAVE))
    bent = observe(basis, z, 25.0, seed=4)
    bent = Spectra(WAVE, bent.flux * (1 + 0.04 * x**2 - 0.03 * x**3), bent.ivar, frame="vacuum")
    found = estimate_redshift(basis, bent, (0.0, 0.5), population=population, error_floor=0, progress=False)
    assert np.abs(found.table["z"] - z).max() < 1e-3
    assert ((found.flags & RedshiftFlag.SECOND_SOURCE) > 0).sum() <= 1


@pytest.fixture(scope="module")
def two_lines():
    """A flat continuum and two lines of different width, each of its own strength."""
    rest = log_grid(2400.0, 7000.0, 69.03)
    line = lambda at, width: np.exp(-0.5 * (np.log(rest / at) / width) ** 2)  # noqa: E731
    return RestBasis(rest, torch.as_tensor(np.stack([np.ones_like(rest), line(4000, 4e-4), line(5000, 6e-4)])).float())


def lined(basis, z, strengths, snr=5.0, seed=0):
    "A flat spectrum with its two lines."
    flux = (render(basis.view(WAVE), torch.tensor([z]))[0] @ torch.tensor([[1.0], [strengths[0]], [strengths[1]]]))[0, :, 0].numpy().astype(float)
    noise = np.random.default_rng(seed).standard_normal(len(WAVE)) / snr
    return Spectra(WAVE, (flux + noise)[None], np.full((1, len(WAVE)), snr**2), frame="vacuum")


def test_one_line_decides_nothing(two_lines):
    "The shape of one strong line is a large difference in χ², and yet no redshift; two lines are one."
    one = estimate_redshift(two_lines, lined(two_lines, 0.375, (8.0, 0.0)), (0.0, 0.5), error_floor=0, progress=False)
    both = estimate_redshift(two_lines, lined(two_lines, 0.375, (8.0, 2.0)), (0.0, 0.5), error_floor=0, progress=False)
    assert one.table["delta_chi2"][0] > 100 and one.table["delta_chi2_rest"][0] < 25 and one.flags[0] & RedshiftFlag.SMALL_DELTA_CHI2
    assert abs(both.table["z"][0] - 0.375) < 1e-4 and both.table["delta_chi2_rest"][0] > 100 and both.flags[0] == 0


def test_refined_minima_are_compared_over_the_same_pixels(two_lines):
    "At z = 0.1 the basis ends at 7700 Å and half as many pixels are explained as at z = 0.375: fewer pixels are no smaller χ²."
    unsure = estimate_redshift(two_lines, lined(two_lines, 0.375, (1.5, 0.0), seed=1), (0.0, 0.5), error_floor=0, progress=False)
    (best, _), (second, height) = unsure.minima[0][:2]
    assert abs(best - 0.375) < 1e-3 and abs(second - 0.1) < 1e-3 and (WAVE > 7000 * 1.1).sum() > 500
    heights = unsure.curves[0][[int(np.abs(unsure.z_grid - z).argmin()) for z in (best, second)]]
    assert abs(heights[1] - heights[0] - height) < 10, "the refinement changes χ² by a little, not by the pixels that are out of reach"


@pytest.mark.parametrize("suffix", ["fits", "ecsv"])
def test_files(result, tmp_path, suffix):
    result.write(tmp_path / f"z.{suffix}")
    again = RedshiftResult.read(tmp_path / f"z.{suffix}")
    assert isinstance(again.table, QTable) and again.summary() == result.summary()
    for name in ("z", "z_err", "flags", "minima_z", "minima_delta_chi2"):
        assert np.array_equal(again.table[name], result.table[name], equal_nan=True)
    assert again.table.meta["FLAG4"] == "SMALL_DELTA_CHI2" and again.minima[0] == result.minima[0]


def test_nothing_and_one(basis, galaxies):
    none = estimate_redshift(basis, galaxies[1][:0], (0.0, 0.5), progress=False)
    assert len(none) == 0 and none.probability.shape[0] == 0 and "0 spectra" in none.summary()
    one = estimate_redshift(basis, galaxies[1][[0]], (0.0, 0.5), n_best=1, keep_curves=False, progress=False)
    assert "delta_chi2" not in one.table.colnames and len(one.minima[0]) == 1
    with pytest.raises(SpectraError, match="keep_curves"):
        one.probability
    import matplotlib.pyplot as plt

    one.plot(0), plt.close("all")


@pytest.mark.parametrize("options, words", [
    (dict(z_range=(0.5, 0.1)), "z_range"), (dict(z_range=(0.1, 0.1)), "z_range"), (dict(z_range="high"), "z_range"), (dict(z_range=(9.0, 10.0)), "none of it"),
    (dict(model=torch.nn.Linear(2, 2)), "models? of galaxies"), (dict(prior=lambda z: np.full_like(z, np.nan)), "prior"), (dict(templates={"STAR": "K5"}), "'STAR'"), (dict(n_best=0), "n_best"),
])
def test_errors_say_what_is_wrong(basis, galaxies, options, words):
    with pytest.raises(SpectraError, match=words):
        estimate_redshift(**(dict(model=basis, spectra=galaxies[1][:2], progress=False) | options))
