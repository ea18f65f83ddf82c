"""What a fit promises: true labels within honest errors, no row touched by its neighbours, trouble flagged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import QTable

from spectra_nn.core import SPEED_OF_LIGHT, Spectra, SpectraError, asset, log_grid
from spectra_nn.emulator import Emulator
from spectra_nn.fitting import FitFlag, fit, fit_problem
from spectra_nn.line_masks import LineMask, mask_to_frame
from spectra_nn.observe import LineSpread, Observer, PixelGrid, ResolutionMatrix, rotate
from spectra_nn.resample import broaden
from spectra_nn.training_set import SpectralGrid

torch.set_num_threads(1)
REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "real" / "stars"


class AnalyticEmulator:
    """Lines whose depths are smooth functions of three labels: exact truth, exact derivatives, linear or sigmoid output."""

    label_names, label_units = ("teff", "logg", "feh"), ("K", "dex", "dex")
    label_bounds = np.array([[4000.0, 1.0, -2.0], [7000.0, 5.0, 0.5]])
    frame, resolution = "air", None

    def __init__(self, output_activation="identity", seed=0):
        rng = np.random.default_rng(seed)
        self.output_activation = output_activation
        self.wave = np.arange(5330.0, 5400.0, 0.02)
        n_line = 80
        centre = rng.uniform(5331, 5399, n_line)
        profile = np.exp(-0.5 * (SPEED_OF_LIGHT * np.log(self.wave[:, None] / centre) / 3.0) ** 2)
        scale = 1.0 if output_activation == "identity" else 5.0
        self.weight = torch.tensor(-scale * profile, dtype=torch.float32)
        self.bias = torch.full((len(self.wave),), 1.0 if output_activation == "identity" else 4.0)
        self.slopes = torch.tensor(rng.normal(0, 0.7, (3, n_line)) + np.array([[-1.0], [-0.2], [1.5]]))
        self.offset = torch.tensor(rng.normal(-1.5, 0.6, n_line))
        self.low, self.span = torch.tensor(self.label_bounds[0]), torch.tensor(np.ptp(self.label_bounds, axis=0))

    def hidden_and_jacobian(self, labels):
        x = (labels.double() - self.low) / self.span - 0.5
        depth = 0.8 * torch.sigmoid(x @ self.slopes + self.offset)
        slope = depth * (1 - depth / 0.8)
        return depth.float(), (slope[:, None] * self.slopes / self.span[:, None]).float()

    def hidden(self, labels):
        return self.hidden_and_jacobian(labels)[0]

    def predict(self, labels):
        flux = self.hidden_and_jacobian(torch.as_tensor(np.atleast_2d(labels)))[0] @ self.weight.T + self.bias
        return (torch.sigmoid(flux) if self.output_activation == "sigmoid" else flux).numpy()

    def error(self, labels):
        return np.full((len(labels), len(self.wave)), 0.002)

    def domain(self, labels):
        return ((labels >= self.label_bounds[0]) & (labels <= self.label_bounds[1])).all(1)


PIXELS = np.arange(5338.0, 5392.0, 0.06)
STAR = [5500.0, 3.2, -0.4]
OPTIONS = dict(resolution=20_000, use_emulator_error=False, progress=False)


@pytest.fixture(scope="module")
def emulator():
    return AnalyticEmulator()


def observe(emulator, labels, velocity, snr, seed=0, wave=PIXELS):
    labels = np.atleast_2d(np.asarray(labels, float))
    chain = Observer(emulator.wave, wave, line_spread=LineSpread(20_000), dtype=torch.float64)
    flux, valid = chain(torch.tensor(emulator.predict(labels)).double(), torch.as_tensor(velocity, dtype=torch.float64))
    error = np.broadcast_to(1 / np.reshape(np.asarray(snr, float), (-1, 1)), flux.shape)
    noisy = np.where(valid, flux, 1.0) + error * np.random.default_rng(seed).standard_normal(flux.shape)
    return Spectra.from_error(wave, noisy, np.where(valid, error, 0.0), frame="air")


def values(result, rows=slice(None)):
    return np.stack([result.table[name].value[rows] for name in result.parameter_names], 1)


def test_pulls(emulator):
    """200 stars at S/N 100 and velocities to ±500 km/s: differences from the truth scatter as the errors say."""
    rng = np.random.default_rng(2)
    truth, velocity = rng.uniform([4300, 1.5, -1.6], [6700, 4.5, 0.2], (200, 3)), rng.uniform(-500, 500, 200)
    stars = observe(emulator, truth, velocity, np.full(200, 100.0))
    ivar = stars.ivar.copy()
    result = fit(emulator, stars, **OPTIONS)
    pull = (values(result) - np.c_[truth, velocity]) / np.sqrt(np.diagonal(result.covariance, axis1=1, axis2=2))
    assert (result.flags == 0).all() and (abs(pull.mean(0)) < 0.25).all() and (abs(pull.std(0) - 1) < 0.15).all()
    assert np.array_equal(stars.ivar, ivar)
    assert np.corrcoef(pull.T)[0, 1] ** 2 < 0.9  # labels are not the same thing twice


@pytest.mark.parametrize("velocity", [45.0, -480.0, 990.0])
def test_velocity_is_found(emulator, velocity):
    result = fit(emulator, observe(emulator, STAR, [velocity], [100.0]), **OPTIONS)
    assert abs(result.table["velocity"].value[0] - velocity) < 0.1 and result.flags[0] == 0


def test_errors_follow_the_noise(emulator):
    pair = fit(emulator, observe(emulator, [STAR, STAR], [10.0, 10.0], [20.0, 200.0]), **OPTIONS)
    errors = np.sqrt(np.diagonal(pair.covariance, axis1=1, axis2=2))
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.15)


def test_error_of_the_emulator_enlarges_errors(emulator):
    stars = observe(emulator, STAR, [10.0], [1000.0])
    without, with_error = fit(emulator, stars, **OPTIONS), fit(emulator, stars, **(OPTIONS | dict(use_emulator_error=True)))
    np.testing.assert_allclose(with_error.table["teff_err"] / without.table["teff_err"], np.hypot(1, 2), rtol=0.1)


def test_bad_stars_touch_nobody(emulator):
    stars = observe(emulator, [STAR] * 10, np.linspace(-200, 200, 10), np.full(10, 80.0))
    flux, ivar = stars.flux.copy(), stars.ivar.copy()
    flux[3], ivar[7] = np.inf, 0
    flux[5] = 1e30
    spoiled = replace(stars, flux=flux, ivar=ivar, mask=None)
    clean, result = fit(emulator, stars, **OPTIONS), fit(emulator, spoiled, **OPTIONS)
    others = [i for i in range(10) if i not in (3, 5, 7)]
    np.testing.assert_allclose(values(result, others), values(clean, others), rtol=1e-6, atol=1e-6)
    assert (result.flags[[3, 7]] == FitFlag.BAD_INPUT).all() and np.isnan(values(result, [3, 7])).all() and result.flags[5] != 0


def test_order_and_batch_do_not_matter(emulator):
    stars = observe(emulator, np.random.default_rng(0).uniform([4500, 2, -1], [6500, 4, 0], (7, 3)), np.linspace(-50, 90, 7), np.full(7, 60.0))
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    whole, shuffled, single = fit(emulator, stars, **OPTIONS), fit(emulator, stars[order], **OPTIONS), fit(emulator, stars, chunk=1, **OPTIONS)
    np.testing.assert_allclose(values(shuffled), values(whole)[order], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(values(single), values(whole), rtol=1e-6, atol=1e-6)
    assert shuffled.table["id"].tolist() == [stars.ids[i] for i in order]


def rows_round_alike():
    """Whether this machine's matrix products of four rows are those of sixty-four, bit by bit: on x86 they are."""
    generator = torch.Generator().manual_seed(0)
    products = []
    for dtype in (torch.float32, torch.float64):
        a, b = torch.randn(64, 250, generator=generator, dtype=dtype), torch.randn(250, 2000, generator=generator, dtype=dtype)
        products.append(torch.equal(a[20:24] @ b, (a @ b)[20:24]))
    return all(products)


