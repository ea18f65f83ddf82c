"""What the chain from model to detector promises: right to a stated error, differentiable, no light from the other end."""

import numpy as np
import pytest
import torch

from spectra_nn.core import SPEED_OF_LIGHT, SpectraError, log_grid
from spectra_nn.observe import (
    BroadenedEmulator,
    Continuum,
    LineSpread,
    Observer,
    PixelGrid,
    ResolutionMatrix,
    fit_continuum,
    macroturbulence,
    rotate,
    shift,
)
from spectra_nn.resample import rotation_kernel

torch.set_num_threads(1)
REST = np.arange(5330.0, 5360.0, 0.02)
SIGMA = 4.0  # km/s


def spectrum(wave, seed=0):
    rng = np.random.default_rng(seed)
    centre, depth = rng.uniform(5328, 5362, 60), rng.uniform(0.1, 0.4, 60)
    offset = SPEED_OF_LIGHT * np.log(np.asarray(wave)[..., None] / centre) / SIGMA
    return 1 - (depth * np.exp(-0.5 * offset**2)).sum(-1)  # lines add up, so that every linear step can be checked by brute force


def smeared(wave, velocity, offsets, weights):
    """The spectrum seen at `wave` by brute force: shifted, and summed over a velocity kernel."""
    rest = np.asarray(wave)[..., None] / np.exp(np.arctanh((velocity + offsets) / SPEED_OF_LIGHT))
    return (spectrum(rest) * weights).sum(-1) / weights.sum(-1)


def gaussian(fwhm):
    offsets = np.linspace(-3, 3, 601) * fwhm
    return offsets, np.exp(-4 * np.log(2) * np.linspace(-3, 3, 601) ** 2) * np.ones_like(offsets)


@pytest.mark.parametrize("velocity", [0.0, 45.0, -480.0])
def test_line_spread_and_velocity(velocity):
    wave = np.linspace(5342, 5350, 150)
    seen, valid = Observer(REST, wave, line_spread=LineSpread(20_000), dtype=torch.float64)(torch.tensor(spectrum(REST)), velocity)
    assert valid.all() and abs(seen[0].numpy() - smeared(wave, velocity, *gaussian(SPEED_OF_LIGHT / 20_000))).max() < 1e-4


def test_integration_over_pixels_equals_a_dense_reference():
    """Uneven pixels, wide and narrow, line spread and velocity: the mean over each pixel."""
    wave = 5335 + np.cumsum(np.random.default_rng(1).uniform(0.1, 0.4, 40))
    grid = PixelGrid(wave)
    lower, upper = grid.edges()
    points, weights = np.polynomial.legendre.leggauss(16)
    inside = (lower + upper)[:, None] / 2 + (upper - lower)[:, None] / 2 * points
    for resolution, tolerance in ((20_000, 2e-5), (8_000, 2e-5)):
        seen, valid = Observer(REST, grid, line_spread=LineSpread(resolution), dtype=torch.float64)(torch.tensor(spectrum(REST)), 33.0)
        exact = smeared(inside, 33.0, *gaussian(SPEED_OF_LIGHT / resolution)) @ weights / 2
        assert valid.sum() > 35 and abs(seen[0].numpy() - exact)[valid[0]].max() < tolerance


def test_resolution_as_number_table_and_function_agree():
    wave, flux = np.linspace(5340, 5350, 100), torch.tensor(spectrum(REST))
    as_number, as_table, as_function = (Observer(REST, wave, line_spread=LineSpread(r), dtype=torch.float64)(flux)[0]
                                        for r in (15_000, ([5000, 6000], [15_000, 15_000]), lambda w: 15_000 + 0 * w))
    np.testing.assert_allclose(as_table, as_number, atol=3e-5)
    np.testing.assert_allclose(as_function, as_table, atol=1e-12)


def test_resolution_that_varies():
    spread = LineSpread(lambda w: 8_000 + 2_000 * (w - 5330))
    wave = np.linspace(5338, 5352, 200)
    seen, valid = Observer(REST, wave, line_spread=spread, dtype=torch.float64)(torch.tensor(spectrum(REST)))
    exact = [smeared(w, 0.0, *gaussian(SPEED_OF_LIGHT / r)) for w, r in zip(wave, spread.at(wave))]
    assert valid.all() and abs(seen[0].numpy() - exact).max() < 1e-4


