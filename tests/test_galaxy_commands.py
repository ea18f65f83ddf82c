"""Commands for galaxies: published models from files to tables, and what is said when something is wrong."""

import numpy as np
import pytest
import torch
from astropy.table import QTable

from spectra_nn.core import SpectraError, asset
from spectra_nn.galaxy_autoencoder import EncodeFlag
from spectra_nn.galaxy_commands import encode, encode_published, galaxy_model, latent_density, normalised, outliers, prep_galaxies, published_model, reconstruct, redshift, train_spender
from spectra_nn.instruments import SDSS
from spectra_nn.named_arrays import info_column
from spectra_nn.outliers import LatentFlow, MaskedFlow, save_flow
from spectra_nn.sky import sky_mask
from spectra_nn.spectrum_files import read_spectra
from spectra_nn.spender import SpectrumAutoencoder


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A checkpoint as spender writes them, and eight spectra, one of them without a good pixel."
    place = tmp_path_factory.mktemp("published")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SpectrumAutoencoder(SDSS, torch.linspace(2359, 9332, 2500), 4, (8, 16))
    torch.save({"model": [model.state_dict()], "losses": np.ones((2, 2), np.float32)}, place / "theirs.pt")
    torch.save({name: value for name, value in model.state_dict().items() if "wave_obs" not in name}, place / "old.pt")
    with np.load(asset("mock_galaxies.npz")) as mocks:
        ivar = mocks["ivar"][:8].astype(np.float64)
        ivar[5] = 0
        np.savez(place / "night.npz", wave=mocks["wave"], frame="vacuum", flux=mocks["flux"][:8], ivar=ivar, z=mocks["z"][:8], ids=mocks["ids"][:8])
    return place


