"""Surveys: what is interrupted goes on to the same bytes, what is broken costs itself, what is wrong is refused before it starts."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from spectra_nn import survey
from spectra_nn.cli import main
from spectra_nn.core import Spectra, SpectraError, asset, read_npz
from spectra_nn.emulator import Emulator
from spectra_nn.fit_results import FitResult
from spectra_nn.fitting import fit
from spectra_nn.instruments import LAMOST
from spectra_nn.spectrum_files import read_spectra
from spectra_nn.survey import Piece, SurveyJob, count_spectra, cut_shards, make_plan, run, share_of

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
OPTIONS = dict(free=["teff", "feh"], velocity=0, fixed={"vmic": 1.2, "logg": 3.5}, windows=[[5345, 5370]])


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Twenty stars in a plate of FITS, a plate of npz with the same names, three texts, and a file that is none."""
    folder, emulator, rng = tmp_path_factory.mktemp("night"), Emulator.load(asset("hr10_turbospectrum.safetensors")), np.random.default_rng(4)
    pixels = slice(700, 2200, 3)
    truth = np.array([5300., 3.5, -0.4, 1.2, 0, 0, 0, 0, 0, 0]) + rng.uniform(-1, 1, (20, 10)) * [500, 0, 0.3, *[0] * 7]
    wave, flux = emulator.wave[pixels], emulator.predict(truth)[:, pixels].astype(float)
    flux += rng.normal(0, 0.01, flux.shape)
    ivar = np.full(flux.shape, 1e4)
    names = [f"star {k}" for k in range(10)]
    fibres = fits.BinTableHDU.from_columns([fits.Column("ID", "8A", array=names)], name="FIBRES")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(wave, name="WAVE"), fits.ImageHDU(flux[:10], name="FLUX"), fits.ImageHDU(ivar[:10], name="IVAR"), fibres]).writeto(folder / "plate_2.fits")
    np.savez(folder / "plate_10.npz", wave=wave, flux=flux[10:17], ivar=ivar[10:17], ids=names[:7], frame=np.array("air"))
    for k in range(17, 20): np.savetxt(folder / f"text_{k}.csv", np.column_stack([wave, flux[k], ivar[k]**-0.5]), header="wave flux error")
    (folder / "plate_3.fits").write_bytes((folder / "plate_2.fits").read_bytes()[:2000])
    return folder, Spectra(wave, flux, ivar, frame="air"), emulator


def job_in(night, output, **changed):
    """A job on the night's files, four shards."""
    return replace(SurveyJob("fit", ["plate_*", "text_*"], "hr10_turbospectrum", str(output), OPTIONS, {"frame": "air"}, chunk=8, workers=1, folder=str(night[0])), **changed)


def written(job, folder):
    """The same job as a file."""
    told = {name: value for name, value in asdict(job).items() if name not in ("folder", "options", "reading", "dask")}
    told["files"] = [str(night_file) for night_file in (job.place(pattern) for pattern in job.files)]
    dots = lambda prefix, values: [f"{prefix}{name} = {json.dumps(value)}" for name, value in values.items() if not isinstance(value, dict)] + [  # noqa: E731
        f"{name}.{inner} = {json.dumps(value)}" for name, values in values.items() if isinstance(values, dict) for inner, value in values.items()]
    (folder / "job.toml").write_text("\n".join([*dots("", told), "[options]", *dots("", job.options), "[reading]", *dots("", job.reading)]))
    return folder / "job.toml"


@pytest.fixture(scope="module")
def whole(night, tmp_path_factory):
    """The survey run in one go."""
    job = job_in(night, tmp_path_factory.mktemp("whole") / "out")
    return job, run(job, progress=False)


def test_rows_names_and_values_are_those_of_the_files(night, whole):
    job, report = whole
    table, spectra, emulator = QTable.read(report.table), night[1], night[2]
    assert report.n_spectra == len(table) == 20 and report.n_shards == len(report.done) == 4
    assert list(table["file"]) == ["plate_2.fits"] * 10 + ["plate_10.npz"] * 7 + [f"text_{k}.csv" for k in (17, 18, 19)]  # natural order
    assert list(table["row"]) == [*range(10), *range(7), 0, 0, 0]
    assert list(table["id"][:10]) == [f"star {k}" for k in range(10)] and list(table["id"][10:17]) == list(table["id"][:7])  # twice, as the files say
    alone = fit(emulator, spectra, **OPTIONS, progress=False)
    for name in ("teff", "teff_err", "feh", "chi2"):
        np.testing.assert_array_equal(np.asarray(table[name])[:17], np.asarray(alone.table[name])[:17])
        np.testing.assert_allclose(np.asarray(table[name])[17:], np.asarray(alone.table[name])[17:], rtol=1e-5)  # text has fewer digits
    assert FitResult.read(report.table).parameter_names == ("teff", "feh") and table.meta["MODEL"] == "hr10_turbospectrum"


