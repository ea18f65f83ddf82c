"""Validation with grids that do not fit the emulator, damaged spectra, and emulators of every kind."""

from dataclasses import replace

import numpy as np
import pytest

import spectra_nn.validation as validation
from spectra_nn.core import SpectraError
from spectra_nn.data_prep import SpectralGrid
from spectra_nn.emulator import Emulator, Recipe, train_emulator
from spectra_nn.training import TrainConfig
from spectra_nn.validation import most_useful, plot_recovery, recovery_statistics, suggest_labels, unseen_rows, validate, write_validation

NAMES = ("teff", "logg", "feh")


def toy_grid(n=150, names=NAMES, seed=0):
    """Three lines that answer to temperature, gravity and metallicity."""
    rng = np.random.default_rng(seed)
    labels = rng.uniform([4500, 1.0, -1.5], [6500, 5.0, 0.5], (n, 3))
    wave = np.linspace(5330, 5336, 240)
    depth = 1 / (1 + np.exp(-labels[:, [2]] - np.array([0.8, 0.2, -0.5]) * (labels[:, [0]] - 5500) / 1000 - np.array([0.1, 0.5, -0.3]) * (labels[:, [1]] - 3)))
    profile = np.exp(-0.5 * ((wave - np.array([5331.0, 5333.0, 5335.0])[:, None]) / 0.2) ** 2)
    flux = (1 - 0.8 * depth @ profile).astype(np.float32)
    if len(names) > 3:
        labels = np.column_stack([labels, np.full((n, len(names) - 3), 1.0)])
    return SpectralGrid(wave, flux, labels, names, file_names=tuple(f"{i}.spec" for i in range(n)))


def short(**options):
    return Recipe(**{"n_basis": 40, "train": TrainConfig(steps=20, batch_size=200, learning_rate=0.05), **options})


@pytest.fixture(scope="module")
def grid():
    return toy_grid()


@pytest.fixture(scope="module")
def emulator(grid):
    return train_emulator(grid, short(), held_out=0.2, progress=False)[0]


def test_only_held_out_spectra_judge(emulator, grid):
    result = validate(emulator, grid, progress=False)
    assert len(result.labels) == 30 and "held out" in result.judged_by
    assert result.recovery.converged.all() and np.abs(result.recovery.labels - result.labels)[:, 2].max() < 0.05
    everything = validate(emulator, grid, which="all", n_recover=0, progress=False)
    assert len(everything.labels) == 150 and "trained on" in everything.judged_by
    assert everything.overall["mae"] < result.overall["mae"]


def test_a_part_or_another_order_of_the_training_set_is_recognised(emulator, grid):
    held_out = set(grid.split(0.8, seed=0)[1].file_names)
    mixed = grid[::-1]
    assert {mixed.file_names[i] for i in unseen_rows(emulator, mixed)[0]} == held_out
    renamed = replace(grid, file_names=tuple("abc" for _ in range(len(grid))))
    assert len(unseen_rows(emulator, renamed)[0]) == 30
    others, said = unseen_rows(emulator, toy_grid(20, seed=5))
    assert len(others) == 20 and "left out" not in said
    with pytest.raises(SpectraError, match="trained on all 120"):
        validate(emulator, grid.split(0.8, seed=0)[0], progress=False)


def test_columns_are_found_by_name(emulator, grid):
    swapped = SpectralGrid(grid.wave, grid.flux, grid.labels[:, ::-1], NAMES[::-1], file_names=grid.file_names)
    ours, theirs = (validate(emulator, g, n_recover=0, progress=False) for g in (grid, swapped))
    np.testing.assert_allclose(np.sort(ours.spectrum["rms"]), np.sort(theirs.spectrum["rms"]))


