"""Archives: batches as spender's users know them, without its defects (see nbs/05f_archives.ipynb)."""

import gzip
import itertools
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from fake_server import serve

from spectra_nn.archives import (APOGEE_ARCHIVE, BOSS_ARCHIVE, DESI_ARCHIVE, SDSS_ARCHIVE, BatchWarning, get_image, get_spectra, make_batch,
                                 prepare_spectra, prepare_spectrum, query, read_catalog, spectrum_path)
from spectra_nn.core import SpectraError, asset
from spectra_nn.sky import sky_mask
from spectra_nn.survey_files import SDSS_FATAL

SDSS_WAVE = 10 ** (3.578 + 1e-4 * np.arange(3921))
BOSS_WAVE = 10 ** (3.549 + 1e-4 * np.arange(4686))
DESI_WAVE = np.linspace(3600, 9824, 7781)
REAL = Path(__file__).parents[1] / "../shared/data/real"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real spectra are not here")


def write_sdss(path, plate=1, mjd=50000, fiber=1, *, z=0.1, level=3.0, change=None, n_pix=3842, first=3.5796):
    """A file as SDSS has it; `change` alters its columns before they are written."""
    random = np.random.default_rng(fiber)
    columns = dict(flux=(level + 0.1 * random.standard_normal(n_pix)).astype("f4"), loglam=(first + 1e-4 * np.arange(n_pix)).astype("f4"),
                   ivar=np.full(n_pix, 100, "f4"), and_mask=np.zeros(n_pix, "i4"))
    if change: change(columns)
    results = {"PLATE": [plate], "MJD": [mjd], "FIBERID": [fiber], "Z": np.float32([z]), "Z_ERR": np.float32([2e-5]), "PLUG_RA": [150.1], "PLUG_DEC": [2.2]}
    hdus = [fits.PrimaryHDU(), *(fits.BinTableHDU(Table(part)) for part in (columns, results))]
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return columns


def expected(columns, wave, z):
    """What spender makes of an SDSS file, written out, but for pixels that are only warned of: on the grid, masked, sky lines cut, normalised by the lower median."""
    start = round((float(columns["loglam"][0]) - np.log10(wave[0])) / 1e-4)
    flux, ivar = columns["flux"].copy(), np.where((columns["and_mask"] & SDSS_FATAL != 0) | (columns["ivar"] <= 1e-6), 0, columns["ivar"])
    flux, ivar, start = (flux[-start:], ivar[-start:], 0) if start < 0 else (flux, ivar, start)
    n = min(len(flux), len(wave) - start)
    spec, w = torch.zeros(len(wave)), torch.zeros(len(wave))
    spec[start:start + n], w[start:start + n] = torch.tensor(flux[:n]), torch.tensor(ivar[:n], dtype=torch.float32)
    w[torch.from_numpy(sky_mask(wave))] = 0
    rest = torch.from_numpy(wave) / (1 + z)
    norm = torch.median(spec[(w > 0) & (rest > 5300) & (rest < 5850)])
    return spec / norm, w * norm**2, norm


def test_a_warning_costs_no_pixel(tmp_path):
    """MANYBADCOLUMNS and NEARBADPIXEL are set for whole spectra that are fine."""
    def warned(columns):
        columns["and_mask"][:] = 1 << 4 | 1 << 16

    for fiber, change in ((1, warned), (2, None)):
        write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, (1, 50000, fiber)), fiber=fiber, change=change)
    w = make_batch(SDSS_ARCHIVE, tmp_path, [(1, 50000, 1), (1, 50000, 2)], wave=SDSS_WAVE, fetch=False)[1]
    assert torch.equal(w[0] > 0, w[1] > 0) and (w[0] > 0).sum() > 3000


