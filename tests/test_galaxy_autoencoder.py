"""Galaxies encoded by the built-in model: other pixels, other redshifts, bad rows, damaged files, training that goes on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import spectra_nn.galaxy_autoencoder as module
from spectra_nn import Spectra, SpectraError, asset, read_spectra, restframe_basis
from spectra_nn.galaxy_autoencoder import EncodeFlag, GalaxyRecipe, block_size, calibration_curve, encode, load_galaxy_model, reconstruct, restframe, save_galaxy_model, train_spender
from spectra_nn.galaxy_shards import ShardedSpectra, prepare_galaxies
from spectra_nn.instruments import BOSS, DESI, SDSS
from spectra_nn.restframe_basis import Uncertainty, chi_squared, distortions, fit_population, fit_restframe_basis, on_common_grid, project, redshifted, render, streamed
from spectra_nn.spectrum_files import info_column
from spectra_nn.training import TrainConfig


@pytest.fixture(scope="module")
def model():
    return load_galaxy_model(asset("sdss_mock.safetensors"))[0]


@pytest.fixture(scope="module")
def trusting():
    """The same, but believing redshifts and line widths."""
    model = load_galaxy_model(asset("sdss_mock.safetensors"))[0]
    model.kinematics = (0.0, 0.0)
    return model


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


def test_latents_blind_to_kinematics(model, trusting, galaxies, tmp_path):
    """Lines 12 km/s aside and wider by 40 km/s: a model that is blind to both finds the same latents, says what was off, and puts it back."""
    truth, moved = encode(model, galaxies).latents, torch.tensor([12.0, 40.0**2])
    seen = observed_by(SDSS, SDSS.wave_obs, model, truth, galaxies.z, 60)
    flux = seen.flux * seen.scale[:, None]
    clean = torch.nan_to_num(reconstruct(trusting, seen, encode(trusting, seen))[0])
    added = (distortions(Uncertainty(velocity=1.0, width=1.0), SDSS.wave_obs, clean) * moved).sum(2)
    changed = replace(seen, flux=(flux + added) / seen.scale[:, None])
    off = [(encode(m, changed).latents - encode(m, seen).latents).abs().median(0).values for m in (trusting, model)]
    assert off[1].max() < 0.05 and off[1].max() < 0.3 * off[0].max()
    found = encode(model, changed)
    assert torch.allclose(found.kinematics.median(0).values[:2], moved.double(), rtol=0.25) and found.calibration.shape == (len(seen), 0)
    good = changed.ivar > 0
    chi2 = [(((reconstruct(m, changed, encode(m, changed))[0] / changed.scale[:, None] - changed.flux) ** 2 * changed.ivar)[good]).mean() for m in (trusting, model)]
    assert chi2[1] < 1.2 and chi2[0] > 2 * chi2[1], chi2
    assert torch.equal(restframe(model, found)[0], restframe(model, found._replace(kinematics=0 * found.kinematics))[0])  # at rest there is what the latents say
    for each, name in ((model, "blind"), (trusting, "trusting")):
        save_galaxy_model(each, tmp_path / f"{name}.safetensors")
        again = load_galaxy_model(tmp_path / f"{name}.safetensors")[0]
        assert again.kinematics == each.kinematics and torch.allclose(encode(again, changed).latents, encode(each, changed).latents, atol=1e-9)
    for wrong in ((-20.0, 63.0), (float("nan"), 63.0), (20.0,)):
        with pytest.raises(SpectraError, match="velocity, width"):
            module.GalaxyAutoencoder(model.basis, model.population, kinematics=wrong)


def test_quiet_galaxies_lie_closer_to_the_sheet(model, tmp_path):
    """Four covariances, interpolated in the first latent; a file of an older version has one for all."""
    assert model.scatter.shape == (4, 32, 32) and (model.scatter_at.diff() > 0).all()
    at = lambda *first: model.scatter_of(torch.nn.functional.pad(torch.tensor(first, dtype=torch.float64)[:, None], (0, 5)))  # noqa: E731
    assert torch.allclose(at(*model.scatter_at.tolist()), model.scatter) and torch.equal(at(-9.0, 9.0), model.scatter[[0, -1]])
    assert torch.allclose(at(float(model.scatter_at[1:3].mean()))[0], model.scatter[1:3].mean(0)) and (torch.linalg.eigvalsh(model.scatter) > -1e-12).all()
    spread = model.scatter.diagonal(dim1=1, dim2=2).sum(1)
    assert spread.min() == spread[-1] and spread.max() == spread[0] > 4 * spread[-1]  # the last are old

    path = tmp_path / "old.safetensors"
    save_galaxy_model(model, path)
    with safe_open(path, framework="pt") as file:
        header, tensors = json.loads(file.metadata()["spectra_nn"]), {name: file.get_tensor(name) for name in file.keys() if name != "scatter_at"}
    header["version"], tensors["scatter"] = 3, tensors["scatter"][0].clone()
    save_file(tensors, path, {"spectra_nn": json.dumps(header)})
    old = load_galaxy_model(path)[0]
    assert torch.equal(old.scatter_of(torch.zeros(2, 6)), model.scatter[:1].expand(2, -1, -1))


def test_redshifts_that_are_not_there_and_too_many(model):
    """A redshift at which little is seen is marked, one for each spectrum is asked for, and brightness or gaps of a neighbour change nothing."""
    survey = read_spectra(asset("mock_galaxies.npz"))[:6]
    z = info_column(survey, "z")
    usual = encode(model, redshifted(survey, z, SDSS), calibration=0.03)
    wrong, ivar = z.copy(), survey.ivar.copy()
    wrong[:4], ivar[4] = [-0.5, 1.5, np.nan, 7.0], 0
    found = encode(model, redshifted(replace(survey, ivar=ivar), wrong, SDSS), calibration=0.03)
    assert [bool(flag & EncodeFlag.OUT_OF_REACH) for flag in found.flags] == [True, True, False, False, False, False]
    assert [bool(flag & EncodeFlag.BAD_INPUT) for flag in found.flags] == [False, False, True, True, True, False]
    assert all(torch.isfinite(part).all() for part in found) and torch.allclose(found.latents[5], usual.latents[5], atol=1e-9)
    assert torch.equal(redshifted(survey, z[:, None], SDSS).z, redshifted(survey, z, SDSS).z)
    with pytest.raises(SpectraError, match="for 6 spectra"):
        redshifted(survey, z[:3], SDSS)


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


def test_what_was_uncertain_is_put_back(model, trusting, galaxies):
    x = (galaxies.wave - 6500) / 2700
    bend = torch.as_tensor(1 + 0.06 * x - 0.05 * x**2, dtype=torch.float32)
    bent = replace(galaxies, flux=galaxies.flux * bend)
    for each, calibration in ((trusting, 0.0), (trusting, 0.05), (model, 0.0), (model, 0.05)):
        found = encode(each, bent, calibration=calibration)
        seen = reconstruct(each, bent, found)[0] / bent.scale[:, None]
        chi2 = ((bent.flux - seen).nan_to_num().square() * bent.ivar).sum(1).double()
        known = (found.calibration / 0.05).square().sum(1) + (found.kinematics / torch.tensor([20.0, 63.0**2, 63.0**4])[: found.kinematics.shape[1]]).square().sum(1)
        off = ((chi2 + known) / found.chi2 - 1).abs()
        both = calibration and found.kinematics.shape[1]  # bent and moved are not quite moved and bent
        assert off.quantile(0.9) < 2e-3 and (both or off.max() < 1e-2), off.sort().values[-5:]
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


SMALL = GalaxyRecipe(n_latent=3, n_component=6, widths=(8,), turns=3, train=TrainConfig(steps=40, batch_size=64, check_every=10, checkpoint_every=0))


def write_shards(folder, instrument, flux, ivar, z, wave, shard_size=50):
    np.savez(folder.with_suffix(".npz"), wave=wave, flux=flux, ivar=ivar, z=z, ids=[f"{folder.name}-{k}" for k in range(len(z))], frame="vacuum")
    prepare_galaxies(folder.with_suffix(".npz"), instrument, folder, shard_size=shard_size, progress=False)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The ordinary galaxies of the built-in survey."""
    with np.load(asset("mock_galaxies.npz")) as mocks:
        kept = mocks["truth_outlier"] == 0
        return write_shards(tmp_path_factory.mktemp("survey") / "sdss", SDSS, mocks["flux"][kept], mocks["ivar"][kept], mocks["z"][kept], mocks["wave"])


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def mean_chi2(model, data):
    found = encode(model, data)
    return float((found.chi2 / found.n_valid).mean())