@pytest.mark.skipif(not rows_round_alike(), reason="matrix products on this machine round by the number of rows, which is worth hundredths of an error bar")
@pytest.mark.parametrize("options", [{}, {"robust": True, "continuum": 5}, {"free": ("teff", "logg", "feh", "Mg_Fe", "vsini"), "use_emulator_error": True}], ids=["plain", "robust", "rotating"])
def test_no_star_feels_its_neighbours(options):
    """With the built-in emulator and hardly constrained labels: alone, in another order, and beside stars that have gone bad, all is the same to 1e-6 of an error bar."""
    emulator, n, rng = Emulator.load(asset("hr10_turbospectrum.safetensors")), 70, np.random.default_rng(4)
    low, high = emulator.label_bounds
    labels, velocity = rng.uniform(0.6 * low + 0.4 * high, 0.4 * low + 0.6 * high, (n, len(low))), rng.uniform(-200, 200, n)
    stars = observe(emulator, labels, velocity, np.full(n, 60.0), wave=np.arange(5340.0, 5610.0, 0.08))
    flux, ivar, bad = stars.flux.copy(), stars.ivar.copy(), [3, 31, 65]
    flux[3], flux[31], ivar[65] = np.nan, rng.normal(size=flux.shape[1]), 0
    options = OPTIONS | options
    whole, spoiled = fit(emulator, stars, **options), fit(emulator, replace(stars, flux=flux, ivar=ivar, mask=None), **options)
    error = np.sqrt(np.diagonal(whole.covariance, axis1=1, axis2=2))
    few, others = rng.permutation(n)[:9], np.delete(np.arange(n), bad)
    for found, rows in ((values(spoiled, others), others), (values(fit(emulator, stars[few], **options)), few), (values(fit(emulator, stars[5:6], **options)), [5])):
        assert np.nanmax(abs(found - values(whole, rows)) / error[rows]) < 1e-6