def test_latents_are_those_of_the_model(folder, tmp_path):
    assert encode(str(folder / "theirs.pt"), [folder / "night.npz"], out=tmp_path / "l.fits", error_floor=0.0) == 0
    table = QTable.read(tmp_path / "l.fits")
    spectra, model = read_spectra(folder / "night.npz", progress=False), published_model(str(folder / "theirs.pt"))
    z, wave = info_column(spectra, "z"), np.asarray(model.wave_obs, np.float64)
    place = np.searchsorted(wave, spectra.wave - 0.3)  # both grids have steps of 1e-4 in the logarithm
    assert np.abs(np.log10(wave[place] / spectra.wave)).max() < 5e-6
    for row in (0, 3, 7):
        y, w = np.zeros((2, 1, len(wave)))
        y[0, place], w[0, place] = spectra.flux[row], spectra.ivar[row]
        y[w == 0] = 0
        w[:, sky_mask(wave)] = 0
        inside = (w[0] > 0) & (wave / (1 + z[row]) > 5300) & (wave / (1 + z[row]) < 5850)
        norm = np.sort(y[0][inside])[(inside.sum() - 1) // 2]
        spec, weight, at = (torch.as_tensor(part, dtype=torch.float32) for part in (y / norm, w * norm**2, [z[row]]))
        with torch.inference_mode():
            latents = model.encode(spec)[0]
            seen, valid = model(spec, instrument=SDSS, z=at), model.valid(None, at)
        np.testing.assert_allclose([table[f"latent_{k + 1}"][row] for k in range(4)], latents, rtol=1e-4, atol=1e-5)
        assert table["amplitude"][row] == pytest.approx(norm, rel=1e-5)
        assert table["chi2"][row] == pytest.approx(float((weight * (spec - seen) ** 2 * valid).sum()), rel=1e-3)
    assert np.isnan(np.ma.filled(table["latent_1_err"], np.nan)).all() and np.isnan(np.ma.filled(table["covariance"], np.nan)).all()
    latents = np.ma.filled(table["latent_1"], np.nan)
    assert table["flags"][5] & EncodeFlag.BAD_INPUT.value and np.isnan(latents[5]) and np.isfinite(np.delete(latents, 5)).all()


def test_reconstructions_are_in_the_units_of_the_spectra(folder, tmp_path):
    reconstruct(str(folder / "theirs.pt"), [folder / "night.npz"], out=tmp_path / "m.npz")
    model = published_model(str(folder / "theirs.pt"))
    spectra = read_spectra(folder / "night.npz", progress=False)
    data = normalised(spectra, info_column(spectra, "z"), model.wave_obs)
    with np.load(tmp_path / "m.npz") as arrays, torch.inference_mode():
        assert arrays["flux"].shape == (8, len(model.wave_obs)) and arrays["rest_flux"].shape == (8, 2500) and np.isnan(arrays["flux"][5]).all()
        rest = model.decode(model.encode(data.flux))[2] * data.scale[2]
        np.testing.assert_allclose(arrays["rest_flux"][2], rest, rtol=1e-4)
        seen = np.interp(arrays["wave"] / (1 + arrays["z"][2]), arrays["rest_wave"], arrays["rest_flux"][2], left=np.nan, right=np.nan)
        known = np.isfinite(arrays["flux"][2])
        np.testing.assert_allclose(arrays["flux"][2][known], seen[known], rtol=2e-2, atol=2e-2 * float(data.scale[2]))


def test_other_pixels_and_chunks_make_no_difference(folder):
    model, spectra = published_model(str(folder / "theirs.pt")), read_spectra(folder / "night.npz", progress=False)
    z = info_column(spectra, "z")
    data = normalised(spectra, z, model.wave_obs)
    whole, pieces = encode_published(model, data)[0], encode_published(model, data, chunk=3)[0]
    np.testing.assert_allclose(whole.latents, pieces.latents, rtol=1e-4, atol=1e-6)
    air = normalised(spectra.to_frame("air"), z, model.wave_obs)
    good = (air.ivar > 0) & (data.ivar > 0)
    assert good[:5].float().mean() > 0.75 and float((air.scale / data.scale)[:5].sub(1).abs().max()) < 0.02
    assert (torch.isnan(whole.latents).all(1) == (torch.arange(8) == 5)).all()


def test_old_files_want_the_instrument(folder, tmp_path):
    with pytest.raises(SpectraError, match="--instrument SDSS"):
        encode(str(folder / "old.pt"), [folder / "night.npz"], out=tmp_path / "l.fits")
    encode(str(folder / "old.pt"), [folder / "night.npz"], out=tmp_path / "l.fits", instrument="SDSS")
    encode(str(folder / "theirs.pt"), [folder / "night.npz"], out=tmp_path / "m.fits")
    both = [np.ma.filled(QTable.read(tmp_path / f"{name}.fits")["latent_1"], np.nan) for name in "lm"]
    assert np.array_equal(*both, equal_nan=True)


def test_models_that_do_not_fit_are_named(folder):
    with pytest.raises(SpectraError, match="redshifts and outliers need a basis"):
        galaxy_model(str(folder / "theirs.pt"))
    with pytest.raises(SpectraError, match="kind Emulator"):
        galaxy_model("hr10_turbospectrum")
    assert published_model("sdss_mock") is None


def test_spectra_that_a_model_does_not_reach(folder, tmp_path):
    "Infrared spectra: encode and outliers say what was given and what is known; redshift flags, and gives no number."
    wave = np.linspace(15000.0, 17000.0, 2000)
    np.savez(tmp_path / "infrared.npz", wave=wave, flux=np.random.default_rng(0).normal(1, 0.01, (2, 2000)), ivar=np.full((2, 2000), 1e4), z=np.zeros(2), frame="vacuum")
    for command, name in ((encode, "sdss_mock"), (reconstruct, "sdss_mock"), (encode, str(folder / "theirs.pt"))):
        with pytest.raises(SpectraError, match="at rest, and the spectra show"):
            command(name, [tmp_path / "infrared.npz"], out=tmp_path / ("x.npz" if command is reconstruct else "x.fits"))
    redshift("sdss_mock", [tmp_path / "infrared.npz"], out=tmp_path / "z.ecsv", quiet=True)
    assert np.isnan(np.ma.filled(QTable.read(tmp_path / "z.ecsv")["z"], np.nan)).all() and (QTable.read(tmp_path / "z.ecsv")["flags"] == 1).all()


def test_errors_that_files_do_not_hold(tmp_path):
    with np.load(asset("mock_galaxies.npz")) as mocks:
        np.savetxt(tmp_path / "one.txt", np.stack([mocks["wave"], mocks["flux"][0]], 1))
    with pytest.raises(SpectraError, match="--error"):
        encode("sdss_mock", [tmp_path / "one.txt"], out=tmp_path / "l.ecsv", z=0.1468, frame="vacuum")
    assert encode("sdss_mock", [tmp_path / "one.txt"], out=tmp_path / "l.ecsv", z=0.1468, frame="vacuum", error=0.1) == 0


def test_a_flow_of_your_own(folder, tmp_path):
    "It is looked for beside a model's file, or named; one of other latents is refused."
    pytest.importorskip("zuko")
    (tmp_path / "mine.safetensors").write_bytes(asset("sdss_mock.safetensors").read_bytes())
    with pytest.raises(SpectraError, match="there is no .*mine_flow.safetensors"):
        latent_density(str(tmp_path / "mine.safetensors"), None)
    (tmp_path / "mine_flow.safetensors").write_bytes(asset("sdss_mock_flow.safetensors").read_bytes())
    assert outliers(str(tmp_path / "mine.safetensors"), [folder / "night.npz"], out=tmp_path / "o.fits", instrument="SDSS", quiet=True) == 0
    table = QTable.read(tmp_path / "o.fits")
    assert len(table) == 8 and np.isnan(np.ma.filled(table["score"], np.nan)).tolist() == [k == 5 for k in range(8)]
    save_flow(LatentFlow(5, [MaskedFlow(5)], dict(kind="maf", n_hidden=50, n_step=5)), tmp_path / "five.safetensors")
    with pytest.raises(SpectraError, match="5 latents, the model has 6"):
        outliers("sdss_mock", [folder / "night.npz"], out=tmp_path / "p.fits", flow=str(tmp_path / "five.safetensors"), quiet=True)


def test_training_reads_shards_in_blocks_and_goes_on(tmp_path, capsys):
    with np.load(asset("mock_galaxies.npz")) as mocks:
        kept = np.flatnonzero(mocks["truth_outlier"] == 0)
        for name, rows in (("a", kept[:120]), ("b", kept[120:])):
            np.savez(tmp_path / f"{name}.npz", wave=mocks["wave"], frame="vacuum", **{key: mocks[key][rows] for key in ("flux", "ivar", "z", "ids")})
            prep_galaxies([tmp_path / f"{name}.npz"], instrument="SDSS" if name == "a" else "BOSS", out=tmp_path / name, quiet=True)
    options = dict(latents=2, components=5, steps=20, basis_spectra=60, kinematics=(20.0, 63.0), run=tmp_path / "run", quiet=True)
    for name in ("one", "again"):
        train_spender([tmp_path / "a", tmp_path / "b"], out=tmp_path / f"{name}.safetensors", memory=0.06, **options)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    found = galaxy_model(str(tmp_path / "one.safetensors"))
    assert found.n_latent == 2 and found.kinematics == (20.0, 63.0)
    said = [line for line in capsys.readouterr().out.splitlines() if "kept aside" in line]
    assert len(said) == 2 and said[0] == said[1] and 1 < float(said[0].split()[-1]) < 2
    with pytest.raises(SpectraError, match="memory_budget"):
        train_spender([tmp_path / "a"], out=tmp_path / "x.safetensors", memory=0.001, **{**options, "run": None})
