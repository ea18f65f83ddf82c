"""What nflows computes for flows of spender 0.3: run by a Python that has both, writes checkpoints and log densities for the tests to compare with.

    python outliers_peer.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from spender.flow import NeuralDensityEstimator


def set_by_formula(state):
    """Numbers that any machine can make again; masks and degrees stay."""
    for number, key in enumerate(sorted(state)):
        shape, n = state[key].shape, state[key].numel()
        if key.endswith(("weight", "bias", "_shift", "_scale")):
            wave = np.sin(0.7 * np.arange(n) + number).reshape(shape)
            state[key] = torch.as_tensor(1 + 0.3 * wave if key.endswith("_scale") else 0.3 * wave, dtype=torch.float32)
        if key.endswith("_permutation"):
            state[key] = torch.as_tensor(np.roll(np.arange(n), 1 + number % n))
    return state


def points(n_latent):
    return np.sin(1.3 * np.arange(8 * n_latent)).reshape(8, n_latent) * np.linspace(0.2, 4, 8)[:, None]


def main(folder):
    for name, dim in (("formula", 6), ("random6", 6), ("random10", 10)):
        torch.manual_seed(dim)
        np.random.seed(dim)
        flow = NeuralDensityEstimator(dim=dim, initial_pos={"bounds": [[-1, 1]] * dim, "std": list(np.linspace(0.3, 2, dim))})
        if name == "formula":
            flow.load_state_dict(set_by_formula(flow.state_dict()))
        torch.save(flow.state_dict(), folder / f"{name}.pt")
        flow = flow.double()
        with torch.no_grad():
            log_prob = flow.log_prob(torch.as_tensor(points(dim))).numpy()
        np.save(folder / f"{name}.npy", log_prob)
        print(name, len(flow.state_dict()), ", ".join(f"{value:.9f}" for value in log_prob))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