def test_shards_that_fit_give_the_bits_of_memory(shards):
    whole, _ = train_spender(streamed(shards)[:], SMALL, progress=False)
    assert same(train_spender(shards, SMALL, progress=False)[0], whole)
    parts = [part for data in (str(shards), streamed(shards), ShardedSpectra.open(shards), [shards]) for part in restframe_basis.galaxy_parts(data)]
    assert len(parts) == 4 and all(np.array_equal(part.pairs, parts[0].pairs) for part in parts)


def test_blocks_change_rounding_only(shards):
    training, held_out = streamed(shards), streamed(shards, "test")[:]
    whole, said = train_spender(training, SMALL, progress=False)
    by_blocks, told = train_spender(training, SMALL, memory_budget=5.2e7, progress=False)
    assert block_size([training], 6, 5.2e7, 10_000) < 40
    assert told.best_loss == pytest.approx(said.best_loss, rel=0.05)  # another choice of galaxies kept aside, no more
    assert mean_chi2(by_blocks, held_out) == pytest.approx(mean_chi2(whole, held_out), rel=0.01)


def test_blocks_are_blind_to_kinematics_as_well(shards):
    recipe, held_out = replace(SMALL, kinematics=(20.0, 63.0)), streamed(shards, "test")[:]
    whole, by_blocks = (train_spender(streamed(shards), recipe, progress=False, **budget)[0] for budget in ({}, {"memory_budget": 5.2e7}))
    assert whole.kinematics == by_blocks.kinematics == recipe.kinematics
    assert mean_chi2(by_blocks, held_out) == pytest.approx(mean_chi2(whole, held_out), rel=0.01)
    assert mean_chi2(whole, held_out) < mean_chi2(train_spender(streamed(shards), SMALL, progress=False)[0], held_out)


