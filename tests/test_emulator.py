"""What an emulator must survive: odd labels, broken files, a full disk, Ctrl-C."""

import errno
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table
from safetensors.torch import load_file, save_file

import spectra_nn.emulator as module
from spectra_nn.core import SpectraError, asset
from spectra_nn.data_prep import SpectralGrid
from spectra_nn.emulator import DomainWarning, Emulator, Recipe, calibrate, distil, recipe_named, train_emulator
from spectra_nn.networks import leave_one_out_loss
from spectra_nn.training import TrainConfig

QUICK = Recipe(n_basis=40, n_warp=4, train=TrainConfig(steps=10, batch_size=200, learning_rate=0.08, check_every=5))


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> SpectralGrid:
    folder = tmp_path_factory.mktemp("specs")
    with tarfile.open(asset("hr10_specs.tar.xz")) as tar:
        tar.extractall(folder, filter="data")
    return SpectralGrid.prepare(folder / "hr10_specs", windows=[(5330, 5340)], step=0.02, progress=False)


@pytest.fixture(scope="module")
def emulator(grid) -> Emulator:
    return train_emulator(grid, QUICK, progress=False)[0]


def middle(emulator: Emulator) -> dict:
    return dict(zip(emulator.label_names, emulator.label_bounds.mean(0)))


@pytest.mark.parametrize("name", ["kernel", "dense", "payne", "kovalev", "one_payne"])
def test_every_recipe_trains_and_its_derivatives_are_exact(grid, name):
    recipe = QUICK if name == "kernel" else replace(recipe_named(name), widths=(32,) * len(recipe_named(name).widths),
                                                    train=TrainConfig(steps=60, batch_size=64, learning_rate=5e-3))
    made, history = train_emulator(grid, recipe, progress=False)
    assert history.stopped == "finished" and made.info.metrics["mse"] < np.var(grid.flux)
    for i, (label, value) in enumerate(middle(made).items()):
        step = 1.0 if label == "teff" else 2e-3
        up, down = (made.predict(middle(made) | {label: value + sign * step}, outside="ignore")[0].astype(float) for sign in (1, -1))
        np.testing.assert_allclose(made.jacobian(middle(made))[0, i], (up - down) / (2 * step), atol=2e-6 if label == "teff" else 3e-4)


def test_labels_in_any_form_are_the_same(emulator):
    star = middle(emulator)
    expected = emulator.predict(list(star.values()))
    shuffled = dict(reversed(star.items())) | {"unknown": 3.0}
    for labels in (star, shuffled, Table([star]), Table([star]).as_array(), {k: [v] for k, v in star.items()}, np.array(list(star.values()), dtype=">f8")):
        np.testing.assert_array_equal(emulator.predict(labels), expected)
    assert emulator.predict({k: np.full(3, v) for k, v in star.items()} | {"teff": [4500, 5000, 5500]}).shape == (3, len(emulator.wave))
    assert emulator.predict(np.empty((0, len(star)))).shape == (0, len(emulator.wave))


def test_one_or_many_and_some_pixels(emulator, grid):
    all_at_once = emulator.predict(grid.labels[:30], outside="ignore", chunk=7)
    np.testing.assert_allclose(all_at_once[11], emulator.predict(grid.labels[11], outside="ignore")[0], atol=1e-6)
    np.testing.assert_allclose(emulator.predict(grid.labels[:30], outside="ignore", pixels=slice(100, 200)), all_at_once[:, 100:200], atol=1e-6)


def test_labels_outside_or_not_finite_never_crash(emulator):
    star = middle(emulator)
    with pytest.warns(DomainWarning, match="teff"):
        assert np.isfinite(emulator.predict(star | {"teff": 12000})).all()
    check = emulator.domain(star | {"teff": [5000, 1e9, np.nan, -5]})
    assert list(check.inside) == [True, False, False, False] and check.culprit[1] == "teff"
    assert np.isnan(emulator.predict(star | {"logg": [3.0, np.nan]}, outside="nan")[1]).all()
    assert np.isfinite(emulator.error(star | {"teff": 12000})).all()


def test_a_constant_label_is_harmless(grid):
    labels = grid.labels.copy()
    labels[:, 3] = 1.0
    made, _ = train_emulator(replace(grid, labels=labels), QUICK, progress=False)
    star = middle(made)
    assert np.isfinite(made.predict(star)).all() and np.isfinite(made.jacobian(star)).all() and made.domain(star).inside.all()
    assert not made.domain(star | {"vmic": 1.5}).inside.any()


def test_ctrl_c_keeps_the_best_so_far(grid, monkeypatch):
    calls = []

    def interrupted(network, batch):
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return leave_one_out_loss(network, batch)

    monkeypatch.setattr(module, "leave_one_out_loss", interrupted)
    made, history = train_emulator(grid, replace(QUICK, train=replace(QUICK.train, steps=500, check_every=5)), progress=False)
    assert history.stopped == "interrupted" and np.isfinite(made.predict(middle(made))).all()


def test_a_loss_that_is_not_a_number_stops(grid):
    flux = np.array(grid.flux)
    flux[5, 7] = np.nan
    with pytest.raises(SpectraError):
        train_emulator(replace(grid, flux=flux), QUICK, progress=False)