@pytest.mark.parametrize(("change", "message"), [
    (lambda g: g[:0], "no spectra"),
    (lambda g: replace(g, wave=g.wave + 0.5), "windows and step"),
    (lambda g: replace(g, wave=g.wave[:-1], flux=g.flux[:, :-1]), "239 pixels"),
    (lambda g: replace(g, frame="vacuum"), "in vacuum, the emulator's in air"),
    (lambda g: replace(g, label_names=("Teff", "logg", "feh")), "lack teff.*is it 'Teff'"),
    (lambda g: replace(g, labels=g.labels[:, :2], label_names=NAMES[:2], label_units=()), "lack feh"),
], ids=["empty", "shifted", "shorter", "vacuum", "renamed", "a label less"])
def test_a_grid_that_does_not_fit_is_refused(emulator, grid, change, message):
    with pytest.raises(SpectraError, match=message):
        validate(emulator, change(grid), progress=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_flux_that_is_not_finite_names_the_file(emulator, grid, value):
    flux = grid.flux.copy()
    row = unseen_rows(emulator, grid)[0][3]
    flux[row, 7] = value
    with pytest.raises(SpectraError, match=f"1 of 30 spectra.*{grid.file_names[row]}"):
        validate(emulator, replace(grid, flux=flux), progress=False)


def test_blocks_do_not_matter(emulator, grid, monkeypatch):
    whole = validate(emulator, grid, progress=False)
    monkeypatch.setattr(validation, "_BUDGET", 4 * 8 * 240 * 4)
    parts = validate(emulator, grid, progress=False)
    for name in whole.pixel:
        np.testing.assert_allclose(parts.pixel[name], whole.pixel[name], atol=1e-7)
    assert parts.overall == pytest.approx(whole.overall, rel=1e-5)
    np.testing.assert_allclose(parts.recovery.labels, whole.recovery.labels, rtol=1e-6)


def test_a_grid_on_disk_is_read_block_by_block(emulator, grid, tmp_path):
    grid.save(tmp_path / "store")
    stored = SpectralGrid.load(tmp_path / "store")
    assert isinstance(stored.flux, np.memmap)
    assert validate(emulator, stored, n_recover=0, progress=False).overall == pytest.approx(validate(emulator, grid, n_recover=0, progress=False).overall)


@pytest.mark.parametrize("recipe", [
    short(kind="dense", n_basis=0, widths=(32,), output="sigmoid", train=TrainConfig(steps=400, learning_rate=1e-2)),
    short(kind="dense", widths=(32,), train=TrainConfig(steps=400, learning_rate=1e-2)),
], ids=["sigmoid", "dense"])
def test_other_networks_give_labels_back(grid, recipe):
    emulator, _ = train_emulator(grid, recipe, held_out=0.2, progress=False)
    own = replace(grid, flux=emulator.predict(grid.labels, outside="ignore"), file_names=())
    result = validate(emulator, own, n_recover=40, progress=False)
    missed = np.abs(result.recovery.labels - result.labels[result.recovery.rows]) / np.ptp(grid.labels, axis=0)
    inside = ((result.labels >= emulator.label_bounds[0]) & (result.labels <= emulator.label_bounds[1])).all(1)[result.recovery.rows]
    assert "cannot be told" in result.judged_by and np.median(missed[inside]) < 1e-3


def test_a_constant_label_and_a_single_spectrum(tmp_path):
    grid = toy_grid(60, (*NAMES, "vmic"))
    emulator, _ = train_emulator(grid, short(), held_out=0.2, progress=False)
    result = validate(emulator, grid[unseen_rows(emulator, grid)[0][:1]], tmp_path / "one", progress=False)
    assert result.recovery.labels.shape == (1, 4) and result.recovery.labels[0, 3] == 1.0 and np.isfinite(result.recovery.errors).all()
    assert (tmp_path / "one" / "recovery_by_feh.png").exists() and np.isfinite([row["pull"] for row in recovery_statistics(result)]).all()


def test_without_recovery_the_rest_is_written(emulator, grid, tmp_path):
    result = validate(emulator, grid, tmp_path / "report", n_recover=0, progress=False)
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert "labels.npz" not in written and {"validation.csv", "validation.txt", "error_map.png"} <= written
    with pytest.raises(SpectraError, match="n_recover"):
        plot_recovery(result)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpectraError, match="cannot be made"):
        write_validation(result, tmp_path / "file")


def test_wrong_words_are_named(emulator, grid):
    with pytest.raises(SpectraError, match="which is 'some'"):
        validate(emulator, grid, which="some", progress=False)
    result = validate(emulator, grid, progress=False)
    with pytest.raises(SpectraError, match="no label 'logq'.*is it 'logg'"):
        plot_recovery(result, labels=["logq"])


def test_suggestions(emulator):
    table = suggest_labels(emulator, 12)
    assert table.colnames == ["specname", "rv", *NAMES] and emulator.domain(table).inside.all() and len(set(table["teff"])) == 12
    assert (suggest_labels(emulator, 12)["logg"] == table["logg"]).all() and (suggest_labels(emulator, 12, seed=1)["logg"] != table["logg"]).any()
    with pytest.raises(SpectraError, match="3 label sets are wanted of 2"):
        suggest_labels(emulator, 3, candidates=np.array([[5000, 3, 0], [5500, 3, 0.0]]))
    with pytest.raises(SpectraError, match="n must be at least 1"):
        suggest_labels(emulator, 0)
    bare = Emulator(emulator.features, emulator.network, emulator.weight, emulator.bias, emulator.wave, emulator.info)
    with pytest.raises(SpectraError, match="training domain of this emulator is unknown"):
        suggest_labels(bare, 3)
    with pytest.raises(SpectraError, match="no error model"):
        most_useful(bare, np.array([[5000, 3, 0.0]]), 1)


def test_an_emulator_without_a_domain_can_be_judged(emulator, grid):
    bare = Emulator(emulator.features, emulator.network, emulator.weight, emulator.bias, emulator.wave, replace(emulator.info, provenance={}))
    result = validate(bare, grid, progress=False)
    assert len(result.labels) == 30 and result.recovery.converged.mean() > 0.9