def test_own_grid_per_star(emulator):
    shared = observe(emulator, [STAR] * 3, [20.0] * 3, [60.0] * 3)
    own = Spectra(np.stack([PIXELS] * 3), shared.flux, shared.ivar, frame="air")
    np.testing.assert_allclose(values(fit(emulator, own, **OPTIONS)), values(fit(emulator, shared, **OPTIONS)), rtol=1e-6)


def test_pixels_beyond_the_emulator_cost_and_change_nothing(emulator):
    """A spectrum from 4000 to 7000 Å is fitted like its part that the emulator knows."""
    part = observe(emulator, STAR, [20.0], [60.0])
    wave = np.r_[np.arange(4000.0, 5300.0, 0.5), PIXELS, np.arange(5430.0, 7000.0, 0.5)]
    flux, ivar = np.ones((1, len(wave))), np.ones((1, len(wave)))
    inside = (wave >= PIXELS[0]) & (wave <= PIXELS[-1])
    flux[:, inside], ivar[:, inside] = part.flux, part.ivar
    whole = fit(emulator, Spectra(wave, flux, ivar, frame="air"), velocity=(-300, 300), **OPTIONS)
    np.testing.assert_allclose(values(whole), values(fit(emulator, part, velocity=(-300, 300), **OPTIONS)), rtol=1e-5)
    assert whole.good.shape == flux.shape and not whole.good[:, ~inside].any()
    assert np.isfinite(whole.model_flux(0)[whole.good[0]]).all() and np.isnan(whole.model_flux(0)[:100]).all()


def test_sigmoid_output_needs_no_other_fit():
    emulator = AnalyticEmulator("sigmoid")
    result = fit(emulator, observe(emulator, STAR, [-70.0], [200.0]), **OPTIONS)
    errors = np.sqrt(np.diagonal(result.covariance[0]))
    assert (abs(values(result)[0] - [*STAR, -70.0]) < 4 * errors).all() and result.table["chi2"][0] / result.table["dof"][0] < 1.2


def test_flux_in_any_unit(emulator):
    stars = observe(emulator, STAR, [20.0], [60.0])
    tiny = replace(stars, flux=stars.flux * 3e-17, ivar=stars.ivar / 3e-17**2)
    np.testing.assert_allclose(values(fit(emulator, tiny, **OPTIONS)), values(fit(emulator, stars, **OPTIONS)), rtol=1e-4)


def test_noise_alone_is_flagged(emulator):
    rng = np.random.default_rng(4)
    noise = Spectra.from_error(PIXELS, rng.normal(1, 0.02, (20, len(PIXELS))), np.full((20, len(PIXELS)), 0.02), frame="air")
    assert (fit(emulator, noise, **OPTIONS).flags & FitFlag.VELOCITY_UNRELIABLE).all()