def test_too_few_spectra_are_refused_and_ten_are_enough(grid):
    with pytest.raises(SpectraError, match="9 spectra are too few"):
        train_emulator(grid[np.arange(9)], QUICK, progress=False)
    made, _ = train_emulator(grid[np.arange(10)], QUICK, progress=False)
    assert np.isfinite(made.error(grid.labels[:3])).all()


def test_a_full_disk_leaves_the_old_file(emulator, tmp_path, monkeypatch):
    path = tmp_path / "e.safetensors"
    emulator.save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(SpectraError, match="no space left"):
        emulator.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_save_and_load_are_exact(emulator, grid, tmp_path):
    emulator.save(tmp_path / "e.safetensors")
    again = Emulator.load(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(again.predict(grid.labels, outside="ignore"), emulator.predict(grid.labels, outside="ignore"))
    np.testing.assert_array_equal(again.error(grid.labels[:5]), emulator.error(grid.labels[:5]))
    np.testing.assert_array_equal(again.domain(grid.labels * 1.1).distance, emulator.domain(grid.labels * 1.1).distance)
    assert again.frame == "air" and again.label_units == emulator.label_units and repr(again) == repr(emulator)


@pytest.mark.parametrize("damage, message", [("cut", "is it complete"), ("flip", "emulator|complete|finite|header"), ("other", "not an emulator"), ("nan", "not finite in bias"),
                                             ("future", "upgrade"), ("shape", "does not match"), ("text", "complete"), ("missing", "no file")])
def test_broken_files_are_named(emulator, tmp_path, damage, message):
    path = tmp_path / "e.safetensors"
    emulator.save(path)
    data, arrays = path.read_bytes(), load_file(path)
    header = module._header(emulator)
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:100] + bytes([data[100] ^ 255]) + data[101:])
    elif damage == "text":
        path.write_text("teff,logg\n5000,4\n")
    elif damage == "missing":
        path.unlink()
    elif damage == "other":
        save_file(arrays, path)
    else:
        if damage == "nan":
            arrays["bias"][3] = torch.nan
        if damage == "future":
            header["version"] = 99
        if damage == "shape":
            arrays["network.centres"] = arrays["network.centres"][:, :4].contiguous()
        save_file(arrays, path, metadata={"spectra_nn": json.dumps(header)})
    with pytest.raises(SpectraError, match=message) as caught:
        Emulator.load(path)
    assert "e.safetensors" in str(caught.value)


@pytest.mark.parametrize("damage, message", [("cut", "e.npz"), ("objects", "e.npz"), ("foreign", "w_array_0"), ("layers", "5 weight arrays")])
def test_broken_npz_networks_are_named(tmp_path, damage, message):
    rng = np.random.default_rng(0)
    shapes = [(8, 3), (8, 8), (20, 8)] if damage != "layers" else [(8, 3)] + [(8, 8)] * 3 + [(20, 8)]
    arrays = dict(x_min=np.zeros(3), x_max=np.ones(3), wavelength=np.arange(5000.0, 5020.0), label_names=np.array(["teff", "logg", "feh"]))
    for i, shape in enumerate(shapes):
        arrays |= {f"w_array_{i}": rng.normal(size=shape), f"b_array_{i}": rng.normal(size=shape[0])}
    if damage == "objects":
        arrays["w_array_0"] = np.array([None, 1], dtype=object)
    np.savez(path := tmp_path / "e.npz", **({"a": np.zeros(3)} if damage == "foreign" else arrays))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(SpectraError, match=message):
        Emulator.load(path)


def test_a_pupil_can_be_exported_and_read_back(emulator, tmp_path):
    lesson = replace(recipe_named("payne"), widths=(16, 16), n_basis=20, train=TrainConfig(steps=50, learning_rate=1e-2))
    pupil = distil(emulator, lesson, n_spec=300, progress=False)
    pupil.to_npz(tmp_path / "pupil.npz", "payne")
    back = Emulator.load(tmp_path / "pupil.npz")
    np.testing.assert_allclose(back.predict(middle(emulator)), pupil.predict(middle(emulator)), atol=1e-5)
    assert pupil.info.provenance["training_set"] == emulator.info.provenance["training_set"]
    with pytest.raises(SpectraError, match="teach one with distil"):
        emulator.to_npz(tmp_path / "no.npz", "one_payne")


def test_built_in_emulators_say_what_they_are():
    for name, n_label in (("hr10_turbospectrum", 10), ("miles_stars", 3)):
        made = Emulator.load(asset(f"{name}.safetensors"))
        assert len(made.label_names) == n_label and made.info.provenance["origin"] in repr(made)
        assert np.isfinite(made.predict(middle(made), outside="ignore")).all() and (made.error(middle(made)) > 0).all()


def test_calibration_measures_the_error(emulator, grid):
    again = calibrate(emulator, grid[np.arange(100)])
    assert again.info.metrics["n_spec"] == 100 and again.error_model is not emulator.error_model


def test_validation_answers_under_emulator_too():
    assert module.validate is __import__("spectra_nn").validate
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_and_gpu_agree(emulator, grid):
    here = emulator.predict(grid.labels[:20], outside="ignore")
    there = Emulator.load(asset("hr10_turbospectrum.safetensors")).cuda()
    assert there.predict(grid.labels[:2], outside="ignore").shape[1] == len(there.wave)
    np.testing.assert_allclose(emulator.cuda().predict(grid.labels[:20], outside="ignore"), here, atol=1e-5)
    emulator.cpu()
