"""The records and files of `core`, against input that nobody thought of."""

import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spectra_nn import core
from spectra_nn.core import Spectra, SpectraError, air_to_vacuum, atomic_write, log_grid, read_npz, vacuum_to_air

lenient = settings(deadline=None, max_examples=60)
METHODS = st.sampled_from(["ciddor1996", "morton2000"])


@lenient
@given(wave=hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(500, 3e5)), method=METHODS)
def test_air_to_vacuum_and_back(wave, method):
    vacuum = air_to_vacuum(wave, method)
    np.testing.assert_allclose(vacuum_to_air(vacuum, method), wave, rtol=1e-12)
    order = np.argsort(wave)
    assert np.all(np.diff(vacuum[order]) >= 0) and np.all(vacuum >= wave)
    np.testing.assert_array_equal(vacuum[wave < 1999.3], wave[wave < 1999.3])


@lenient
@given(wave=hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(2000, 3e5)), method=METHODS)
def test_vacuum_to_air_and_back(wave, method):
    np.testing.assert_allclose(air_to_vacuum(vacuum_to_air(wave, method), method), wave, rtol=1e-12)


@lenient
@given(start=st.floats(1000, 10_000), ratio=st.floats(1.001, 3), step=st.floats(0.5, 50))
def test_log_grid_fills_its_window(start, ratio, step):
    stop = start * ratio
    wave = log_grid(start, stop, step)
    assert wave[0] == start and wave[-1] <= stop * (1 + 1e-12) and wave[-1] * np.exp(1.001 * step / core.SPEED_OF_LIGHT) > stop
    np.testing.assert_allclose(np.diff(np.log(wave)) * core.SPEED_OF_LIGHT, step, rtol=1e-6)


any_float = st.floats(allow_nan=True, allow_infinity=True, width=32)
shapes = st.tuples(st.integers(1, 4), st.integers(2, 12))


@lenient
@given(data=st.data(), shape=shapes, dtype=st.sampled_from(["<f4", ">f4", "<f8", ">f8"]), masked=st.booleans(), own_grids=st.booleans())
def test_spectra_takes_any_values_and_leaves_the_callers_alone(data, shape, dtype, masked, own_grids):
    flux = data.draw(hnp.arrays(np.dtype(dtype), shape, elements=any_float))
    ivar = data.draw(hnp.arrays(np.dtype(dtype), shape, elements=any_float))
    mask = data.draw(hnp.arrays(bool, shape)) if masked else None
    wave = log_grid(4000, 4000 * np.exp(shape[1] * 1e-5), 2.9)[: shape[1]].astype(dtype.replace("4", "8"))
    wave = wave + 10 * np.arange(shape[0])[:, None] if own_grids else wave
    before = [array.copy() for array in (wave, flux, ivar)]
    for array in (wave, flux, ivar):
        array.setflags(write=False)
    spectra = Spectra(wave, flux, ivar, mask=mask, frame="vacuum")
    for array, copy in zip((wave, flux, ivar), before):
        np.testing.assert_array_equal(array, copy)
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0) & ~(np.zeros(shape, bool) if mask is None else mask)
    np.testing.assert_array_equal(spectra.mask, ~good)
    np.testing.assert_array_equal(spectra.flux, np.where(good, flux, 0))
    np.testing.assert_array_equal(spectra.ivar, np.where(good, ivar, 0))
    assert spectra.flux.dtype == np.dtype(dtype).newbyteorder("=") and spectra.flux.flags.writeable
    spectra.flux[:], spectra.wave[:] = 5, 6
    np.testing.assert_array_equal(flux, before[1])
    np.testing.assert_array_equal(wave, before[0])


@lenient
@given(n_spec=st.integers(1, 6), index=st.one_of(st.integers(-6, 5), st.slices(6)))
def test_indexing_keeps_the_ids(n_spec, index):
    names = [f"star {i}" for i in range(n_spec)]
    spectra = Spectra([5000, 5001, 5002], np.arange(3 * n_spec).reshape(n_spec, 3) + 1.0, 1, frame="air", ids=names)
    try:
        expected = np.atleast_1d(np.arange(n_spec)[index])
    except IndexError:
        with pytest.raises(IndexError):
            spectra[index]
        return
    chosen = spectra[index]
    assert chosen.ids == tuple(names[i] for i in expected)
    np.testing.assert_array_equal(chosen.flux, spectra.flux[expected])


def test_what_a_spectrum_may_be_given_as():
    wave = np.arange(5000.0, 5100.0)
    flux = np.ones(200)[::2]  # not contiguous
    for given_wave in (list(wave), tuple(wave), wave.astype(">f8"), wave.astype(int), np.ma.masked_array(wave), wave[None]):
        spectra = Spectra(given_wave, flux, 4.0, frame="air")
        assert len(spectra) == 1 and spectra.flux.shape == (1, 100) and spectra.ids == ("0",)
        np.testing.assert_array_equal(spectra.wave, wave)
    assert Spectra(wave, np.ones(100, int), 1, frame="air").flux.dtype == np.float64
    assert Spectra(wave, flux, 1, frame="air", ids=b"sun").ids == ("sun",)
    assert Spectra(wave, flux, 1, frame="air", ids=[17]).ids == ("17",)
    assert pickle.loads(pickle.dumps(Spectra(wave, flux, 1, frame="air", meta={"a": 1}))).meta == {"a": 1}