def test_is_what_spender_makes_of_it(tmp_path):
    def flagged(columns):
        columns["and_mask"][100:150], columns["ivar"][200:210], columns["flux"][120] = 1 << 23, 1e-7, 900.0

    columns = write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, (1, 50000, 1)), change=flagged)
    spec, w, z, norm, zerr = make_batch(SDSS_ARCHIVE, tmp_path, [(1, 50000, 1)], wave=SDSS_WAVE, fetch=False)
    spec_0, w_0, norm_0 = expected(columns, SDSS_WAVE, np.float32(0.1))
    torch.testing.assert_close(spec[0], spec_0, rtol=1e-6, atol=0)
    torch.testing.assert_close(w[0], w_0, rtol=1e-6, atol=0)
    assert norm[0] == norm_0 and z[0] == np.float32(0.1) and zerr[0] == np.float32(2e-5)
    assert spec.max() > 250 and w[0, spec[0].argmax()] == 0  # the encoder sees flux under the mask, the loss does not


@real
@pytest.mark.parametrize("archive, wave, pattern", [(SDSS_ARCHIVE, SDSS_WAVE, "galaxies/spec-0412*.fits"), (BOSS_ARCHIVE, BOSS_WAVE, "*/spec-[37]*.fits"),
                                                    (SDSS_ARCHIVE, SDSS_WAVE, "galaxies/NGC*.fits")], ids=["SDSS", "BOSS", "DR18"])
def test_real_files(archive, wave, pattern):
    paths = sorted(REAL.glob(pattern))
    assert paths
    for path in paths:
        spec, w, norm, z, _ = prepare_spectrum(archive, path, wave=wave)
        table = fits.getdata(path, 1)
        columns = {name: np.array(table[name]).astype(table[name].dtype.newbyteorder("=")) for name in ("loglam", "flux", "ivar", "and_mask")}
        spec_0, w_0, norm_0 = expected(columns, wave, float(z))
        assert torch.isfinite(spec).all() and (norm > 0) == (norm_0 > 0)
        if norm > 0:
            torch.testing.assert_close(spec, spec_0, rtol=1e-6, atol=0)
            torch.testing.assert_close(w, w_0, rtol=1e-6, atol=0)
            assert (w > 0).sum() > 1000


def all_negative(columns): columns["flux"] -= 6
def all_masked(columns): columns["and_mask"][:] = 1
def without_errors(columns): columns["ivar"][:] = 0
def nowhere_finite(columns): columns["flux"][:] = np.nan


@pytest.mark.parametrize("change, z, words", [(all_negative, 0.1, "not positive"), (all_masked, 0.1, "no good pixel"), (without_errors, 0.1, "no good pixel"),
                                              (nowhere_finite, 0.1, "no good pixel"), (None, 0.9, "no good pixel"), (None, -1.0, "no good pixel"),
                                              (None, np.nan, "no redshift"), (None, 1e38, "no redshift")], ids=str)
def test_a_spectrum_without_norm_has_weight_0_and_is_finite(tmp_path, change, z, words):
    """spender divides by 0 or flips the sign here, and one such row makes the loss of the batch NaN."""
    write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, (1, 50000, 1)), z=z, change=change)
    write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, (1, 50000, 2)), fiber=2)
    alone = make_batch(SDSS_ARCHIVE, tmp_path, [(1, 50000, 2)], wave=SDSS_WAVE, fetch=False)
    with pytest.warns(BatchWarning, match=rf"1 of 2 .*\[0\] spec-0001-50000-0001.fits: .*{words}"):
        spec, w, z_out, norm, zerr = make_batch(SDSS_ARCHIVE, tmp_path, [(1, 50000, 1), (1, 50000, 2)], wave=SDSS_WAVE, fetch=False)
    assert all(torch.isfinite(part).all() for part in (spec, w, z_out, norm)) and not w[0].any() and not spec[0].any() and norm[0] == 0
    assert all(torch.equal(part[1], one[0]) for part, one in zip((spec, w, z_out, norm, zerr), alone))


def test_single_bad_values_are_masked(tmp_path):
    def damage(columns): columns["flux"][1000], columns["ivar"][1001], columns["ivar"][1002], columns["ivar"][1003] = np.inf, np.nan, -1, np.inf

    write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, (1, 50000, 1)), change=damage)
    spec, w, _, norm, _ = make_batch(SDSS_ARCHIVE, tmp_path, [(1, 50000, 1)], wave=SDSS_WAVE, fetch=False)
    assert norm > 2.9 and torch.isfinite(spec).all() and torch.isfinite(w).all()
    assert not w[0, 1016:1020].any() and w[0, [1015, 1020]].all() and spec[0, 1016] == 0


