"""Simulated spectra are what they claim, and forecasts of errors come true."""

import numpy as np
import pytest
import torch
from test_fitting import AnalyticEmulator

from spectra_nn.core import SPEED_OF_LIGHT, SpectraError
from spectra_nn.fitting import FitFlag, fit
from spectra_nn.forecast import forecast, simulate
from spectra_nn.instruments import APOGEE, DESI, Arm, Instrument

torch.set_num_threads(1)
STAR = np.array([[5500.0, 3.2, -0.4]])
GREEN = Instrument("green", 20_000, "air", arms=(Arm("one", 5338, 5392, 0.06),))


@pytest.fixture(scope="module")
def emulator():
    return AnalyticEmulator()


class Galaxy:
    """A model that is no emulator: it has wavelengths and predicts."""

    wave, frame, resolution = np.exp(np.arange(np.log(3000), np.log(6000), 2e-4)), "vacuum", None

    def predict(self, labels):
        return 5 + labels[:, :1] * np.exp(-0.5 * ((self.wave - 4000) / 20) ** 2)


def test_noise_has_the_size_that_is_asked_for(emulator):
    many = np.repeat(STAR, 60, 0)
    quiet, noisy = (simulate(emulator, many, GREEN, 40.0, noise=noise) for noise in (False, True))
    pull = (noisy.flux - quiet.flux) * np.sqrt(noisy.ivar)
    assert abs(pull.std() - 1) < 0.02 and abs(pull.mean()) < 0.02
    np.testing.assert_allclose(np.median(quiet.flux, axis=1) * np.sqrt(np.median(quiet.ivar, axis=1)), 40, rtol=1e-6)
    assert np.corrcoef(pull[0], pull[1])[0, 1] < 0.2  # every star has noise of its own


def test_a_star_has_its_noise_whatever_the_others(emulator):
    np.testing.assert_allclose(simulate(emulator, np.repeat(STAR, 2, 0), GREEN, 40.0).flux, simulate(emulator, np.repeat(STAR, 5, 0), GREEN, 40.0).flux[:2], atol=1e-6)


def test_truth_goes_along(emulator):
    spectra = simulate(emulator, dict(teff=[5000, 5100], logg=3.0, feh=0.0), GREEN, [20.0, 30.0], velocity=[1.0, 2.0])
    assert spectra.meta["info"]["1"] == dict(teff=5100, logg=3, feh=0, velocity=2, snr=30)


def test_pixels_beyond_the_model_have_no_weight(emulator):
    blue = Instrument("blue", 20_000, "air", arms=(Arm("one", 5300, 5392, 0.06),))
    spectra = simulate(emulator, np.repeat(STAR, 2, 0), blue, 40.0, velocity=[0.0, 300.0])
    first = [spectra.wave[spectra.ivar[k] > 0][0] for k in range(2)]
    assert first[0] > 5330 and abs(first[1] / first[0] - 1 - 300 / SPEED_OF_LIGHT) < 2e-5 and (spectra.flux[1, spectra.ivar[1] == 0] == 0).all()


def test_snr_per_angstrom_photon_noise_and_lost_pixels(emulator):
    per_pixel, per_angstrom = (simulate(emulator, STAR, GREEN, 40.0, snr_per=per) for per in ("pixel", "angstrom"))
    np.testing.assert_allclose(per_pixel.ivar[0, 9] / per_angstrom.ivar[0, 9], 1 / 0.06, rtol=1e-6)
    shot = simulate(emulator, STAR, GREEN, 40.0, photon_noise=True, noise=False)
    np.testing.assert_allclose(shot.ivar[0] * shot.flux[0], (shot.ivar * shot.flux)[0, 5], rtol=1e-5)
    holes = simulate(emulator, STAR, GREEN, 40.0, bad_pixels=0.2, bad_windows=[(5350, 5352)])
    assert not holes.ivar[0][(holes.wave > 5350) & (holes.wave < 5352)].any() and 0.17 < (holes.ivar == 0).mean() < 0.3