def test_label_at_its_bound_is_flagged(emulator):
    hot = observe(emulator, [[7600.0, 3.0, 0.3]], [0.0], [300.0])
    result = fit(emulator, hot, **OPTIONS)
    assert result.flags[0] & FitFlag.AT_BOUND and not np.isclose(result.table["teff"].value[0], 7600)


def test_label_at_its_bound_is_named(emulator):
    """The column says which parameter stands at a bound, and nothing for stars in order."""
    pair = observe(emulator, [[7600.0, 3.0, 0.3], STAR], [0.0, 0.0], [300.0, 100.0])
    result = fit(emulator, pair, **OPTIONS)
    assert "teff" in result.table["at_bound"][0].split() and result.table["at_bound"][1] == ""


@pytest.mark.parametrize("vsini", [5.0, 15.0, 50.0, 100.0])
def test_rotation_is_fitted(emulator, vsini):
    """Truth made by another route: `rotate` on a fine grid of the restframe spectrum."""
    fine = log_grid(emulator.wave[0], emulator.wave[-1], 0.9)
    sharp = emulator.predict(np.array([STAR]))[0].astype(float)
    turning = rotate(fine, torch.from_numpy(np.interp(fine, emulator.wave, sharp)), vsini)
    flux, valid = Observer(fine, PIXELS, line_spread=LineSpread(20_000), dtype=torch.float64)(turning, 30.0)
    flux = np.where(valid, flux, 1.0) + np.random.default_rng(1).normal(0, 0.01, flux.shape)
    star = Spectra(PIXELS, flux, np.where(valid, 1e4, 0.0), frame="air")
    result = fit(emulator, star, free=[*emulator.label_names, "vsini"], **OPTIONS)
    found, error = result.table["vsini"].value[0], result.table["vsini_err"].value[0]
    assert abs(found - vsini) < 4 * error and error < 1 + 0.05 * vsini and result.flags[0] == 0
    assert abs(result.table["teff"].value[0] - STAR[0]) < 4 * result.table["teff_err"].value[0]
    residual = (flux[0] - result.model_flux(0))[result.good[0]] * 100
    np.testing.assert_allclose((residual**2).sum(), result.table["chi2"][0], rtol=1e-3)


def test_resolution_per_star_and_as_table(emulator):
    stars = observe(emulator, [STAR] * 2, [20.0] * 2, [60.0] * 2)
    number, array, table = (values(fit(emulator, stars, **(OPTIONS | dict(resolution=r))))
                            for r in (20_000.0, np.array([20_000.0, 20_000.0]), ([5000.0, 6000.0], [20_000.0, 20_000.0])))
    errors = np.sqrt(np.diagonal(fit(emulator, stars, **OPTIONS).covariance, axis1=1, axis2=2))
    assert (abs(array - number) < 0.02 * errors).all() and (abs(table - number) < 0.05 * errors).all()


def test_resolution_matrix_per_star(emulator):
    """Two stars through fibres of different resolution, pixels integrated: each matrix belongs to its star."""
    sigma = np.array([[1.8], [3.0]])[..., None]
    offset = np.arange(-9, 10)[:, None]
    bands = np.broadcast_to(np.exp(-0.5 * (offset / sigma) ** 2) / np.exp(-0.5 * (offset / sigma) ** 2).sum(1, keepdims=True), (2, 19, len(PIXELS))).copy()
    chain = Observer(emulator.wave, PixelGrid(PIXELS), resolution_matrix=ResolutionMatrix(bands), dtype=torch.float64)
    flux, valid = chain(torch.tensor(emulator.predict(np.array([STAR] * 2))).double(), torch.tensor([30.0, -60.0]))
    inner = valid.numpy() & (np.arange(len(PIXELS)) >= 10) & (np.arange(len(PIXELS)) < len(PIXELS) - 10)
    noisy = np.where(inner, flux, 1.0) + np.random.default_rng(2).normal(0, 0.01, flux.shape)
    stars = Spectra(PIXELS, noisy, np.where(inner, 1e4, 0.0), frame="air")
    options = OPTIONS | dict(resolution=ResolutionMatrix(bands))
    result = fit(emulator, stars, **options)
    errors = np.sqrt(np.diagonal(result.covariance, axis1=1, axis2=2))
    assert (abs(values(result) - np.c_[[STAR] * 2, [30.0, -60.0]]) < 4.5 * errors).all() and (result.flags == 0).all()
    swapped = fit(emulator, stars, **(options | dict(resolution=ResolutionMatrix(bands[::-1].copy()))))
    assert (swapped.table["chi2"] > 1.3 * result.table["chi2"]).all()
    part = fit(emulator, stars, windows=[(5350, 5380)], **options)
    assert (part.table["chi2"] < 1.25 * part.table["dof"]).all()  # the ends of the window see the light from beyond
    residual = (noisy[1] - result.model_flux(1))[result.good[1]] * 100
    np.testing.assert_allclose((residual**2).sum(), result.table["chi2"][1], rtol=1e-3)


