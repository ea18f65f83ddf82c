"""The published galaxy autoencoder: equal to the original where it is right, whole where it breaks."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra_nn.core import SpectraError
from spectra_nn.spender import (BaseAutoencoder, SpectrumAutoencoder, SpectrumDecoder, SpectrumEncoder, SpeculatorActivation, SpenderLoss, amplitude,
                                consistency_loss, fidelity_loss, pair_distances, similarity_loss, spender_losses)
from spectra_nn.spender_files import LegacyWarning, build_autoencoder, load_autoencoder, load_checkpoint, read_legacy, save_autoencoder

PEER = os.environ.get("SPENDER_PEER_PYTHON")  # a Python that has spender 0.3
SDSS = SimpleNamespace(name="SDSS", wave_obs=10 ** np.arange(3.578, 3.97, 1e-4).astype(np.float32))
DESI = SimpleNamespace(name="DESI", wave_obs=np.linspace(3600, 9824, 7781))
REAL = Path(__file__).parents[2] / "shared" / "data" / "real" / "galaxies"


pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed=0, n_rest=400, n_pix=600, n_latent=3, act=None):
    """A model of few pixels on DESI-like steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        instrument = SimpleNamespace(name="toy", wave_obs=np.linspace(4500, 7500, n_pix))
        return SpectrumAutoencoder(instrument, np.linspace(3500, 7400, n_rest), n_latent, (8, 16), act)