def test_packing_loses_no_more_than_single_precision_does(galaxies):
    projection = project(fit_restframe_basis(galaxies, 5, turns=2, progress=False), galaxies)
    arrays = module._training_arrays(projection, fit_population(projection))
    back = module._unpacked(module._packed(arrays), 5)
    for one, other in zip(arrays, back, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-6, atol=1e-6 * float(one.abs().max()))


def test_some_galaxies_make_the_basis_and_all_teach_the_networks(shards, monkeypatch):
    seen = []
    usual = module.fit_restframe_basis
    monkeypatch.setattr(module, "fit_restframe_basis", lambda data, *a, **k: seen.append(sum(map(len, data))) or usual(data, *a, **k))
    packed = []
    real = module._packed_file
    monkeypatch.setattr(module, "_packed_file", lambda *a: packed.append(real(*a)) or packed[-1])
    training = streamed(shards)
    model, _ = train_spender([training, streamed(shards, "valid")], SMALL, basis_spectra=60, progress=False)
    assert seen == [60] and len(packed[0]) == len(training) + len(streamed(shards, "valid")) and packed[0].dtype == torch.float32
    again, _ = train_spender([training, streamed(shards, "valid")], SMALL, basis_spectra=60, progress=False)
    assert same(model, again) and mean_chi2(model, streamed(shards, "test")[:]) < 2