def test_integration_is_a_matter_of_what_resolution_means(emulator):
    """Pixels as wide as the lines: a model that is only sampled does not fit."""
    wave = np.arange(5340.0, 5390.0, 0.3)
    chain = Observer(emulator.wave, PixelGrid(wave), line_spread=LineSpread(20_000), dtype=torch.float64)
    flux, _ = chain(torch.tensor(emulator.predict(np.array([STAR]))).double(), 12.0)
    star = Spectra(wave, flux.numpy() + np.random.default_rng(3).normal(0, 0.003, flux.shape), np.full(flux.shape, 0.003**-2.0), frame="air")
    integrated, sampled = (fit(emulator, star, integrate=flag, **OPTIONS).table for flag in (True, False))
    assert integrated["chi2"][0] < 1.4 * integrated["dof"][0] and sampled["chi2"][0] > 2 * integrated["chi2"][0]


def test_useless_label_is_flagged(emulator):
    """A window without lines constrains no label."""
    stars = observe(emulator, STAR, [0.0], [3.0])
    flags = fit(emulator, stars, velocity=0.0, **OPTIONS).flags[0]
    assert flags & FitFlag.UNCONSTRAINED_LABEL


def test_model_flux_is_the_model(emulator):
    stars = observe(emulator, STAR, [33.0], [50.0])
    result = fit(emulator, stars, **OPTIONS)
    residual = (stars.flux[0] - result.model_flux(0)) * np.sqrt(stars.ivar[0])
    np.testing.assert_allclose(np.nansum(residual[result.good[0]] ** 2), result.table["chi2"][0], rtol=1e-3)


def test_refusals(emulator):
    stars = observe(emulator, STAR, [0.0], [50.0])
    for options, message in ((dict(free=["tef"]), "Did you mean 'teff'"), (dict(fixed={"fe_h": 0}), "no label of this emulator"),
                             (dict(priors={"teff": (9000, 10)}), "outside the training range")):
        with pytest.raises(SpectraError, match=message):
            fit(emulator, stars, **(OPTIONS | options))
    blunt = AnalyticEmulator()
    blunt.resolution = 5_000
    with pytest.raises(SpectraError, match="cannot be sharpened"):
        fit(blunt, stars, **OPTIONS)
    unknown = AnalyticEmulator()
    unknown.frame = ""
    with pytest.raises(SpectraError, match="air or in vacuum"):
        fit(unknown, stars, **OPTIONS)


def test_vacuum_spectra_with_an_air_emulator(emulator):
    stars = observe(emulator, STAR, [0.0], [100.0])
    as_air, converted = (fit(emulator, s, **OPTIONS).table["velocity"].value[0] for s in (stars, stars.to_frame("vacuum")))
    assert abs(as_air - converted) < 0.05


class SlopedEmulator(AnalyticEmulator):
    """The same, with lines that err in depth, many together."""

    def __init__(self):
        super().__init__()
        strength = np.random.default_rng(8).normal(0, 0.004, (self.weight.shape[1], 6))  # of each line, all along it
        self.error_components = (self.weight.numpy() @ strength).T
        self.total = np.sqrt((self.error_components**2).sum(0))

    def error(self, labels):
        return np.tile(self.total, (len(labels), 1))

    def error_factor(self, labels):
        return np.ones(len(labels))


