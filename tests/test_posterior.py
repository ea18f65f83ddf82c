"""Draws follow the posterior of the fit's own likelihood: Gaussian where it is, cut where bounds cut it."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fitting import STAR, AnalyticEmulator, observe

from spectra_nn.core import SpectraError
from spectra_nn.fitting import FitProblem, fit, fit_problem, prepare
from spectra_nn.posterior import Posterior, PosteriorFlag, sample_posterior
from spectra_nn.sampling import effective_size, hamiltonian_monte_carlo, split_r_hat

torch.set_num_threads(1)
FIT = dict(resolution=20_000, use_emulator_error=False, progress=False, velocity=(-100.0, 100.0))


@pytest.fixture(scope="module")
def emulator():
    return AnalyticEmulator()


@pytest.fixture(scope="module")
def result(emulator):
    return fit(emulator, observe(emulator, [STAR, [4800, 2.2, -1.0]], [10.0, -20.0], [60.0, 60.0]), **FIT)


def errors(covariance):
    return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


def test_problem_is_that_of_the_fit(result):
    problem, rows = fit_problem(result), torch.arange(2)
    best = torch.tensor(np.stack([result.table[name].value for name in problem.names], 1))
    found = problem.evaluate(best, rows)
    np.testing.assert_allclose(found.chi2, result.table["chi2"], atol=0.05)
    np.testing.assert_allclose(problem.covariance(best, rows), result.covariance, rtol=0.05, atol=0.02 * np.abs(result.covariance).min())
    np.testing.assert_allclose(problem.chi2(best, rows), found.chi2, rtol=1e-6)
    assert np.array_equal(problem.good, result.good) and problem.names == result.parameter_names
    one = fit_problem(result, [1]).evaluate(best[[1, 1]], torch.zeros(2, dtype=torch.long))
    np.testing.assert_allclose(one.chi2, found.chi2[[1, 1]], rtol=1e-6)


def test_gradient_is_that_of_chi2(result):
    problem = fit_problem(result, [0])
    best = torch.tensor(np.stack([result.table[name].value[:1] for name in problem.names], 1))
    step = torch.diag(torch.tensor(errors(result.covariance)[0]))
    at, rows = best + step.sum(0) * torch.tensor([0.5, -0.4, 0.3, 0.6]), torch.zeros(4, dtype=torch.long)
    slope = (problem.chi2(at + 0.2 * step, rows) - problem.chi2(at - 0.2 * step, rows)) / 0.8
    gradient = problem.evaluate(at, rows[:1]).gradient[0] * step.diag()
    np.testing.assert_allclose(slope, gradient, atol=0.03 * float(gradient.abs().max()))


def test_prior_is_part_of_the_problem(emulator, result):
    stars = result.spectra[:1]
    at = torch.tensor([[*STAR, 10.0]], dtype=torch.float64)
    plain, prior = (prepare(emulator, stars, at, resolution=20_000, use_emulator_error=False, priors=p) for p in (None, {"feh": (-0.5, 0.05)}))
    rows = torch.zeros(1, dtype=torch.long)
    np.testing.assert_allclose(prior.chi2(at, rows) - plain.chi2(at, rows), (0.1 / 0.05) ** 2, rtol=1e-3)
    np.testing.assert_allclose((prior.evaluate(at, rows).hessian - plain.evaluate(at, rows).hessian)[0, 2, 2], 1 / 0.05**2, rtol=1e-2)


def test_draws_agree_with_a_good_fit(result):
    found = sample_posterior(result, n_draws=1600, progress=False)
    assert (found.r_hat < 1.015).all() and (found.n_effective > 600).all() and (found.acceptance > 0.6).all()
    np.testing.assert_allclose(found.draws.std(1) / errors(result.covariance), 1, atol=0.08)
    np.testing.assert_allclose(np.abs(found.draws.mean(1) - found.best) / errors(result.covariance), 0, atol=0.15)
    for draws, covariance, error in zip(found.draws, result.covariance, errors(result.covariance)):
        np.testing.assert_allclose(np.corrcoef(draws.T), covariance / np.outer(error, error), atol=0.1)
    median = found.summary()["teff"].value
    assert (abs(median - found.best[:, 0]) < 0.15 * errors(result.covariance)[:, 0]).all()


def test_a_bound_cuts_the_distribution(emulator):
    edge = fit(emulator, observe(emulator, [5500, 4.97, -0.4], [10.0], [25.0], seed=2), **FIT)
    found = sample_posterior(edge, n_draws=1000, progress=False)
    assert found["logg"].max() <= 5 and found["logg"].max() > 4.99 and found.flags[0] & PosteriorFlag.AT_BOUND
    error = float(edge.table["logg_err"].value[0])
    assert 0.4 * error < found["logg"].std() < 0.9 * error  # half a Gaussian has 0.6 of its width


def test_an_unconstrained_label_keeps_its_range(emulator):
    faint = fit(emulator, observe(emulator, STAR, [10.0], [0.6]), free=["logg"], fixed=dict(teff=5500.0, feh=-0.4), **(FIT | dict(velocity=10.0)))
    draws = sample_posterior(faint, n_draws=1000, progress=False)["logg"][0]
    low, high = np.quantile(draws, [0.01, 0.99])
    assert low < 1.5 and high > 4.5 and draws.min() >= 1 and draws.max() <= 5


def test_a_failed_fit_is_a_row_of_nan(emulator):
    stars = observe(emulator, [STAR] * 3, [10.0] * 3, [60.0] * 3)
    stars = replace(stars, ivar=stars.ivar * np.array([[1.0], [0.0], [1.0]]), mask=None)
    broken = fit(emulator, stars, **FIT)
    found = sample_posterior(broken, n_draws=80, progress=False)
    assert found.flags[1] == PosteriorFlag.NO_FIT and np.isnan(found.draws[1]).all() and np.isfinite(found.draws[[0, 2]]).all()
    alone = sample_posterior(broken, [2], n_draws=80, progress=False)
    np.testing.assert_allclose(alone.draws[0, :5], found.draws[2, :5], rtol=1e-3)
    nothing = sample_posterior(broken, [1], progress=False)
    assert np.isnan(nothing.draws).all() and len(nothing.summary()) == 1 and "NO_FIT: 1" in repr(nothing)


def test_correlated_errors_of_the_emulator_widen_draws(result, monkeypatch):
    root = torch.linalg.cholesky(torch.linalg.inv(torch.tensor(result.covariance[:1])))  # pushes that are as large as those of the noise
    monkeypatch.setattr(FitProblem, "push", lambda self, at, rows: root)
    found = sample_posterior(result, [0], n_draws=1000, progress=False)
    np.testing.assert_allclose(found.draws.std(1)[0] / errors(result.covariance)[0], 2**0.5, rtol=0.1)


@pytest.mark.parametrize("name", ["p.npz", "p.fits"])
def test_files_round_trip(result, tmp_path, name):
    found = sample_posterior(result, n_draws=40, progress=False)
    found.write(tmp_path / name)
    again = Posterior.read(tmp_path / name)
    assert (again.names, again.units, again.ids.tolist()) == (found.names, found.units, found.ids.tolist())
    for field in ("draws", "log_density", "best", "covariance", "r_hat", "flags"):
        np.testing.assert_array_equal(getattr(again, field), getattr(found, field))
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(SpectraError, match=name):
        Posterior.read(tmp_path / name)


def test_wrong_requests(result):
    for options, message in ((dict(sampler="emce"), "Did you mean 'emcee'"), (dict(rows=[7]), "numbers of the 2"), (dict(rows=np.ones(5, bool)), "numbers of the 2"), (dict(n_draws=2), "n_draws")):
        with pytest.raises(SpectraError, match=message):
            sample_posterior(result, progress=False, **options)


@pytest.mark.parametrize("name", ["emcee", "nautilus"])
def test_a_missing_sampler_names_the_extra(result, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SpectraError, match=r"pip install 'spectra_nn\[sample\]'"):
        sample_posterior(result, sampler=name, progress=False)


def test_emcee_agrees(emulator):
    pytest.importorskip("emcee")
    star = fit(emulator, observe(emulator, STAR, [10.0], [40.0]), free=["teff", "feh"], fixed=dict(logg=3.2), **(FIT | dict(velocity=10.0)))
    ours = sample_posterior(star, n_draws=800, progress=False)
    theirs = sample_posterior(star, sampler="emcee", n_draws=128, n_warm=100, progress=False)
    assert (np.abs(theirs.draws.mean(1) - ours.draws.mean(1)) < 0.4 * errors(star.covariance)).all()
    np.testing.assert_allclose(theirs.draws.std(1) / ours.draws.std(1), 1, atol=0.25)


def test_chains_within_walls_follow_a_truncated_gaussian():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    covariance = root @ root.T + 0.1 * np.eye(5)
    precision = torch.tensor(np.linalg.inv(covariance))
    lower, upper = torch.full((1, 5), -torch.inf).double(), torch.full((1, 5), torch.inf).double()
    lower[0, 0], upper[0, 3] = 0.2, 0.5
    target = lambda x, group: (-0.5 * ((x @ precision) * x).sum(1), -x @ precision)  # noqa: E731
    chains = hamiltonian_monte_carlo(target, torch.full((1, 64, 5), 0.3), torch.tensor(covariance)[None], lower, upper, n_draw=250)
    draws, truth = chains.draws[0].numpy(), rng.multivariate_normal(np.zeros(5), covariance, 2_000_000)
    truth = truth[(truth[:, 0] > 0.2) & (truth[:, 3] < 0.5)]
    flat = draws.reshape(-1, 5)
    np.testing.assert_allclose(flat.mean(0) / truth.std(0), truth.mean(0) / truth.std(0), atol=0.05)
    np.testing.assert_allclose(flat.std(0) / truth.std(0), 1, atol=0.04)
    assert flat[:, 0].min() >= 0.2 and flat[:, 3].max() <= 0.5 and (effective_size(np.moveaxis(draws, -1, 0)) > 4000).all()


def test_chains_that_differ_are_noticed():
    chains = np.random.default_rng(1).standard_normal((4, 500))
    assert split_r_hat(chains) < 1.01 < split_r_hat(chains + np.array([[0.0], [0.0], [0.0], [0.8]]))
    assert split_r_hat(chains + np.linspace(0, 1.5, 500)) > 1.01  # all of them on their way
    assert split_r_hat(chains * np.array([[1.0], [1.0], [1.0], [2.5]])) > 1.01