def test_several_instruments_from_shards(model, shards, galaxies, tmp_path):
    mocks = streamed(shards, "all")[:]
    rest = encode(model, mocks).latents
    folders = [shards]
    for instrument in (BOSS, DESI):
        seen = observed_by(instrument, instrument.wave_obs, model, rest[:90], mocks.z[:90], 20)
        folders.append(write_shards(tmp_path / instrument.name, instrument, seen.flux, seen.ivar, seen.z, instrument.wave_obs))
    grids, recipe = [streamed(folder) for folder in folders], replace(SMALL, n_component=10, n_latent=6)
    assert block_size(grids, 10, 1.4e8, 150) < 60
    trained, _ = train_spender(folders, recipe, basis_spectra=150, memory_budget=1.4e8, progress=False)
    whole, _ = train_spender([part[:] for part in grids], recipe, basis_spectra=150, progress=False)
    for folder in folders:
        held_out = streamed(folder, "test")[:]
        assert mean_chi2(trained, held_out) == pytest.approx(mean_chi2(whole, held_out), rel=0.05) and mean_chi2(trained, held_out) < 3, folder.name
    assert trained.basis.resolution == max(part.resolution.max() for part in grids)


@pytest.mark.parametrize("where", ["basis", "projections", "networks"])
def test_a_streamed_training_goes_on_where_it_was_cut(shards, tmp_path, monkeypatch, where):
    options = dict(basis_spectra=90, memory_budget=5.2e7, progress=False)
    whole, _ = train_spender(shards, SMALL, **options)
    owner, name, when = {"basis": (restframe_basis, "_moments", 8), "projections": (module, "_packed", 2), "networks": (module, "_training_loss", 25)}[where]
    usual, calls = getattr(owner, name), []

    def cut(*arguments):
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt if where != "networks" else RuntimeError
        return usual(*arguments)

    monkeypatch.setattr(owner, name, cut)
    with pytest.raises((KeyboardInterrupt, RuntimeError)): train_spender(shards, SMALL, folder=tmp_path, **options)
    before = len(calls)
    resumed, _ = train_spender(shards, SMALL, folder=tmp_path, **options)
    assert same(whole, resumed) and before == when
    with pytest.raises(SpectraError, match="another run"): train_spender(shards, SMALL, folder=tmp_path, **{**options, "basis_spectra": 80})
    assert not list(tmp_path.glob("*.part")) and len(list(tmp_path.glob("projections_*.npy"))) == 1


def test_shards_in_air_are_seen_in_vacuum(galaxies, tmp_path):
    air = replace(SDSS, name="SDSS in air", frame="air")
    folder = write_shards(tmp_path / "air", air, galaxies.flux, galaxies.ivar, galaxies.z, galaxies.wave)
    data, (spectra, z) = streamed(folder, "all"), ShardedSpectra.open(folder).read_all()
    assert np.allclose(data.wave, redshifted(spectra, z).wave, rtol=1e-12) and not np.allclose(data.wave, air.wave_obs, rtol=1e-4)
    assert np.allclose(data[3:5].flux, redshifted(spectra, z)[3:5].flux, rtol=2e-3, atol=1e-4) and data.keep(galaxies.z > 0.1).z.min() > 0.1


def test_mixed_precision_leaves_double_networks_alone(galaxies):
    basis = fit_restframe_basis(galaxies, 6, turns=1, progress=False)
    models = [train_spender(galaxies, replace(SMALL, train=replace(SMALL.train, mixed_precision=kind)), basis=basis, progress=False)[0] for kind in ("no", "bf16")]
    assert same(*models)


