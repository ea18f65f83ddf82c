"""The demonstration's pieces: mocks made by another route, hidden light that stays hidden, chapters that say what the run found."""

import re
import sys

import numpy as np
import pytest
import torch
from astropy.table import QTable

from spectra_nn.core import SPEED_OF_LIGHT, Spectra, asset
from spectra_nn.data_prep import SpectralGrid
from spectra_nn.demo import mock_observations
from spectra_nn.demo_galaxies import (
    KINDS,
    found_among,
    hidden_chi2,
    hide_red,
    mock_survey,
    outlier_chapter,
    ready,
    real_chapter,
    real_galaxies,
    survey_chapter,
    typical_forming,
    ultraviolet,
)
from spectra_nn.galaxy_autoencoder import encode, load_galaxy_model
from spectra_nn.instruments import SDSS
from spectra_nn.report import Run
from spectra_nn.restframe_basis import redshifted


@pytest.fixture(scope="module")
def model():
    return load_galaxy_model(asset("sdss_mock.safetensors"))[0]


@pytest.fixture(scope="module")
def survey():
    whole = mock_survey()
    return whole.take(np.arange(0, len(whole.spectra), 8))


@pytest.fixture(scope="module")
def data(survey):
    return redshifted(survey.spectra, survey.truth["z"], SDSS)


def test_mock_stars_are_moved_blurred_and_noisy():
    wave = np.arange(5350, 5390, 0.02)
    flux = 1 - 0.5 * np.exp(-0.5 * ((wave - 5370) / 0.02) ** 2)  # a line much narrower than the spectrograph
    grid = SpectralGrid(wave, np.tile(flux, (3, 1)).astype(np.float32), np.array([[1.0], [2], [3]]), ("x",), file_names=("a", "b", "c"), frame="air")
    quiet, loud = mock_observations(grid, 1e5), mock_observations(grid, 50)
    assert list(quiet.spectra.ids) == ["a", "b", "c"] and (quiet.labels == grid.labels).all() and (quiet.velocity == loud.velocity).all()
    seen = (loud.spectra.ivar > 0).all(0)  # each star loses the end that moves out of the grid
    loud, quiet = (mock._replace(spectra=Spectra(mock.spectra.wave[seen], mock.spectra.flux[:, seen], mock.spectra.ivar[:, seen], frame="air", ids=mock.spectra.ids)) for mock in (loud, quiet))
    assert seen.mean() > 0.8
    np.testing.assert_allclose(np.sqrt(loud.spectra.ivar), 50, rtol=1e-3)
    noise = (loud.spectra.flux - quiet.spectra.flux) * np.sqrt(loud.spectra.ivar)
    assert abs(noise.std() - 1) < 0.1 and np.corrcoef(noise)[0, 1] < 0.3
    for row in range(3):
        middle = 5370 * (1 + quiet.velocity[row] / SPEED_OF_LIGHT)
        near = np.abs(quiet.spectra.wave - middle) < 0.6
        wave, depth = quiet.spectra.wave[near], 1 - quiet.spectra.flux[row, near]
        centre = (depth * wave).sum() / depth.sum()
        width = np.sqrt((depth * (wave - centre) ** 2).sum() / depth.sum())
        assert abs((centre / 5370 - 1) * SPEED_OF_LIGHT - quiet.velocity[row]) < 1
        np.testing.assert_allclose(2.3548 * width, 5370 / 19_800, rtol=0.12)
        np.testing.assert_allclose(depth.sum() * 0.1, 0.5 * 0.02 * np.sqrt(2 * np.pi), rtol=0.02)


def test_the_survey_has_truth_and_no_outliers(survey):
    assert len(survey.spectra) == len(survey.truth["z"]) > 25 and not survey.truth["outlier"].any()
    assert np.abs(survey.truth["z"] - survey.truth["z_true"]).max() < 1e-3
    assert all(values.shape == (len(survey.spectra),) for values in survey.truth.values())


