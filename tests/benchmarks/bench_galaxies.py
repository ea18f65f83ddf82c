"""The galaxy autoencoder on mock galaxies: χ² of galaxies left out, time to train, spectra encoded a second; beside a linear basis and spender 0.3.

SPECTRA_NN_BENCH_DATA names a folder with mock_sdss_2000_seed1.npz (`make_mock_sdss.py --n 2000 --seed 1`); without it the built-in survey is used,
too small for the targets. Name a Python that has spender in SPENDER_PEER_PYTHON for its numbers of the same minutes.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from spectra_nn import Spectra, asset
from spectra_nn.galaxy_autoencoder import GalaxyRecipe, encode, train_spender
from spectra_nn.instruments import SDSS
from spectra_nn.restframe_basis import fit_restframe_basis, redshifted

PEER = """
import sys, time, numpy as np, torch
from spender.instrument import Instrument
from spender.model import SpectrumAutoencoder
data, seconds, n_latent = np.load(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
class Grid(Instrument):
    def __init__(self, wave): super().__init__(wave)
tensor = lambda name: torch.as_tensor(data[name])
grid = Grid(tensor("wave").float())
model = SpectrumAutoencoder(grid, torch.linspace(2359.0, 9332.0, 7000), n_latent=n_latent)
y, w, z = tensor("flux"), tensor("ivar"), tensor("z").float()
optimiser, start, done = torch.optim.Adam(model.parameters(), lr=1e-3), time.perf_counter(), 0
while time.perf_counter() - start < seconds:
    rows = torch.randint(len(y), (64,))
    optimiser.zero_grad()
    model.loss(y[rows], w[rows], grid, z[rows]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    done += len(rows)
trained = done / (time.perf_counter() - start)
y, w, z = tensor("test_flux"), tensor("test_ivar"), tensor("test_z").float()
model.eval()
with torch.no_grad():
    start = time.perf_counter(); s = model.encode(y[:128]); encoded = 128 / (time.perf_counter() - start)
    chi2 = torch.cat([((w[k:k+64] * (y[k:k+64] - model(y[k:k+64], grid, z[k:k+64]))**2).sum(1) / (w[k:k+64] > 0).sum(1)) for k in range(0, len(y), 64)])
print(trained, encoded, float(chi2.mean()))
"""


def mocks():
    """The ordinary galaxies: for training and for the test."""
    path = Path(os.environ.get("SPECTRA_NN_BENCH_DATA", ".")) / "mock_sdss_2000_seed1.npz"
    if path.exists():
        with np.load(path) as f:
            kept = f["truth_outlier"] == 0
            spectra, z, n = Spectra(f["wave"], f["spec"][kept], f["ivar"][kept], frame="vacuum"), f["z"][kept], 1500
    else:
        print(f"no {path.name} in SPECTRA_NN_BENCH_DATA: the built-in survey instead")
        with np.load(asset("mock_galaxies.npz")) as f:
            kept = f["truth_outlier"] == 0
            spectra, z, n = Spectra(f["wave"], f["flux"][kept], f["ivar"][kept], frame="vacuum"), f["z"][kept], 200
    data = redshifted(spectra, z, SDSS)
    return data[:n], data[n:], path.exists()


def say(**result):
    print(json.dumps(result), flush=True)


def mean_chi2(found):
    return float((found.chi2 / found.n_valid).mean())


def main(peer_seconds):
    training, test, full = mocks()
    for n_latent in (6, 10, 16):
        start = time.perf_counter()
        model, _ = train_spender(training, GalaxyRecipe(n_latent=n_latent, n_component=n_latent + 1, widths=()), progress=False)
        say(name=f"galaxies, linear, {n_latent} latents: χ² per pixel left out", value=round(mean_chi2(encode(model, test)), 4), unit="", seconds=round(time.perf_counter() - start, 1))
    start = time.perf_counter()
    basis = fit_restframe_basis(training, 32, progress=False)
    basis_seconds = time.perf_counter() - start
    rates, speeds = {}, {}
    for n_latent, limit, kinematics, trust in ((6, 1.20, (0, 0), ""), (10, 1.13, (0, 0), ""), (6, None, (20, 63), ", blind to kinematics")):
        start = time.perf_counter()
        model, history = train_spender(training, GalaxyRecipe(n_latent=n_latent, kinematics=kinematics), basis=basis, progress=False)
        seconds = basis_seconds + time.perf_counter() - start
        rates[n_latent, trust] = len(training) * (GalaxyRecipe().turns + GalaxyRecipe().train.steps) / seconds
        for refine in (0, 8):
            start = time.perf_counter()
            found = encode(model, test, refine=refine)
            speed = len(test) / (time.perf_counter() - start)
            speeds[n_latent, trust] = speed
            target = {"target": f"<= {limit}"} if refine and full and limit else {}
            say(name=f"galaxies, {n_latent} latents{trust}, {'refined' if refine else 'encoder alone'}: χ² per pixel left out", value=round(mean_chi2(found), 4), unit="",
                seconds_to_train=round(seconds, 1), weights=sum(p.numel() for p in model.parameters()), encoded_per_second=round(speed), **target)
    python = os.environ.get("SPENDER_PEER_PYTHON")
    if not python: return
    with tempfile.TemporaryDirectory() as folder:
        scale = lambda d: dict(flux=d.flux.numpy(), ivar=d.ivar.numpy(), z=d.z.numpy())  # noqa: E731
        np.savez(f"{folder}/data.npz", wave=training.wave, **scale(training), **{f"test_{k}": v for k, v in scale(test).items()})
        said = subprocess.run([python, "-c", PEER, f"{folder}/data.npz", str(peer_seconds), "6"], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}).stdout
    trained, encoded, chi2 = map(float, said.split()[-3:])
    say(name="galaxies, spectra shown to the model per second of training", value=round(rates[6, ""]), unit="spectra/s", peer=round(trained, 1), ratio=round(rates[6, ""] / trained, 1), target=">= 5",
        peer_chi2_after=f"{chi2:.2f} after {peer_seconds:.0f} s")
    for (n_latent, trust), speed in speeds.items():
        say(name=f"galaxies, encode in {n_latent} latents{trust}, with 8 steps of refinement", value=round(speed), unit="spectra/s", peer=round(encoded, 1), ratio=round(speed / encoded, 1),
            **({} if trust else {"target": ">= 10"}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-seconds", type=float, default=120, help="how long spender trains")
    main(parser.parse_args().peer_seconds)
