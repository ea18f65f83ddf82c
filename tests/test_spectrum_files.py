"""Readers of survey files: each format in a small file written here, and every real file where those are at hand."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from spectra_nn import spectrum_files
from spectra_nn.core import Spectra, SpectraError, air_to_vacuum
from spectra_nn.spectrum_files import apogee_wave, info_column, read_spectra

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "real"
N = 600


def write(path, *parts, **header):
    primary = fits.PrimaryHDU(header=fits.Header(header)) if not isinstance(parts[0], fits.PrimaryHDU) else parts[0]
    fits.HDUList([primary, *(part for part in parts if part is not primary)]).writeto(path)
    return path


def table(name="", **columns):
    formats = {"f": "E", "i": "J", "S": "20A", "U": "20A"}
    made = [fits.Column(key, (f"{values.shape[1]}" if values.ndim > 1 else "") + ("D" if values.dtype == float else formats[values.dtype.kind]), array=values)
            for key, values in ((key, np.asarray(values)) for key, values in columns.items())]
    return fits.BinTableHDU.from_columns(made, name=name)


def image(values, name=None, **header):
    return fits.ImageHDU(values, name=name, header=fits.Header(header))


def sdss(path, n_pix=N, drop=(), upper=False, mask=None, **header):
    columns = dict(flux=np.linspace(1, 2, n_pix, dtype="f4"), loglam=(3.6 + 1e-4 * np.arange(n_pix)).astype("f4"), ivar=np.full(n_pix, 4, "f4"),
                   and_mask=np.zeros(n_pix, "i4") if mask is None else mask, wdisp=np.full(n_pix, 1.2, "f4"))
    columns = {key.upper() if upper else key: values for key, values in columns.items() if key not in drop}
    results = table("SPECOBJ", Z=np.array([0.1], "f4"), CLASS=np.array(["GALAXY"]), PLUG_RA=np.array([12.5]), FLUXES=np.ones((1, 5), "f4"))
    return write(path, table("COADD", **columns), results, **(header or dict(PLATEID=412, MJD=51871, FIBERID=308)))


def desi(path, n_spec=3, drop=(), repeat=False):
    rng = np.random.default_rng(0)
    targets = np.array([39_000_000_000_000_000 + k * (not repeat) for k in range(n_spec)], ">i8")
    fibermap = fits.BinTableHDU.from_columns([fits.Column("TARGETID", "K", array=targets), fits.Column("TARGET_RA", "D", array=np.arange(n_spec)),
                                              fits.Column("EXPID", "J", array=100 + np.arange(n_spec))], name="FIBERMAP")
    parts = [fibermap]
    for arm, low, high in (("B", 0, 300), ("R", 250, 500), ("Z", 480, 700)):
        n_pix = high - low
        band = np.zeros((n_spec, 11, n_pix), "f4")
        band[:] = np.exp(-0.5 * (np.arange(-5, 6) / 0.9) ** 2)[None, :, None]
        mask = np.zeros((n_spec, n_pix), "i4")
        mask[:, 3] = 1
        made = dict(WAVELENGTH=3600 + 0.8 * np.arange(low, high), FLUX=rng.normal(2, 0.1, (n_spec, n_pix)).astype("f4"),
                    IVAR=np.full((n_spec, n_pix), 100, "f4"), MASK=mask, RESOLUTION=band / band.sum(1, keepdims=True))
        parts += [image(values, f"{arm}_{key}") for key, values in made.items() if key not in drop]
    return write(path, *parts)


def apstar(path, n_rows=3, mask=None, aspcap=False):
    shape = (8575,) if n_rows == 1 else (n_rows, 8575)
    bits = np.zeros(shape, "i8") if mask is None else mask
    scale = dict(CRVAL1=4.179, CDELT1=6e-6, CTYPE1="LOG-LINEAR")
    parts = [image(np.ones(shape, "f4"), **scale), image(np.full(shape, 0.01, "f4"), **scale)]
    parts += [image(np.ones(shape, "f4"), **scale), table(TEFF=np.array([4800.0]), LOGG=np.array([2.5]), M_H=np.array([-0.2]))] if aspcap else [
        image(bits, BUNIT="Pixel bitmask")]
    return write(path, *parts, OBJID="2M00000000+0000000", VHELIO=15.7, SNR=100.0)


def apvisit(path):
    wave = np.stack([np.linspace(stop, start, 64) for start, stop in ((16473, 16955), (15857, 16436), (15143, 15811))])
    bits = np.zeros((3, 64), "i4")
    bits[0, 0] = 1 << 12
    return write(path, image(np.ones((3, 64), "f4"), BUNIT="Flux (10^-17)"), image(np.full((3, 64), 0.1, "f4"), BUNIT="Flux Error"), image(bits, BUNIT="Flag Mask"),
                 image(wave, BUNIT="Wavelength (Ang)"), OBJID="2M1", VHELIO=-33.1, BC=11.3)


def lamost(path):
    rows = np.ones((5, N), "f4")
    rows[1], rows[3:] = 9, 0
    rows[3, 5:8] = 1
    header = fits.Header(dict(TELESCOP="LAMOST", CRVAL1=3.5682, CD1_1=1e-4, CRPIX1=1, CTYPE1="LINEAR", DESIG="LAMOST J0637+2713", CLASS="STAR", SUBCLASS="F9", Z=-7e-5))
    header["DC-FLAG"] = 1
    return write(path, fits.PrimaryHDU(rows, header=header))


def manga(path):
    shape = (2, N)
    return write(path, image(np.linspace(4000, 5000, N), "WAVE"), image(np.ones(shape, "f4"), "FLUX"), image(np.full(shape, 4, "f4"), "IVAR"),
                 image((np.arange(N) < 10) * 1026 + np.zeros(shape, "i4"), "MASK"), image(np.full(shape, 2000.0), "SRES"), image(np.array([0.01, 0.02]), "Z"))


def marz(path):
    log_wave = np.log10(np.stack([np.linspace(3800, 8900, N)] * 2) + np.array([[0], [1]]))
    primary = fits.PrimaryHDU(np.ones((2, N), "f4"), header=fits.Header(dict(VACUUM=True, LOGSCALE=True)))
    return write(path, primary, image(np.full((2, N), 0.25, "f4"), "VARIANCE"), image(log_wave, "WAVELENGTH"), table("FIBRES", NAME=np.array(["one", "two"])))


def eso(path):
    hdu = table("PHASE3SPECTRA", WAVE=np.linspace(5800, 9000, N)[None], FLUX=np.ones((1, N)), ERR=np.full((1, N), 0.5), QUAL=(np.arange(N) == 7).astype("i4")[None])
    hdu.columns["WAVE"].unit = "angstrom"
    hdu.header["TUCD1"] = "em.wl;obs.atmos"
    return write(path, hdu, SPECSYS="TOPOCENT")


def wcs(path):
    return write(path, fits.PrimaryHDU(np.ones((4, N), "f4"), header=fits.Header(dict(CRVAL1=3.6, CDELT1=1e-4, CTYPE1="LOG-LINEAR"))), table(TEFF=np.arange(4.0)))


# writer, its options for reading, number of spectra and pixels, medium, velocity frame, bad pixels of the first
FORMATS = {
    "sdss": (sdss, {}, 1, N, "vacuum", "heliocentric", 0), "desi": (desi, {}, 3, 700, "vacuum", "barycentric", 1), "apstar": (apstar, {}, 1, 8575, "vacuum", "rest", 0),
    "aspcap": (lambda path: apstar(path, 1, aspcap=True), {}, 1, 8575, "vacuum", "rest", 0), "apvisit": (apvisit, {}, 1, 192, "vacuum", "topocentric", 1),
    "lamost": (lamost, {}, 1, N, "vacuum", "heliocentric", 3), "manga": (manga, {"frame": "vacuum"}, 2, N, "vacuum", None, 10),
    "marz": (marz, {}, 2, N, "vacuum", None, 0), "eso": (eso, {}, 1, N, "air", "topocentric", 1), "wcs": (wcs, {"frame": "vacuum", "error": 0.01}, 4, N, "vacuum", None, 0)}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_each_format_is_told_by_its_content(tmp_path, name, packed):
    writer, options, n_spec, n_pix, frame, velocity_frame, n_bad = FORMATS[name]
    path = writer(tmp_path / "nothing_in_this_name.fits").rename(tmp_path / "x")
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        spectra = read_spectra(path, **options)
    assert spectra.flux.shape == (n_spec, n_pix) and spectra.frame == frame and spectra.velocity_frame == velocity_frame
    assert spectra.wave.dtype == np.float64 and spectra.flux.dtype.isnative and spectra.ivar.dtype.isnative
    assert spectra.mask[0].sum() == n_bad and (spectra.ivar[spectra.mask] == 0).all() and np.isfinite(spectra.flux).all()
    assert len(set(spectra.ids)) == n_spec


def test_sdss_masks_ids_redshift_and_resolution(tmp_path):
    mask = np.zeros(N, "i4")
    for pixel, bit in enumerate(range(31)):
        mask[pixel] = 1 << bit
    one = read_spectra(sdss(tmp_path / "a.fits", mask=mask))
    assert np.flatnonzero(one.mask[0]).tolist() == [0, 1, 3, 18, 22, 23, 24, 25, 26, 27, 28]
    assert one.ids == ("0412-51871-0308",) and info_column(one, "class").tolist() == ["GALAXY"]
    np.testing.assert_allclose(info_column(one, "z"), 0.1, rtol=1e-6)
    np.testing.assert_allclose(info_column(one, "resolution"), 1 / (2.354820 * 1.2 * 1e-4 * np.log(10)), rtol=1e-5)
    np.testing.assert_allclose(one.wave, 10 ** (3.6 + 1e-4 * np.arange(N)), rtol=1e-13)
    upper = read_spectra(sdss(tmp_path / "b.fits", upper=True))
    np.testing.assert_array_equal(upper.flux[~one.mask], one.flux[~one.mask])


def test_sdss_without_wdisp_mask_or_numbers(tmp_path):
    one = read_spectra(sdss(tmp_path / "lean.fits", drop=("wdisp", "and_mask"), NOTHING=1))
    assert one.ids == ("lean",) and len(one.meta["info"]["lean"]["notes"]) == 2 and not one.mask.any()
    with pytest.raises(SpectraError, match="do not say 'resolution'"):
        info_column(one, "resolution")


def test_desi_rows_by_number_and_id(tmp_path):
    path = desi(tmp_path / "coadd.fits", n_spec=5)
    everything = read_spectra(path)
    for rows, expected in ((3, [3]), ([4, 0], [4, 0]), (slice(1, 3), [1, 2]), (everything.ids[2], [2]), (list(everything.ids[3:]), [3, 4]), (np.arange(5) > 2, [3, 4])):
        some = read_spectra(path, rows=rows)
        assert some.ids == tuple(everything.ids[k] for k in expected)
        np.testing.assert_array_equal(some.flux, everything.flux[expected])
        np.testing.assert_array_equal(info_column(some, "resolution_rows"), info_column(everything, "resolution_rows")[expected])
    for rows in (7, "39", ["39"]):
        with pytest.raises(SpectraError, match="coadd.fits: (the file has 5|there is no spectrum with id '39')"):
            read_spectra(path, rows=rows)


def test_desi_joins_arms_with_their_weights(tmp_path):
    path = desi(tmp_path / "coadd.fits")
    spectra = read_spectra(path)
    with fits.open(path) as hdus:
        blue, red = hdus["B_FLUX"].data, hdus["R_FLUX"].data
    np.testing.assert_allclose(spectra.ivar[:, 260:290], 200)
    np.testing.assert_allclose(spectra.flux[:, 260:290], (blue[:, 260:290] + red[:, 10:40]) / 2, rtol=1e-6)
    np.testing.assert_allclose(spectra.flux[:, 100:200], blue[:, 100:200])
    inside = np.abs(np.arange(700)[:, None] - [0, 250, 300, 480, 500, 700]).min(1) > 6  # at the end of an arm its matrix is cut
    resolution = info_column(spectra, "resolution")[:, inside]
    np.testing.assert_allclose(resolution, np.broadcast_to(spectra.wave[inside] / (2.35482 * 0.9 * 0.8), resolution.shape), rtol=1e-4)
    assert spectra.mask[0, 3] and not spectra.mask[0, 253]  # bad in R, good in B


@pytest.mark.parametrize("drop", [("RESOLUTION",), ("MASK",), ("RESOLUTION", "MASK")])
def test_desi_without_resolution_or_mask(tmp_path, drop):
    spectra = read_spectra(desi(tmp_path / "coadd.fits", drop=drop))
    notes = spectra.meta["info"][spectra.ids[0]].get("notes", [])
    assert ("RESOLUTION" in drop) == any("resolution" in note for note in notes)
    assert read_spectra(desi(tmp_path / "exposures.fits", repeat=True)).ids[0].endswith("-100")


def test_one_row_of_a_large_desi_file_is_read_alone(tmp_path):
    """300 MB on disk, most of it a hole; reading one row touches little of it."""
    import resource

    path = tmp_path / "large.fits"
    n_spec, n_pix = 30_000, 2500
    ids = fits.BinTableHDU.from_columns([fits.Column("TARGETID", "K", array=np.arange(n_spec) + 7)], name="FIBERMAP")
    write(path, ids, image(3600 + 0.8 * np.arange(n_pix), "B_WAVELENGTH"))
    with open(path, "ab") as file:
        for key in ("FLUX", "IVAR"):
            header = fits.Header([("XTENSION", "IMAGE"), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", n_pix), ("NAXIS2", n_spec), ("PCOUNT", 0), ("GCOUNT", 1),
                                  ("EXTNAME", f"B_{key}")])
            file.write(header.tostring().encode())
            start = file.tell()
            file.truncate(start + -(-4 * n_pix * n_spec // 2880) * 2880)
            file.seek(0, 2)
    with open(path, "r+b") as file, fits.open(path) as hdus:
        for key, value in (("B_FLUX", 2.0), ("B_IVAR", 5.0)):
            file.seek(hdus[key].fileinfo()["datLoc"] + 4 * n_pix * 12_345)
            file.write(np.full(n_pix, value, ">f4").tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = read_spectra(path, rows="12352")
    assert (one.flux == 2).all() and (one.ivar == 5).all() and len(one) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_apogee_bits_visits_and_labels(tmp_path):
    bits = np.zeros((3, 8575), "i8")
    bits[0, :16] = 1 << np.arange(16)
    path = apstar(tmp_path / "apStar.fits", mask=bits)
    combined = read_spectra(path)
    assert np.flatnonzero(combined.mask[0]).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 12, 14]
    np.testing.assert_allclose(combined.wave, 10 ** (4.179 + 6e-6 * np.arange(8575)), rtol=1e-14)
    assert len(read_spectra(path, rows=slice(1, None))) == 2 and info_column(combined, "vhelio")[0] == 15.7
    labelled = read_spectra(apstar(tmp_path / "aspcap.fits", 1, aspcap=True))
    assert info_column(labelled, "teff")[0] == 4800 and info_column(labelled, "m_h")[0] == -0.2
    visit = read_spectra(apvisit(tmp_path / "v.fits"))
    assert (np.diff(visit.wave) > 0).all() and visit.mask[0, -1]  # the first pixel of the file is the reddest


def test_files_of_different_length_medium_and_velocity_frame(tmp_path):
    paths = [sdss(tmp_path / "a.fits"), sdss(tmp_path / "b.fits", n_pix=400), eso(tmp_path / "c.fits")]
    spectra = read_spectra(paths)
    assert spectra.ids == ("0412-51871-0308", "0412-51871-0308#2", "c") and spectra.frame == "vacuum" and spectra.velocity_frame is None
    assert info_column(spectra, "velocity_frame").tolist() == ["heliocentric", "heliocentric", "topocentric"]
    assert spectra.wave.shape == (3, N) and spectra.mask[1, 400:].all() and not spectra.mask[1, :400].any()
    np.testing.assert_allclose(spectra.wave[2], air_to_vacuum(np.linspace(5800, 9000, N)), rtol=1e-12)
    assert np.isnan(info_column(spectra, "resolution")[1, 400:]).all() and np.isnan(info_column(spectra, "z")[2])
    assert info_column(spectra[[2, 0]], "class").tolist() == ["", "GALAXY"]  # information follows the selection


def test_npz_dialects(tmp_path):
    flux = np.ones((3, 7214))
    np.savez(tmp_path / "payne.npz", spectra=flux, spec_errs=flux * 0.01)
    np.savez(tmp_path / "pack.npz", loglam0=3.54, dloglam=1e-4, flux=flux, ivar=flux, wdisp=flux, and_mask=flux > 0, name=["a", "b", "c"], z=[1, 2, 3])
    np.savez(tmp_path / "miles.npz", crval=3540.5, cdelt=0.9, flux=flux, labels=np.arange(6).reshape(3, 2), label_names=["teff", "logg"])
    payne = read_spectra(tmp_path / "payne.npz")
    assert payne.frame == "vacuum" and "APOGEE" in payne.meta["info"][payne.ids[0]]["notes"][0]
    np.testing.assert_allclose(payne.wave, apogee_wave(7214), rtol=1e-9)
    pack = read_spectra(tmp_path / "pack.npz", frame="vacuum")
    assert pack.mask.all() and pack.ids == ("a", "b", "c") and info_column(pack, "z").tolist() == [1, 2, 3]
    np.testing.assert_allclose(info_column(pack, "resolution"), 1 / (2.354820 * 1e-4 * np.log(10)), rtol=1e-5)
    miles = read_spectra(tmp_path / "miles.npz", frame="air", error=0.01)
    assert info_column(miles, "logg").tolist() == [1, 3, 5] and miles.wave[1] == 3541.4
    np.savez(tmp_path / "none.npz", flux=flux[:, :100], ivar=flux[:, :100])
    with pytest.raises(SpectraError, match="no wavelengths: it holds flux, ivar"):
        read_spectra(tmp_path / "none.npz", frame="air")


def test_text_columns_by_name(tmp_path):
    wave = np.linspace(4200, 4300, 50)
    np.savetxt(tmp_path / "spaxel.txt", np.c_[wave, np.ones(50), np.full(50, 0.1), wave < 4210], header="wave flux err_flux pixel_mask")
    np.savetxt(tmp_path / "ispec.txt", np.c_[wave / 10, np.ones(50), np.full(50, 0.1)], header="waveobs\tflux\terr", comments="", delimiter="\t")
    np.savetxt(tmp_path / "zeros.txt", np.c_[wave, np.ones(50), np.zeros(50)], header="wave flux err")
    np.savetxt(tmp_path / "nm.txt", np.c_[wave / 10, np.ones(50), np.ones(50)])
    spaxel = read_spectra(tmp_path / "spaxel.txt", frame="air")
    np.testing.assert_array_equal(spaxel.mask[0], wave < 4210)
    np.testing.assert_allclose(spaxel.ivar[0, -1], 100)
    np.testing.assert_allclose(read_spectra(tmp_path / "ispec.txt", frame="air").wave, wave)
    np.testing.assert_allclose(read_spectra(tmp_path / "nm.txt", frame="air", unit="nm").wave, wave)
    with pytest.raises(SpectraError, match="one of zeros"):
        read_spectra(tmp_path / "zeros.txt", frame="air")
    assert (read_spectra(tmp_path / "zeros.txt", frame="air", error=0.01).ivar > 0).all()


@pytest.mark.parametrize("unit, factor", [("Angstrom", 1), ("Ang", 1), ("nm", 10), ("um", 1e4), ("A", None), ("furlong", None)])
def test_wavelength_units_of_tables(tmp_path, unit, factor):
    hdu = table(wavelength=np.linspace(5000, 6000, N) / (factor or 1), flux=np.ones(N), ivar=np.ones(N))
    hdu.header["TUNIT1"] = unit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(tmp_path / "t.fits", hdu)
    if factor is None:
        with pytest.raises(SpectraError, match="t.fits: the wavelength has the unit"):
            read_spectra(path, frame="air")
    else:
        np.testing.assert_allclose(read_spectra(path, frame="air").wave, np.linspace(5000, 6000, N))


def test_files_without_spectra_say_what_they_hold(tmp_path):
    write(tmp_path / "redrock.fits", table("REDSHIFTS", TARGETID=np.arange(3), Z=np.arange(3.0)))
    write(tmp_path / "empty.fits", fits.PrimaryHDU())
    (tmp_path / "nothing").write_bytes(b"")
    for name, message in (("redrock.fits", r"it holds PRIMARY, REDSHIFTS \(TARGETID, Z"), ("empty.fits", "it holds PRIMARY"), ("nothing", "the file is empty")):
        with pytest.raises(SpectraError, match=message):
            read_spectra(tmp_path / name)
    with pytest.raises(SpectraError, match="not what it seems"):
        read_spectra(tmp_path / "redrock.fits", format="sdss")


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_errors_of_ours(tmp_path, name):
    """Cut anywhere or with bytes changed, a file reads or raises SpectraError; as a flagged row it leaves its neighbours alone."""
    writer, options, *_ = FORMATS[name]
    good = writer(tmp_path / "good.fits")
    data, rng, path, failed = good.read_bytes(), np.random.default_rng(1), tmp_path / "bad.fits", 0
    for trial in range(40):
        damaged = bytearray(data)
        if trial % 2:
            del damaged[int(rng.integers(len(data))) :]
        else:
            for place in rng.integers(0, len(data) if trial % 4 else min(len(data), 8000), 20):
                damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            assert isinstance(read_spectra(path, **options), Spectra)
        except SpectraError as error:
            failed += 1
            assert "bad.fits" in str(error)
    assert failed >= 10
    path.write_bytes(data[: len(data) // 3])
    both = read_spectra([path, good], on_error="flag", **options)
    assert (both.ivar[0] == 0).all() and both.ids[0] == "bad.fits" and "bad.fits" in both.meta["unreadable"]
    alone = read_spectra(good, **options)
    np.testing.assert_array_equal(both.flux[1:], alone.flux)
    assert both.frame == alone.frame and both.velocity_frame == alone.velocity_frame


def test_packed_files_unpack_to_a_limit(tmp_path, monkeypatch):
    path = sdss(tmp_path / "a.fits")
    path.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(spectrum_files, "_UNPACKED_LIMIT", 5000)
    with pytest.raises(SpectraError, match="unpacks to more"):
        read_spectra(path)
    path.write_bytes(path.read_bytes()[:500])
    monkeypatch.undo()
    with pytest.raises(SpectraError, match="a.fits: .*cut short"):
        read_spectra(path)


def test_full_spec_files_are_read_as_lite_ones(tmp_path):
    exposure = table("B1-00115230", flux=np.ones(50, "f4"), loglam=np.linspace(3.6, 3.7, 50, dtype="f4"), ivar=np.ones(50, "f4"))
    path = sdss(tmp_path / "lite.fits")
    with fits.open(path) as hdus:
        fits.HDUList([*(hdu.copy() for hdu in hdus), exposure]).writeto(tmp_path / "full.fits")
    np.testing.assert_array_equal(read_spectra(tmp_path / "full.fits").flux, read_spectra(path).flux)


WITHOUT = {"desi_redrock-special-dark-27247.fits": "no spectra", "desi_edr_100_asinh.npz": "no array 'flux'"}
EXTRA = {"frame": "vacuum"}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("path", sorted(p for p in REAL.glob("*/*")), ids=lambda path: path.name)
def test_every_real_file_reads(path):
    options = dict(EXTRA)
    if path.name in WITHOUT:
        with pytest.raises(SpectraError, match=WITHOUT[path.name]):
            read_spectra(path, **options)
        return
    try:
        spectra = read_spectra(path, **options)
    except SpectraError as problem:
        assert "Give error=" in str(problem)
        spectra = read_spectra(path, error=0.01, **options)
    good = ~spectra.mask
    assert good.any(1).mean() > 0.8 and good.mean() > 0.5 and np.isfinite(spectra.flux).all()
    assert 2000 < spectra.wave.min() < spectra.wave.max() < 17_000 and (np.diff(spectra.wave) > 0).all()
    assert spectra.frame == ("air" if path.name.startswith("legac") else "vacuum")
    if path.name.startswith("spec-"):
        assert spectra.ids[0].split("-") == [part.zfill(4) for part in path.stem.split("-")[1:]]
        assert 1000 < np.nanmedian(info_column(spectra, "resolution")) < 3000


def test_scaled_columns_of_rewritten_files(tmp_path):
    """Unsigned integers are stored with an offset: the mask is read as numbers, and pipeline results around one stay right."""
    mask = np.zeros(N, np.uint32)
    mask[7] = 1 << 24
    columns = [fits.Column(key, kind, array=values, bzero=zero) for key, kind, values, zero in (
        ("flux", "E", np.ones(N), None), ("loglam", "E", 3.6 + 1e-4 * np.arange(N), None), ("ivar", "E", np.ones(N), None), ("AND_MASK", "J", mask, 2**31))]
    results = [fits.Column("COUNT", "J", array=np.array([5], np.uint32), bzero=2**31), fits.Column("Z", "E", array=[0.25])]
    one = read_spectra(write(tmp_path / "a.fits", fits.BinTableHDU.from_columns(columns), fits.BinTableHDU.from_columns(results)))
    assert np.flatnonzero(one.mask[0]).tolist() == [7] and info_column(one, "z")[0] == 0.25


def test_ecsv_tables_tell_the_unit(tmp_path):
    from astropy.table import QTable
    from astropy import units as u

    wave = np.linspace(500, 600, 50)
    QTable(dict(wave=wave * u.nm, flux=np.ones(50), err=np.full(50, 0.1))).write(tmp_path / "t.ecsv")
    spectra = read_spectra(tmp_path / "t.ecsv", frame="air")
    np.testing.assert_allclose(spectra.wave, 10 * wave)
    np.testing.assert_allclose(spectra.ivar, 100)


def test_a_frame_that_the_file_contradicts_is_noted(tmp_path):
    spectra = read_spectra(sdss(tmp_path / "a.fits"), frame="air")
    assert spectra.frame == "vacuum" and "frame='air' was not used" in spectra.meta["info"][spectra.ids[0]]["notes"][0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("name, teff", [("apStar-dr17-2M17335483-2753043", 3500), ("apVisit-r13-9518-57729-104", 4500), ("apVisit-r13-5095-55844-128", 5000)])
def test_velocity_frames_of_apogee_are_what_we_say(name, teff):
    """Against synthetic spectra the combined star stands still, and a visit moves as VHELIO - BC, so that it is topocentric."""
    from scipy.ndimage import gaussian_filter1d, median_filter
    from scipy.signal import correlate

    step = 3e-6
    grid = np.arange(np.log(15_160), np.log(16_930), step)

    def flattened(spectra, row=0):
        good = ~spectra.mask[row]
        flux = np.interp(grid, np.log(spectra.wave[good]), spectra.flux[row, good])
        flux = np.clip(flux / gaussian_filter1d(median_filter(flux, 301), 400) - 1, -0.4, 0.2)
        return np.where(np.interp(grid, np.log(spectra.wave), 1.0 * ~good) > 0, 0, flux)

    synthetic = read_spectra(REAL / "stars" / "apg_rvsynthgrid.fits.gz", frame="air", error=0.01).to_frame("vacuum")
    near = np.flatnonzero(info_column(synthetic, "teff (k)") == teff)
    one = read_spectra(REAL / "stars" / f"{name}.fits.gz")
    star = flattened(one)[150:-150]
    match = [correlate(flattened(synthetic, row), star, mode="valid", method="fft") for row in near[:4]]  # (301,) of each, no shift in the middle
    best = (150 - max(match, key=np.max).argmax()) * step * 299_792.458
    expected = 0 if one.velocity_frame == "rest" else info_column(one, "vhelio")[0] - info_column(one, "bc")[0]
    assert abs(best - expected) < 1.8  # two steps of the search, and the star's own template is not among these


def columns(n_spec=4, n_pix=40):
    rng = np.random.default_rng(3)
    wave = 5000.0 + np.arange(n_pix)
    return dict(wave=wave, flux=rng.normal(2, 0.1, (n_spec, n_pix)).astype("f4"), ivar=np.full((n_spec, n_pix), 100.0), object_id=[f"star{k}" for k in range(n_spec)], Z=0.1 * np.arange(n_spec))


def hdf5_flat(path, h5py, held):
    with h5py.File(path, "w") as file:
        for key, values in held.items():
            file[key] = values
        file.attrs["frame"] = "vacuum"


def hdf5_nested(path, h5py, held):
    with h5py.File(path, "w") as file:
        for key, values in held.items():
            name = {"wave": "spectrum/lambda", "flux": "spectrum/flux", "ivar": "spectrum/ivar"}.get(key, key)
            file.create_dataset(name, data=values, chunks=True if np.ndim(values) else None, compression="gzip")
        file["frame"] = "vacuum"


def hdf5_compound(path, h5py, held):
    n_spec, n_pix = held["flux"].shape
    rows = np.zeros(n_spec, [("wavelength", "f8", n_pix), ("flux", "f4", n_pix), ("error", "f8", n_pix), ("object_id", "S9"), ("Z", "f8")])
    rows["wavelength"], rows["flux"], rows["error"], rows["object_id"], rows["Z"] = held["wave"], held["flux"], held["ivar"] ** -0.5, held["object_id"], held["Z"]
    with h5py.File(path, "w") as file:
        file["table"] = rows
        file.attrs["frame"] = b"vacuum"


def hdf5_ragged(path, h5py, held):
    with h5py.File(path, "w") as file:
        for key in ("wave", "flux", "ivar"):
            data = file.create_dataset(key, (len(held["flux"]),), h5py.vlen_dtype(np.float64))
            for k in range(len(data)):
                data[k] = held[key] if key == "wave" else held[key][k]
        file["object_id"], file["Z"], file.attrs["frame"] = held["object_id"], held["Z"], "vacuum"


@pytest.mark.parametrize("writer", [hdf5_flat, hdf5_nested, hdf5_compound])
def test_hdf5_layouts(tmp_path, writer):
    h5py, held = pytest.importorskip("h5py"), columns()
    writer(tmp_path / "x", h5py, held)
    every = read_spectra(tmp_path / "x")
    assert every.frame == "vacuum" and every.ids == tuple(held["object_id"])
    np.testing.assert_allclose(every.flux, held["flux"], rtol=1e-6)
    np.testing.assert_allclose(every.ivar, held["ivar"])
    np.testing.assert_allclose(info_column(every, "z"), held["Z"])
    some = read_spectra(tmp_path / "x", rows=["star3", "star0"])
    np.testing.assert_array_equal(some.flux, every.flux[[3, 0]])
    assert info_column(some, "z").tolist() == [held["Z"][3], 0] and read_spectra(tmp_path / "x", rows=[2, 2, 1]).ids[1:] == ("star2#2", "star1")


def test_hdf5_lists_of_variable_length_are_refused(tmp_path):
    """Damaged ones end the process inside the HDF5 library."""
    hdf5_ragged(tmp_path / "x", pytest.importorskip("h5py"), columns())
    with pytest.raises(SpectraError, match="write Parquet"):
        read_spectra(tmp_path / "x")


def test_hdf5_groups_are_spectra(tmp_path):
    h5py, held = pytest.importorskip("h5py"), columns()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for k, name in enumerate(("sun", "moon")):
            for key in ("wave", "flux", "ivar"):
                file[f"{name}/{key}"] = held[key][: 30 + k] if key == "wave" else held[key][k, : 30 + k]
            file[name].attrs["frame"] = "air"
    both = read_spectra(tmp_path / "x.h5")
    assert set(both.ids) == {"sun", "moon"} and both.frame == "air"
    np.testing.assert_array_equal(read_spectra(tmp_path / "x.h5", rows="sun").flux[0, :30], held["flux"][0, :30])


def test_hdf5_does_not_leave_its_file(tmp_path):
    """External storage, links and virtual data could read any file of the user; sizes without data could fill the memory."""
    h5py, held = pytest.importorskip("h5py"), columns()
    (tmp_path / "secret.bin").write_bytes(np.full(40, 42.0).tobytes())
    hdf5_flat(tmp_path / "other.h5", h5py, held)

    def external(file):
        del file["ivar"]
        file.create_dataset("ivar", (4, 10), "f8", external=[(str(tmp_path / "secret.bin"), 0, 320)])

    def linked(file):
        del file["flux"]
        file["flux"] = h5py.ExternalLink("other.h5", "/flux")

    def virtual(file):
        del file["ivar"]
        layout = h5py.VirtualLayout((4, 40), "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "ivar", (4, 40))
        file.create_virtual_dataset("ivar", layout)

    def huge(file):
        del file["flux"]
        file.create_dataset("flux", (5_000, 1_000_000), "f4", chunks=(1, 1000))

    def hollow(file):
        del file["flux"], file["object_id"], file["Z"]
        file.create_dataset("flux", (4, 10_000_000), "f4", chunks=(1, 1000))

    for change, message in ((external, "not in this file"), (linked, "no dataset 'flux'"), (virtual, "not in this file"), (huge, "would take 20.0 GB"), (hollow, "announces")):
        path = tmp_path / "bad.h5"
        hdf5_flat(path, h5py, held)
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(SpectraError, match=message):
            read_spectra(path)


def parquet_struct(pa, held):
    spectrum = [{"wave": list(held["wave"]), "flux": list(map(float, held["flux"][k])), "ivar": list(held["ivar"][k])} for k in range(len(held["flux"]))]
    return pa.table(dict(spectrum=spectrum, object_id=held["object_id"], Z=held["Z"]))


def parquet_lists(pa, held):
    return pa.table(dict({"lambda": [list(held["wave"])] * len(held["flux"])}, flux=list(held["flux"]), ivar=list(held["ivar"]), object_id=held["object_id"], Z=held["Z"]))


def parquet_fixed(pa, held):
    n_spec, n_pix = held["flux"].shape
    fixed = {key: pa.FixedSizeListArray.from_arrays(pa.array(np.broadcast_to(held[key], (n_spec, n_pix)).astype("f8").ravel()), n_pix) for key in ("wave", "flux", "ivar")}
    return pa.table(dict(**fixed, object_id=held["object_id"], Z=held["Z"]))


def parquet_list_of_structs(pa, held):
    pixels = [[dict(wave=w, flux=float(f), ivar=i) for w, f, i in zip(held["wave"], flux, ivar)] for flux, ivar in zip(held["flux"], held["ivar"])]
    return pa.table(dict(spectrum=pixels, object_id=held["object_id"], Z=held["Z"]))


@pytest.mark.parametrize("maker", [parquet_struct, parquet_lists, parquet_fixed, parquet_list_of_structs])
def test_parquet_layouts(tmp_path, maker):
    pa, pq, held = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet"), columns(7)
    pq.write_table(maker(pa, held), tmp_path / "x", row_group_size=3)
    every = read_spectra(tmp_path / "x", frame="vacuum")
    assert every.ids == tuple(held["object_id"])
    np.testing.assert_allclose(every.flux, held["flux"], rtol=1e-6)
    np.testing.assert_array_equal(every.wave, held["wave"])
    for rows, expected in ((["star6", "star1"], [6, 1]), (slice(2, 5), [2, 3, 4]), (-1, [6]), ([5, 0, 5], [5, 0, 5])):
        some = read_spectra(tmp_path / "x", frame="vacuum", rows=rows)
        np.testing.assert_array_equal(some.flux, every.flux[expected])
        np.testing.assert_array_equal(info_column(some, "z"), held["Z"][expected])


def test_parquet_of_pixels_and_ragged_rows(tmp_path):
    pa, pq, held = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet"), columns(3)
    pq.write_table(pa.table(dict(wave=held["wave"], flux=held["flux"][0], ivar=held["ivar"][0])), tmp_path / "one.parquet")
    one = read_spectra(tmp_path / "one.parquet", frame="air")
    assert one.ids == ("one",) and one.flux.shape == (1, 40)
    spectrum = [dict(wave=list(held["wave"][:n]), flux=list(map(float, held["flux"][k, :n])), ivar=list(held["ivar"][k, :n])) for k, n in enumerate((40, 25, 30))]
    pq.write_table(pa.table(dict(spectrum=spectrum)).replace_schema_metadata({"frame": "air"}), tmp_path / "ragged.parquet")
    ragged = read_spectra(tmp_path / "ragged.parquet")
    assert (~ragged.mask).sum(1).tolist() == [40, 25, 30] and ragged.ids == ("ragged:0", "ragged:1", "ragged:2")


@pytest.mark.parametrize("kind", ["images", "table"])
def test_one_row_of_two_gigabytes(tmp_path, kind):
    """A sparse file of 2 GB; the row asked for comes alone, and memory stays small."""
    import resource

    n_pix, n_spec, path = 4000, 62_500, tmp_path / "large.fits"
    wave = image(4000.0 + np.arange(n_pix), "WAVE")
    if kind == "images":
        write(path, wave)
        heads = [[("XTENSION", "IMAGE"), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", n_pix), ("NAXIS2", n_spec), ("PCOUNT", 0), ("GCOUNT", 1), ("EXTNAME", name)] for name in ("FLUX", "IVAR")]
    else:
        write(path, fits.PrimaryHDU())
        heads = [[("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", 12 * n_pix), ("NAXIS2", 2 * n_spec // 3), ("PCOUNT", 0), ("GCOUNT", 1), ("TFIELDS", 3), ("TTYPE1", "wave"),
                  ("TFORM1", f"{n_pix}E"), ("TTYPE2", "flux"), ("TFORM2", f"{n_pix}E"), ("TTYPE3", "ivar"), ("TFORM3", f"{n_pix}E")]]
    with open(path, "ab") as file:
        for cards in heads:
            file.write(fits.Header(cards).tostring().encode())
            size = dict(cards)["NAXIS1"] * dict(cards)["NAXIS2"] * (4 if kind == "images" else 1)
            file.truncate(file.tell() + -(-size // 2880) * 2880)
            file.seek(0, 2)
    with open(path, "r+b") as file, fits.open(path) as hdus:
        values = dict(FLUX=2.0, IVAR=5.0) if kind == "images" else {None: None}
        for name, value in values.items():
            row = np.full(n_pix, value, ">f4") if name else np.concatenate([4000.0 + np.arange(n_pix), np.full(n_pix, 2.0), np.full(n_pix, 5.0)]).astype(">f4")
            file.seek(hdus[name or 1].fileinfo()["datLoc"] + row.nbytes * 12_345)
            file.write(row.tobytes())
    assert path.stat().st_size > 1.9e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = read_spectra(path, rows=12_345, frame="vacuum")
    assert one.flux.shape == (1, n_pix) and (one.flux == 2).all() and (one.ivar == 5).all() and one.ids == ("large:12345",)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_aaomega_fibres_keep_their_names(tmp_path):
    header = fits.Header(dict(CRVAL1=6000.0, CDELT1=1.0, CRPIX1=300.0, CTYPE1="WAVELENG", CUNIT1="Angstroms"))
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(np.ones((4, N), "f4"), header=header), image(np.full((4, N), 0.25, "f4"), "VARIANCE"),
                 table("FIBRES", NAME=np.array(["star", "SKY", "SKY", "SKY"]), TYPE=np.array(["P", "S", "S", "S"]), RA=np.arange(4.0)))
    spectra = read_spectra(path, frame="air")
    assert spectra.ids == ("star", "SKY", "SKY#2", "SKY#3") and info_column(spectra, "ra").tolist() == [0, 1, 2, 3] and (spectra.ivar == 4).all()
    assert spectra.wave[299] == 6000 and read_spectra(path, frame="air", rows="SKY#2").ids == ("SKY#2",)


def test_aspcap_best_fit_is_kept(tmp_path):
    one = read_spectra(apstar(tmp_path / "a.fits", 1, aspcap=True))
    assert info_column(one, "model").shape == (1, 8575) and any("ASPCAP" in note for note in one.meta["info"][one.ids[0]]["notes"])


def test_bombs_are_refused(tmp_path):
    """A few hundred kilobytes that unpack to hundreds of megabytes."""
    for name, start in (("fits.gz", b"SIMPLE  =                    T"), ("txt.gz", b"5000 1 1\n")):
        path = tmp_path / name
        with gzip.open(path, "wb") as file:
            file.write(start)
            for _ in range(12):
                file.write(bytes(10_000_000))
        with pytest.raises(SpectraError, match="unpacks to more than 0.1 GB"):
            read_spectra(path, frame="air")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    for name, start in (("h5py", b"\x89HDF\r\n\x1a\n" + bytes(100)), ("pyarrow", b"PAR1" + bytes(100))):
        (tmp_path / name).write_bytes(start)
        for module in (name, f"{name}.types"):
            monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(SpectraError, match=rf"needs {name}: pip install 'spectra_nn\[formats\]'"):
            read_spectra(tmp_path / name, frame="air")
    monkeypatch.setitem(__import__("sys").modules, "specutils", None)
    with pytest.raises(SpectraError, match=r"it holds PRIMARY; specutils, .* pip install 'spectra_nn\[specutils\]'"):
        read_spectra(write(tmp_path / "empty.fits", fits.PrimaryHDU()), frame="air")


def test_unknown_files_go_to_specutils(tmp_path):
    pytest.importorskip("specutils")
    path = write(tmp_path / "tab.fits", fits.PrimaryHDU(), table("X", spectral_axis=np.linspace(5000.0, 6000, 50), brightness=np.ones(50), uncertainty=np.full(50, 0.1)))
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["TUNIT1"], hdus[1].header["TUNIT2"], hdus[1].header["TUNIT3"] = "Angstrom", "Jy", "Jy"
    one = read_spectra(path, frame="air")
    np.testing.assert_allclose(one.ivar, 100)
    assert one.meta["info"][one.ids[0]]["notes"] == ["read by specutils"]
    assert read_spectra(path, frame="air", format="specutils:tabular-fits").flux.shape == (1, 50)


def npz(path, held):
    np.savez(path, **held)
    return path.with_suffix(".npz")


def small(kind, path):
    """A small valid file of a kind that is not FITS."""
    held = columns(3, 20) | {"frame": "vacuum"}
    if kind == "npz":
        return npz(path, held)
    if kind == "hdf5":
        hdf5_nested(path, pytest.importorskip("h5py"), columns(3, 20))
    elif kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(parquet_struct(pa, held).replace_schema_metadata({"frame": "air"}), path)
    else:
        np.savetxt(path, np.c_[held["wave"], held["flux"][0], held["flux"][0]], header="wave flux err")
        if kind == "text.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("kind", ["npz", "hdf5", "parquet", "text", "text.gz"])
def test_other_damaged_files_are_errors_of_ours(tmp_path, kind):
    """Bytes changed or cut off: a file reads, or raises `SpectraError`, and nothing else."""
    data, rng, path, failed = small(kind, tmp_path / "good").read_bytes(), np.random.default_rng(5), tmp_path / "bad", 0
    for trial in range(150):
        damaged = bytearray(data)
        if trial % 3 == 0:
            del damaged[int(rng.integers(len(data))) :]
        else:
            for place in rng.integers(0, len(data), 1 if trial % 3 == 1 else 12):
                damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            assert isinstance(read_spectra(path, **({"frame": "air"} if kind.startswith("text") else {})), Spectra)
        except SpectraError as error:
            failed += 1
            assert "bad" in str(error)
    assert failed >= 40


def test_formats_by_name(tmp_path):
    path = sdss(tmp_path / "a.fits")
    with pytest.raises(SpectraError, match="Did you mean 'parquet'"):
        read_spectra(path, format="parket")
    with pytest.raises(SpectraError, match="a.fits: .*not what it seems|a.fits: the HDF5"):
        pytest.importorskip("h5py") and read_spectra(path, format="hdf5")
    assert read_spectra(path, format="sdss").ids == ("0412-51871-0308",)