def test_hidden_light_stays_hidden(model, data):
    blue = hide_red(data, 5600.0)
    rest = data.wave / (1 + data.z[:, None].numpy())
    assert not blue.ivar[torch.as_tensor(rest > 5600.0)].any() and torch.equal(blue.ivar[torch.as_tensor(rest <= 5600.0)], data.ivar[torch.as_tensor(rest <= 5600.0)])
    spoiled = data.flux.clone()
    spoiled[torch.as_tensor(rest > 5600.0)] = 1e6
    half = encode(model, blue)
    again = encode(model, hide_red(type(data)(data.wave, spoiled, data.ivar, data.z, data.scale, data.resolution, data.ids)))
    assert torch.equal(half.latents, again.latents), "nothing of the red reaches the latents"
    predicted, seen = hidden_chi2(model, data, half), hidden_chi2(model, data, encode(model, data))
    there = np.isfinite(predicted)
    assert np.median(predicted[there]) < 1.6 and np.median(seen[there]) < np.median(predicted[there])
    assert predicted[there].mean() < 0.3 * hidden_chi2(model, data, half._replace(amplitude=half.amplitude * 1.2))[there].mean(), "20 % too bright would show"


def test_the_galaxy_shown_is_typical(survey):
    hidden = np.linspace(3, 1, len(survey.spectra))
    row = typical_forming(survey, hidden)
    forming = (survey.truth["z"] < 0.3) & (survey.truth["ew_halpha"] > 20) & (survey.truth["snr"] > 8)
    assert forming[row] and abs((forming & (hidden < hidden[row])).sum() - forming.sum() / 2) <= 1


def test_real_galaxies_are_ready(model):
    for galaxy, sharpest in zip(real_galaxies(), (2700, 2700, 9000)):
        data = ready(galaxy)
        assert len(data) == 1 and data.resolution.shape == data.wave.shape and 1000 < data.resolution.min() and data.resolution.max() < sharpest
        good = data.ivar[0] > 0
        assert float((data.ivar[0] ** -0.5 / data.flux[0].abs())[good].min()) > 0.0199, "errors have a floor"
        assert float(ultraviolet(model, encode(model, data))[0]) > 0


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg")
def test_chapters_say_what_the_run_found(tmp_path, model):
    import matplotlib

    matplotlib.use("agg")
    run = Run(tmp_path, progress=False, quick=True)
    for chapter, n_figure in ((survey_chapter(run, model), 4), (real_chapter(run, model), 3)):
        said = chapter.short + chapter.text + "".join(cell for table in chapter.tables for row in table.rows for cell in row)
        assert not re.search(r"\bnan\b|[{}]", said) and len(chapter.figures) == n_figure
        assert all(path.read_bytes().startswith(b"\x89PNG") for path, _ in chapter.figures)
    for row, z in zip(chapter.tables[0].rows[:2], (0.0495, 0.0502)):
        assert abs(float(row[3].split()[0]) - z) < 1e-3


def test_a_ranking_is_rated():
    strange = np.arange(100) % 20 == 0
    assert found_among(strange.astype(float), strange) == (1.0, 5, 5)
    assert found_among(-strange.astype(float), strange)[:2] == (0.0, 0)
    score = np.random.default_rng(0).random(100)
    pairs = [(score[a] > score[b]) for a in np.flatnonzero(strange) for b in np.flatnonzero(~strange)]
    assert found_among(score, strange)[0] == pytest.approx(np.mean(pairs))
    assert found_among(np.where(strange, np.nan, 0.0), strange)[0] == 0, "what has no score is not strange"


def test_strange_galaxies_are_told_with_what_they_are(model, tmp_path):
    pytest.importorskip("zuko")
    chapter = outlier_chapter(Run(tmp_path, progress=False, quick=True), model)
    whole, ordinary = mock_survey(strange=True), mock_survey()
    assert len(whole.spectra) == 280 and len(ordinary.spectra) == 269 and (whole.truth["outlier"] > 0).sum() == 11
    kinds = dict(zip(whole.spectra.ids, whole.truth["outlier"].astype(int)))
    scores = [float(row[3]) for row in chapter.tables[0].rows]
    assert scores == sorted(scores, reverse=True) and all(row[-1] == KINDS[kinds[row[1]]] for row in chapter.tables[0].rows)
    assert sum(row[-1] != KINDS[0] for row in chapter.tables[0].rows) >= 5, "11 of these 45 are strange"
    assert {path.name for path, _ in chapter.figures} == {"outlier_scores.png", "outlier_gallery.png"} and (tmp_path / "outliers_mock.fits").exists()
    table = QTable.read(tmp_path / "outliers_mock.fits")
    assert len(table) == 45 and {"score", "reason", "log_prob_percentile", "chi2_percentile", "latent_1", "latent_covariance"} <= set(table.colnames)


def test_without_the_package_for_flows_the_chapter_says_so(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    chapter = outlier_chapter(Run(tmp_path, progress=False, quick=True), model)
    assert "zuko" in chapter.short and "spectra_nn[flow]" in chapter.short and not chapter.figures
