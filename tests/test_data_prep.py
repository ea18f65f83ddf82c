"""Preparing training sets: the peers' result on clean files, a reason for every bad one, and memory that stays in its budget."""

import io
import json
import os
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectra_nn import data_prep, read_text
from spectra_nn.core import SpectraError
from spectra_nn.data_prep import LabelScaler, SpectralGrid, prepare_grid, read_spectrum, sample_labels, write_label_table
from spectra_nn.networks import fit_basis

WAVE = np.arange(5330, 5350.001, 0.02)
OPTIONS = dict(windows=[(5332, 5348)], step=0.02, progress=False)


def write_spec(path, wave, flux, style="{:.3f}  {:.5f}  {:.6e}\n"):
    lines = "".join(style.format(w, f, f * 1.2e7) for w, f in zip(wave.tolist(), flux.tolist()))
    path.write_text("#teff: 5777\n#[Ca/Fe]=-0.2580 NLTE\n#Wavelength Normalised_flux Unnormalised_flux\n" + lines)


def flux_of(i, wave=WAVE):
    return 1 - (0.1 + 0.03 * (i % 20)) * np.exp(-0.5 * ((wave - 5340.013) / 0.15) ** 2)


def make_folder(folder, n_spec=12, **spoilt):
    """A folder of clean files, some replaced: spoilt = {"3": (wave, flux)} or {"3": bytes}."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["specname,rv,teff,logg,feh,Li_Fe"]
    for i in range(n_spec):
        write_spec(folder / f"{i}.spec", WAVE, flux_of(i))
        rows.append(f"{i}.spec,0.0,{4000 + 100 * i},{2 + 0.1 * i:.2f},{-0.1 * i:.2f},0.5")
    for name, content in spoilt.items():
        path = folder / f"{name.lstrip('_')}.spec"
        path.write_bytes(content) if isinstance(content, bytes) else write_spec(path, *content)
    (folder / "spectra_parameters.csv").write_text("\n".join(rows) + "\n")
    return folder


def peer(path, grid):
    """What the Kovalev-style script does to one file."""
    wave, flux = np.loadtxt(path, usecols=(0, 1), unpack=True)
    inside = (wave >= grid[0] - 1e-6) & (wave <= grid[-1] + 1e-6)
    return np.interp(grid, wave[inside], np.where(flux[inside] > 1, 1, flux[inside]))


def test_same_flux_as_the_peers_on_clean_files(tmp_path):
    folder = make_folder(tmp_path / "specs")
    for step in (0.02, 0.013):
        grid = prepare_grid(folder, windows=[(5332, 5348)], step=step, resample="linear", progress=False)
        assert len(grid) == 12 and grid.flux.dtype == np.float32 and grid.label_units[0] == "K"
        for name, row in zip(grid.file_names, grid.flux):
            np.testing.assert_allclose(row, peer(folder / name, grid.wave), atol=2e-7)
    np.testing.assert_array_equal(grid.labels[:, 0], 4000 + 100 * np.arange(12))


def flaw(change):
    wave, flux = WAVE.copy(), flux_of(0)
    change(wave, flux)
    return wave, flux


FLAWS = {
    "NaN": (flaw(lambda w, f: f.__setitem__(400, np.nan)), "NaN in 1 pixel"),
    "infinite": (flaw(lambda w, f: f.__setitem__(400, np.inf)), "infinite in 1"),
    "negative": (flaw(lambda w, f: f.__setitem__(slice(400, 413), -0.01)), "below 1e-08 in 13 pixels"),
    "zero": (flaw(lambda w, f: f.__setitem__(400, 0.0)), "below 1e-08 in 1 pixel"),
    "partial": ((WAVE[:300], flux_of(0)[:300]), "not the whole window"),
    "outside": ((WAVE + 500, flux_of(0)), "not the whole window"),
    "hole": ((np.delete(WAVE, slice(400, 500)), np.delete(flux_of(0), slice(400, 500))), "gap of 2"),
    "unsorted": ((WAVE[::-1], flux_of(0)), "not increasing"),
    "swapped": (flaw(lambda w, f: w.__setitem__([400, 401], w[[401, 400]])), "not increasing"),
    "repeated": (flaw(lambda w, f: w.__setitem__(401, w[400])), "repeated"),
    "physical": ((WAVE, flux_of(0) * 1.2e7), "not normalised"),
    "one line": ((WAVE[:1], flux_of(0)[:1]), "one pixel"),
    "empty": (b"", "empty"),
    "header only": (b"#teff: 5000\n#Wavelength Normalised_flux\n", "no line of data"),
    "title only": (b"#a longer header\nwavelength,flux\n#no more\n \n", "no line of data"),
    "binary": (bytes(range(256)) * 20, "not a text file"),
    "words": (b"#a longer header\n5330.0 hello\n5330.1 1.0\n", "unreadable"),
    "one column": (b"#a longer header\n5330.0\n5330.1\n", "unreadable"),
}


@pytest.mark.parametrize("kind", FLAWS)
def test_a_bad_file_is_rejected_with_its_reason_and_nothing_else_is_lost(tmp_path, kind):
    content, reason = FLAWS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the reason is enough
        grid = prepare_grid(make_folder(tmp_path / "specs", _5=content), **OPTIONS)
    assert len(grid) == 11 and "5.spec" not in grid.file_names
    assert reason in dict(zip(grid.report.file, grid.report.reason))["5.spec"]
    assert str(grid.report).startswith("11 of 12 spectra accepted; 1 rejected")
    grid.report.write(tmp_path / "report.csv")
    assert "file,accepted,reason" in (tmp_path / "report.csv").read_text() and "5.spec,False," in (tmp_path / "report.csv").read_text()


@pytest.mark.parametrize("style", ["{:.3f}  {:.5f}  {:.6e}\n", "{!r} {!r} {!r}\n", "{:.18e} {:.18e} {:.18e}\n", "{:10.4f}\t{:12.8f}\t{:9.2f}\r\n"])
def test_text_styles(tmp_path, style):
    write_spec(tmp_path / "a.spec", WAVE, flux_of(3), style)
    wave, flux = read_spectrum(tmp_path / "a.spec")
    want = np.loadtxt(tmp_path / "a.spec", usecols=(0, 1), unpack=True)
    np.testing.assert_allclose([wave, flux], want, rtol=3e-16)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_fast_reader_gives_what_loadtxt_gives_or_declines(data):
    n = data.draw(st.integers(1, 40))
    number = st.one_of(
        st.floats(0, 2e4, allow_nan=False).map(lambda x: f"{x:.{data.draw(st.integers(0, 9))}f}"),
        st.floats(0, 1e6).map(lambda x: f"{x:.3f}".rjust(11)),
        st.floats(allow_nan=True).map(str),
        st.sampled_from(["NaN", "inf", "-1.5", "1e-3", "5.", ".5", "007", "1_0", "a", "0x1", "1,5", "", "#", "\0", "١"]),
    )
    plain = st.floats(1000, 20000).map(lambda x: f"{x:.3f}")
    rare = data.draw(st.booleans())
    lines = [" ".join([data.draw(number if not rare or k == n // 2 else plain), data.draw(plain), "1.0"]) for k in range(n)]
    text = ("# a header that is long enough\n" + "\n".join(lines) + "\n").encode()
    got = read_text._parse_fast(read_text._padded(text, {}), (0, 1), "#", {})
    if got is not None:
        want = np.loadtxt(io.BytesIO(text), usecols=(0, 1), unpack=True, ndmin=2, encoding="utf-8")
        np.testing.assert_allclose(got, want, rtol=5e-16)


def test_memory_of_the_file_before_never_leaks_into_the_next(tmp_path):
    memory = {}
    rng = np.random.default_rng(0)
    for k in range(30):
        wave = WAVE[: rng.choice([300, 301])] + rng.choice([0, 0.001, 10])
        write_spec(tmp_path / "a.spec", wave, rng.uniform(0, 2, len(wave)), str(rng.choice(["{:.3f}  {:.5f}  {:.6e}\n", "{:.3f} {:.6f}  {:.6e}\n"])))
        np.testing.assert_array_equal(read_spectrum(tmp_path / "a.spec", memory=memory), np.loadtxt(tmp_path / "a.spec", usecols=(0, 1), unpack=True))


def test_a_wavelength_that_reaches_into_the_column_of_flux_is_not_taken_from_the_file_before(tmp_path):
    lines = [f"{5330 + 0.02 * i:.3f}  0.96741  1.16" for i in range(60)]
    memory = {}
    for odd in ("5330.600341 .9674  1.16", "5330.600342 .9674  1.16", "5330.600340.96741   1.16"):
        (tmp_path / "a.spec").write_text("\n".join([*lines[:30], odd, *lines[31:]]) + "\n")
        try:
            want = np.loadtxt(tmp_path / "a.spec", usecols=(0, 1), unpack=True)
        except ValueError:
            with pytest.raises(SpectraError):
                read_spectrum(tmp_path / "a.spec", memory=memory)
        else:
            np.testing.assert_array_equal(read_spectrum(tmp_path / "a.spec", memory=memory), want)


def test_odd_wavelengths_do_not_make_the_next_file_slow(tmp_path):
    memory, waves = {}, []
    for shift in (0, 1, 0, 2, 3, 0):
        write_spec(tmp_path / "a.spec", WAVE + shift, flux_of(shift))
        waves.append(read_spectrum(tmp_path / "a.spec", memory=memory)[0])
        np.testing.assert_allclose(waves[-1], WAVE + shift, rtol=1e-12)
    assert waves[0] is waves[2] is waves[5]  # not converted again
    for shift in range(10, 20):
        write_spec(tmp_path / "a.spec", WAVE + shift, flux_of(0))
        read_spectrum(tmp_path / "a.spec", memory=memory)
    assert len(memory["before"]) == 4


@pytest.mark.parametrize("seed", range(4))
def test_odd_lines_among_regular_ones_are_read_as_loadtxt_reads_them(tmp_path, seed):
    rng, memory, path = np.random.default_rng(seed), {}, tmp_path / "a.spec"
    for _ in range(100):
        n, eol = rng.choice([3, 40, 41, 200]), rng.choice(["\n", "\r\n"])
        style = rng.choice(["{:.3f}  {:.5f}  1.0", "{:9.4f} {:.8f}", "{:.2f} {:.14f}  2.0", "{}  {:.15f}"])
        lines = [style.format(5330 + 0.02 * i, x) for i, x in enumerate(rng.uniform(0, 1.2, n))]
        for i in rng.integers(0, n, rng.choice([0, 1, 2, 15])):
            odd = [lines[i].replace("0.", "-0."), "5331.0 nan nan", lines[i] + "0", lines[i][:12], "# x", "", lines[i].replace("  ", " 1", 1), lines[i].replace(".", " ", 1)]
            lines[i] = str(rng.choice(odd))
        path.write_bytes((rng.choice(["", "# a long header of this\n#b\n"]) + eol.join(lines) + rng.choice([eol, ""])).encode())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a file without data
                want = np.loadtxt(path, usecols=(0, 1), unpack=True, ndmin=2)
        except (ValueError, UserWarning):
            with pytest.raises(SpectraError):
                read_spectrum(path, memory=memory)
            continue
        np.testing.assert_allclose(read_spectrum(path, memory=memory), want, rtol=4e-16, atol=0)


def test_label_table_problems(tmp_path):
    folder = make_folder(tmp_path / "specs")
    table = folder / "spectra_parameters.csv"
    text = table.read_text()
    table.write_text(text.replace("3.spec,0.0,4300", "3.spec,0.0,broken") + text.splitlines()[6] + "\n99.spec,0.0,1,1,1,1\n" + text.splitlines()[1].replace("0.spec", "x.spec") + "\n")
    (folder / "20.spec").write_bytes((folder / "1.spec").read_bytes())
    grid = prepare_grid(folder, **OPTIONS)
    reasons = dict(zip(grid.report.file, grid.report.reason))
    assert reasons["3.spec"] == "label teff is not a finite number" and reasons["5.spec"] == "2 rows in the label table"
    assert reasons["20.spec"] == "no row in the label table" and "2 table rows have no file" in str(grid.report) and len(grid) == 10
    table.write_text(text.replace("specname", "spec_name"))
    with pytest.raises(SpectraError, match="no column 'specname'.*Did you mean key='spec_name'"):
        prepare_grid(folder, **OPTIONS)
    table.write_text("")
    with pytest.raises(SpectraError, match="empty"):
        prepare_grid(folder, **OPTIONS)
    table.unlink()
    with pytest.raises(SpectraError, match="spectra_parameters.csv cannot be read"):
        prepare_grid(folder, **OPTIONS)


def test_a_label_that_is_constant_is_kept_and_scales_safely(tmp_path):
    grid = prepare_grid(make_folder(tmp_path / "specs"), **OPTIONS)
    scaler = LabelScaler.fit(grid)
    scaled = scaler.transform(grid.labels)
    assert np.isfinite(scaled).all() and (scaled[:, 3] == -0.5).all() and "constant" in repr(grid)
    np.testing.assert_allclose(scaler.inverse(scaled), grid.labels)


def test_nothing_to_prepare(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpectraError, match="It is empty"):
        prepare_grid(tmp_path / "empty", **OPTIONS)
    with pytest.raises(SpectraError, match="does not exist"):
        prepare_grid(tmp_path / "missing", **OPTIONS)
    spoilt = {f"_{i}": FLAWS[kind][0] for i, kind in enumerate(["NaN", "NaN", "NaN", "empty", "empty", "physical", "physical", "partial"])}
    with pytest.raises(SpectraError, match="(?s)none of 8 spectra.*3 times with NaN flux.*2 times.*2 times"):
        prepare_grid(make_folder(tmp_path / "all", 8, **spoilt), **OPTIONS)


def test_workers_give_the_same_grid_and_a_dead_worker_loses_nothing(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "specs", 40, _7=FLAWS["NaN"][0])
    one = prepare_grid(folder, n_workers=1, **OPTIONS)
    two = prepare_grid(folder, n_workers=2, **OPTIONS)
    np.testing.assert_array_equal(one.flux, two.flux)
    assert one.file_names == two.file_names and one.report.reason == two.report.reason
    main, work = os.getpid(), data_prep._prepare_batch

    def dies(*args):
        os._exit(1) if os.getpid() != main else None
        return work(*args)

    if sys.platform == "linux":  # elsewhere a spawned worker would not see the patch
        monkeypatch.setattr(data_prep, "_prepare_batch", dies)
        with pytest.warns(RuntimeWarning, match="going on in one process"):
            three = prepare_grid(folder, n_workers=2, **OPTIONS)
        np.testing.assert_array_equal(one.flux, three.flux)


def test_peak_memory_stays_within_the_budget(tmp_path):
    folder = make_folder(tmp_path / "specs", 150)
    budget = 600_000  # bytes; the result has 150 x 801 x 4 = 480 kB, more than 0.8 of it
    options = dict(memory_budget=budget, store=None, n_workers=1, **OPTIONS)
    prepare_grid(folder, **options)
    tracemalloc.start()
    grid = prepare_grid(folder, **(options | {"memory_budget": 500_000}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(grid.flux, np.memmap) and len(grid) == 150
    assert peak < budget + 200_000, peak  # the arrays in the budget, and a fixed overhead for names, labels and one file
    np.testing.assert_array_equal(grid.flux, prepare_grid(folder, **OPTIONS).flux)


def test_windows_and_resampling(tmp_path):
    folder = make_folder(tmp_path / "specs")
    grid = prepare_grid(folder, windows=[(5332, 5338), (5339, 5341)], step=0.1, progress=False)
    assert len(grid.wave) == 61 + 21 and np.all(np.diff(grid.wave) > 0)
    line = (grid.wave >= 5339) & (grid.wave <= 5341)
    area = np.sum(1 - grid.flux[:, line], axis=1) * 0.1
    want = (0.1 + 0.03 * (np.arange(12) % 20)) * 0.15 * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(area, want, rtol=2e-3)
    native = prepare_grid(folder, windows=[(5332, 5338)], progress=False)
    np.testing.assert_allclose(native.wave, WAVE[(WAVE > 5331.999) & (WAVE < 5338.001)], atol=1e-6)
    emission = make_folder(tmp_path / "emission", _2=(WAVE, flux_of(2) + 0.4 * (np.abs(WAVE - 5335) < 0.1)))
    assert prepare_grid(emission, **OPTIONS).flux.max() == 1
    assert prepare_grid(emission, clip_emission=False, **OPTIONS).flux.max() > 1.3


def test_broadening_reaches_beyond_the_window(tmp_path):
    folder = make_folder(tmp_path / "specs")
    wide = prepare_grid(folder, windows=[(5334, 5346)], step=0.02, resolution=8000, vsini=lambda table: 5 + table["feh"], vmac=3, progress=False)
    cut = prepare_grid(folder, windows=[(5334, 5340)], step=0.02, resolution=8000, vsini=lambda table: 5 + table["feh"], vmac=3, progress=False)
    np.testing.assert_allclose(cut.flux, wide.flux[:, : cut.flux.shape[1]], atol=3e-5)  # the line at the edge is not wrapped or mirrored
    assert cut.settings["broadening"]["vsini"] == "per spectrum"


def grid_of(tmp_path, **options):
    return prepare_grid(make_folder(tmp_path / "specs"), **(OPTIONS | options))


def test_files_there_and_back(tmp_path):
    grid = grid_of(tmp_path, labels=["teff", "feh", "A_Li"], transforms={"theta": lambda table: 5040 / table["teff"]})
    for name in ("grid.npz", "deep/folder/grid.npz", "store"):
        grid.save(tmp_path / name)
        again = SpectralGrid.load(tmp_path / name)
        np.testing.assert_array_equal(again.flux, grid.flux)
        np.testing.assert_allclose(again.labels, grid.labels, rtol=1e-15)
        assert (again.label_names, again.label_units, again.file_names, again.frame) == (grid.label_names, grid.label_units, grid.file_names, "air")
    with np.load(tmp_path / "grid.npz", allow_pickle=False) as file:  # as the scripts around the Kovalev network do
        assert file["flxn"].shape == (801, 12) and file["labels"].shape == (3, 12) and list(file["label_names"]) == ["teff", "feh", "A_Li"]
        np.testing.assert_allclose(file["labels"][0], grid.labels[:, 0] / 1000)
        assert json.loads(str(file["settings_json"]))["step"] == 0.02


def test_files_from_elsewhere_and_broken_ones(tmp_path):
    grid = grid_of(tmp_path)
    theirs = dict(flxn=grid.flux.T.astype(float), wvl=grid.wave, labels=(grid.labels * [1e-3, 1, 1, 1]).T, label_names=np.array(grid.label_names))
    np.savez(tmp_path / "theirs.npz", **theirs)
    loaded = SpectralGrid.load(tmp_path / "theirs.npz")
    np.testing.assert_allclose(loaded.labels, grid.labels)
    assert loaded.label_units[0] == "K" and "kK" in loaded.settings["assumed"][0]
    np.savez(tmp_path / "kelvin.npz", **(theirs | {"labels": grid.labels.T}))
    np.testing.assert_array_equal(SpectralGrid.load(tmp_path / "kelvin.npz").labels, grid.labels)
    np.savez(tmp_path / "unnamed.npz", **{k: v for k, v in theirs.items() if k != "label_names"})
    with pytest.raises(SpectraError, match="label_names"):
        SpectralGrid.load(tmp_path / "unnamed.npz")
    assert SpectralGrid.load(tmp_path / "unnamed.npz", label_names=grid.label_names).label_names == grid.label_names
    np.savez(tmp_path / "foreign.npz", weights=np.ones(3))
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "theirs.npz").read_bytes()[:5000])
    np.savez(tmp_path / "objects.npz", **(theirs | {"labels": np.array([[4000, "x"]] * 4, dtype=object)}))
    np.savez(tmp_path / "shapes.npz", **(theirs | {"flxn": grid.flux.astype(float)}))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("foreign", "truncated", "objects", "shapes", "text", "missing"):
        with pytest.raises(SpectraError, match=f"{name}.npz"):
            SpectralGrid.load(tmp_path / f"{name}.npz")
    grid.save(tmp_path / "store")
    (tmp_path / "store" / "flux.npy").write_bytes((tmp_path / "store" / "flux.npy").read_bytes()[:-100])
    with pytest.raises(SpectraError, match="not a complete folder store"):
        SpectralGrid.load(tmp_path / "store")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    grid = grid_of(tmp_path)
    grid.save(tmp_path / "out" / "grid.npz")
    grid.save(tmp_path / "out" / "store")
    before = (tmp_path / "out" / "grid.npz").read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_prep.np.lib.format, "write_array_header_1_0", full)
    for name in ("grid.npz", "store", "new"):
        with pytest.raises(SpectraError, match="(?i)space|full"):
            grid.save(tmp_path / "out" / name)
    monkeypatch.undo()
    monkeypatch.setattr(data_prep.os, "fsync", full)
    with pytest.raises(SpectraError, match="(?i)space|full"):
        grid.save(tmp_path / "out" / "store")
    monkeypatch.undo()
    assert (tmp_path / "out" / "grid.npz").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.npz", "store"]
    np.testing.assert_array_equal(SpectralGrid.load(tmp_path / "out" / "store").flux, grid.flux)


def test_a_store_is_not_written_over_something_else(tmp_path):
    grid = grid_of(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(SpectraError, match="not a folder store"):
        grid.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_split_and_stack(tmp_path):
    grid = grid_of(tmp_path)
    train, valid = grid.split(0.75, seed=3)
    assert (len(train), len(valid)) == (9, 3) and set(train.file_names) | set(valid.file_names) == set(grid.file_names)
    assert grid.split(0.999)[1].flux.shape == (1, 801)
    both = SpectralGrid.stack([valid, train])
    at = [both.file_names.index(name) for name in grid.file_names]
    np.testing.assert_array_equal(both.flux[at], grid.flux)
    np.testing.assert_array_equal(both.labels[at], grid.labels)
    other = grid_of(tmp_path, step=0.04)
    with pytest.raises(SpectraError, match="grid 2 has other wavelengths"):
        SpectralGrid.stack([grid, other])
    with pytest.raises(SpectraError, match="grid 2 has other frame"):
        SpectralGrid.stack([grid, grid_of(tmp_path, frame="vacuum")])


def test_a_store_is_split_and_learnt_from_without_being_loaded(tmp_path):
    wave, n_spec = np.arange(5330, 5350, 0.02), 1500
    labels = np.random.default_rng(0).uniform(size=(n_spec, 2))
    flux = 1 - labels[:, :1] * np.exp(-0.5 * ((wave - 5340) / 2) ** 2)
    SpectralGrid(wave, flux.astype(np.float32), labels, ("a", "b")).save(tmp_path / "store")
    grid = SpectralGrid.load(tmp_path / "store")
    tracemalloc.start()
    train, valid = grid.split(0.9, seed=1)
    some = train[np.flatnonzero(train.labels[:, 0] > 0.1)]
    batch = some.flux[100:164]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * grid.flux.nbytes, (peak, grid.flux.nbytes)
    np.testing.assert_allclose(batch, (1 - some.labels[100:164, :1] * np.exp(-0.5 * ((wave - 5340) / 2) ** 2)), atol=1e-6)
    assert len(train) + len(valid) == n_spec and "store" in repr(train)
    few = train[:300]
    basis, in_memory = (fit_basis(flux, 5) for flux in (few.flux, np.asarray(few.flux)))
    for ours, theirs in zip(basis, in_memory):
        np.testing.assert_array_equal(ours, theirs)


def test_columns_that_vary_but_are_no_labels_are_named(tmp_path):
    """Neither constants, text, velocities and rejected spectra nor what the labels already say; and the grid is the same."""
    folder = make_folder(tmp_path / "specs", _5=b"")
    rng = np.random.default_rng(0)
    names = ["specname", "rv", "teff", "logg", "feh", "vmic", "C_Fe", "Mg_Fe", "A_Mg", "constant", "code", "gap"]
    rows = [",".join(names)]
    for i in range(12):
        teff, logg, feh, vmic, carbon, mg = rng.uniform((4000, 1, -2, 1, -0.5, -0.2), (6000, 5, 0, 2, 0.5, 0.4))
        rows.append(f"{i}.spec,{i}.5,{teff:.2f},{logg:.4f},{feh:.4f},{vmic:.4f},{carbon:.4f},{mg:.4f},{mg + feh + 7.55:.4f},{9 if i == 5 else 1},TS{i},{'' if i % 2 else 3}")
    (folder / "spectra_parameters.csv").write_text("\n".join(rows) + "\n")
    everything = prepare_grid(folder, labels=names[2:8], **OPTIONS)
    assert everything.report.notes == () and prepare_grid(folder, labels=[*names[2:7], "A_Mg"], **OPTIONS).report.notes == ()
    some = prepare_grid(folder, labels=["teff", "logg", "feh", "A_Mg"], **OPTIONS)
    assert some.report.notes == ("the table also has vmic, C_Fe, which vary from spectrum to spectrum and are left out",)
    assert str(some.report).endswith("are left out") and "\n" not in str(some.report)
    np.testing.assert_array_equal(some.flux, everything.flux)
    np.testing.assert_array_equal(some.labels[:, :3], everything.labels[:, :3])
    turned = prepare_grid(folder, labels=["theta", *names[3:7], "A_Mg"], transforms={"theta": lambda table: 5040 / table["teff"]}, **OPTIONS)
    assert turned.report.notes == ()
    two = prepare_grid([make_folder(tmp_path / "more"), folder], labels=["teff", "logg", "feh"], **OPTIONS)
    assert two.report.notes == ("the table also has vmic, C_Fe, Mg_Fe, A_Mg, which vary from spectrum to spectrum and are left out",)


def test_no_warning_and_no_change_of_the_input(tmp_path):
    folder = make_folder(tmp_path / "specs")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_grid(folder, n_workers=2, **OPTIONS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_sampled_labels_come_back_through_a_grid(tmp_path):
    table = sample_labels(20, {"teff": (4000, 6000), "logg": (1, 5), "Mg_Fe": (-0.2, 0.4)}, seed=4)
    folder = tmp_path / "specs"
    folder.mkdir()
    for name in table["specname"]:
        write_spec(folder / name, WAVE, flux_of(1))
    write_label_table(table, folder / "spectra_parameters.csv")
    grid = prepare_grid(folder, **OPTIONS)
    np.testing.assert_array_equal(grid.labels, np.column_stack([table["teff"], table["logg"], table["Mg_Fe"]]))