@pytest.mark.parametrize("content, words", [(b"", "damaged"), (b"<html>", "damaged"), (None, "cut short|damaged"), ("other", "no columns loglam"),
                                            ("shifted", "do not lie on the grid"), ("outside", "outside the grid")], ids=str)
def test_a_bad_file_does_not_stop_the_others(tmp_path, content, words):
    ids = [(1, 50000, k) for k in (1, 2, 3)]
    for k in (1, 2, 3): write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, ids[k - 1]), fiber=k)
    before = make_batch(SDSS_ARCHIVE, tmp_path, ids, wave=SDSS_WAVE, fetch=False)
    path = spectrum_path(SDSS_ARCHIVE, tmp_path, ids[1])
    if isinstance(content, bytes): path.write_bytes(content)
    elif content is None: path.write_bytes(path.read_bytes()[:30_000])
    elif content == "other": Table({"a": [1]}).write(path, overwrite=True, format="fits")
    else: write_sdss(path, first=3.57964 if content == "shifted" else 4.1)
    with pytest.warns(BatchWarning, match=f"(?s)1 of 3.*0002.*({words})"):
        after = make_batch(SDSS_ARCHIVE, tmp_path, ids, wave=SDSS_WAVE, fetch=False)
    for a, b in zip(before, after): assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert not after[1][1].any() and after[4][1] == np.inf and after[2][1] == 0
    with pytest.raises(SpectraError, match=f"(?s)0002.*({words})"): prepare_spectrum(SDSS_ARCHIVE, path, wave=SDSS_WAVE)


def test_a_file_longer_than_the_grid_is_cut(tmp_path):
    path = tmp_path / "boss.fits"
    path.write_bytes(gzip.decompress(asset("boss_star.fits.gz").read_bytes()))
    spec, *_ = prepare_spectrum(SDSS_ARCHIVE, path, wave=SDSS_WAVE)
    wide, *_ = prepare_spectrum(BOSS_ARCHIVE, path, wave=BOSS_WAVE)
    torch.testing.assert_close(spec, wide[290:290 + 3921], rtol=1e-6, atol=0)  # spender raises here


def test_ids_come_in_many_forms(tmp_path):
    for k in (1, 2): write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, (1, 50000, k)), fiber=k)
    rows = Table({"PLATE": [1, 1], "MJD": [50000, 50000], "FIBERID": [1, 2], "Z": [0.1, 0.2], "Z_ERR": [2e-5, 3e-5]})
    forms = [rows, [tuple(row) for row in rows], np.array([list(row) for row in rows]), [[1, 50000, 1, 0.1, 2e-5], ["0001", "50000", "2", 0.2, 3e-5]]]
    batches = [make_batch(SDSS_ARCHIVE, tmp_path, form, wave=SDSS_WAVE, fetch=False) for form in forms]
    for batch in batches[1:]: assert all(torch.equal(a, b) for a, b in zip(batches[0], batch))
    assert batches[0][2].tolist() == [np.float32(0.1), np.float32(0.2)] and batches[0][4].tolist() == [np.float32(2e-5), np.float32(3e-5)]
    from_file = make_batch(SDSS_ARCHIVE, tmp_path, ["0001-50000-0001"], wave=SDSS_WAVE, fetch=False)
    assert torch.equal(from_file[0][0], batches[0][0][0])
    assert [part.shape for part in make_batch(SDSS_ARCHIVE, tmp_path, [], wave=SDSS_WAVE)] == [(0, 3921), (0, 3921), (0,), (0,), (0,)]


def on_loopback(archive, server):
    """The same archive, at home on the fake server."""
    return replace(archive, catalog=server.url("/" + archive.catalog.rpartition("/")[2]), files=tuple((server.url("/" + path), path) for _, path in archive.files),
                   image=server.url("/cutout?ra={ra}&dec={dec}&s={size}&p={scale}"))