def test_a_record_is_frozen_and_meta_its_own():
    meta = {"night": 3}
    spectra = Spectra([5000, 5001], [1, 1], 1, frame="air", meta=meta)
    spectra.meta["night"] = 4
    assert meta == {"night": 3}
    with pytest.raises(AttributeError):
        spectra.frame = "vacuum"


wave = np.linspace(5000, 5010, 11)


@pytest.mark.parametrize(
    "bad, message",
    [
        (wave[::-1], r"reverse .*\[::-1\]|reverse"),
        (np.r_[wave[:5], wave[4], wave[6:]], r"wave\[4\] = 5004 is repeated"),
        (np.r_[wave[5:], wave[:5]], r"wave\[5\] = 5010 is above"),
        (np.where(wave == 5003, np.nan, wave), r"wave\[3\] = nan"),
        (wave - 5000, r"wave\[0\] = 0;.*positive"),
        (np.log10(wave), "log10"),
        (wave / 1e4, "µm"),
        (wave / 10, "nm"),
        (wave * 1e11, "Hz"),
        (np.ma.masked_equal(wave, 5003), r"wave\[3\] = nan"),
        (np.tile(wave, (2, 1)), "shape"),
        (wave[:-1], "shape"),
        (wave.astype(str), "numbers"),
        (wave + 1j, "numbers"),
        ([[1, 2], [3]], "rectangular"),
    ],
)
def test_wavelengths_that_are_refused(bad, message):
    with pytest.raises(SpectraError, match=message):
        Spectra(bad, np.ones(11), 1, frame="air")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(ivar=None), "from_error"),
        (dict(ivar=np.ones(10)), "does not fit"),
        (dict(mask=np.ones(10, bool)), "does not fit"),
        (dict(flux=np.ones((2, 3, 11))), "shape"),
        (dict(flux=np.ones((11, 2))), "transposed"),
        (dict(flux=1.0), "shape"),
        (dict(frame="Air"), "'air' or 'vacuum'"),
        (dict(frame=None), "'air' or 'vacuum'"),
        (dict(velocity_frame="galactic"), "barycentric"),
        (dict(ids=["a", "b"]), "2 ids for 1 spectra"),
    ],
)
def test_spectra_that_are_refused(options, message):
    with pytest.raises(SpectraError, match=message):
        Spectra(**(dict(wave=wave, flux=np.ones(11), ivar=1, frame="air") | options))


def test_units():
    u = pytest.importorskip("astropy.units")
    spectra = Spectra(wave / 10 * u.nm, np.ones(11) * u.Jy, np.full(11, 4e6) / u.mJy**2 / 1e6, frame="vacuum")
    np.testing.assert_allclose(spectra.wave, wave, rtol=1e-14)
    np.testing.assert_allclose(spectra.ivar, 4e6)
    assert spectra.meta["flux_unit"] == "Jy"
    with pytest.raises(SpectraError, match="ampere"):
        Spectra(u.Quantity(wave, "A"), np.ones(11), 1, frame="air")
    with pytest.raises(SpectraError, match="cannot be converted"):
        Spectra(wave * u.s, np.ones(11), 1, frame="air")
    with pytest.raises(SpectraError, match="cannot be converted"):
        Spectra(wave, np.ones(11) * u.Jy, np.ones(11) / u.s, frame="air")


def test_a_grid_across_2000_angstrom_has_no_air_wavelengths():
    with pytest.raises(SpectraError, match="2000"):
        Spectra(np.arange(1990, 2010, 0.1), np.ones(200), 1, frame="vacuum").to_frame("air")


def test_specutils_there_and_back():
    pytest.importorskip("specutils")
    for grid in (wave, np.array([wave, wave + 1])):
        spectra = Spectra(grid, np.ones((2, 11)), 4, frame="air", ids=["a", "b"], velocity_frame="heliocentric")
        back = Spectra.from_object(spectra.to_specutils())
        np.testing.assert_allclose(back.wave, spectra.wave, rtol=1e-14)
        np.testing.assert_array_equal(back.ivar, spectra.ivar)
        assert (back.frame, back.velocity_frame, back.ids) == ("air", "heliocentric", ("a", "b"))


def test_without_specutils_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "specutils", None)
    with pytest.raises(SpectraError, match=r"pip install 'spectra_nn\[specutils\]'"):
        Spectra(wave, np.ones(11), 1, frame="air").to_specutils()


# writing


