"""The published autoencoder against spender 0.3: same weights, same spectra, one thread each, in turns, in seconds of processor.

Name a Python that has spender in SPENDER_PEER_PYTHON; without it only our own numbers are printed.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from spectra_nn.spender import SpectrumAutoencoder, similarity_loss
from spectra_nn.spender_files import build_autoencoder

GRIDS = {"sdss_II": (10 ** np.arange(3.578, 3.97, 1e-4), 2359.0, 9332.0, 7000, 0.5), "desi_edr_galaxy": (np.linspace(3600, 9824, 7781), 2000.0, 9824.0, 9780, 0.8)}

PEER = """
import sys, time, torch
torch.set_num_threads(1)
from spender.instrument import Instrument
from spender.model import SpectrumAutoencoder
class Grid(Instrument):
    def __init__(self, wave): super().__init__(wave)
def load(path):
    data = torch.load(path, weights_only=True)
    instrument = Grid(data["state"]["encoder.instrument.wave_obs"])
    model = SpectrumAutoencoder(instrument, data["state"]["decoder.wave_rest"], n_latent=6)
    model.load_state_dict(data["state"])
    return data, instrument, model.eval()
for line in sys.stdin:
    what, path = line.split()
    with torch.no_grad():
        if what == "load":
            data, instrument, model = load(path)
            start = time.process_time()
        elif what == "encode":
            start = time.process_time(); out = model.encode(data["y"])
        elif what == "observe":
            start = time.process_time(); out = model.decoder(data["s"], instrument, data["z"])
        seconds = time.process_time() - start
        if what != "load": torch.save(out, path)
    print(seconds, flush=True)
"""


class Peer:
    """A process with spender in it, that does one thing at a time and says how long it took."""

    def __init__(self, python):
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""})

    def __call__(self, what, path):
        self.process.stdin.write(f"{what} {path}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def timed(work):
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def compare(name, n_spec, rounds, peer, folder):
    """Encode, and decode and observe, in turns with the peer; the fastest round of each counts."""
    wave_obs, first, last, n_rest, z_max = GRIDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        grid = type("Grid", (), {"wave_obs": wave_obs if name.startswith("desi") else wave_obs.astype(np.float32)})
        model = SpectrumAutoencoder(grid, torch.linspace(first, last, n_rest), 6)
        data = {"y": 1 + 0.1 * torch.randn(n_spec, len(wave_obs)), "s": torch.randn(n_spec, 6), "z": z_max * torch.rand(n_spec), "state": model.state_dict()}
    model = build_autoencoder(data["state"]).requires_grad_(False)
    torch.save(data, folder / "data.pt")
    if peer: peer("load", folder / "data.pt")
    ours = {"encode": lambda: model.encode(data["y"]), "observe": lambda: model.decoder(data["s"], grid, data["z"])}
    for what, words, target in (("encode", "encode", ">= 1.3"), ("observe", "decode and observe", ">= 3")):
        best, theirs, result = np.inf, np.inf, None
        for _ in range(rounds + 1):
            seconds, result = timed(ours[what])
            best = min(best, seconds)
            if peer: theirs = min(theirs, peer(what, folder / "out.pt"))
        line = {"name": f"spender, {name}: {words}", "value": round(n_spec / best, 1), "unit": "spectra/s"}
        if peer:
            difference = (result - torch.load(folder / "out.pt", weights_only=True)).abs()
            line |= {"peer": round(n_spec / theirs, 1), "ratio": round(theirs / best, 2), "target": target, "largest difference": float(f"{float(difference.max()):.1e}"),
                     "median difference": float(f"{float(difference.median()):.1e}")}
        print(json.dumps({**line, "batch": n_spec, "threads": 1}), flush=True)


def similarity_memory():
    """Growth of the process in the similarity loss and its gradient, 1024 spectra of 9780 pixels."""
    s, x = torch.randn(1024, 6, requires_grad=True), (1 + 0.1 * torch.rand(1024, 9780)).requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, _ = timed(lambda: similarity_loss(s, x, torch.linspace(2000, 9824, 9780)).backward())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(json.dumps({"name": "spender, similarity loss and gradient, 1024 x 9780", "value": round(grown, 3), "unit": "GiB", "target": "<= 1", "seconds": round(seconds, 2)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spectra", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    similarity_memory()
    python = os.environ.get("SPENDER_PEER_PYTHON")
    peer = Peer(python) if python else None
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(GRIDS, reverse=True):
            compare(name, options.spectra, options.rounds, peer, Path(folder))
    if peer:
        peer.process.stdin.close()
        peer.process.wait()


if __name__ == "__main__":
    main()