def batch(model, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = 1 + 0.1 * torch.randn(n, len(model.wave_obs), generator=generator)
    return y, torch.rand(y.shape, generator=generator) + 0.5, torch.linspace(0.0, 0.25, n)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    if not PEER:
        pytest.skip("SPENDER_PEER_PYTHON names no Python with spender 0.3")
    folder = tmp_path_factory.mktemp("peer")
    subprocess.run([PEER, str(Path(__file__).with_name("spender_peer.py")), str(folder)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""})
    return folder


@pytest.mark.parametrize("name", ["sdss_I", "sdss_I_superres", "sdss_II", "desi_edr_galaxy", "desi_edr_star"])
def test_equals_the_original(oracle, name, tmp_path):
    """Its own checkpoint gives what it computes in double precision, to 1e-5 and an instrument's mask bit by bit."""
    truth = np.load(oracle / f"{name}.npz")
    model = load_checkpoint(oracle / f"{name}.pt").requires_grad_(False)
    save_autoencoder(model, tmp_path / "m.safetensors")
    y, w, z = (torch.as_tensor(truth[key]) for key in "ywz")
    np.testing.assert_array_equal(read_legacy(oracle / f"{name}.pt")[1], np.arange(6.0).reshape(3, 2))
    for model, n in ((model, len(y)), (load_autoencoder(tmp_path / "m.safetensors").requires_grad_(False), 3)):  # three do not take the fast way
        y, w, z = y[:n], w[:n], z[:n].reshape(n, 1)
        s, rest, m = model._forward(y, z=z)
        _, rest_scaled, m_scaled = model._forward(y, z=z, normalize=True, weights=w)
        ours = {"s": s, "rest": rest, "model": m, "rest_scaled": rest_scaled, "model_scaled": m_scaled, "loss": model.loss(y, w, z=z, individual=True)}
        for key, value in ours.items():
            np.testing.assert_allclose(value, truth[f"double_{key}"][:n], atol=1e-5, rtol=1e-5, err_msg=key)
        np.testing.assert_allclose(model(y, z=z), m, atol=1e-6)
        np.testing.assert_array_equal(model.valid(None, z), truth["double_valid"][:n])
        if n == len(truth["y"]):
            assert similarity_loss(s, rest, model.wave_rest) == pytest.approx(float(truth["double_similarity"]), rel=1e-3)
            assert consistency_loss(s, s.roll(1, 0)) == pytest.approx(float(truth["double_consistency"]), rel=1e-4)


def by_hand(model, y):
    """The encoder written with torch's functions from its description."""
    p = model.encoder.state_dict()
    x = y[:, None]
    for i, pool in ((1, 5), (2, 11), (3, 0)):
        weight = p[f"conv{i}.0.weight"]
        x = F.conv1d(x, weight, p[f"conv{i}.0.bias"], padding=weight.shape[-1] // 2)
        x = F.prelu((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt(), p[f"conv{i}.2.weight"])
        x = F.max_pool1d(x, pool, padding=pool // 2) if pool else x
    x = (x[:, :256] * x[:, 256:].softmax(-1)).sum(-1)
    for i in (0, 3, 6, 9):
        x = F.linear(x, p[f"mlp.{i}.weight"], p[f"mlp.{i}.bias"])
        x = F.prelu(x, p[f"mlp.{i + 1}.weight"]) if i < 9 else x
    return x


@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0])
@pytest.mark.parametrize("n", [3, 17])
def test_both_ways_through_the_encoder(n, scale):
    model = small(n_pix=1201)
    y = scale * batch(model, n)[0]
    y[1] = y[1] + 40 * scale * (torch.arange(1201) == 700)  # a cosmic ray
    with torch.no_grad():
        fast = model.encode(y)
        np.testing.assert_allclose(fast, by_hand(copy.deepcopy(model).double(), y.double()), atol=1e-5)
    np.testing.assert_allclose(fast, model.encode(y).detach(), atol=1e-5)


def test_flat_and_empty_spectra_are_encoded_alone():
    model = small(n_pix=1201)
    y = batch(model, 14)[0]
    y[0], y[1], y[2] = 0, 5, torch.nan
    with torch.no_grad():
        s = model.encode(y)
        assert torch.isfinite(s[[0, 1]]).all() and s[2].isnan().all()
        np.testing.assert_allclose(s[3:], model.encode(y[3:]), atol=1e-6)


def test_encoder_weights_that_change_are_used():
    """Nothing of an earlier state of the network may be kept."""
    model = small(n_pix=1201).requires_grad_(False)
    y = batch(model, 16)[0]
    before = model.encode(y)
    model.encoder.conv3[0].weight.data.mul_(torch.linspace(-1, 1, 21))
    after = model.encode(y)
    assert (after - before).abs().max() > 1e-4
    np.testing.assert_allclose(after, by_hand(model, y), atol=1e-5)


@pytest.mark.parametrize("act", [None, "leaky"])
def test_reconstruction_is_linear_interpolation(act):
    model = small(act=[nn.LeakyReLU() for _ in range(3)] if act else None)
    s, z = torch.randn(300, 3, generator=torch.Generator().manual_seed(1)), torch.linspace(-0.05, 0.6, 300)
    with torch.no_grad():
        rest, seen, valid = model.decode(s), model(None, z=z, s=s), model.valid(z=z)
    for i in (0, 100, 299):
        wave = model.wave_obs.numpy() / (1 + float(z[i]))
        inside = (wave > 3500) & (wave < 7400)
        np.testing.assert_array_equal(valid[i], inside)
        np.testing.assert_allclose(seen[i], np.where(inside, np.interp(wave, model.wave_rest, rest[i].double()), 0), atol=2e-6)


def test_redshift_is_differentiable_and_may_be_a_column():
    model = small().double()
    y, w, z = (t.double() for t in batch(model))
    z.requires_grad_()
    loss = model.loss(y, w, z=z[:, None])
    slope = torch.autograd.grad(loss, z)[0]
    step = torch.zeros(4, dtype=torch.float64)
    step[2] = 1e-8
    with torch.no_grad():
        assert slope[2] == pytest.approx(float((model.loss(y, w, z=z + step) - loss) / 1e-8), rel=1e-2)
        assert model.loss(y, w, z=z) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize("spoil", ["no weight", "NaN pixels without weight", "NaN weight", "NaN everywhere", "NaN redshift", "redshift below -1", "far out of range", "infinite flux"])
@pytest.mark.parametrize("normalize", [False, True])
def test_one_bad_spectrum_changes_no_other(spoil, normalize):
    model = small()
    y, w, z = batch(model)
    clean = model.loss(y, w, z=z, normalize=normalize, individual=True)
    clean[1:].sum().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    y, w, z = y.clone(), w.clone(), z.clone()
    if spoil == "no weight": w[0] = 0
    if spoil == "NaN pixels without weight": y[0, :50], w[0, :50] = torch.nan, 0
    if spoil == "NaN weight": w[0] = torch.nan
    if spoil == "NaN everywhere": y[0] = torch.nan
    if spoil == "infinite flux": y[0, 3] = torch.inf
    if "redshift" in spoil or "range" in spoil: z[0] = {"NaN redshift": torch.nan, "redshift below -1": -3.0, "far out of range": 9.0}[spoil]
    losses = model.loss(y, w, z=z, normalize=normalize, individual=True)
    assert torch.isfinite(losses).all() and torch.allclose(losses[1:], clean[1:])
    assert (losses[0] == 0) == (spoil not in ("NaN pixels without weight", "infinite flux"))
    losses.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    if losses[0] == 0:
        for name, p in model.named_parameters():
            np.testing.assert_allclose(p.grad, gradient[name], atol=1e-6, err_msg=name)


def test_normalisation_uses_the_weights():
    """The original's loss fits the amplitude to masked pixels too."""
    model = small().requires_grad_(False)
    y, w, z = batch(model)
    s = model.encode(y)
    shape = model(y, z=z, s=s)
    y = 3 * shape
    y[:, 200:300], w[:, 200:300] = 1e3, 0
    assert model.loss(y, w, z=z, s=s, normalize=True) < 1e-6
    np.testing.assert_allclose(amplitude(y, shape, w), 3, rtol=1e-5)
    assert (amplitude(y, shape, torch.zeros_like(w)) == 1).all()


def test_any_instrument_can_be_rendered_and_wrong_grids_are_named():
    model = small().requires_grad_(False)
    y, _, z = batch(model)
    other = SimpleNamespace(wave_obs=np.linspace(5000.0, 6000.0, 77))
    s, rest, seen = model._forward(y, instrument=other, z=z)
    assert seen.shape == (4, 77) and rest.shape == (4, 400) and s.shape == (4, 3)
    encoder = SpectrumEncoder(SDSS, 2)
    for n_pix, words in ((7781, "spectra of DESI"), (4686, "spectra of BOSS"), (3920, "instrument's grid")):
        with pytest.raises(SpectraError, match=words):
            encoder(torch.ones(1, n_pix))
    for wrong in (torch.zeros(3), torch.zeros(4, 2), torch.zeros(2, 2, 2)):
        with pytest.raises(SpectraError, match="one redshift per spectrum"):
            model(y, z=wrong)
    with pytest.raises(SpectraError, match="takes 3"):
        BaseAutoencoder(encoder, SpectrumDecoder(np.linspace(3000, 4000, 5), 3))


def test_a_named_instrument_keeps_the_line_spread():
    model = small().requires_grad_(False)
    bare = SimpleNamespace(wave_obs=model.wave_obs.numpy().copy())
    kernel = np.array([0.0, 1.0, 3.0])
    smeared = SpectrumAutoencoder(SimpleNamespace(wave_obs=bare.wave_obs, lsf=kernel), model.wave_rest, 3, (8, 16)).requires_grad_(False)
    arrays = model.state_dict() | {"encoder.instrument.lsf.weight": torch.tensor([[[3.0, 1.0, 0.0]]])}
    smeared.load_state_dict(arrays)
    y, _, z = batch(model)
    sharp, broad = model(y, z=z), smeared(y, bare, z)
    np.testing.assert_allclose(broad, [np.convolve(one, kernel / 4, mode="same") for one in sharp], atol=1e-5)
    assert torch.equal(broad, smeared(y, z=z)) and torch.allclose(build_autoencoder(arrays)(y, z=z), broad, atol=1e-6)
    smeared.encoder.instrument.requires_grad_(True)  # a kernel trained alone
    assert torch.autograd.grad(smeared(y, z=z).sum(), smeared.encoder.instrument.lsf.weight)[0].isfinite().all()


def test_gram_matrix_equals_all_pairs():
    generator = torch.Generator().manual_seed(0)
    x, weight = 1000 + torch.randn(20, 500, generator=generator), torch.rand(500, generator=generator)
    far = ((x[:, None].double() - x.double()) ** 2 * weight).mean(-1)
    np.testing.assert_allclose(pair_distances(x, weight), far, atol=1e-5)


def test_batches_of_one_and_losses_left_out():
    model = small().requires_grad_(False)
    y, w, z = batch(model, 1)
    config = SpenderLoss(normalization=(4000, 7000))
    fidelity, similarity, consistency = spender_losses(model, (y, w, z), (y, w, z), config=config)
    assert fidelity > 0 and similarity == 0 and consistency == 0
    assert config(model, (y, w, z)) == fidelity
    y, w, z = batch(model, 5)
    f, s, c = spender_losses(model, (y, w, z), (y.flip(1), w, z), config=config, slope=2.0)
    assert config(model, (y, w, z), (y.flip(1), w, z), slope=2.0) == pytest.approx(float(f + 3 * s + c), rel=1e-6)
    assert SpenderLoss(similarity=0, consistency=0)(model, (y, w, z)) == pytest.approx(float(fidelity_loss(y, w, model(y, z=z), model.valid(z=z))), rel=1e-6)


def test_legacy_forms_and_what_is_refused(tmp_path):
    own = small().state_dict()
    path = tmp_path / "a.pt"

    def load(content, **options):
        torch.save(content, path)
        return load_checkpoint(path, **options)

    forms = [own, {"model": own}, {"model": [own, own], "losses": np.ones((2, 2), np.float32)},
             {"model": {f"module.{k}": v for k, v in own.items()}}, {"model": {k.replace("encoder.mlp.", "encoder.mlp.mlp."): v for k, v in own.items()}}]
    for content in forms:
        assert all(torch.equal(own[k], v) for k, v in load(content).state_dict().items())
    with pytest.warns(LegacyWarning, match="z = 0"):
        load(own | {"encoder.mlp.0.weight": F.pad(own["encoder.mlp.0.weight"], (0, 1))})
    for key in own:
        if key != "encoder.instrument.wave_obs":
            with pytest.raises(SpectraError):
                load({k: v for k, v in own.items() if k != key})
    with pytest.raises(SpectraError, match="another survey"):
        load(own, instrument=SDSS)
    with pytest.raises(SpectraError, match="give the instrument"):
        load({k: v for k, v in own.items() if "wave_obs" not in k})


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"model": small().state_dict(), "losses": Trap()}, {"losses": np.array([Trap()], dtype=object)}, small()):
        torch.save(content, "trap.pt")
        with pytest.raises(SpectraError, match="never done|not a"):
            load_checkpoint("trap.pt")
    assert not Path("trapped").exists()


