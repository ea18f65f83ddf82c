"""Several spectra of a star fitted as one: the same as one long spectrum, and nothing lost where an arm is missing or bad."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fitting import AnalyticEmulator
from test_fitting import observe as observe_at_20000

from spectra_nn.core import Spectra, SpectraError
from spectra_nn.fitting import FitFlag, fit
from spectra_nn.joint import JointResult, fit_joint, match_rows
from spectra_nn.observe import Continuum

torch.set_num_threads(1)
BLUE, RED = np.arange(5338.0, 5362.0, 0.06), np.arange(5362.06, 5392.0, 0.06)
OPTIONS = dict(resolution=20_000.0, use_emulator_error=False, progress=False)
N = 12


@pytest.fixture(scope="module")
def emulator():
    return AnalyticEmulator()


@pytest.fixture(scope="module")
def stars():
    rng = np.random.default_rng(1)
    return rng.uniform([4500, 2, -1.2], [6500, 4.5, 0.1], (N, 3)), rng.uniform(-200, 200, N), [f"s{k}" for k in range(N)]


def observe(emulator, labels, velocity, snr, wave, ids, seed):
    return replace(observe_at_20000(emulator, labels, velocity, np.full(len(labels), snr), seed=seed, wave=wave), ids=ids)


def numbers(result, names, tail=""):
    return np.stack([result.table[name + tail].value for name in names], 1)


@pytest.fixture(scope="module")
def arms(emulator, stars):
    truth, velocity, ids = stars
    return [observe(emulator, truth, velocity, 60.0, wave, ids, seed) for seed, wave in enumerate((BLUE, RED))]


@pytest.fixture(scope="module")
def joint(emulator, arms):
    return fit_joint(emulator, arms, continuum=1, **OPTIONS)


def test_two_arms_are_one_long_spectrum(emulator, arms, joint):
    """Parameters, errors, χ² and degrees of freedom of the concatenated spectrum, whose continuum breaks between the arms."""
    long = Spectra(np.r_[BLUE, RED], np.c_[arms[0].flux, arms[1].flux], np.c_[arms[0].ivar, arms[1].ivar], frame="air", ids=arms[0].ids)
    whole = fit(emulator, long, continuum=Continuum(1, breaks=(5362.03,)), **OPTIONS)
    names, errors = whole.parameter_names, numbers(whole, whole.parameter_names, "_err")
    assert joint.parameter_names == names
    assert (np.abs(numbers(joint, names) - numbers(whole, names)) < 0.05 * errors).all()
    np.testing.assert_allclose(numbers(joint, names, "_err"), errors, rtol=1e-2)
    np.testing.assert_allclose(joint.table["chi2"], whole.table["chi2"], atol=0.1)
    assert (joint.table["dof"] == whole.table["dof"]).all() and (joint.flags == whole.flags).all()


def test_order_of_rows_and_arms_does_not_matter(emulator, arms, joint):
    order = np.random.default_rng(0).permutation(N)
    other = fit_joint(emulator, [arms[1], arms[0][order]], continuum=1, **OPTIONS)
    names = joint.parameter_names
    assert other.table["id"].tolist() == joint.table["id"].tolist()
    assert (np.abs(numbers(other, names) - numbers(joint, names)) < 0.05 * numbers(joint, names, "_err")).all()


def test_an_arm_may_have_an_emulator_of_its_own(emulator, arms, joint):
    """The same network under two names; a network with other labels is refused."""
    twin = AnalyticEmulator()
    names = joint.parameter_names
    assert (np.abs(numbers(fit_joint([emulator, twin], arms, continuum=[1, 1], **OPTIONS), names) - numbers(joint, names)) < 0.05 * numbers(joint, names, "_err")).all()
    twin.label_names = ("teff", "logg", "vmic")
    with pytest.raises(SpectraError, match="the same labels"):
        fit_joint([emulator, twin], arms, **OPTIONS)


def test_robust_arms(emulator, arms):
    """Lines that the model gets wrong: robust fits lose less by them, jointly as alone, and the χ² stays that of the errors given."""
    spoiled = []
    for arm in arms:
        wrong = np.arange(arm.flux.shape[1]) % 40 < 2
        spoiled.append(replace(arm, flux=np.where(wrong, arm.flux - 0.08, arm.flux), mask=None))
    trusting, wary = (fit_joint(emulator, spoiled, continuum=1, robust=robust, **OPTIONS) for robust in (False, True))
    clean = fit_joint(emulator, arms, continuum=1, **OPTIONS)
    names = clean.parameter_names
    off = [np.abs(numbers(found, names) - numbers(clean, names)).mean(0) for found in (trusting, wary)]
    assert (off[1] < 0.7 * off[0]).all() and (wary.table["chi2"] > trusting.table["chi2"]).all() and (wary.table["chi2"] > 1.5 * clean.table["chi2"]).all()
    np.testing.assert_allclose(wary.table["chi2"], sum(arm.table["chi2"] for arm in wary.arms), rtol=1e-6)
    alone, single = fit(emulator, spoiled[0], continuum=1, robust=True, **OPTIONS), fit_joint(emulator, spoiled[:1], continuum=1, robust=True, **OPTIONS)
    assert (np.abs(numbers(single, alone.parameter_names) - numbers(alone, alone.parameter_names)) < 0.1 * numbers(alone, alone.parameter_names, "_err")).all()
    np.testing.assert_allclose(single.table["chi2"], alone.table["chi2"], rtol=1e-3)


def test_missing_and_bad_arms(emulator, arms, joint):
    flux, ivar = arms[0].flux.copy(), arms[1].ivar.copy()
    flux[2], ivar[5] = np.nan, 0
    spoiled = [replace(arms[0], flux=flux, mask=None)[[k for k in range(N) if k != 7]], replace(arms[1], ivar=ivar, mask=None)]
    result = fit_joint(emulator, spoiled, continuum=1, **OPTIONS)
    rows = [result.table["id"].tolist().index(name) for name in arms[0].ids]
    table, names = result.table[rows], joint.parameter_names
    assert table["n_arms"].tolist() == [1 if k in (2, 5, 7) else 2 for k in range(N)]
    assert table["bad_arms"].tolist() == ["0" if k == 2 else "1" if k == 5 else "" for k in range(N)] and (table["flags"] == 0).all()
    alone = [fit(emulator, arm, continuum=1, **OPTIONS) for arm in arms]
    for k, arm in ((2, 1), (5, 0), (7, 1)):
        for name in names:
            assert abs(table[name][k] - alone[arm].table[name][k]) < 0.05 * alone[arm].table[f"{name}_err"][k]
    others = [k for k in range(N) if k not in (2, 5, 7)]
    difference = np.stack([table[name].value - joint.table[name].value for name in names], 1)[others]
    assert (np.abs(difference) < 0.02 * numbers(joint, names, "_err")[others]).all()


def test_visits_have_velocities_of_their_own(emulator, stars):
    truth, velocity, ids = stars
    moves = (-30.0, 0.0, 25.0)
    visits = [observe(emulator, truth, velocity + move, 40.0, BLUE, ids, seed) for seed, move in enumerate(moves)]
    each, shared = (fit_joint(emulator, visits, velocity=kind, **OPTIONS) for kind in ("each", "shared"))
    for k, move in enumerate(moves):
        pull = (each.table[f"velocity_{k + 1}"].value - velocity - move) / each.table[f"velocity_{k + 1}_err"].value
        assert np.abs(pull).max() < 4.5
        np.testing.assert_allclose(each.arms[k].table["velocity"].value, each.table[f"velocity_{k + 1}"].value)
    one = fit(emulator, visits[0], **OPTIONS)
    np.testing.assert_allclose(np.median(one.table["feh_err"] / each.table["feh_err"]), np.sqrt(3), rtol=0.15)
    assert (each.flags == 0).all() and (shared.table["chi2"] > each.table["chi2"] + 100).all()


def test_priors_count_once(emulator, arms):
    """A prior tighter than the data sets the error; counted for each arm it would be smaller by √2."""
    result = fit_joint(emulator, [arm[:3] for arm in arms], priors={"logg": (3.0, 1e-3)}, **OPTIONS)
    np.testing.assert_allclose(result.table["logg_err"].value, 1e-3, rtol=0.02)


def test_emulator_error_is_common_to_visits(emulator, stars):
    """With an emulator that errs by a known spectrum, many visits do not make the errors vanish."""

    class Erring(AnalyticEmulator):
        error_components = 0.01 * np.sin(AnalyticEmulator().wave * 40)[None]

        def error_factor(self, labels):
            return np.ones(len(labels))

    truth, velocity, ids = stars
    erring = Erring()
    visits = [observe(erring, truth[:2], velocity[:2], 400.0, BLUE, ids[:2], seed) for seed in range(4)]
    options = OPTIONS | dict(use_emulator_error=True)
    one, four = fit(erring, visits[0], **options), fit_joint(erring, visits, **options)
    plain = [r.table["feh_err"].value for r in (fit(erring, visits[0], **OPTIONS), fit_joint(erring, visits, **OPTIONS))]
    assert (four.table["feh_err"].value <= one.table["feh_err"].value * 1.01).all() and (four.table["feh_err"].value >= plain[1]).all()


def test_result_is_whole(emulator, arms, joint, tmp_path):
    joint.write(tmp_path / "j.fits")
    again = JointResult.read(tmp_path / "j.fits")
    np.testing.assert_array_equal(again.covariance, joint.covariance)
    assert again.table["n_arms"].tolist() == [2] * N
    with pytest.raises(SpectraError, match="read from a file"):
        again.plot(0)
    assert joint.plot(0) is not None and joint.model_flux(0).shape == (len(BLUE) + len(RED),)
    np.testing.assert_allclose(joint.arms[0].table["chi2"] + joint.arms[1].table["chi2"], joint.table["chi2"], rtol=1e-4)
    nothing = fit_joint(emulator, [replace(arm, flux=arm.flux * np.nan, mask=None) for arm in arms], **OPTIONS)
    assert (nothing.flags == FitFlag.BAD_INPUT).all() and np.isnan(nothing.table["teff"].value).all()


def test_refusals(emulator, arms):
    for options, message in ((dict(velocity="every"), "'shared', 'each'"), (dict(continuum=[1]), "list of 1 for 2 arms"), (dict(windows=[None]), "windows for 1 of 2")):
        with pytest.raises(SpectraError, match=message):
            fit_joint(emulator, arms, **(OPTIONS | options))
    with pytest.raises(SpectraError, match="occurs more than once in arm 0"):
        match_rows([replace(arms[0][:2], ids=["a", "a"])])