def test_too_small_a_budget_is_told(shards):
    with pytest.raises(SpectraError, match="needs at least"): train_spender(shards, SMALL, memory_budget=1e6, progress=False)
    with pytest.raises(SpectraError, match="no shards.json"): train_spender(shards.parent, SMALL, progress=False)


def test_a_full_disk_is_told_before_anything_is_written(shards, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full, raising=False)
    with pytest.raises(SpectraError, match="no room for the projections of .* a larger disk"):
        train_spender(shards, replace(SMALL, turns=1), basis_spectra=60, folder=tmp_path, progress=False)
    assert not list(tmp_path.glob("projections*"))


MEMORY = """
import sys, threading, time, torch
from spectra_nn.galaxy_autoencoder import GalaxyRecipe, train_spender
from spectra_nn.restframe_basis import streamed
from spectra_nn.training import TrainConfig

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

torch.set_num_threads(1)
data, recipe = streamed(sys.argv[1], "all"), GalaxyRecipe(n_latent=2, n_component=5, widths=(8,), turns=1, train=TrainConfig(steps=20, batch_size=64))
train_spender(data.keep(slice(0, 40)), recipe, progress=False)
before = anonymous()
peak = [before]
threading.Thread(target=watch, daemon=True).start()
train_spender(data, recipe, memory_budget=float(sys.argv[2]), basis_spectra=int(sys.argv[3]), progress=False)
print(peak[0] - before, len(data) * len(data.wave) * 8)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is asked of Linux")
def test_memory_stays_within_the_budget(tmp_path):
    with np.load(asset("mock_galaxies.npz")) as mocks:
        rows = np.resize(np.flatnonzero(mocks["truth_outlier"] == 0), 4500)
        folder = write_shards(tmp_path / "many", SDSS, mocks["flux"][rows], mocks["ivar"][rows], mocks["z"][rows], mocks["wave"], shard_size=500)
    said = run_program(tmp_path, MEMORY, str(folder), "4.4e7", "300")
    peak, data = map(int, said.split()[-2:])
    assert data > 3 * 4.4e7 and peak < 4.4e7, (peak, data)


def run_program(folder, text, *arguments, launcher=()):
    program = folder / "program.py"
    program.write_text(text)
    root = str(Path(module.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([sys.executable, *launcher, str(program), *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


TWO = """
import sys, torch
from spectra_nn.galaxy_autoencoder import GalaxyRecipe, save_galaxy_model, train_spender
from spectra_nn.restframe_basis import processes
from spectra_nn.training import TrainConfig

torch.set_num_threads(1)
recipe = GalaxyRecipe(n_latent=3, n_component=6, widths=(8,), turns=1, train=TrainConfig(steps=20, batch_size=32, check_every=5, checkpoint_every=0))
for name, folder in (("kept", sys.argv[2] + "/run"), ("passing", None)):
    model, _ = train_spender(sys.argv[1], recipe, basis_spectra=90, memory_budget=5.2e7, folder=folder, progress=False)
    save_galaxy_model(model, f"{sys.argv[2]}/{name}-{processes()[0]}.safetensors")
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
"""


def test_two_processes_agree_with_one(shards, tmp_path):
    for name, launcher in {"one": (), "two": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")}.items():
        (tmp_path / name).mkdir()
        run_program(tmp_path / name, TWO, str(shards), str(tmp_path / name), launcher=launcher)
    one, *two = (load_galaxy_model(tmp_path / path)[0] for path in ("one/kept-0.safetensors", "two/kept-0.safetensors", "two/kept-1.safetensors", "two/passing-0.safetensors"))
    assert same(two[0], two[1]) and same(two[0], two[2])  # every process, with and without a folder
    for a, b in zip(one.state_dict().values(), two[0].state_dict().values(), strict=True): assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)
    run = tmp_path / "two" / "run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4 and len(list(run.glob("step_*"))) == 2 and len(list((run / "basis").glob("step_*"))) == 1
