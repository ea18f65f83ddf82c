"""Lines, breaks and neighbours of galaxies, on the built-in model and on a basis whose spectra are known."""

import numpy as np
import pytest
import torch

from spectra_nn.core import Spectra, SpectraError, asset, log_grid
from spectra_nn.galaxy_autoencoder import Encoding, GalaxyAutoencoder, encode, load_galaxy_model, restframe
from spectra_nn.galaxy_properties import LINES, dn4000, importance, importance_map, interpolate, lines_named, measure_lines, nearest_neighbours
from spectra_nn.instruments import SDSS
from spectra_nn.restframe_basis import Population, RestBasis, Solution, redshifted

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return load_galaxy_model(asset("sdss_mock.safetensors"))[0]


@pytest.fixture(scope="module")
def galaxies():
    with np.load(asset("mock_galaxies.npz")) as f:
        rows = np.flatnonzero(f["truth_outlier"] == 0)[:24]
        return redshifted(Spectra(f["wave"], f["flux"][rows], f["ivar"][rows], ids=f["ids"][rows], frame="vacuum"), f["z"][rows], SDSS)


@pytest.fixture(scope="module")
def known():
    """A linear model of two spectra: a flat one, and one with Hα of flux 10 and a step of a factor 2 at 3975 Å."""
    wave = log_grid(3000, 8000, 60.0)
    line = 10 * np.exp(-0.5 * ((wave - 6564.61) / 2) ** 2) / np.sqrt(2 * np.pi) / 2
    basis = RestBasis(wave, torch.as_tensor(np.stack([np.ones(len(wave)), line + (wave > 3975)])))
    eye = torch.eye(2, dtype=torch.float64)
    return GalaxyAutoencoder(basis, Population(torch.tensor([1.0, 0.0], dtype=torch.float64), eye.flip(0), eye[0]), n_latent=1, widths=())


def encoding_of(latents, variance=0.01, amplitude=2.0):
    latents = torch.as_tensor(latents, dtype=torch.float64).reshape(-1, 1)
    n = len(latents)
    return Encoding(latents, torch.full((n, 1, 1), variance, dtype=torch.float64), torch.full((n,), amplitude), torch.zeros(n), torch.full((n,), 100), torch.zeros(n, dtype=torch.long), *torch.zeros(2, n, 0))


def test_a_known_line_has_its_flux_width_and_errors(known):
    # coefficients (1, s): flux 10 s, continuum 1 + s, both times the amplitude 2
    s = np.array([0.5, 1.0, 3.0])
    table = measure_lines(known, encoding_of(s), ["halpha", "hbeta"], ids=["a", "b", "c"])
    assert np.allclose(table["halpha_flux"].value, 20 * s, rtol=2e-3)
    assert np.allclose(table["halpha_ew"].value, 10 * s / (1 + s), rtol=2e-3)
    assert np.allclose(table["halpha_flux_err"].value, 20 * 0.1, rtol=2e-3)
    assert np.allclose(table["halpha_ew_err"].value, 0.1 * 10 / (1 + s) ** 2, rtol=2e-3)
    assert np.allclose(table["hbeta_ew"].value, 0, atol=1e-4) and list(table["id"]) == ["a", "b", "c"]
    at_telescope = measure_lines(known, encoding_of(s), "halpha", z=[0.0, 0.1, 0.2])
    assert np.allclose(at_telescope["halpha_flux"] / table["halpha_flux"], [1, 1.1, 1.2])
    assert np.allclose(at_telescope["halpha_ew"], table["halpha_ew"])


def test_a_linear_solution_gives_the_same(known):
    s = torch.tensor([0.5, 3.0], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([0.0, 0.01], dtype=torch.float64)).expand(2, -1, -1)
    solution = Solution(torch.stack([torch.ones(2, dtype=torch.float64), s], 1), covariance, torch.full((2,), 2.0))
    one, other = measure_lines(known, solution, "halpha"), measure_lines(known, encoding_of(s), "halpha")
    assert all(np.allclose(one[name].value, other[name].value, rtol=1e-6) for name in one.colnames)


def test_the_break_of_a_step(known):
    value, error = dn4000(known, encoding_of([0.0, 1.0]))
    slope = np.mean(np.linspace(4001.1, 4101.2, 1000) ** 2) / np.mean(np.linspace(3851.1, 3951.1, 1000) ** 2)
    assert np.allclose(value, [slope, 2 * slope], rtol=2e-3) and np.allclose(error, 0.1 * slope, rtol=2e-2)


