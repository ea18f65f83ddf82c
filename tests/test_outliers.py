"""Outliers: published flows as nflows computes them, scores that mean what they say, and strange spectra found for the right reason."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table

from spectra_nn.core import Spectra, SpectraError, asset, stack_spectra
from spectra_nn.galaxy_autoencoder import EncodeFlag, GalaxyRecipe, load_galaxy_model, train_spender
from spectra_nn.instruments import SDSS
from spectra_nn.named_arrays import info_column
from spectra_nn.outliers import FittedGalaxies, LatentFlow, MaskedFlow, add_spectra, broad_lines, calibrate, load_flow, outlier_score, plot_outliers, save_flow, smooth_residual, strange_regions, surprise, train_flow
from spectra_nn.restframe_basis import RestBasis, project, redshifted, render, solve_with_prior
from spectra_nn.spectrum_files import read_spectra

PEER = os.environ.get("SPENDER_PEER_PYTHON")  # a Python that has spender 0.3 and nflows
STEM = "_transform._transforms.1._transforms.{}._transforms."
# computed by nflows 0.14 in double precision, see outliers_peer.py
FORMULA = [-23.415764372, -23.474456495, -23.513479222, -23.390835293, -23.319898850, -23.611301061, -23.747730244, -23.574034355]


pytestmark = pytest.mark.usefixtures("one_thread")


def points(n_latent):
    return np.sin(1.3 * np.arange(8 * n_latent)).reshape(8, n_latent) * np.linspace(0.2, 4, 8)[:, None]


def published(dim=6, hidden=50):
    """A file of the published structure, its numbers by the formula of outliers_peer.py."""
    place = [np.arange(dim) + 1, *[np.arange(hidden) % (dim - 1) + 1] * 3, np.repeat(np.arange(dim) + 1, 2)]
    state = {"_transform._transforms.0._shift": np.zeros(dim), "_transform._transforms.0._scale": np.zeros(dim)}
    for step in range(5):
        for k, layer in enumerate(("initial_layer", "blocks.0.linear", "blocks.1.linear", "final_layer")):
            stem, out, into = STEM.format(step) + f"0.autoregressive_net.{layer}.", place[k + 1], place[k]
            mask = out[:, None] > into if k == 3 else out[:, None] >= into
            state |= {stem + "weight": np.zeros(mask.shape), stem + "bias": np.zeros(len(out)), stem + "mask": mask.astype(np.float32), stem + "degrees": out}
        state[STEM.format(step) + "1._permutation"] = np.arange(dim)
    for number, key in enumerate(sorted(state)):
        shape, n = state[key].shape, state[key].size
        wave = 0.3 * np.sin(0.7 * np.arange(n) + number).reshape(shape)
        if key.endswith(("weight", "bias", "_shift", "_scale")):
            state[key] = (1 + wave if key.endswith("_scale") else wave).astype(np.float32)
        if key.endswith("_permutation"):
            state[key] = np.roll(np.arange(n), 1 + number % n)
    return {key: torch.as_tensor(value) for key, value in state.items()}


@pytest.fixture(scope="module")
def shipped():
    "The built-in model, its flow, and the mock survey."
    pytest.importorskip("zuko")
    return load_galaxy_model(asset("sdss_mock.safetensors"))[0], load_flow(asset("sdss_mock_flow.safetensors")), read_spectra(asset("mock_galaxies.npz"), progress=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("flow") / "spender.sdss.galaxyflow.pt"
    torch.save(published(), path)
    return path


def test_published_flow_has_the_densities_of_nflows(file):
    assert len(published()) == 87
    flow = load_flow(file)
    assert flow.n_latent == 6
    np.testing.assert_allclose(flow.log_prob(points(6)), FORMULA, atol=1e-7)


@pytest.mark.skipif(not PEER, reason="SPENDER_PEER_PYTHON names no Python with spender and nflows")
def test_files_of_nflows_itself(tmp_path):
    subprocess.run([PEER, str(Path(__file__).with_name("outliers_peer.py")), str(tmp_path)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""})
    for name, dim in (("formula", 6), ("random6", 6), ("random10", 10)):
        np.testing.assert_allclose(load_flow(tmp_path / f"{name}.pt").log_prob(points(dim)), np.load(tmp_path / f"{name}.npy"), atol=1e-5)


def test_samples_go_back_to_the_noise_they_came_from(file):
    member = load_flow(file).members[0]
    values = member.sample(200, torch.Generator().manual_seed(5))
    noise = torch.randn(200, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    volume = member.scale.log().sum() * torch.ones(200)
    log_prob = member.log_prob(values)
    values = values * member.scale + member.shift
    for step in range(5):
        scale, shift = member.stretch(step, values)
        values, volume = (scale * values + shift)[:, getattr(member, f"order{step}")], volume + scale.log().sum(1)
    torch.testing.assert_close(values, noise, atol=1e-8, rtol=0)
    torch.testing.assert_close(log_prob, volume - 0.5 * noise.square().sum(1) - 3 * np.log(2 * np.pi))


FIRST = STEM.format(0) + "0.autoregressive_net.initial_layer."


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop(FIRST + "bias"), "lacks .*initial_layer.bias"),
    (lambda s: s.update(extra=torch.zeros(3)), "unknown extra"),
    (lambda s: s.update({FIRST + "bias": torch.zeros(49)}), "another shape"),
    (lambda s: s[FIRST + "bias"].fill_(torch.nan), "not finite"),
    (lambda s: s[FIRST + "mask"].fill_(1), "not those of an autoregressive"),
    (lambda s: s[STEM.format(2) + "1._permutation"].fill_(1), "a latent twice"),
    (lambda s: s["_transform._transforms.0._scale"].neg_(), "no density"),
    (lambda s: s.pop(FIRST + "weight"), "no masked autoregressive flow"),
])
def test_a_file_of_another_structure_is_refused(tmp_path, change, message):
    state = {key: value.clone() for key, value in published().items()}
    change(state)
    torch.save(state, tmp_path / "f.pt")
    with pytest.raises(SpectraError, match=message):
        load_flow(tmp_path / "f.pt")


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save({**published(), "x": Trap()}, tmp_path / "f.pt")
    with pytest.raises(SpectraError):
        load_flow(tmp_path / "f.pt")
    assert not (tmp_path / "sprung").exists()


def test_flows_travel_in_safe_files(file, tmp_path):
    flow = load_flow(file)
    save_flow(flow, tmp_path / "f.safetensors")
    assert torch.equal(load_flow(tmp_path / "f.safetensors").log_prob(points(6)), flow.log_prob(points(6)))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "f.safetensors").read_bytes()[:3000])
    for name, message in (("cut.safetensors", "cut short"), ("none.safetensors", "no such file"), ("none.pt", "none.pt")):
        with pytest.raises(SpectraError, match=message):
            load_flow(tmp_path / name)
    with pytest.raises(SpectraError, match="not a flow"):
        load_flow(asset("hr10_turbospectrum.safetensors"))


def test_splines_learn_a_crescent():
    pytest.importorskip("zuko")
    rng = np.random.default_rng(0)
    draw = lambda n: (lambda x: np.stack([x, x**2 - 1 + 0.3 * rng.normal(size=n)], 1))(rng.normal(size=n))  # noqa: E731
    flow = train_flow(draw(800), n_member=2, steps=300, jitter=0.03, progress=False)
    truth = lambda s: -0.5 * s[:, 0]**2 - 0.5 * ((s[:, 1] - s[:, 0]**2 + 1) / 0.3)**2 - np.log(2 * np.pi * 0.3)  # noqa: E731
    new = draw(2000)
    assert abs(float((truth(new) - flow.log_prob(new).numpy()).mean())) < 0.25, "Kullback–Leibler divergence"
    drawn = flow.sample(1000).numpy()
    assert abs(np.corrcoef(drawn[:, 0]**2, drawn[:, 1])[0, 1]) > 0.8 and truth(drawn).mean() > truth(new).mean() - 1.5


def test_without_zuko_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(SpectraError, match=r"spectra_nn\[flow\]"):
        train_flow(np.random.default_rng(0).normal(size=(100, 2)), progress=False)


def test_surprise_counts_and_goes_on():
    reference = np.random.default_rng(0).exponential(size=5000)
    for share in (0.5, 0.2, 0.1, 0.03):
        assert surprise(np.array([np.quantile(reference, 1 - share)]), reference)[0] == pytest.approx(-np.log(share), abs=0.2)
    rising = surprise(np.linspace(0, 1e6, 2000), reference)
    assert (np.diff(rising) >= 0).all() and rising[-1] < 50
    assert surprise(np.array([np.nan]), reference)[0] == 0 and surprise(np.array([3.]), np.array([np.nan]))[0] == 0
    assert np.isfinite(surprise(np.array([0., 1., 2.]), np.ones(100))).all(), "ordinary galaxies that all answer the same"
    noise = np.array([5., 8.])
    assert surprise(noise, reference / 100, least=10).max() < surprise(noise, reference / 100).max() / 3


def test_spectra_beside_a_galaxy_are_fitted_exactly():
    rng = np.random.default_rng(2)
    design, extra, flux, weight = rng.normal(size=(1, 60, 4)), rng.normal(size=(1, 60, 2)), rng.normal(size=(1, 60)), rng.uniform(0.1, 3, (1, 60))
    chi2 = lambda columns: np.linalg.lstsq(columns[0] * np.sqrt(weight[0])[:, None], flux[0] * np.sqrt(weight[0]), rcond=None)[1][0]  # noqa: E731
    matrix = np.einsum("npk,np,npl->nkl", design, weight, design)
    model = design @ np.linalg.solve(matrix, np.einsum("npk,np->nk", design, weight * flux)[..., None])
    fit = FittedGalaxies(*map(torch.as_tensor, (design, weight, matrix, np.zeros((1, 4)), model[..., 0], flux - model[..., 0])))
    found, saved = add_spectra(fit, torch.as_tensor(extra), 1e-12 * torch.eye(2))
    assert float(saved.sum()) == pytest.approx(chi2(design) - chi2(np.concatenate([design, extra], 2)), rel=1e-8)
    both = np.linalg.lstsq(np.concatenate([design, extra], 2)[0] * np.sqrt(weight[0])[:, None], flux[0] * np.sqrt(weight[0]), rcond=None)[0]
    np.testing.assert_allclose(found[0], both[4:], rtol=1e-6)


def test_smoothed_noise_stays_noise():
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.5, 2, 20_000) * (rng.uniform(size=20_000) > 0.1)
    noise = rng.normal(size=20_000) / np.sqrt(np.where(weight > 0, weight, 1))
    t = smooth_residual(np.where(weight > 0, noise, np.nan), weight)
    assert np.isnan(t[weight == 0]).all() and np.nanstd(t) == pytest.approx(1, abs=0.05)


@pytest.fixture(scope="module")
def lab():
    """A small linear model, a Gaussian for a flow (no zuko needed), and galaxies that it has not seen."""
    survey = read_spectra(asset("mock_galaxies.npz"))
    kind = info_column(survey, "truth_outlier")
    galaxies = redshifted(survey, info_column(survey, "z"), SDSS)[np.flatnonzero(kind == 0)]
    model, _ = train_spender(galaxies[:120], GalaxyRecipe(n_latent=3, n_component=8, widths=(), turns=12), progress=False)
    flow = calibrate(LatentFlow(3, [MaskedFlow(3)], dict(kind="maf", n_hidden=50, n_step=5)), model, galaxies[120:220], progress=False)
    return model, flow, galaxies[220:]


def test_ordinary_galaxies_are_ordinary(lab):
    model, flow, galaxies = lab
    result = outlier_score(galaxies, model, flow, progress=False)
    p = np.asarray(result.table["p_value"])
    assert 0.02 < (p < 0.1).mean() < 0.3 and 0.3 < np.median(p) < 0.7
    assert list(result.table["id"]) == list(galaxies.ids)


def test_a_painted_second_galaxy_is_found_at_its_redshift(lab):
    model, flow, galaxies = lab
    mixtures = solve_with_prior(project(model.basis, galaxies), model.population).mean @ model.basis.basis.double()
    lines = mixtures[int(mixtures.amax(1).argmax())].float()
    basis = RestBasis(model.basis.rest_wave.numpy(), lines[None] / lines.median(), model.basis.resolution)
    behind = render(basis.view(galaxies.wave, galaxies.resolution), torch.tensor([0.2317]))[0][0, :, 0]
    bright = int(galaxies.ivar.median(1).values.argmax())
    rows = [bright, (bright + 1) % len(galaxies)]
    pair = galaxies[rows]
    pair = replace(pair, flux=torch.where(pair.ivar > 0, pair.flux + torch.tensor([[0.7], [0.]]) * behind, 0))
    before = outlier_score(galaxies[rows], model, flow, progress=False).table
    after = outlier_score(pair, model, flow, progress=False).table
    assert after["z_second"][0] == pytest.approx(0.2317, abs=5e-4) and after["dchi2_second_galaxy"][0] > 100
    assert after["score"][0] > before["score"][0] + 1 and after["score"][0] > 2
    assert after["score"][1] == pytest.approx(before["score"][1], abs=0.02), "a row does not depend on its neighbours"


def test_painted_broad_lines_are_found(lab):
    model, flow, galaxies = lab
    row = int((galaxies.ivar.median(1).values * (galaxies.z < 0.35)).argmax())
    one = galaxies[[row]]
    lines = broad_lines(one.wave, one.z)[0, :, 4]
    assert one.wave[lines.argmax()] / (1 + float(one.z)) == pytest.approx(6564.6, abs=3)
    painted = replace(one, flux=torch.where(one.ivar > 0, one.flux + 1.0 * lines, 0))
    result = outlier_score(painted, model, flow, progress=False)
    assert result.table["reason"][0] == "broad lines" and result.table["score"][0] > 2
    assert "H alpha" in strange_regions(result, 0)["line"]


def test_a_wrong_redshift_is_named(lab):
    model, flow, galaxies = lab
    row = int((galaxies.ivar.median(1).values * ((galaxies.z > 0.05) & (galaxies.z < 0.25))).argmax())
    wrong = replace(galaxies[[row]], z=galaxies.z[[row]] + 0.13)
    table = outlier_score(wrong, model, flow, progress=False).table
    assert table["reason"][0] == "redshift" and table["z_second"][0] == pytest.approx(float(galaxies.z[row]), abs=1e-3)


def test_bad_rows_are_flagged_and_alone(lab, tmp_path):
    model, flow, galaxies = lab
    hurt = replace(galaxies[:4], ivar=galaxies.ivar[:4].clone(), z=galaxies.z[:4].clone())
    hurt.ivar[0] = 0
    hurt.ivar[1, 20:] = 0
    hurt.z[2] = 8.0
    kept = hurt.ivar.clone()
    result = outlier_score(hurt, model, flow, progress=False)
    assert torch.equal(hurt.ivar, kept)
    table, whole = result.table, outlier_score(galaxies[:4], model, flow, progress=False).table
    assert np.isnan(table["score"][:3]).all() and (table["flags"][:3] & (EncodeFlag.BAD_INPUT | EncodeFlag.FEW_PIXELS).value > 0).all() and list(table["reason"][:3]) == [""] * 3
    assert table["dchi2_second_galaxy"][3] == pytest.approx(whole["dchi2_second_galaxy"][3], rel=1e-3)
    assert list(result.order)[0] == 3
    plot_outliers(result, [0, 3])
    for suffix in ("fits", "ecsv"):
        result.write(tmp_path / f"o.{suffix}")
        back = Table.read(tmp_path / f"o.{suffix}")
        back.convert_bytestring_to_unicode()
        np.testing.assert_allclose(back["score"], table["score"])
        assert [reason or "" for reason in back["reason"].tolist()] == list(table["reason"])


def test_clear_errors(lab):
    model, flow, galaxies = lab
    alone = LatentFlow(3, [MaskedFlow(3)], dict(kind="maf"))
    with pytest.raises(SpectraError, match="too few to say"):
        outlier_score(galaxies[:10], model, alone, progress=False)
    with pytest.raises(SpectraError, match="the flow is of 6 latents, the model has 3"):
        outlier_score(galaxies, model, LatentFlow(6, [MaskedFlow(6)], dict(kind="maf")), progress=False)
    with pytest.raises(SpectraError, match="got Identity"):
        outlier_score(galaxies, torch.nn.Identity(), flow, progress=False)
    with pytest.raises(SpectraError, match="3 latents of each galaxy"):
        flow.log_prob(np.zeros((5, 4)))
    other = LatentFlow(3, [MaskedFlow(3)], dict(kind="maf"), flow.reference._replace(excess=torch.zeros(7)))
    with pytest.raises(SpectraError, match="calibrated with another model"):
        outlier_score(galaxies, model, other, progress=False)


def test_a_grid_each_and_the_true_redshift(shipped):
    "Cuts of different length score as they do on one grid; a redshift that is wrong is named with the one that would be right."
    model, flow, survey = shipped
    z, kind, snr = (info_column(survey, name) for name in ("truth_z_true", "truth_outlier", "truth_snr"))
    rows = np.flatnonzero((kind == 0) & (snr > 8) & (z > 0.05) & (z < 0.4))[:6]
    given = np.where(np.arange(6) < 3, z[rows] + np.array([0.09, -0.04, 0.06, 0, 0, 0]), z[rows])
    together = outlier_score(survey[rows], model, flow, z=given, instrument=SDSS, progress=False).table
    cuts = [Spectra(survey.wave[k:][:3750], survey.flux[row, k:][None, :3750], survey.ivar[row, k:][None, :3750], frame="vacuum", ids=[str(row)]) for k, row in zip((0, 5, 20, 40, 60, 80), rows)]
    alone = [outlier_score(cut, model, flow, z=[at], instrument=SDSS, progress=False).table[0] for cut, at in zip(cuts, given)]
    each = outlier_score(stack_spectra(cuts), model, flow, z=given, instrument=SDSS, progress=False).table
    assert list(each["id"]) == [str(row) for row in rows]
    np.testing.assert_allclose(each["score"], [row["score"] for row in alone], atol=0.15)
    np.testing.assert_allclose(each["latent_1"], [row["latent_1"] for row in alone], atol=1e-3)
    assert list(together["reason"][:3]) == ["redshift"] * 3 and np.abs(together["z_second"][:3] - z[rows[:3]]).max() < 2e-3
    assert "redshift" not in together["reason"][3:] and together["score"][:3].min() > 2
