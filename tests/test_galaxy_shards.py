"""Shards give back what survey files held, whatever happens to either."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spectra_nn.core import Spectra, SpectraError
from spectra_nn.galaxy_shards import SPLITS, ShardedSpectra, deredden, extinction, hash_share, in_split, on_pixels, prepare_galaxies
from spectra_nn.instruments import SDSS

torch.set_num_threads(1)
REAL = Path(__file__).parents[2] / "shared" / "data" / "real" / "galaxies"


def survey(folder, n_file=6, n=5, **more):
    """Write npz files of a few spectra each on a piece of the grid, and return them with the truth."""
    random, wave = np.random.default_rng(0), SDSS.wave_obs[200:900]
    flux = random.normal(30, 5, (n_file, n, len(wave)))
    files = []
    for k in range(n_file):
        path = folder / f"file{k}.npz"
        np.savez(path, wave=wave, flux=flux[k], ivar=np.full((n, len(wave)), 4.0), z=np.linspace(0, 0.3, n) + k, ids=[f"{k}-{j}" for j in range(n)], frame="vacuum", **more)
        files.append(path)
    return files, flux


def test_round_trip_with_ids_redshifts_and_units(tmp_path):
    files, flux = survey(tmp_path)
    report = prepare_galaxies(files, SDSS, tmp_path / "s", shard_size=8, precision="float32", progress=False)
    assert (report.n_spec, report.rejected) == (30, {})
    spectra, z = ShardedSpectra.open(tmp_path / "s").read_all()
    assert spectra.ids == tuple(f"{k}-{j}" for k in range(6) for j in range(5))
    assert np.allclose(spectra.flux[:, 200:900], flux.reshape(30, -1), rtol=1e-6)
    assert np.allclose(spectra.ivar[:, 200:900], 4, rtol=1e-5) and not spectra.ivar[:, :200].any()
    assert np.allclose(z, np.add.outer(np.arange(6), np.linspace(0, 0.3, 5)).ravel())


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    from spectra_nn import galaxy_shards

    files, _ = survey(tmp_path)
    real, calls = galaxy_shards.read_spectra, []

    def read(path, **options):
        calls.append(Path(path).name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(path, **options)

    monkeypatch.setattr(galaxy_shards, "read_spectra", read)
    with pytest.raises(KeyboardInterrupt):
        prepare_galaxies(files, SDSS, tmp_path / "s", shard_size=10, progress=False)
    assert len(ShardedSpectra.open(tmp_path / "s")) == 20
    report = prepare_galaxies(files, SDSS, tmp_path / "s", shard_size=10, progress=False)
    assert report.n_spec == 30 and calls[5:] == ["file4.npz", "file5.npz"]
    ids = [key for b in ShardedSpectra.open(tmp_path / "s").batches("all", 7) for key in b.ids]
    assert sorted(ids) == sorted(f"{k}-{j}" for k in range(6) for j in range(5))


def test_bad_files_and_spectra_are_left_out_and_named(tmp_path):
    files, _ = survey(tmp_path, 2)
    (tmp_path / "cut.npz").write_bytes(files[0].read_bytes()[:500])
    np.savez(tmp_path / "noz.npz", wave=SDSS.wave_obs, flux=np.ones((2, 3921)), ivar=np.ones((2, 3921)), z=[np.nan, 0.1], ids=["a", "b"], frame="vacuum")
    np.savez(tmp_path / "blind.npz", wave=SDSS.wave_obs, flux=np.ones((1, 3921)), ivar=np.zeros((1, 3921)), z=[0.1], ids=["c"], frame="vacuum")
    np.savez(tmp_path / "far.npz", wave=np.linspace(20000, 21000, 50), flux=np.ones((1, 50)), ivar=np.ones((1, 50)), z=[0.1], ids=["d"], frame="vacuum")
    report = prepare_galaxies([tmp_path / "cut.npz", tmp_path / "none.fits", *files, *(tmp_path / f"{n}.npz" for n in ("noz", "blind", "far"))], SDSS, tmp_path / "s", progress=False)
    assert report.n_spec == 11
    said = {Path(name).name: reason for name, reason in report.rejected.items()}
    assert set(said) == {"cut.npz", "none.fits", "noz.npz[a]", "blind.npz", "far.npz[d]"}
    assert "redshift" in said["noz.npz[a]"] and "no good pixel" in said["far.npz[d]"]


def test_one_bad_spectrum_changes_no_other(tmp_path):
    files, flux = survey(tmp_path, 1)
    np.savez(tmp_path / "odd.npz", wave=SDSS.wave_obs[200:900], flux=np.r_[flux[0], np.full((1, 700), 1e30)], ivar=np.r_[np.full((5, 700), 4.0), np.full((1, 700), 1e-40)],
             z=np.zeros(6), ids=[f"0-{j}" for j in range(5)] + ["odd"], frame="vacuum")
    kept = []
    for name in ("file0", "odd"):
        prepare_galaxies(tmp_path / f"{name}.npz", SDSS, tmp_path / name, progress=False)
        kept.append(next(ShardedSpectra.open(tmp_path / name).batches("all")))
    assert torch.equal(kept[0].flux, kept[1].flux[:5]) and torch.equal(kept[0].ivar, kept[1].ivar[:5])
    assert all(torch.isfinite(getattr(kept[1], part)).all() for part in ("flux", "ivar", "scale"))


def test_redshifts_and_dust_of_a_catalogue(tmp_path):
    files, flux = survey(tmp_path, 1)
    catalog = {"id": [f"0-{j}" for j in (4, 3, 2, 1)], "z": [0.4, 0.3, 0.2, np.nan], "ebv": [0.1, 0.0, 0.2, 0.3]}
    report = prepare_galaxies(files, SDSS, tmp_path / "s", catalog=catalog, ebv="ebv", precision="float32", progress=False)
    spectra, z = ShardedSpectra.open(tmp_path / "s").read_all()
    assert spectra.ids == ("0-2", "0-3", "0-4") and np.allclose(z, [0.2, 0.3, 0.4])
    assert len(report.rejected) == 2  # no redshift in the catalogue; no dust in it
    expected, weight = deredden(SDSS.wave_obs[200:900], flux[0, 2:], np.full((3, 700), 4.0), [0.2, 0.0, 0.1])
    assert np.allclose(spectra.flux[:, 200:900], expected, rtol=1e-5) and np.allclose(spectra.ivar[:, 200:900], weight, rtol=1e-5)
    with pytest.raises(SpectraError, match="no column 'id'"):
        prepare_galaxies(files, SDSS, tmp_path / "t", catalog={"name": [], "z": []})


SPENDER_SAYS = {  # ids, and the splits that assign_split of spender 0.3 gives them
    "266-51602-1": "train",
    "266-51602-2": "train",
    "266-51602-3": "valid",
    "266-51602-4": "train",
    "266-51602-5": "train",
    "266-51602-6": "train",
    "266-51602-7": "train",
    "266-51602-8": "train",
    "266-51602-9": "train",
    "266-51602-10": "valid",
    "266-51602-11": "train",
    "266-51602-12": "train",
    "39089837499744649": "train",
    "39089837499744650": "train",
    "39089837499744651": "train",
    "39089837499744652": "valid",
    "39089837499744653": "train",
    "39089837499744654": "test",
    "39089837499744655": "train",
    "39089837499744656": "train",
}


def test_the_split_is_that_of_spender():
    for key, split in SPENDER_SAYS.items():
        assert in_split(hash_share([key]), split)[0], key
    assert len(set(SPENDER_SAYS.values())) == 3
    assert len(set(hash_share(["m-1", "m-2", "ü"]))) == 3
    assert sum(SPLITS.values()) == 1


def test_shuffling_mixes_shards(tmp_path):
    files, _ = survey(tmp_path, 8)
    prepare_galaxies(files, SDSS, tmp_path / "s", shard_size=5, progress=False)
    sharded = ShardedSpectra.open(tmp_path / "s")
    first = next(sharded.batches("all", 10, shuffle=True, seed=0, window=8)).ids
    assert len({key.split("-")[0] for key in first}) > 3
    together = [key for b in sharded.batches("all", 9, shuffle=True, seed=5) for key in b.ids]
    assert sorted(together) == sorted(f"{k}-{j}" for k in range(8) for j in range(5)) and together != sorted(together)


def test_damage_is_named_or_skipped(tmp_path):
    files, _ = survey(tmp_path)
    prepare_galaxies(files, SDSS, tmp_path / "s", shard_size=10, progress=False)
    shard = tmp_path / "s" / "shard-00001.safetensors"
    whole = shard.read_bytes()
    for broken in (whole[:100], whole[:-1], b"", whole + b"x", b"\xff" * len(whole)):
        shard.write_bytes(broken)
        with pytest.raises(SpectraError, match="shard-00001"):
            ShardedSpectra.open(tmp_path / "s")
        with pytest.warns(UserWarning, match="10 spectra"):
            assert len(ShardedSpectra.open(tmp_path / "s", on_error="skip")) == 20
    manifest = json.loads((tmp_path / "s" / "shards.json").read_text())
    (tmp_path / "s" / "shards.json").write_text(json.dumps({**manifest, "format": "other"}))
    with pytest.raises(SpectraError, match="not a list of shards"):
        ShardedSpectra.open(tmp_path / "s")


def test_real_sdss_files_lose_nothing(tmp_path):
    files = sorted(REAL.glob("spec-0412-*.fits"))
    if not files:
        pytest.skip("no real galaxies here")
    prepare_galaxies(files, SDSS, tmp_path, progress=False)
    sharded = ShardedSpectra.open(tmp_path)
    assert len(sharded) == len(files) == 8
    from spectra_nn.spectrum_files import read_spectra

    one = read_spectra(files[0])
    spectra, z = sharded.read_all()
    mine = spectra[one.ids[0]]
    inside = np.isin(np.round(np.log10(mine.wave) * 1e4), np.round(np.log10(one.wave) * 1e4))
    good = one.ivar[0] > 0
    assert np.allclose(mine.flux[0, inside][good], one.flux[0, good], rtol=1e-3) and (np.abs(z - 0.0286) < 1e-3).all()


def test_extinction_agrees_with_dust_extinction():
    models = pytest.importorskip("dust_extinction.parameter_averages")
    import astropy.units as u

    wave = np.linspace(3000, 11000, 200)
    assert np.abs(extinction(wave) - 3.1 * models.F99(Rv=3.1)(1e4 / wave / u.micron)).max() < 0.01
    assert np.allclose(extinction(wave, "CCM89"), 3.1 * models.CCM89(Rv=3.1)(1e4 / wave / u.micron))
    with pytest.raises(SpectraError, match="has no curve 'G24'"):
        extinction(wave, "G24")


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dust_extinction", None)
    with pytest.raises(SpectraError, match=r"pip install 'spectra_nn\[dust\]'"):
        extinction(np.array([5000.0]), "G23")


def test_rebinned_noise_is_right():
    random, wave = np.random.default_rng(1), np.linspace(4000, 4400, 2001)
    flux, ivar = on_pixels(Spectra(wave, random.normal(10, 2, (200, 2001)), np.full((200, 2001), 0.25), frame="vacuum"), SDSS.wave_obs)
    seen = ivar[0] > 0
    assert 0.9 < np.std((flux - 10) * np.sqrt(ivar), axis=0)[seen].mean() < 1.1
