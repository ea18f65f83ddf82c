"""Galaxies encoded by the built-in model: other pixels, other redshifts, bad rows, damaged files, training that goes on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spectra_nn import Spectra, SpectraError, asset, read_spectra
from spectra_nn.galaxy_autoencoder import EncodeFlag, GalaxyRecipe, calibration_curve, encode, load_galaxy_model, reconstruct, restframe, save_galaxy_model, train_spender
from spectra_nn.instruments import BOSS, DESI, SDSS
from spectra_nn.restframe_basis import chi_squared, fit_restframe_basis, on_common_grid, project, redshifted, render
from spectra_nn.spectrum_files import info_column
from spectra_nn.training import TrainConfig


@pytest.fixture(scope="module")
def model():
    return load_galaxy_model(asset("sdss_mock.safetensors"))[0]


@pytest.fixture(scope="module")
def galaxies():
    survey = read_spectra(asset("mock_galaxies.npz"))
    return redshifted(survey, info_column(survey, "z"), SDSS)[info_column(survey, "truth_outlier") == 0][:40]


def observed_by(instrument, wave, model, latents, z, snr, seed=0):
    """Noisy spectra of given latents on other pixels."""
    rng = np.random.default_rng(seed)
    design, valid = render(model.basis.view(wave, instrument.resolution_at(wave)), z)
    flux = (design @ model(latents).float()[..., None])[..., 0].numpy()
    error = np.broadcast_to(np.median(flux, axis=1, keepdims=True) / snr, flux.shape)
    ivar = np.where(valid.numpy(), 1 / error**2, 0)
    return redshifted(Spectra(wave, flux + rng.normal(0, error), ivar, frame="vacuum"), z.numpy(), instrument)


@pytest.mark.parametrize("instrument", [BOSS, DESI])
def test_latents_do_not_depend_on_the_instrument(model, galaxies, instrument):
    truth = encode(model, galaxies).latents
    seen = observed_by(instrument, instrument.wave_obs, model, truth, galaxies.z, 20)
    found = encode(model, seen)
    pulls = (found.latents - truth) / found.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert (found.flags & ~EncodeFlag.UNUSUAL.value == 0).all()
    assert 0.75 < pulls.std() < 1.25 and (found.chi2 / found.n_valid).mean() == pytest.approx(1, abs=0.03)


def test_latents_do_not_depend_on_the_redshift(model, galaxies):
    truth, population = encode(model, galaxies).latents, 1.0
    z = torch.as_tensor(np.random.default_rng(3).uniform(0.0, 0.4, len(galaxies)))
    found = encode(model, observed_by(SDSS, SDSS.wave_obs, model, truth, z, 20))
    assert ((found.latents - truth).abs().median(0).values < 0.2 * population).all()


def test_a_bad_spectrum_changes_no_other(model, galaxies):
    usual = encode(model, galaxies)
    flux, ivar, z = galaxies.flux.clone(), galaxies.ivar.clone(), galaxies.z.clone()
    ivar[0], flux[1], ivar[2, 30:], z[3] = 0, 1e20 * (galaxies.ivar[1] > 0), 0, 9.0
    hurt = encode(model, replace(galaxies, flux=flux, ivar=ivar, z=z))
    assert torch.allclose(hurt.latents[4:], usual.latents[4:], atol=1e-6)
    assert (hurt.flags[:4] > 0).all() and torch.isfinite(hurt.latents).all()


def test_scale_of_the_flux_and_order_of_the_rows_do_not_matter(model):
    survey = read_spectra(asset("mock_galaxies.npz"))[:6]
    z = info_column(survey, "z")
    usual = encode(model, redshifted(survey, z, SDSS))
    larger = encode(model, redshifted(replace(survey, flux=survey.flux * 1e-17, ivar=survey.ivar * 1e34), z, SDSS))
    turned = encode(model, redshifted(survey[::-1], z[::-1], SDSS))
    assert torch.allclose(larger.latents, usual.latents, atol=1e-4) and torch.allclose(larger.amplitude, usual.amplitude * 1e-17, rtol=1e-4)
    assert torch.allclose(turned.latents.flip(0), usual.latents, atol=1e-6)


def test_calibration_takes_up_what_bends(model, galaxies):
    bend = torch.as_tensor(1 + 0.05 * np.sin(2 * np.pi * (galaxies.wave - 3800) / 5500), dtype=torch.float32)
    bent = replace(galaxies, flux=galaxies.flux * bend)
    shift = lambda calibration: (encode(model, bent, calibration=calibration).latents - encode(model, galaxies, calibration=calibration).latents).abs().mean()  # noqa: E731
    assert shift(0.05) < 0.4 * shift(0.0)


def test_air_wavelengths_are_converted(model):
    survey = read_spectra(asset("mock_galaxies.npz"))[:3]
    z = info_column(survey, "z")
    assert torch.allclose(encode(model, redshifted(survey.to_frame("air"), z, SDSS)).latents, encode(model, redshifted(survey, z, SDSS)).latents, atol=0.05)


def test_reconstruction_and_restframe_agree(model, galaxies):
    found = encode(model, galaxies[:3])
    (flux, _), (rest, error) = reconstruct(model, galaxies[:3], found), restframe(model, found)
    for k in range(3):
        there = np.interp(galaxies.wave / (1 + float(galaxies.z[k])), model.basis.rest_wave.numpy(), rest[k].numpy())
        smooth = lambda y: np.convolve(np.nan_to_num(y), np.ones(101) / 101, "valid")  # noqa: E731
        assert np.abs(smooth(flux[k].numpy()) / smooth(there) - 1)[300:-300].max() < 0.02
    assert (error > 0).all()


def test_projection_is_all_there_is(galaxies):
    basis = fit_restframe_basis(galaxies, 4, turns=3, progress=False)
    projection = project(basis, galaxies)
    coefficients = torch.randn(len(galaxies), 4, dtype=torch.float64)
    design, valid = render(basis.view(galaxies.wave, galaxies.resolution), galaxies.z)
    direct = ((galaxies.flux - (design @ coefficients.float()[..., None])[..., 0]).square() * galaxies.ivar * valid).double().sum(1)
    assert torch.allclose(direct, chi_squared(projection, coefficients), rtol=1e-3)


def test_files(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_galaxy_model(model, path, note="copy")
    whole = path.read_bytes()
    assert load_galaxy_model(path)[1] == {"note": "copy"}
    rng = np.random.default_rng(0)
    for cut in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SpectraError): load_galaxy_model(path)
    for _ in range(40):  # damage in the header, where it can do harm
        damaged = bytearray(whole)
        damaged[int(rng.integers(0, 1500))] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try: load_galaxy_model(path)
        except SpectraError: pass


def test_training_goes_on_where_it_was_cut(galaxies, tmp_path):
    recipe = GalaxyRecipe(n_latent=2, n_component=6, widths=(8,), turns=2, train=TrainConfig(steps=60, batch_size=64, check_every=10, checkpoint_every=0))
    basis = fit_restframe_basis(galaxies, 6, turns=2, progress=False)
    whole, _ = train_spender(galaxies, recipe, basis=basis, progress=False)

    class Cut(Exception):
        pass

    import spectra_nn.galaxy_autoencoder as module

    usual, calls = module._training_loss, []

    def interrupted(run, batch):
        calls.append(1)
        if len(calls) > 45: raise Cut
        return usual(run, batch)

    module._training_loss = interrupted
    try:
        with pytest.raises(Cut): train_spender(galaxies, recipe, basis=basis, folder=tmp_path, progress=False)
    finally:
        module._training_loss = usual
    resumed, _ = train_spender(galaxies, recipe, basis=basis, folder=tmp_path, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_what_cannot_be(galaxies):
    with pytest.raises(SpectraError, match="more spectra"): fit_restframe_basis(galaxies[:3], 8)
    with pytest.raises(SpectraError, match="fewer"): train_spender(galaxies, GalaxyRecipe(n_latent=9, n_component=8, widths=(), turns=1), progress=False)
    grids = Spectra(np.stack([galaxies.wave, galaxies.wave * 1.0001]), galaxies.flux[:2].numpy(), galaxies.ivar[:2].numpy(), frame="vacuum")
    assert on_common_grid(grids).wave.ndim == 1


def test_two_instruments_teach_more_than_one(model):
    survey = read_spectra(asset("mock_galaxies.npz"))
    mocks = redshifted(survey, info_column(survey, "z"), SDSS)[info_column(survey, "truth_outlier") == 0]
    few, others, held_out = mocks[:50], mocks[50:190], mocks[190:]
    pixels = np.arange(3850.0, 9200.0, 2.5)
    coarse = SimpleNamespace(resolution_at=lambda wave: np.full(len(wave), 1100.0))
    elsewhere = observed_by(coarse, pixels, model, encode(model, others).latents, others.z, 15)
    recipe = GalaxyRecipe(n_latent=10, n_component=11, widths=(), turns=6)
    reached = {}
    for name, data in {"one": [few], "both": [few, elsewhere]}.items():
        found = encode(train_spender(data, recipe, progress=False)[0], held_out)
        reached[name] = float((found.chi2 / found.n_valid).mean())
    assert reached["both"] < 0.97 * reached["one"], reached


def test_what_calibration_took_away_is_put_back(model, galaxies):
    x = (galaxies.wave - 6500) / 2700
    bend = torch.as_tensor(1 + 0.06 * x - 0.05 * x**2, dtype=torch.float32)
    bent = replace(galaxies, flux=galaxies.flux * bend)
    for calibration in (0.0, 0.05):
        found = encode(model, bent, calibration=calibration)
        seen = reconstruct(model, bent, found)[0] / bent.scale[:, None]
        chi2 = ((bent.flux - seen).nan_to_num().square() * bent.ivar).sum(1).double()
        prior = (found.calibration / 0.05).square().sum(1)  # 0 where there is no polynomial
        assert ((chi2 + prior) / found.chi2 - 1).abs().quantile(0.9) < 5e-3  # the polynomial was eliminated around the linear model
    assert found.calibration.shape == (len(galaxies), 6)
    curve, at = calibration_curve(bent, found), [400, 2000, 3500]
    plain = calibration_curve(galaxies, encode(model, galaxies, calibration=0.05))
    left = (curve / plain / bend)[:, at]
    assert (left[:, 1] / left[:, [0, 2]].mean(1) - 1).abs().median() < 0.5 * float(bend[2000] / bend[[400, 3500]].mean() - 1)  # the bow is found; a slope may be dust
    assert (calibration_curve(galaxies, encode(model, galaxies)) == 1).all()


def test_errors_cover_what_was_hidden(model, galaxies):
    rest = torch.as_tensor(galaxies.wave) / (1 + galaxies.z[:, None])
    blue = (rest < 4200) & (galaxies.ivar > 0)
    usable = blue.sum(1) > 200
    found = encode(model, replace(galaxies, ivar=galaxies.ivar * ~blue)[usable])
    seen, error = (part / galaxies.scale[usable, None] for part in reconstruct(model, galaxies[usable], found))
    many = lambda x: torch.where(blue[usable], x, 0).nan_to_num().sum(1) / blue[usable].sum(1)  # noqa: E731
    pulls = (many(galaxies.flux[usable]) - many(seen)) / many(error)
    assert (pulls.abs() < 2).double().mean() > 0.8