@lenient
@given(old=st.one_of(st.none(), st.binary(max_size=50)), new=st.binary(max_size=50), fails=st.booleans())
def test_a_file_is_the_old_one_or_the_new_one(tmp_path_factory, old, new, fails):
    path = tmp_path_factory.mktemp("write") / "spectrum.npz"
    if old is not None:
        path.write_bytes(old)
    try:
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".npz"
            temporary.write_bytes(new)
            if fails:
                raise RuntimeError("the plug was pulled")
    except RuntimeError:
        assert fails
    expected = old if fails else new
    assert [p.read_bytes() for p in path.parent.iterdir()] == ([] if expected is None else [expected])


def test_a_disk_full_at_the_last_moment(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpectraError, match=r"model\.safetensors was not written: no space left, [\d.]+ MB free"):
        with atomic_write(path) as temporary:
            temporary.write_text("new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_grow(tmp_path):
    """A real failure of the system: the process may write no file above 20 kB."""
    path = tmp_path / "grid.npz"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(SpectraError, match="no space left"):
            with atomic_write(path) as temporary:
                np.savez(temporary, flux=np.ones(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_killed_while_writing(tmp_path):
    path = tmp_path / "model.npz"
    path.write_text("old")
    code = "import os, signal, sys; from spectra_nn.core import atomic_write\nwith atomic_write(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(core.__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL and path.read_text() == "old"


def test_interrupted_by_the_user(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(tmp_path / "new" / "table.csv") as temporary:
            temporary.write_text("a,b")
            raise KeyboardInterrupt
    assert not list((tmp_path / "new").iterdir())


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpectraError, match="was not written"):
        with atomic_write(tmp_path / "folder") as temporary:
            temporary.write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpectraError, match="was not written"):
        with atomic_write(tmp_path / "file" / "below.npz") as temporary:
            temporary.write_text("x")
    with pytest.raises(SpectraError, match="nothing came"):
        with atomic_write(tmp_path / "never.npz"):
            pass


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"


# reading


@pytest.fixture(scope="module")
def npz_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "grid.npz"
    np.savez_compressed(path, flxn=np.arange(300.0).reshape(30, 10), wvl=np.arange(30.0), label_names=np.array(["teff", "logg"]))
    return path.read_bytes()


@lenient
@given(data=st.data())
def test_a_damaged_file_is_read_right_or_refused(npz_bytes, tmp_path_factory, data):
    damaged = bytearray(npz_bytes[: data.draw(st.integers(0, len(npz_bytes)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "grid.npz"
    path.write_bytes(damaged)
    try:
        arrays = read_npz(path, required=["flxn", "wvl"], max_bytes=1e6)
    except SpectraError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(arrays["flxn"], np.arange(300.0).reshape(30, 10))
        np.testing.assert_array_equal(arrays["wvl"], np.arange(30.0))


class Malicious:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_never_run(tmp_path):
    trap = Malicious()
    trap.path = str(tmp_path / "it ran")
    np.savez(tmp_path / "trap.npz", labels=np.array([trap, None], dtype=object), wvl=np.ones(3))
    with open(tmp_path / "raw.npz", "wb") as file:
        pickle.dump(trap, file)
    for name in ("trap.npz", "raw.npz"):
        with pytest.raises(SpectraError, match="objects|pickle"):
            read_npz(tmp_path / name, required=["wvl"])
    assert read_npz(tmp_path / "trap.npz", required=["wvl"], optional=[]).keys() == {"wvl"}
    assert not (tmp_path / "it ran").exists()


def test_a_bomb_does_not_go_off(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flux.npy", np.lib.format.magic(1, 0) + b"\x00" * 50_000_000)
    with pytest.raises(SpectraError, match="unpacks to 0.1 GB"):
        read_npz(tmp_path / "bomb.npz", max_bytes=1e6)
    with zipfile.ZipFile(tmp_path / "boast.npz", "w") as archive, archive.open("flux.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, dict(descr="<f8", fortran_order=False, shape=(10**9, 10**6)))
    with pytest.raises(SpectraError, match="announces shape"):
        read_npz(tmp_path / "boast.npz")


def test_other_files(tmp_path):
    with pytest.raises(SpectraError, match="No such file"):
        read_npz(tmp_path / "absent.npz")
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(SpectraError, match=r"a single array, \.npy"):
        read_npz(tmp_path / "single.npy")
    (tmp_path / "text.npz").write_text("wave,flux\n1,2\n")
    with pytest.raises(SpectraError, match="something else"):
        read_npz(tmp_path / "text.npz")


def test_importing_core_is_cheap():
    code = "import sys, spectra_nn.core; print([m for m in ('torch', 'scipy', 'astropy', 'matplotlib') if m in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(core.__file__).parents[1])
    assert seen.stdout.strip() == "[]", seen.stdout + seen.stderr


def test_resample_does_not_import_torch():
    code = "import sys, spectra_nn.resample as r; r.rebin_matrix([1., 2, 3], [1.5, 2.5]); print('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(core.__file__).parents[1])
    assert seen.stdout.strip() == "False", seen.stdout + seen.stderr