def test_a_batch_fetches_what_is_missing_once(tmp_path):
    names = [f"/0001/spec-0001-50000-{k:04d}.fits" for k in (1, 2, 3, 4)]
    for k in (1, 2, 3): write_sdss(tmp_path / "far" / names[k - 1][1:], fiber=k)
    files = {name: (tmp_path / "far" / name[1:]).read_bytes() for name in names[:3]}
    with serve(files, {names[0]: [503, "cut"], names[2]: itertools.repeat(403)}) as server:
        archive, ids = on_loopback(SDSS_ARCHIVE, server), [(1, 50000, k) for k in (1, 2, 3, 4, 1)]
        options = dict(wave=SDSS_WAVE, backoff=0.01, progress=False)
        with pytest.warns(BatchWarning, match="2 of 5.*403.*404"): batch = make_batch(archive, tmp_path / "DATA", ids, **options)
        assert batch[3].gt(0).tolist() == [True, True, False, False, True] and torch.equal(batch[0][0], batch[0][4])
        assert not list((tmp_path / "DATA").rglob("*.part"))
        seen = len(server.log)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = make_batch(archive, tmp_path / "DATA", [ids[1], ids[0]], **options)
        assert len(server.log) == seen and torch.equal(again[0], batch[0][[1, 0]])
        with pytest.warns(BatchWarning, match="we are offline"): make_batch(archive, tmp_path / "DATA", [ids[2]], offline=True, **options)
        assert len(server.log) == seen


def test_query_fetches_the_catalogue_and_selects(tmp_path):
    n = 1000
    random = np.random.default_rng(0)
    table = Table({"PLATE": np.arange(n, dtype="u2"), "MJD": np.full(n, 50000), "FIBERID": np.arange(n) % 640 + 1,
                   "Z": random.uniform(-0.1, 1, n).astype("f4"), "Z_ERR": random.choice([-3, 1e-5, 2e-4], n),
                   "CLASS": random.choice(["GALAXY", "QSO", "STAR"], n), "SURVEY": random.choice(["sdss", "boss", "segue1"], n),
                   "PLATEQUALITY": random.choice(["good", "marginal"], n), "TARGETTYPE": ["SCIENCE"] * n, "SOURCETYPE": random.choice(["GALAXY", "QSO"], n)})
    table.write(tmp_path / "far.fits")
    with serve({"/specObj-dr16.fits": (tmp_path / "far.fits").read_bytes()}, {"/specObj-dr16.fits": ["cut"]}) as server:
        found = query(on_loopback(SDSS_ARCHIVE, server), tmp_path, backoff=0.01, progress=False)
        query(on_loopback(BOSS_ARCHIVE, server), tmp_path, progress=False)
        assert len(server.log) == 2
    keep = ((table["CLASS"] == "GALAXY") & (table["SURVEY"] == "sdss") & (table["PLATEQUALITY"] == "good") & (table["SOURCETYPE"] == "GALAXY")
            & (table["Z"] > 0) & (table["Z"] < 0.76) & (table["Z_ERR"] == 1e-5))
    assert found.colnames == ["PLATE", "MJD", "FIBERID", "Z", "Z_ERR"] and keep.sum() > 5
    for name in found.colnames: np.testing.assert_array_equal(found[name], table[name][keep])
    in_blocks = read_catalog(tmp_path / "specObj-dr16.fits", ["PLATE", "CLASS"], [("Z", ">", 0.5)], block_size=77)
    np.testing.assert_array_equal(in_blocks["PLATE"], table["PLATE"][table["Z"] > 0.5])
    np.testing.assert_array_equal(in_blocks["CLASS"], table["CLASS"][table["Z"] > 0.5])


def test_targets_of_desi_are_asked_of_the_object_not_of_the_definition(tmp_path):
    """spender keeps every object whatever its class."""
    table = Table({"SURVEY": ["sv3"] * 5, "PROGRAM": ["bright", "bright", "dark", "dark", "bright"], "HEALPIX": [1] * 5, "TARGETID": np.arange(5),
                   "Z": [0.1] * 5, "ZERR": [1e-5] * 5, "ZWARN": [0] * 5, "SPECTYPE": ["GALAXY"] * 5, "DELTACHI2": [50.0, 50, 50, 10, 30], "COADD_FIBERSTATUS": [0] * 5,
                   "SV3_DESI_TARGET": np.array([1 << 60, 1 << 61, 1, 1, 1 << 60])})
    table.write(tmp_path / "zall-pix-fuji.fits")
    chosen = {target: list(query(DESI_ARCHIVE, tmp_path, target=target, offline=True)["TARGETID"]) for target in ("BGS", "MWS", "LRG", "ELG", "bgs_any")}
    assert chosen == {"BGS": [0], "MWS": [1], "LRG": [2], "ELG": [], "bgs_any": [0]}


