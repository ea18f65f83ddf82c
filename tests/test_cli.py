"""The command `spectra-nn`, as a user types it: files in, files out, mistakes answered in a sentence."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.table import QTable

from spectra_nn.cli import _VERBS, main
from spectra_nn.core import asset
from spectra_nn.demo import unpack_spectra
from spectra_nn.emulator import Emulator
from spectra_nn.fitting import FitFlag

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
COMMAND = [sys.executable, "-c", "import sys; from spectra_nn.cli import main; sys.exit(main())"]


def spectra_nn(*words, cwd=None, **options):
    """Run the command in a process of its own, as a shell would."""
    return subprocess.run([*COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True, env=ENVIRONMENT, **options)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with raw spectra, a training set, and an emulator made by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    unpack_spectra(folder)
    start = os.getcwd()
    os.chdir(folder)
    try:
        assert main("prep hr10_specs --windows 5330-5340 --labels teff,logg,feh --step 0.05 --out g.npz --quiet".split()) == 0
        assert main("train g.npz --out e.safetensors --recipe dense --minutes 0.05 --quiet".split()) == 0
        yield folder
    finally:
        os.chdir(start)


def said(capsys, *words):
    """Exit status and error output."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    return status, capsys.readouterr().err


def observed(path, labels=(5000, 4.5, -0.5), frame="air", n=1):
    """A spectrum of the emulator with 1 % errors."""
    emulator = Emulator.load("e.safetensors")
    flux = np.repeat(emulator.predict(np.array([labels])), n, axis=0)
    if path.endswith(".npz"):
        np.savez(path, wave=emulator.wave, flux=flux, ivar=np.full(flux.shape, 1e4), **({"frame": frame} if frame else {}))
    else:
        np.savetxt(path, np.column_stack([emulator.wave, flux[0], np.full(flux.shape[1], 0.01)]), header="wave flux error")
    return path


# What is asked without running anything

@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_verbs_are_listed(capsys, words):
    assert main(words) == 0
    text = capsys.readouterr().out
    for name, verb in _VERBS.items():
        assert f"  {name} " in text and verb.__doc__.splitlines()[0] in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spectra-nn 0.")


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "spectra_nn", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("spectra-nn ")


@pytest.mark.parametrize("verb", _VERBS)
def test_help_explains_every_option(capsys, verb):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  spectra-nn {verb}" in text.split("Example")[1], "an example line"
    for line in text.split("options:")[1].split("\n\n")[0].splitlines():
        name, _, meaning = line.strip().partition("  ")
        if name.startswith("--") and not meaning:
            continue  # the meaning stands on the next line
        assert not name.startswith("--") or len(meaning.split()) > 1, line


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["trian"]])
def test_nothing_heavy_is_imported_to_answer(words):
    code = f"import sys; from spectra_nn.cli import main; main({words}); print([m for m in ('torch', 'scipy', 'astropy', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert told.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words, meant", [(["trian"], "train"), (["predct", "a"], "predict"), (["train", "g.npz", "--out", "e.safetensors", "--minuts", "3"], "--minutes"),
                                          (["fit", "e", "f", "--out", "t.fits", "--resolutoin=3"], "--resolution"), (["--versoin"], "--version")])
def test_wrong_words_are_put_right(capsys, words, meant):
    status, error = said(capsys, *words)
    assert status == 2 and meant in error and "Traceback" not in error


@pytest.mark.parametrize("words", ["train", "train g.npz", "train g.npz --out e.safetensors --recipe magic", "prep specs --out g.npz", "prep specs --windows 5 --out g.npz",
                                   "train g.npz --out e.safetensors --minutes soon", "fit e.safetensors", "fit e f --out t.fits --error large"])
def test_wrong_usage_ends_with_two(capsys, words):
    status, error = said(capsys, *words.split())
    assert status == 2 and "--help" in error


def test_a_reader_that_leaves_is_no_error():
    command = " ".join(f"'{word}'" for word in COMMAND) + " fit --help | head -1"
    told = subprocess.run(command, shell=True, capture_output=True, text=True, env=ENVIRONMENT)
    assert told.stdout.startswith("usage:") and "Traceback" not in told.stderr


# The chain