def test_tabulated_profile_may_be_lopsided():
    offsets = np.linspace(-30, 60, 181)
    weights = np.exp(-0.5 * (offsets / np.where(offsets < 0, 6, 15)) ** 2)
    wave = np.linspace(5340, 5350, 100)
    seen, _ = Observer(REST, wave, line_spread=LineSpread(profile=(offsets, weights)), dtype=torch.float64)(torch.tensor(spectrum(REST)))
    assert abs(seen[0].numpy() - smeared(wave, 0.0, offsets, weights)).max() < 5e-4
    mirrored = smeared(wave, 0.0, -offsets, weights)
    assert abs(seen[0].numpy() - mirrored).max() > 0.01


def test_rotation_by_brute_force_and_on_a_cut_window():
    wave = log_grid(5330, 5360, 1.0)
    offsets = torch.linspace(-45, 45, 901, dtype=torch.float64)
    weights = rotation_kernel(offsets, 40.0).numpy()
    flux = torch.tensor(spectrum(wave))
    whole = rotate(wave, flux, 40.0)
    inside = slice(100, -100)
    assert abs(whole[inside].numpy() - smeared(wave[inside], 0.0, offsets.numpy(), weights)).max() < 1e-4
    cut = slice(300, 900)
    part = rotate(wave[cut], flux[cut], 40.0)
    np.testing.assert_allclose(part[45:-45], whole[cut][45:-45], atol=1e-12)  # nothing came round from the other end


def test_gradients_flow_through_rotation_turbulence_and_shift():
    wave = log_grid(5340, 5343, 1.0)
    flux = torch.tensor(spectrum(wave))

    def chain(vsini, vmac, velocity):
        return shift(wave, macroturbulence(wave, rotate(wave, flux, vsini)[None], vmac), velocity, new_wave=wave[30:-30])[0].square().sum()

    at = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (12.0, 5.0, 7.3)]
    assert torch.autograd.gradcheck(chain, at)


def test_rebinning_keeps_flux_and_errors():
    fine, coarse = np.arange(5330, 5340, 0.03), np.arange(5331, 5339, 0.11)
    flux, ivar = spectrum(fine)[None], np.full((1, len(fine)), 400.0)
    ivar[0, 50] = 0
    grid = PixelGrid(coarse)
    binned, binned_ivar = grid.rebin(fine, flux, ivar)
    spoiled = (grid.covariance(fine, (np.arange(len(fine)) == 50) * 1.0).diagonal() > 0)
    assert (binned_ivar[0][spoiled] == 0).all() and (binned_ivar[0][~spoiled] > 400).all() and spoiled.sum() in (1, 2)
    np.testing.assert_allclose(grid.rebin(fine, flux)[0], grid.rebin(fine, 2 * flux)[0] / 2)


def test_resolution_matrix_needs_its_pixels():
    bands = np.zeros((3, 50))
    bands[1] = 1
    wave = np.linspace(5340, 5350, 50)
    same, _ = Observer(REST, PixelGrid(wave), resolution_matrix=ResolutionMatrix(bands), dtype=torch.float64)(torch.tensor(spectrum(REST)))
    plain, _ = Observer(REST, PixelGrid(wave), dtype=torch.float64)(torch.tensor(spectrum(REST)))
    np.testing.assert_allclose(same, plain, atol=1e-12)
    with pytest.raises(SpectraError, match="51 pixels|50 pixels"):
        Observer(REST, PixelGrid(wave[:-1]), resolution_matrix=ResolutionMatrix(bands))


def test_continuum_procedures_treat_model_and_data_alike():
    wave, rng = np.linspace(5330, 5360, 900), np.random.default_rng(3)
    clean = spectrum(wave)
    bent = 40 * (1 + 0.3 * np.linspace(-1, 1, 900) ** 2)
    data = bent * clean + rng.normal(0, 0.2, 900)
    for options in (dict(pixels=clean > 0.99), dict()):
        of_data, of_model = (fit_continuum(wave, f, continuum=Continuum(3), **options)[0] for f in (data, clean))
        assert np.std(data / of_data - clean / of_model) < 0.02
    assert np.isnan(fit_continuum(wave, data, np.zeros_like(data))).all()


def test_refusals():
    with pytest.raises(SpectraError, match="sharpened"):
        Observer(REST, REST[100:200], line_spread=LineSpread(([5000, 6000], [9_000, 90_000])), rest_resolution=20_000)
    with pytest.raises(SpectraError, match="cannot be added"):
        BroadenedEmulator(type("Any", (), dict(label_names=("vsini",)))(), ("vsini",))
    with pytest.raises(SpectraError, match="vsini"):
        rotate(log_grid(5330, 5340, 1.0), torch.ones(len(log_grid(5330, 5340, 1.0))), float("nan"))
