"""Reading galaxies for a training: shards, against one FITS file and one .npz file per galaxy; one core."""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from spectra_nn.core import asset
from spectra_nn.galaxy_shards import ShardedSpectra, prepare_galaxies
from spectra_nn.instruments import SDSS

N_FILE, COPIES = 280, 60


def say(**result):
    print(json.dumps(result), flush=True)


def rate(n, function):
    """Spectra a second, the better of two passes."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return n / min(seconds)


def write_files(folder):
    """The built-in survey as a file per galaxy, in two formats, and many times over in one."""
    from astropy.io import fits

    with np.load(asset("mock_galaxies.npz")) as f:
        wave, flux, ivar, z, ids = f["wave"], f["flux"].astype(np.float32), f["ivar"].astype(np.float32), f["z"], f["ids"]
    loglam = np.log10(wave).astype(np.float32)
    for k in range(N_FILE):
        columns = [fits.Column(name, "E", array=column) for name, column in (("flux", flux[k]), ("loglam", loglam), ("ivar", ivar[k]))]
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(folder / f"{k}.fits")
        np.savez(folder / f"{k}.npz", flux=flux[k], ivar=ivar[k], z=z[k])
    names = [f"{name}-{copy}" for copy in range(COPIES) for name in ids]
    np.savez(folder / "many.npz", wave=wave, flux=np.tile(flux, (COPIES, 1)), ivar=np.tile(ivar, (COPIES, 1)), z=np.tile(z, COPIES), ids=names, frame="vacuum")


def read_fits(folder):
    """What a loader does that opens every file."""
    from astropy.io import fits

    for k in range(N_FILE):
        with fits.open(folder / f"{k}.fits") as hdus:
            torch.from_numpy(np.stack([hdus[1].data["flux"], hdus[1].data["ivar"]]).astype(np.float32))


def read_npz(folder):
    """The same from .npz files."""
    for k in range(N_FILE):
        with np.load(folder / f"{k}.npz") as f:
            torch.from_numpy(np.stack([f["flux"], f["ivar"]]))


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        start = time.perf_counter()
        report = prepare_galaxies(folder / "many.npz", SDSS, folder / "shards", progress=False)
        written = report.n_spec / (time.perf_counter() - start)
        size = sum(f.stat().st_size for f in (folder / "shards").iterdir()) / report.n_spec
        by_fits, by_npz = (rate(N_FILE, lambda read=read: read(folder)) for read in (read_fits, read_npz))
        for precision in ("float16", "float32"):
            if precision == "float32":
                prepare_galaxies(folder / "many.npz", SDSS, folder / precision, precision=precision, progress=False)
            sharded = ShardedSpectra.open(folder / ("shards" if precision == "float16" else precision))
            for shuffle in (False, True):
                speed = rate(len(sharded), lambda sharded=sharded, shuffle=shuffle: [b.flux for b in sharded.batches("all", 1024, shuffle=shuffle)])
                say(name=f"shards, {precision}, {'shuffled' if shuffle else 'in order'}: batches of 1024, one core", value=round(speed), unit="spectra/s", peer=round(by_fits), ratio=round(speed / by_fits, 1),
                    target=">= 20", least="20000 spectra/s", single_npz_files_per_second=round(by_npz))
        say(name="shards, written from one large .npz", value=round(written), unit="spectra/s", bytes_per_spectrum=round(size))


if __name__ == "__main__":
    main()