def desi_files(folder, n=4):
    """A coadd of `n` copies of the package's galaxy, the k-th k + 1 times as bright, and Redrock's file in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "one.fits").write_bytes(gzip.decompress(asset("desi_galaxy.fits.gz").read_bytes()))
    targets = 10**16 + 7 * np.arange(n)
    with fits.open(folder / "one.fits") as hdus:
        made = [fits.PrimaryHDU(header=fits.Header({"SURVEY": "sv3"}))]
        bits = np.array([1 << 60, 1 << 60, 1 << 61, 1 << 60][:n])
        made += [fits.BinTableHDU(Table({"TARGETID": targets, "COADD_FIBERSTATUS": [0, 0, 0, 8][:n], "SV3_DESI_TARGET": bits, "TARGET_RA": [10.0] * n,
                                         "TARGET_DEC": [20.0] * n}), name="FIBERMAP")]
        for hdu in hdus:
            if hdu.name[:2] not in ("B_", "R_", "Z_"): continue
            scale = np.arange(1, n + 1).reshape(-1, *[1] * (hdu.data.ndim - 1)) if "FLUX" in hdu.name or "IVAR" in hdu.name else 1
            data = hdu.data if "WAVE" in hdu.name else np.repeat(hdu.data, n, axis=0)
            data = data * scale if "FLUX" in hdu.name else data / scale**2 if "IVAR" in hdu.name else data
            made.append(fits.ImageHDU(data.astype(hdu.data.dtype.newbyteorder("=")), name=hdu.name))
        fits.HDUList(made).writeto(folder / "coadd-sv3-bright-27247.fits")
    order = np.arange(n)[::-1]
    redrock = Table({"TARGETID": targets[order], "Z": 0.007 + 0.001 * order, "ZERR": np.full(n, 1e-5), "ZWARN": [0] * n, "SPECTYPE": ["GALAXY"] * n,
                     "DELTACHI2": [90.0] * n})
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(redrock, name="REDSHIFTS")]).writeto(folder / "redrock-sv3-bright-27247.fits")
    return [("sv3", "bright", 27247, int(target)) for target in targets]


def test_desi_by_target(tmp_path):
    ids = desi_files(tmp_path / "far" / "27247")
    files = {f"/27247/{path.name}": path.read_bytes() for path in (tmp_path / "far" / "27247").glob("*-27247.fits")}
    with serve(files) as server:
        archive = on_loopback(DESI_ARCHIVE, server)
        spec, w, z, norm, zerr = make_batch(archive, tmp_path, [ids[2], ids[0], (*ids[1], 0.05, 1e-4)], wave=DESI_WAVE, progress=False)
        assert len(server.log) == 2  # one file serves three ids, and its redshifts
    torch.testing.assert_close(z, torch.tensor([0.009, 0.007, 0.05]))
    assert norm[0] / norm[1] == pytest.approx(3, rel=0.1) and zerr[2] == np.float32(1e-4) and (w > 0).sum(1).min() > 4000
    assert not w[:, torch.from_numpy(sky_mask(DESI_WAVE))].any()
    torch.testing.assert_close((w / norm[:, None] ** 2)[0] * 9, (w / norm[:, None] ** 2)[1], rtol=1e-4, atol=0)

    path = spectrum_path(archive, tmp_path, ids[0])
    spec_all, w_all, z_all, target_id, norm_all, _ = prepare_spectra(archive, path, "BGS", wave=DESI_WAVE)
    assert target_id.tolist() == [ids[0][3], ids[1][3]] and torch.equal(spec_all[0], spec[1])   # not the star target, not the bad fibre
    torch.testing.assert_close(z_all, torch.tensor([0.007, 0.008]))
    assert prepare_spectra(archive, path, wave=DESI_WAVE)[3].tolist() == [one[3] for one in ids[:3]]

    path.with_name("redrock-sv3-bright-27247.fits").unlink()
    with pytest.warns(BatchWarning, match="1 of 1.*Redrock"): make_batch(archive, tmp_path, [ids[0]], wave=DESI_WAVE, fetch=False)
    assert make_batch(archive, tmp_path, [(*ids[1], 0.05, 1e-4)], wave=DESI_WAVE, fetch=False)[3] == norm[2]  # a redshift in the id needs no file
    with pytest.raises(SpectraError, match="Redrock"): prepare_spectrum(archive, path, wave=DESI_WAVE)
    with pytest.raises(SpectraError, match="several objects"): prepare_spectrum(archive, path, z=0.1, wave=DESI_WAVE)


def test_a_star_of_apogee_by_name(tmp_path):
    (tmp_path / "DATA").mkdir()
    Table({"APOGEE_ID": ["2M1", "2M1", "2M2"], "FIELD": ["a", "b", "c"], "TELESCOPE": ["apo25m", "lco25m", "apo25m"], "SNR": [5.0, 90.0, 9.0]}).write(
        tmp_path / "DATA" / "allStar-dr17-synspec_rev1.fits")
    with serve({"/lco25m/b/asStar-dr17-2M1.fits": b"SIMPLE"}) as server:
        archive = on_loopback(APOGEE_ARCHIVE, server)
        paths, reasons = get_spectra(archive, tmp_path / "DATA", ["2M1", ("apo25m", "c", "2M2")], progress=False)
    assert paths == [tmp_path / "DATA/lco25m/b/asStar-dr17-2M1.fits", None] and "404" in reasons[server.url("/apo25m/c/apStar-dr17-2M2.fits")]


def test_image_of_an_object(tmp_path):
    from matplotlib.image import imsave

    imsave(tmp_path / "x.jpeg", np.full((32, 32, 3), 0.5))
    write_sdss(spectrum_path(SDSS_ARCHIVE, tmp_path, (1, 50000, 1)))
    with serve({"/cutout": (tmp_path / "x.jpeg").read_bytes()}, {"/cutout": ["ok", "html"]}) as server:
        archive = on_loopback(SDSS_ARCHIVE, server)
        image = get_image(archive, tmp_path, (1, 50000, 1), size=32)
        assert image.shape == (32, 32, 3) and abs(image.astype(int) - 128).max() < 4
        assert server.log[0][1] == "/cutout?ra=150.1&dec=2.2&s=32&p=0.2"
        assert get_image(archive, tmp_path, (1, 50000, 1), size=32, return_file=True).suffix == ".jpeg" and len(server.log) == 1
        with pytest.raises(SpectraError, match="web page"): get_image(archive, tmp_path, (10.0, 20.0), size=32)


@pytest.mark.parametrize("archive", [SDSS_ARCHIVE, BOSS_ARCHIVE, DESI_ARCHIVE, APOGEE_ARCHIVE], ids=lambda archive: archive.name)
def test_addresses_are_those_of_public_releases(archive):
    one = {"sdss": (412, 51871, 308), "desi": ("sv3", "dark", 27247, 5), "apogee": ("apo25m", "000+02", "2M17335483-2753043")}[archive.kind]
    paths, reasons = get_spectra(archive, "nowhere", [one], offline=True, progress=False)
    assert paths == [None] and reasons and set(reasons) <= {
        "https://data.sdss.org/sas/dr16/sdss/spectro/redux/26/spectra/lite/0412/spec-0412-51871-0308.fits",
        "https://data.sdss.org/sas/dr16/eboss/spectro/redux/v5_13_0/spectra/lite/0412/spec-0412-51871-0308.fits",
        "https://data.desi.lbl.gov/public/edr/spectro/redux/fuji/healpix/sv3/dark/272/27247/coadd-sv3-dark-27247.fits",
        "https://data.desi.lbl.gov/public/edr/spectro/redux/fuji/healpix/sv3/dark/272/27247/redrock-sv3-dark-27247.fits",
        "https://data.sdss.org/sas/dr17/apogee/spectro/redux/dr17/stars/apo25m/000+02/apStar-dr17-2M17335483-2753043.fits"}