def test_a_galaxy_at_its_redshift():
    wide = Instrument("wide", 2000, "vacuum", arms=(Arm("one", 3600, 9000, 1.0),))
    seen = simulate(Galaxy(), [[3.0]], wide, 1e4, redshift=0.4)
    assert abs(seen.wave[seen.flux[0].argmax()] - 5600) < 8 and seen.wave[0] > 4199 and abs(seen.wave[-1] - 6000 * 1.4) < 12


def test_scatter_of_fits_is_as_forecast(emulator):
    n = 500
    spectra = simulate(emulator, np.repeat(STAR, n, 0), GREEN, 60.0, velocity=25.0, continuum=0.1, seed=3)
    fits = fit(emulator, spectra, instrument=GREEN, velocity=(-100, 100), use_emulator_error=False, progress=False)
    promise = forecast(emulator, STAR, GREEN, 60.0, velocity=25.0, use_emulator_error=False)
    ratio = [np.std(fits.table[name].value) / promise.table[f"{name}_err"].value[0] for name in promise.parameter_names]
    assert promise.parameter_names == fits.parameter_names and np.all(np.abs(np.array(ratio) - 1) < 0.12) and abs(np.mean(ratio) - 1) < 0.06
    correlation = np.corrcoef(np.stack([fits.table[name].value for name in fits.parameter_names]))
    error = np.sqrt(np.diag(promise.covariance[0]))
    np.testing.assert_allclose(correlation, promise.covariance[0] / np.outer(error, error), atol=0.15)


def test_what_makes_errors_smaller(emulator):
    def error(**options):
        return forecast(emulator, STAR, GREEN, **(dict(snr=50.0, use_emulator_error=False) | options)).table["teff_err"].value

    plain = error()
    np.testing.assert_allclose(error(snr=[50, 500]) * [1, 10], plain[0], rtol=0.01)
    assert error(priors=dict(feh=(-0.4, 1e-4))) < plain and error(free=["teff"]) < plain and error(continuum=None) < plain
    assert error(use_emulator_error=True) > plain and error(bad_windows=[(5340, 5380)]) > 1.3 * plain
    floor = error(snr=[1e4, 1e5], use_emulator_error=True)
    assert floor[1] > 0.9 * floor[0]  # more photons do not help a model that errs


def test_table_tells_what_was_seen(emulator):
    found = forecast(emulator, np.repeat(STAR, 2, 0), [GREEN, DESI], [20.0, 40.0])
    assert len(found) == 8 and list(found.table["instrument"][[0, -1]]) == ["green", "DESI"] and list(found.table["star"][:4]) == [0, 1, 0, 1]
    assert found.table["overlap"][0] > 0.99 and found.table["overlap"][-1] < 0.02 and "of the instrument's pixels" in repr(found)
    assert found.covariance.shape == (8, 4, 4)
    weak = forecast(emulator, STAR, GREEN, 0.5)
    assert weak.table["flags"][0] & FitFlag.UNCONSTRAINED_LABEL


@pytest.mark.parametrize(("options", "message"), [
    (dict(snr=0.0), "must be positive"), (dict(snr=np.nan), "must be positive"), (dict(snr=[3.0, 4.0]), "2 signal-to-noise ratios for 1"),
    (dict(instrument=APOGEE), "APOGEE sees .* no pixel in common"), (dict(velocity=[1.0, 2.0]), "2 velocities for 1"), (dict(velocity=4e5), "below that of light"),
    (dict(bad_pixels=2.0), "fraction"), (dict(continuum=-1.0), "amplitude"), (dict(snr_per="nm"), "'pixel' or 'angstrom'"), (dict(labels=dict(teff=5000)), "lack logg")])
def test_what_cannot_be_simulated(emulator, options, message):
    with pytest.raises(SpectraError, match=message):
        simulate(**(dict(model=emulator, labels=STAR, instrument=GREEN, snr=50.0) | options))


def test_what_cannot_be_forecast(emulator):
    for options, message in ((dict(instrument=[]), "no instrument"), (dict(instrument=APOGEE), "no pixel in common"), (dict(free=["tef"]), "Did you mean 'teff'"), (dict(snr=-1), "positive")):
        with pytest.raises(SpectraError, match=message):
            forecast(**(dict(emulator=emulator, labels=STAR, instrument=GREEN, snr=50.0) | options))