def test_prep_writes_the_set_and_a_report(work):
    with open("g.report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "accepted", "reason"] and len(rows) == 300
    n_good = sum(row["accepted"] == "True" for row in rows)
    assert all(bool(row["reason"]) == (row["accepted"] == "False") for row in rows)
    with np.load("g.npz") as grid:
        assert grid["flxn"].shape == (201, n_good) and list(grid["label_names"]) == ["teff", "logg", "feh"]


def test_prep_of_several_folders_and_windows(work, capsys):
    assert main("prep hr10_specs hr10_specs --windows 5330-5332,5340-5342 --suffix .spec,.txt --columns 0,1 --out two.npz --quiet".split()) == 0
    with np.load("two.npz") as grid:
        assert grid["wvl"].min() >= 5330 and not ((grid["wvl"] > 5332.01) & (grid["wvl"] < 5339.99)).any()


def test_train_validates_beside_the_emulator(work):
    folders = list(work.glob("e_validation_*"))
    assert len(folders) == 1 and {"validation.csv", "validation.txt", "recovery.png"} <= {path.name for path in folders[0].iterdir()}


def test_validate_into_a_folder(work):
    assert main("validate e.safetensors g.npz --out deep/validation --recover 5 --quiet".split()) == 0
    assert (work / "deep/validation/validation.csv").is_file()


def test_plain_networks_are_written_for_other_codes(work):
    assert main("train g.npz --out p.npz --recipe payne --minutes 0.02 --no-validation --quiet".split()) == 0
    with np.load("p.npz") as network:
        assert {"w_array_0", "x_min", "wavelength"} <= set(network.files)
    assert Emulator.load("p.npz").label_names == ("teff", "logg", "feh")


def test_predict_keeps_order_and_names(work, capsys):
    (work / "labels.csv").write_text("comment,feh,logg,teff,specname\nx,-0.5,4.5,5000,a\ny,0.0,4.0,6000,b\n")
    assert main("predict e.safetensors labels.csv --out s.npz".split()) == 0
    emulator = Emulator.load("e.safetensors")
    with np.load("s.npz") as made:
        assert list(made["ids"]) == ["a", "b"] and made["wave"].shape == (201,)
        np.testing.assert_array_equal(made["flux"], emulator.predict(np.array([[5000, 4.5, -0.5], [6000, 4.0, 0.0]])))


def test_predict_outside_the_domain(work, capsys):
    (work / "far.csv").write_text("teff,logg,feh\n30000,4.5,0\n5000,4.5,-0.5\n")
    status, error = said(capsys, "predict", "e.safetensors", "far.csv", "--out", "far.npz")
    assert status == 0 and error.startswith("note: 1 of 2 label sets are outside")
    assert said(capsys, "predict", "e.safetensors", "far.csv", "--out", "far.npz", "--outside", "nan") == (0, "")
    with np.load("far.npz") as made:
        assert list(made["ids"]) == ["0", "1"] and list(np.isnan(made["flux"]).all(1)) == [True, False]


@pytest.mark.parametrize("out", ["t.fits", "t.ecsv", "new/folder/t.fits"])
def test_fit_writes_one_row_per_spectrum(work, capsys, out):
    observed("star.txt"), observed("two.npz", (6000, 4.0, 0.0), n=2)
    assert main(f"fit e.safetensors star.txt two.npz --frame air --out {out} --velocity-range -50 50 --quiet".split()) == 0
    table = QTable.read(out)
    assert list(table["id"]) == ["star", "two:0", "two:1"]
    assert {"teff", "teff_err", "velocity", "velocity_err", "chi2", "dof", "flags"} <= set(table.colnames)
    np.testing.assert_allclose(table["teff"].value, [5000, 6000, 6000], atol=150)
    assert "teff" in capsys.readouterr().out


def test_fit_options(work):
    observed("star.txt")
    words = "fit e.safetensors star.txt --frame air --resolution 20000 --free teff,feh --windows 5331-5339 --velocity 0 --continuum -1 --plots plots --out f.ecsv --quiet"
    assert main(words.split()) == 0
    table = QTable.read("f.ecsv")
    assert np.isnan(table["logg_err"].value).all() and np.isfinite(table["feh_err"].value).all() and (table["velocity"].value == 0).all()
    assert [path.suffix for path in (work / "plots").iterdir()] == [".png"]


def test_bad_files_are_flagged_rows(work, capsys):
    observed("star.txt")
    (work / "empty.txt").write_text("")
    (work / "words.csv").write_text("this is no spectrum\n")
    (work / "cut.npz").write_bytes(b"PK\x03\x04 cut short")
    status, error = said(capsys, "fit", "e.safetensors", "empty.txt", "star.txt", "words.csv", "cut.npz", "gone.txt", "--frame", "air", "--out", "t.fits", "--quiet")
    table = QTable.read("t.fits")
    assert status == 0 and list(table["flags"] == FitFlag.BAD_INPUT) == [True, False, True, True, True]
    assert all(f"flagged: {name}" in error for name in ("empty.txt", "words.csv", "cut.npz", "gone.txt")) and "Traceback" not in error


def test_a_built_in_emulator_has_a_name(work, capsys):
    (work / "sun.csv").write_text("teff,logg,feh,vmic,C_Fe,Mg_Fe,Ca_Fe,Ti_Fe,Y_Fe,Mn_Fe\n5777,4.44,0,1,0,0,0,0,0,0\n")
    assert main("predict hr10_turbospectrum sun.csv --out sun.npz".split()) == 0
    status, error = said(capsys, "predict", "hr10_turbospectrm", "sun.csv", "--out", "sun.npz")
    assert status == 1 and "'hr10_turbospectrum'" in error


# Bad input

@pytest.mark.parametrize("words, part", [
    ("prep nowhere --windows 5330-5340 --out x.npz", "nowhere is not a folder"),
    ("prep hollow --windows 5330-5340 --table labels.csv --out x.npz", "It is empty"),
    ("prep hr10_specs --table nokey.csv --windows 5330-5340 --out x.npz", "no column 'specname'"),
    ("prep hr10_specs --labels tef --windows 5330-5340 --out x.npz", "'teff'"),
    ("prep hr10_specs --windows 4000-4010 --out x.npz", "not covering the window"),
    ("prep hr10_specs --windows 5330-5340 --columns a,b --out x.npz", "--columns"),
    ("prep hr10_specs --windows 5330-5340 --out x.csv", "must end in .npz"),
    ("train gone.npz --out x.safetensors", "gone.npz"),
    ("train labels.csv --out x.safetensors", "labels.csv"),
    ("train cut.npz --out x.safetensors", "truncated"),
    ("train e.safetensors --out x.safetensors", "e.safetensors"),
    ("train g.npz --out hr10_specs", "must end in .safetensors"),
    ("train g.npz --out labels.csv/x.safetensors", "a file, not a folder"),
    ("train g.npz --out x.safetensors --held-out 1.5", "--held-out"),
    ("validate e.safetensors other.npz --out v", "50 pixels"),
    ("validate g.npz g.npz --out v", "g.npz"),
    ("predict gone.safetensors labels.csv --out x.npz", "no file gone.safetensors"),
    ("predict e.safetensors gone.csv --out x.npz", "no label table gone.csv"),
    ("predict e.safetensors nokey.csv --out x.npz", "labels lack"),
    ("predict e.safetensors texts.csv --out x.npz", "holds text such as"),
    ("predict e.safetensors e.safetensors --out x.npz", "cannot be read as a table"),
    ("fit e.safetensors gone.txt --frame air --out x.fits", "no file gone.txt"),
    ("fit e.safetensors bare.txt --out x.fits", "--frame vacuum"),
    ("fit e.safetensors flux.txt --frame air --out x.fits", "--error 0.01"),
    ("fit e.safetensors bare.txt --frame air --out x.fits --instrument HUBBLE", "GIRAFFE_HR10"),
    ("fit e.safetensors bare.txt --frame air --out x.fits --free tef", "'teff'"),
    ("fit e.safetensors bare.txt --frame air --out x.fits --resolution -5", "--resolution"),
    ("fit e.safetensors bare.txt --frame air --out x.doc", "must end in"),
])
def test_bad_input_is_named_and_leaves_nothing(work, capsys, words, part):
    (work / "hollow").mkdir(exist_ok=True)
    (work / "labels.csv").write_text("specname,teff,logg,feh\na,5000,4.5,0\n")
    (work / "nokey.csv").write_text("name,teff\n1.spec,5000\n")
    (work / "texts.csv").write_text("teff,logg,feh\nhot,4.5,0\n")
    (work / "cut.npz").write_bytes((work / "g.npz").read_bytes()[:5000])
    np.savez(work / "other.npz", wvl=np.linspace(6000, 6010, 50), flxn=np.ones((50, 12)), labels=np.random.default_rng(0).uniform(1, 5, (3, 12)), label_names=["teff", "logg", "feh"])
    observed("bare.txt")
    np.savetxt("flux.txt", np.loadtxt("bare.txt")[:, :2])
    status, error = said(capsys, *words.split(), *(["--quiet"] if words.split()[0] != "predict" else []))
    assert status == 1 and part in error and error.startswith("spectra-nn: ") and "Traceback" not in error
    assert not list(work.glob("x.*")) and not (work / "v").exists()


def test_read_only_folder(work, capsys):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (work / "locked").mkdir(mode=0o500)
    assert said(capsys, "train", "g.npz", "--out", "locked/e.safetensors")[0] == 1


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_keeps_the_best_so_far(work):
    """The training is interrupted once it has taken steps; the emulator is there and works."""
    words = "train g.npz --out stopped.safetensors --recipe dense --minutes 5 --folder checkpoints".split()
    process = subprocess.Popen([*COMMAND, *words], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell that runs tests in the background lets them ignore it
    metrics, start = work / "checkpoints" / "metrics.jsonl", time.monotonic()
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() - start < 120:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Traceback" not in error and "best network so far" in error
    assert Emulator.load(work / "stopped.safetensors").predict(np.array([[5000, 4.5, -0.5]])).shape == (1, 201)


def test_in_a_process_of_its_own(work):
    """Exit status, and results and complaints on their own streams."""
    good = spectra_nn("predict", asset("miles_stars.safetensors"), "labels.csv", "--out", "m.npz", cwd=work)
    assert good.returncode == 0 and good.stdout.startswith("written: m.npz") and good.stderr == ""
    bad = spectra_nn("predict", "gone.safetensors", "labels.csv", "--out", "m.npz", cwd=work)
    assert bad.returncode == 1 and bad.stdout == "" and bad.stderr == "spectra-nn: there is no file gone.safetensors\n"
