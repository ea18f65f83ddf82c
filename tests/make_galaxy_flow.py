"""Make spectra_nn/assets/sdss_mock_flow.safetensors: python tests/make_galaxy_flow.py MOCKS.npz… ORDINARY.npz

The density of sdss_mock's latents is learned from the galaxies in MOCKS.npz, those that the model was trained on;
the ordinary ones in ORDINARY.npz, which neither has seen, say what is usual.
"""

import sys
from pathlib import Path

import torch
from make_galaxy_model import ordinary

from spectra_nn.galaxy_autoencoder import encode, load_galaxy_model
from spectra_nn.outliers import calibrate, save_flow, train_flow

HERE = Path(__file__).parents[1] / "spectra_nn" / "assets"

model, _ = load_galaxy_model(HERE / "sdss_mock.safetensors")
seen = [encode(model, ordinary(path)) for path in sys.argv[1:-1]]
good = torch.cat([each.flags for each in seen]) == 0
flow = train_flow(torch.cat([each.latents for each in seen])[good], torch.cat([each.covariance for each in seen])[good])
flow = calibrate(flow, model, ordinary(sys.argv[-1]))
save_flow(flow, HERE / "sdss_mock_flow.safetensors", model="sdss_mock", training=f"{int(good.sum())} galaxies of {', '.join(Path(p).stem for p in sys.argv[1:-1])}", reference=Path(sys.argv[-1]).stem)
print(f"sdss_mock_flow.safetensors: {(HERE / 'sdss_mock_flow.safetensors').stat().st_size / 1e6:.1f} MB")
