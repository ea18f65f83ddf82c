"""Resampling and broadening: what must hold for any grid and any spectrum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectra_nn.core import SPEED_OF_LIGHT, SpectraError, log_grid
from spectra_nn.resample import broaden, covers, gaussian_kernel, interpolation_matrix, macroturbulence_kernel, pixel_edges, rebin_matrix, rotation_kernel, windows

lenient = settings(deadline=None, max_examples=60)
steps = st.lists(st.floats(0.05, 0.4), min_size=5, max_size=60)


def grid_of(steps: list[float], start: float = 5000.0) -> np.ndarray:
    return start + np.cumsum(steps)


@lenient
@given(old=steps, new=steps, offset=st.floats(-10, 10), seed=st.integers(0, 99))
def test_rebinning_is_the_mean_over_the_pixel(old, new, offset, seed):
    wave, new_wave = grid_of(old), grid_of(new, 5000 + offset)
    flux = np.random.default_rng(seed).uniform(0, 1, len(wave))
    edges, new_edges = pixel_edges(wave), pixel_edges(new_wave)
    integral = np.concatenate([[0], np.cumsum(flux * np.diff(edges))])
    light = np.diff(np.interp(new_edges, edges, integral))
    covered = np.diff(np.clip(new_edges, edges[0], edges[-1]))
    matrix = rebin_matrix(wave, new_wave)
    np.testing.assert_allclose((flux @ matrix.T) * covered, light, atol=1e-9)
    some = covered > 1e-9
    np.testing.assert_allclose(matrix.sum(axis=1)[some], 1, rtol=1e-12)
    np.testing.assert_array_equal(covers(wave, new_wave, 1.0)[some], (covered >= (1 - 1e-9) * np.diff(new_edges))[some])
    assert matrix.data.min(initial=0) >= 0


@lenient
@given(old=steps)
def test_identity_on_its_own_grid(old):
    wave = grid_of(old)
    np.testing.assert_allclose(rebin_matrix(wave, wave).toarray(), np.eye(len(wave)), atol=1e-9)
    for order in (1, 3):
        np.testing.assert_allclose(interpolation_matrix(wave, wave, order).toarray(), np.eye(len(wave)), atol=1e-9)
    assert covers(wave, wave, 1.0).all()


@lenient
@given(old=steps, at=st.lists(st.floats(0, 1), min_size=1, max_size=20), order=st.sampled_from([1, 3]))
def test_interpolation_is_exact_for_its_polynomials(old, at, order):
    wave = grid_of(old)
    new_wave = wave[0] + np.array(at) * (wave[-1] - wave[0])
    x, new_x = wave - 5000, new_wave - 5000
    for power in range(order + 1):
        np.testing.assert_allclose(x**power @ interpolation_matrix(wave, new_wave, order).T, new_x**power, atol=1e-6 * max(1, x[-1] ** power))


def test_nothing_is_invented_in_a_gap_or_outside():
    wave = np.r_[np.arange(5000, 5010, 0.1), np.arange(5100, 5110, 0.1)]
    assert len(windows(wave)) == 2
    nowhere = np.array([4990.0, 4990.5, 4991.0, 5050.0, 5050.5, 5051.0, 5120.0, 5120.5, 5121.0])
    for matrix in (rebin_matrix(wave, nowhere), interpolation_matrix(wave, nowhere, 1), interpolation_matrix(wave, nowhere, 3)):
        assert matrix.shape == (9, 200) and matrix.nnz == 0
    mixed = np.concatenate([start + np.array([0.0, 0.1, 0.2]) for start in (5005, 5050, 5105)])
    np.testing.assert_array_equal(covers(wave, mixed), mixed // 10 != 505)


@lenient
@given(make=st.sampled_from([gaussian_kernel, rotation_kernel, macroturbulence_kernel]), width=st.floats(0, 8), step=st.floats(0.05, 3))
def test_kernels_have_unit_area_and_are_even(make, width, step):
    velocity = step * np.arange(-int(50 / step) - 3, int(50 / step) + 4)
    kernel = make(velocity, width).numpy()
    np.testing.assert_allclose(kernel.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-12)
    variance = {gaussian_kernel: 1 / (8 * np.log(2)), rotation_kernel: (0.4 / 4 + 1.2 / 15) / 0.8, macroturbulence_kernel: 0.25}[make] * width**2
    np.testing.assert_allclose(kernel @ velocity**2, variance, atol=1e-3 * max(variance, step**2))


@lenient
@given(seed=st.integers(0, 99), vsini=st.floats(0, 60), vmac=st.floats(0, 10), resolution=st.one_of(st.none(), st.floats(2000, 1e6)))
def test_broadening_is_linear_and_keeps_the_equivalent_width(seed, vsini, vmac, resolution):
    options = dict(vsini=vsini, vmac=vmac, resolution=resolution)
    wave = log_grid(5000, 5060, 1.5)
    random = np.random.default_rng(seed)
    centres = random.uniform(5028, 5032, 3)
    line = 0.7 * np.exp(-0.5 * ((wave - centres[:, None]) / 0.06) ** 2)
    broadened = broaden(wave, np.concatenate([1 - line, [1 - line.sum(0)]]), **options)
    np.testing.assert_allclose(1 - broadened[3], (1 - broadened[:3]).sum(0), atol=1e-10)
    np.testing.assert_allclose((1 - broadened[:3]) @ np.gradient(np.log(wave)), line @ np.gradient(np.log(wave)), rtol=2e-3)
    assert broadened.max() < 1.003


@pytest.mark.parametrize("options", [dict(resolution=20_000), dict(vsini=30), dict(vmac=15), dict(resolution=50_000, vsini=10, vmac=5)])
def test_a_line_at_the_edge_does_not_come_back_at_the_other_end(options):
    wave = np.arange(5400, 5440, 0.02)
    flux = 1 - 0.8 * np.exp(-0.5 * ((wave - 5410) / 0.05) ** 2)
    cut = (wave > 5410.02) & (wave < 5420)
    safe = wave[cut] > 5410 + 5410 * 120 / SPEED_OF_LIGHT
    np.testing.assert_allclose(broaden(wave[cut], flux[cut], **options)[safe], broaden(wave, flux, **options)[cut][safe], atol=1e-5)


def test_the_callers_spectrum_stays():
    wave, flux = np.arange(5000, 5010, 0.02), np.ones(500, np.float32)
    flux.setflags(write=False)
    result = broaden(wave, flux, vsini=5)
    assert result.shape == flux.shape and result.dtype == np.float64
    result[:] = 0
    assert flux.min() == 1


def test_grids_that_are_refused():
    wave = np.arange(5000.0, 5010.0)
    for bad in (wave[::-1], np.r_[wave, wave[-1]], wave[:1], wave[None]):
        with pytest.raises(SpectraError, match="increasing grid"):
            rebin_matrix(bad, wave)
        with pytest.raises(SpectraError, match="increasing grid"):
            interpolation_matrix(bad, wave)