def test_similarity_of_a_large_batch_fits_in_memory():
    """1024 spectra of 9780 pixels; their pairs would take 38 GiB."""
    code = """
import resource, torch
from spectra_nn.spender import similarity_loss
torch.set_num_threads(1)
s, x = torch.randn(1024, 6), 1 + 0.1 * torch.rand(1024, 9780)
s.requires_grad_(), x.requires_grad_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
similarity_loss(s, x, torch.linspace(2000, 9824, 9780)).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""
    grown = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 1.0


@pytest.mark.skipif(not REAL.is_dir(), reason="the real galaxies are not on this machine")
def test_the_five_calls_on_real_files():
    from spectra_nn.spectrum_files import info_column, read_spectra

    spectra = read_spectra(sorted(REAL.glob("spec-0412-*.fits"))[:3])
    y, w = torch.zeros(len(spectra), 3921), torch.zeros(len(spectra), 3921)
    for i in range(len(spectra)):
        one = spectra[i]
        wave = np.atleast_2d(one.wave)[0]
        pixel = np.round((np.log10(wave) - 3.578) / 1e-4).astype(int)
        keep = (pixel >= 0) & (pixel < 3921) & (np.asarray(one.ivar[0]) > 0)
        norm = np.median(one.flux[0][keep])
        y[i, pixel[keep]] = torch.as_tensor(one.flux[0][keep] / norm, dtype=torch.float32)
        w[i, pixel[keep]] = torch.as_tensor(one.ivar[0][keep] * norm**2, dtype=torch.float32)
    z = torch.as_tensor(info_column(spectra, "z"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SpectrumAutoencoder(SDSS, torch.linspace(2359, 9332, 7000), 6).requires_grad_(False)
    spec_reco = model(y, instrument=SDSS, z=z)
    s, spec_rest, again = model._forward(y, instrument=SDSS, z=z)
    assert spec_reco.shape == y.shape and spec_rest.shape == (len(y), 7000) and torch.allclose(spec_reco, again, atol=1e-6)
    assert torch.equal(s, model.encode(y)) and torch.isfinite(model.loss(y, w, instrument=SDSS, z=z, individual=True)).all()
    assert isinstance(model.decoder.mlp[1], SpeculatorActivation)