def test_correlated_errors_of_the_emulator_reach_the_labels():
    """Stars that differ from the model by random mixtures of its error spectra: only who knows of the mixtures has pulls of 1."""
    emulator, rng = SlopedEmulator(), np.random.default_rng(5)
    truth = rng.uniform([4500, 1.5, -1.2], [6500, 4.5, 0.1], (150, 3))
    flux = emulator.predict(truth) + rng.normal(0, 1, (150, 6)) @ emulator.error_components
    chain = Observer(emulator.wave, PIXELS, line_spread=LineSpread(20_000), dtype=torch.float64)
    seen, valid = chain(torch.tensor(flux).double(), 20.0)
    stars = Spectra.from_error(PIXELS, np.where(valid, seen, 1) + rng.normal(0, 1 / 300, seen.shape), np.where(valid, 1 / 300, 0.0), frame="air")
    result = fit(emulator, stars, resolution=20_000, progress=False)
    pull = (values(result) - np.c_[truth, np.full(150, 20.0)]) / np.sqrt(np.diagonal(result.covariance, axis1=1, axis2=2))
    emulator.error_components = None
    alone = fit(emulator, stars, resolution=20_000, progress=False)
    naive = (values(alone) - np.c_[truth, np.full(150, 20.0)]) / np.sqrt(np.diagonal(alone.covariance, axis1=1, axis2=2))
    assert (abs(pull[:, :3].std(0) - 1) < 0.25).all() and (naive[:, :3].std(0) > 1.3 * pull[:, :3].std(0)).all()