def test_where_the_model_does_not_reach_there_is_no_number(known):
    table = measure_lines(known, encoding_of([1.0]), LINES)
    assert np.isfinite(table["oii_3728_ew"]).all() and len(table.colnames) == 4 * len(LINES)
    short = GalaxyAutoencoder(RestBasis(log_grid(5000, 6000, 60.0), torch.ones(2, len(log_grid(5000, 6000, 60.0)))), known.population, 1, ())
    assert np.isnan(measure_lines(short, encoding_of([1.0]), "halpha")["halpha_ew"]).all()
    assert all(np.isnan(part).all() for part in dn4000(short, encoding_of([1.0])))


def test_faint_and_negative_galaxies_are_no_catastrophe(known):
    table = measure_lines(known, encoding_of([-1.0, -2.0, 1.0]), "halpha")  # continuum 0, −1, 2
    assert np.isnan(table["halpha_ew"][:2]).all() and np.isfinite(table["halpha_ew"][2])


def test_information_is_that_of_the_encoding(model, galaxies):
    encoding = encode(model, galaxies)
    information = importance(model, galaxies, encoding)
    hessian = torch.linalg.inv(encoding.covariance) - torch.eye(model.n_latent)
    share = information.sum(2) * torch.linalg.inv(hessian).diagonal(dim1=1, dim2=2)
    assert abs(share.median() - 1) < 0.03 and (share < 1.15).all()  # the rest is what is known of kinematics beforehand
    trusting = load_galaxy_model(asset("sdss_mock.safetensors"))[0]
    trusting.kinematics = (0.0, 0.0)
    encoding = encode(trusting, galaxies)
    hessian = torch.linalg.inv(encoding.covariance) - torch.eye(model.n_latent)
    assert torch.allclose(importance(trusting, galaxies, encoding).sum(2).double(), 1 / torch.linalg.inv(hessian).diagonal(dim1=1, dim2=2), rtol=0.03)
    assert not information[(galaxies.ivar == 0)[:, None].expand_as(information)].any()
    shares = importance_map(galaxies, information, np.array([2000.0, 5000.0, 10_000.0]))
    assert np.allclose(shares.sum(1), 1, atol=1e-5)


def test_a_blind_spectrum_informs_of_nothing_and_disturbs_nobody(model, galaxies):
    blind = galaxies[:3]
    blind.ivar[1] = 0
    information = importance(model, blind, encode(model, blind))
    assert not information[1].any() and torch.isfinite(information).all()
    assert torch.allclose(information[2], importance(model, galaxies[2:3], encode(model, galaxies[2:3]))[0], rtol=1e-3)


def test_a_walk_between_galaxies_ends_at_them(model, galaxies):
    encoding = encode(model, galaxies[:2])
    wave, flux, latents = interpolate(model, *encoding.latents, 7)
    ends = restframe(model, encoding)[0] / encoding.amplitude[:, None]
    assert flux.shape == (7, len(wave)) and torch.allclose(flux[[0, -1]].double(), ends.double(), atol=1e-4)
    assert torch.equal(latents[[0, -1]], encoding.latents)


def test_neighbours_know_their_errors():
    latents = torch.tensor([[1.0, 0.0], [0.0, 1.5], [9.0, 9.0]])
    wide = torch.diag(torch.tensor([0.01, 4.0])).expand(3, -1, -1)
    assert nearest_neighbours(latents, torch.zeros(2), 1)[0].tolist() == [[0]]
    near, distance = nearest_neighbours(latents, torch.zeros(2), 2, covariance=wide)
    assert near.tolist() == [[1, 2]] or near.tolist() == [[1, 0]]
    assert abs(float(distance[0, 0]) - 0.75) < 1e-9
    broken = latents.clone()
    broken[0] = torch.nan
    assert nearest_neighbours(broken, torch.zeros(2), 1)[0].tolist() == [[1]]


def test_wrong_input_is_named(model):
    with pytest.raises(SpectraError, match="Did you mean 'oiii_5008'"):
        lines_named("oiii_5007")
    with pytest.raises(SpectraError, match="must agree in n_latent"):
        nearest_neighbours(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(SpectraError, match="edges of bins"):
        importance_map(None, torch.zeros(1), np.array([2.0, 1.0]))