def test_a_broken_file_is_named_and_costs_nothing_else(whole):
    job, report = whole
    with open(job.place(job.output) / "failures.csv", newline="") as file: rows = list(csv.reader(file))
    assert rows[0] == ["file", "reason"] and [row[0] for row in rows[1:]] == ["plate_3.fits"] and "cut short" in rows[1][1]
    assert "plate_3.fits" in (job.place(job.output) / "report.html").read_text()


def test_killed_with_two_processes_and_resumed_gives_the_same_bytes(night, whole, tmp_path):
    job = job_in(night, tmp_path / "out", files=[str(night[0] / "plate_*"), str(night[0] / "text_*")], folder=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", "import sys; from spectra_nn.cli import main; sys.exit(main())", "run", written(job, tmp_path), "--workers", "2", "--quiet"],
                             env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    notes = lambda: list((tmp_path / "out/shards").glob("*.json"))  # noqa: E731
    while not notes() and child.poll() is None: time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and 0 < len(notes()) < 4 and not (tmp_path / "out/results.fits").exists()
    (tmp_path / "out/shards/000003.fits").write_bytes(b"half a table")  # a process may die between table and note
    (tmp_path / "out/shards/000003.json").unlink(missing_ok=True)
    report = run(written(job, tmp_path), progress=False)
    assert len(report.done) == 4
    ours, theirs = (QTable.read(one.table) for one in (report, whole[1]))
    assert list(ours["file"]) == [str(night[0] / name) for name in theirs["file"]]
    for name in set(ours.colnames) - {"file"}: np.testing.assert_array_equal(ours[name], theirs[name])


def test_parts_equal_the_whole_and_merge_waits_for_all(night, whole, tmp_path):
    job = job_in(night, tmp_path / "out")
    first = run(job, part="2/2", progress=False)
    assert first.table is None and first.done == (1, 3)
    with pytest.raises(SpectraError, match="2 of 4 shards are missing"): run(job, merge=True, progress=False)
    last = run(job, part="1/2", progress=False)
    assert last.table.read_bytes() == whole[1].table.read_bytes()
    last.table.unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/shards").iterdir()}
    assert run(job, merge=True, progress=False).table.read_bytes() == whole[1].table.read_bytes()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/shards").iterdir()}  # nothing was computed again


@pytest.mark.parametrize("part", ["0/4", "5/4", "3", "a/b", "1/0"])
def test_parts_that_are_none(part):
    with pytest.raises(SpectraError, match="a part is written as 3/16"): share_of(part, range(4))


def test_another_job_in_the_same_folder_is_refused(night, whole, tmp_path):
    job, report = whole
    with pytest.raises(SpectraError, match="holds another survey: options robust was 'not given' and is True"): run(replace(job, options=job.options | {"robust": True}), progress=False)
    with pytest.raises(SpectraError, match="3 files are gone, such as text_17.csv"): run(replace(job, files=["plate_*"]), progress=False)
    with pytest.raises(SpectraError, match="chunk was 8 and is 5"): make_plan(replace(job, chunk=5))
    make_plan(replace(job, workers=3, dask="tcp://elsewhere:1", table="ecsv"))  # of no matter to the shards
    changed = job_in(night, tmp_path / "out", files=["text_17.csv"], chunk=1)
    run(changed, progress=False)
    (tmp_path / "out/of mine.txt").write_text("kept")
    with pytest.raises(SpectraError, match="free was"): run(replace(changed, options=OPTIONS | {"free": ["teff"]}), progress=False)
    anew = run(replace(changed, options=OPTIONS | {"free": ["teff"]}), fresh=True, progress=False)
    assert FitResult.read(anew.table).parameter_names == ("teff",) and (tmp_path / "out/of mine.txt").exists()


def test_a_changed_file_is_noticed(night, tmp_path):
    (tmp_path / "a.csv").write_bytes((night[0] / "text_17.csv").read_bytes())
    job = job_in(night, "out", files=["a.csv"], folder=str(tmp_path))
    make_plan(job)
    os.utime(tmp_path / "a.csv", (1, 1))
    with pytest.raises(SpectraError, match="1 file is changed, such as a.csv"): make_plan(job)
    (tmp_path / "vmic.csv").write_text("id,vmic\na,1.2\n")
    tabled = replace(job, options=OPTIONS | {"fixed": "vmic.csv"}, output="tabled")
    make_plan(tabled)
    (tmp_path / "vmic.csv").write_text("id,vmic\na,1.3\n")
    with pytest.raises(SpectraError, match="contents of fixed was"): make_plan(tabled)


def test_what_is_wrong_is_said_before_anything_starts(night, tmp_path):
    job = job_in(night, tmp_path / "out")
    for changed, said in ((dict(files=["nigth/*.fits"]), "no file is called 'nigth"), (dict(options={"fre": 1}), "Did you mean 'free'"), (dict(options={"frame": "air"}), r"under \[reading\]"),
                          (dict(task="fti"), "Did you mean 'fit'"), (dict(options={"free": ["tef"]}), "nothing was started.*tef"), (dict(reading={}), "nothing was started.*frame"),
                          (dict(model="sdss_mock"), "needs an Emulator"), (dict(model="none.safetensors"), "is not there"), (dict(output="plate_2.fits/out"), "not written|cannot be written"),
                          (dict(options={"instrument": "GIRAFE_HR10"}), "Did you mean 'GIRAFFE_HR10'"), (dict(workers=-1), "workers must be"), (dict(options={"instrument": LAMOST}), "given by its name"), (dict(options={"line_mask": "none.txt"}), "none.txt")):
        files = {} if "files" in changed else {"files": ["text_*"]}
        with pytest.raises(SpectraError, match=said): run(replace(job, **files | changed), progress=False)
        assert not list((tmp_path / "out").glob("*"))  # so that the mended job finds an empty folder


def test_one_file_on_which_the_task_fails_leaves_the_others(night, tmp_path):
    (tmp_path / "vmic.csv").write_text("id,vmic\ntext_17,1.2\ntext_19,1.2\n")
    options = OPTIONS | {"fixed": str(tmp_path / "vmic.csv")}
    report = run(job_in(night, tmp_path / "out", files=["text_*"], options=options), progress=False)
    assert list(QTable.read(report.table)["id"]) == ["text_17", "text_19"] and [name for name, _ in report.failures] == ["text_18.csv"]
    assert "no row for 'text_18'" in report.failures[0][1] and not list((tmp_path / "out/shards").glob("*.?.fits"))


def test_a_shard_on_which_processes_die_is_recorded(monkeypatch):
    child = "import sys, os\nfor n in sys.stdin:\n    if n.startswith('{'): continue\n    if int(n) == 2: os._exit(7)\n    print('{\"shard\": %d}' % int(n), flush=True)"
    monkeypatch.setattr(survey, "_CHILD", child)
    notes = {note["shard"]: note for note in survey._in_processes("{}", range(6), 2)}
    assert len(notes) == 6 and "exit status 7" in notes[2]["failed"] and not any("failed" in note for k, note in notes.items() if k != 2)
    monkeypatch.setattr(survey, "_CHILD", "raise SystemExit(3)")
    with pytest.raises(SpectraError, match="die whatever they are given"): list(survey._in_processes("{}", range(50), 2))


def test_shards_hold_everything_once():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts, chunk = rng.integers(1, 30, rng.integers(1, 12)).tolist(), int(rng.integers(1, 25))
        shards = cut_shards(counts, chunk)
        rows = [(piece.file, row) for shard in shards for piece in shard for row in range(piece.start, counts[piece.file] if piece.stop is None else piece.stop)]
        assert rows == [(file, row) for file, n in enumerate(counts) for row in range(n)]
        sizes = [sum((counts[piece.file] if piece.stop is None else piece.stop) - piece.start for piece in shard) for shard in shards]
        assert 0 < min(sizes) and max(sizes) <= chunk and all(a + b > chunk // 2 for a, b in zip(sizes, sizes[1:]))
    assert cut_shards([5, 1], 2) == [[Piece(0, 0, 1)], [Piece(0, 1, 3)], [Piece(0, 3, None)], [Piece(1)]]


def test_counts(night, tmp_path):
    known = {"manga_galaxies.fits.gz": 1, "boss_star.fits.gz": 1, "apogee_star.fits.gz": 1, "desi_galaxy.fits.gz": 1, "mock_galaxies.npz": 280}
    assert {name: count_spectra(asset(name)) for name in known} == known
    column = lambda name, form: fits.Column(name, form, array=np.zeros((5, 3)) if form == "3E" else np.zeros(5))  # noqa: E731
    for form, n in (("3E", 5), ("E", 1), ("1E", 1)):
        fits.BinTableHDU.from_columns([column("WAVE", form), column("FLUX", form)]).writeto(tmp_path / f"{form}.fits")
        assert count_spectra(tmp_path / f"{form}.fits") == n
    image = fits.PrimaryHDU(np.zeros((4, 100)))
    image.header.update(CRVAL1=5000., CDELT1=0.1)
    image.writeto(tmp_path / "scaled.fits")
    assert count_spectra(tmp_path / "scaled.fits") == 4
    (tmp_path / "empty").write_bytes(b"")
    assert count_spectra(tmp_path / "empty") == count_spectra(tmp_path / "none") == count_spectra(night[0] / "plate_3.fits") == 1


@pytest.mark.parametrize("task", ["redshift", "encode", "outliers"])
def test_galaxies(task, tmp_path):
    mocks = read_npz(asset("mock_galaxies.npz"))
    np.savez(tmp_path / "g.npz", **{name: mocks[name][:3] if len(np.shape(mocks[name])) and len(mocks[name]) == 280 else mocks[name] for name in mocks})
    report = run(SurveyJob(task, ["g.npz"], "sdss_mock", "out", {"z_range": [0., 0.3]} if task == "redshift" else {}, folder=str(tmp_path), chunk=2, workers=1), progress=False)
    table = QTable.read(report.table)
    assert len(table) == 3 and list(table["row"]) == [0, 1, 2] and not report.failures, report
    column = {"redshift": "z_err", "encode": "latent_1", "outliers": "score"}[task]
    assert np.isfinite(table[column]).sum() >= 2


def test_dask(night, whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None) as cluster:
        report = run(job_in(night, tmp_path / "out", dask=cluster.scheduler_address), progress=False)
    assert report.table.read_bytes() == whole[1].table.read_bytes()


def test_the_line_spread_of_the_files(tmp_path):
    (tmp_path / "star.fits.gz").write_bytes(asset("boss_star.fits.gz").read_bytes())
    options = dict(velocity=[-500, 500], continuum=6, systematic=0.02)
    job = SurveyJob("fit", ["star.fits.gz"], "miles_stars", "out", options | {"resolution": "file"}, folder=str(tmp_path), workers=1)
    found, star = QTable.read(run(job, progress=False).table), read_spectra(tmp_path / "star.fits.gz")
    spread = survey.file_resolution(star)
    assert 1700 < spread[0] < 2300
    alone = fit(Emulator.load(asset("miles_stars.safetensors")), star, resolution=spread, **options | {"velocity": (-500, 500)}, progress=False)
    np.testing.assert_array_equal(found["chi2"], alone.table["chi2"])
    np.savez(tmp_path / "plain.npz", wave=np.arange(4000, 6000.), flux=np.ones((2, 2000)), ivar=np.ones((2, 2000)), frame=np.array("air"))
    with pytest.raises(SpectraError, match="do not say 'resolution'"): run(replace(job, files=["plain.npz"], output="other"), progress=False)


def test_dask_that_is_not_there(night, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SpectraError, match=r"spectra_nn\[dask\]"): run(job_in(night, tmp_path / "out", files=["text_*"], dask="tcp://127.0.0.1:1"), progress=False)


def test_parquet(whole):
    """The last to use `whole`: its table is written anew."""
    pytest.importorskip("pyarrow")
    report = run(replace(whole[0], table="parquet"), progress=False)
    assert report.table.suffix == ".parquet" and len(FitResult.read(report.table)) == 20
    assert not report.table.with_suffix(".fits").exists()


def test_the_command(night, tmp_path, capsys):
    path = written(job_in(night, "out", files=[str(night[0] / "text_17.csv"), str(night[0] / "plate_3.fits")], folder=str(tmp_path)), tmp_path)
    assert main(["run", str(path), "--quiet"]) == 3
    said = capsys.readouterr()
    assert "1 of 1 shards done" in said.out and "not used" in said.err and "cut short" in said.err
    assert main(["run", str(tmp_path / "none.toml")]) == 1 and "cannot be read" in capsys.readouterr().err
    assert main(["run", "--help"]) == 0 and 'task = "fit"' in capsys.readouterr().out