def test_held_out_synthetic_spectra(tmp_path):
    """Turbospectrum spectra that the built-in emulator has not seen, 100 Å of each: errors, those of the emulator included, are what they say."""
    import tarfile

    emulator = Emulator.load(asset("hr10_turbospectrum.safetensors"))
    unseen = set(emulator.info.provenance["training_set"]["held_out_names"])
    with tarfile.open(asset("hr10_specs.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    grid = SpectralGrid.prepare(tmp_path / "hr10_specs", windows=[(5330, 5430)], step=0.02, progress=False)
    rows = np.array([i for i, name in enumerate(grid.file_names) if Path(name).name in unseen])
    chain = Observer(grid.wave, np.arange(5334, 5426, 0.05), line_spread=LineSpread(19_800), dtype=torch.float64)
    flux = chain(torch.tensor(np.asarray(grid.flux[rows])).double(), 25.0)[0].numpy()
    stars = Spectra(chain.wave, flux + np.random.default_rng(0).normal(0, 0.005, flux.shape), np.full(flux.shape, 4e4), frame="air")
    result = fit(emulator, stars, resolution=19_800, velocity=(-200, 200), progress=False)
    error, span = np.sqrt(np.diagonal(result.covariance, axis1=1, axis2=2))[:, :-1], np.ptp(emulator.label_bounds, axis=0)
    pull = ((values(result)[:, :-1] - grid.labels[rows]) / error)[error < 0.1 * span]
    assert len(rows) > 20 and len(pull) > 120 and 0.75 < pull.std() < 1.3 and abs(pull.mean()) < 0.25
    assert abs(result.table["velocity"].value - 25).max() < 1


def test_the_minimum_is_reached(emulator):
    """At the fitted parameters a Newton step promises next to nothing."""
    rng = np.random.default_rng(12)
    stars = observe(emulator, rng.uniform([4400, 1.5, -1.5], [6600, 4.5, 0.2], (40, 3)), rng.uniform(-100, 100, 40), rng.uniform(30, 150, 40))
    result = fit(emulator, stars, **OPTIONS)
    found = fit_problem(result).evaluate(torch.tensor(values(result)), torch.arange(40))
    promised = (found.gradient * torch.linalg.solve(found.hessian, found.gradient)).sum(1)
    assert promised.median() < 1e-3 and promised.max() < 0.05


def test_threads_change_nothing(emulator):
    stars = observe(emulator, [STAR] * 40, np.linspace(-90, 90, 40), np.full(40, 80.0))
    one = fit(emulator, stars, chunk=16, **OPTIONS)
    torch.set_num_threads(2)
    two = fit(emulator, stars, chunk=16, **OPTIONS)
    after = torch.get_num_threads()
    torch.set_num_threads(1)
    assert after == 2
    np.testing.assert_allclose(values(two), values(one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vsini", [5.0, 20.0, 50.0, 100.0])
def test_rotation_from_windows_around_lines(vsini):
    """Windows of ±1.25 Å around sixteen lines, as the 4MOST recipe has them: rotation does not wrap around their ends."""
    emulator = AnalyticEmulator()
    fine = log_grid(emulator.wave[0], emulator.wave[-1], 0.9)
    turning = rotate(fine, torch.from_numpy(np.interp(fine, emulator.wave, emulator.predict(np.array([STAR]))[0].astype(float))), vsini)
    flux, valid = Observer(fine, PIXELS, line_spread=LineSpread(20_000), dtype=torch.float64)(turning, 120.0)
    flux = np.where(valid, flux, 1.0) + np.random.default_rng(2).normal(0, 0.005, flux.shape)
    star = Spectra(PIXELS, flux, np.where(valid, 4e4, 0.0), frame="air")
    mask = LineMask(np.linspace(5342, 5386, 16), 1.25, 1.25)
    result = fit(emulator, star, free=[*emulator.label_names, "vsini"], line_mask=mask, continuum=1, **OPTIONS)
    error = result.table["vsini_err"].value[0]
    assert abs(result.table["vsini"].value[0] - vsini) < 4 * error and error < 1 + 0.06 * vsini
    assert abs(result.table["velocity"].value[0] - 120) < max(0.2, 4 * result.table["velocity_err"].value[0])


def test_line_mask_moves_with_the_star(emulator):
    stars = observe(emulator, [STAR] * 2, [-300.0, 250.0], [100.0] * 2)
    mask = LineMask(np.array([5350.0, 5362.0, 5375.0]), 1.5, 1.5)
    result = fit(emulator, stars, line_mask=mask, **OPTIONS)
    for row, velocity in enumerate((-300.0, 250.0)):
        assert abs(result.table["velocity"].value[row] - velocity) < 0.5
        rest = PIXELS / (1 + velocity / SPEED_OF_LIGHT)
        inside = (abs(rest[:, None] - mask.centre) < 1.5).any(1)
        assert (result.good[row] & ~inside).sum() <= 6 and result.good[row].sum() > 0.9 * inside.sum()
    in_vacuum = fit(emulator, stars, line_mask=mask_to_frame(mask, "vacuum"), **OPTIONS)
    assert (in_vacuum.good != result.good).sum() <= 4


def test_systematic_floor(emulator):
    """With errors of the spectrum far below the floor, the floor is what counts, whatever the flux unit."""
    stars = observe(emulator, STAR, [10.0], [100.0])
    sure = replace(stars, flux=stars.flux * 500, ivar=stars.ivar * 1e4 / 500**2)
    honest, floor = fit(emulator, stars, **OPTIONS), fit(emulator, sure, systematic=0.01, **OPTIONS)
    np.testing.assert_allclose(floor.table["teff_err"], honest.table["teff_err"], rtol=0.15)
    assert 0.8 < floor.table["chi2"][0] / floor.table["dof"][0] < 1.5
    with pytest.raises(SpectraError, match="part of the flux"):
        fit(emulator, stars, systematic=3, **OPTIONS)


def test_priors_and_fixed_labels_per_star(emulator):
    stars = observe(emulator, [STAR] * 3, [20.0] * 3, [15.0] * 3)
    result = fit(emulator, stars, priors={"logg": ([2.8, 3.2, 3.6], [0.01, 0.01, 5.0])}, **OPTIONS)
    np.testing.assert_allclose(result.table["logg"].value[:2], [2.8, 3.2], atol=0.03)
    assert result.table["logg_err"].value[2] > 0.03
    alone = fit(emulator, stars[1:2], priors={"logg": (3.2, 0.01)}, **OPTIONS)
    np.testing.assert_allclose(values(alone)[0], values(result)[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(SpectraError, match="2 values for 3"):
        fit(emulator, stars, priors={"logg": ([3, 3], 0.1)}, **OPTIONS)
    with pytest.raises(SpectraError, match="outside the training range"):
        fit(emulator, stars, priors={"logg": ([3, 3, 9], 0.1)}, **OPTIONS)


def test_fixed_labels_from_a_table(emulator):
    stars = replace(observe(emulator, [STAR] * 3, [20.0] * 3, [50.0] * 3), ids=["a", "b", "c"])
    catalogue = QTable({"id": ["c", "x", "a", "b"], "logg": [3.3, 1.0, 3.1, 3.2], "magnitude": [9.0, 8, 7, 6]})
    result = fit(emulator, stars, fixed=catalogue, **OPTIONS)
    assert result.table["logg"].value.tolist() == [3.1, 3.2, 3.3] and "logg" not in result.parameter_names
    rows = fit(emulator, stars, fixed=QTable({"logg": [3.1, 3.2, 3.3]}), **OPTIONS)
    np.testing.assert_array_equal(values(rows), values(result))
    for table, message in ((catalogue[:2], "no row for 'a' and 1 others"), (QTable({"id": ["a", "b", "c"], "mass": [1, 1, 1]}), "none of which is a label"),
                           (catalogue[[0, 1, 2, 3, 3]], "same id")):
        with pytest.raises(SpectraError, match=message):
            fit(emulator, stars, fixed=table, **OPTIONS)


def test_stars_beyond_the_grid_come_back_flagged(emulator):
    """More metal-poor, cooler and larger than anything the emulator was trained on."""
    beyond = observe(emulator, [[5500, 3.2, -3.4], [3300, 3.0, 0.0], [5500, 7.5, -0.4]], [0.0] * 3, [150.0] * 3)
    flags = fit(emulator, beyond, **OPTIONS).flags
    assert (flags & (FitFlag.AT_BOUND | FitFlag.OUTSIDE_DOMAIN)).all()


def test_a_grid_of_any_size(emulator):
    wave = np.linspace(5340.0, 5391.0, 1234)
    star = observe(emulator, STAR, [45.0], [100.0], wave=wave)
    result = fit(emulator, star, **OPTIONS)
    errors = np.sqrt(np.diagonal(result.covariance[0]))
    assert result.model_flux(0).shape == (1234,) and (abs(values(result)[0] - [*STAR, 45.0]) < 4 * errors).all()


def test_input_that_cannot_be_fitted(emulator):
    """One good pixel, no error, everything masked, NaN, wavelengths in nm: a flag each, and the good star is fitted."""
    stars = observe(emulator, [STAR] * 6, [0.0] * 6, [60.0] * 6)
    wave, flux, ivar = np.tile(PIXELS, (6, 1)), stars.flux.copy(), stars.ivar.copy()
    ivar[1, 1:], ivar[2], ivar[3], flux[4] = 0, 0, np.nan, np.nan
    wave[5] /= 10
    result = fit(emulator, Spectra(wave, flux, ivar, frame="air"), **OPTIONS)
    assert result.flags[0] == 0 and (result.flags[1:] & (FitFlag.BAD_INPUT | FitFlag.FEW_PIXELS)).all() and np.isnan(values(result)[1:]).all()


@pytest.mark.skipif(not (REAL / "UVES_Sun.txt.gz").exists(), reason="needs the observed Sun")
def test_the_sun():
    """The observed Sun smeared to Giraffe's resolution: not what an LTE synthesis gives, but near enough where lines that it fails at lose their say."""
    wave, flux = np.loadtxt(REAL / "UVES_Sun.txt.gz", unpack=True)
    wave, first = np.unique(wave, return_index=True)
    part = (wave > 5310) & (wave < 5640)
    pixels = np.arange(5340, 5612, 0.05)
    seen = np.interp(pixels, wave[part], broaden(wave[part], flux[first][part], resolution=19_800))[None]
    sun = Spectra(pixels, seen, np.full(seen.shape, 1e4), frame="air")
    row = fit(Emulator.load(asset("hr10_turbospectrum.safetensors")), sun, resolution=19_800, robust=True, progress=False).table[0]
    assert abs(row["teff"].value - 5777) < 120 and abs(row["logg"].value - 4.44) < 0.2 and abs(row["feh"].value) < 0.15
    assert row["flags"] & FitFlag.POOR_CHI2  # and it says that the model is not the Sun


def test_what_is_built_on_fits_is_found_here():
    import spectra_nn.fitting as fitting

    assert fitting.fit_abundances.__module__ == "spectra_nn.abundances" and fitting.sample_posterior.__module__ == "spectra_nn.posterior"
    assert fitting.LineMask is LineMask and not hasattr(fitting, "fit_nothing")
