"""What `spender` 0.3 computes: run by a Python that has it, writes checkpoints and outputs for the tests to compare with.

    python spender_peer.py FOLDER [CONFIGURATION ...]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from spender.data.sdss import SDSS
from spender.instrument import LSF, Instrument
from spender.loss import LossConfig, consistency_loss, similarity_restframe_loss
from spender.model import SpectrumAutoencoder


class DESI(Instrument):
    """The published grid; spender's own class wants packages that nothing here needs."""

    def __init__(self):
        super().__init__(torch.linspace(3600, 9824, 7781, dtype=torch.float64))


CONFIGURATIONS = {  # instrument, latents, restframe pixels, first and last Å, LeakyReLU instead of Speculator
    "sdss_I": (SDSS, 10, 5881, 2522.95, 9332.54, False),
    "sdss_I_superres": (SDSS, 8, 11762, 2522.95, 9332.54, False),
    "sdss_II": (SDSS, 6, 7000, 2359.0, 9332.0, False),
    "desi_edr_galaxy": (DESI, 6, 9780, 2000.0, 9824.0, True),
    "desi_edr_star": (DESI, 6, 7864, 3582.09, 9873.37, True),
}


def build(name):
    """A published configuration with random weights."""
    make, n_latent, n_rest, first, last, leaky = CONFIGURATIONS[name]
    instrument = make()
    if name.endswith("superres"):
        instrument.lsf = LSF(torch.tensor([0.05, 0.2, 0.4, 0.25, 0.1]))
    act = [torch.nn.LeakyReLU() for _ in range(4)] if leaky else None
    model = SpectrumAutoencoder(instrument, torch.linspace(first, last, n_rest), n_latent=n_latent, act=act).eval()
    if leaky:  # spectra are near 1; Speculator adds it by itself
        model.decoder.mlp[-3].bias.data += 1
    return instrument, model


def outputs(model, instrument, y, w, z):
    """All that is compared, as arrays."""
    s, rest, m, valid = model._forward(y, instrument=instrument, z=z)
    _, rest_scaled, m_scaled, _ = model._forward(y, instrument=instrument, z=z, normalize=True, weights=w)
    return {"s": s, "rest": rest, "model": m, "valid": valid, "rest_scaled": rest_scaled, "model_scaled": m_scaled,
            "loss": model.loss(y, w, instrument=instrument, z=z, individual=True), "similarity": similarity_restframe_loss(model, s=s, config=LossConfig()),
            "consistency": consistency_loss(s, s.roll(1, 0))}


def main(folder, names):
    torch.set_num_threads(1)
    for number, name in enumerate(names or CONFIGURATIONS):
        torch.manual_seed(number)
        instrument, model = build(name)
        n = 16
        y = 1 + 0.3 * torch.randn(n, len(instrument.wave_obs))
        w, z = torch.rand(y.shape) + 0.5, torch.linspace(0, 0.004 if name.endswith("star") else 0.48, n)
        torch.save({"model": model.state_dict(), "losses": np.arange(6.0).reshape(3, 2)}, folder / f"{name}.pt")
        with torch.no_grad():
            single = outputs(model, instrument, y, w, z)
            double = outputs(model.double(), instrument.double(), y.double(), w.double(), z.double())
        arrays = {f"{kind}_{key}": value.numpy() for kind, group in (("single", single), ("double", double)) for key, value in group.items()}
        np.savez(folder / f"{name}.npz", y=y.numpy(), w=w.numpy(), z=z.numpy(), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
