"""Prep against `np.loadtxt` and `np.interp`, one file after the other, on the same raw files in the same run."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from spectra_nn.data_prep import prepare_grid

WINDOW, STEP = (5330, 5619), 0.02
GRID = np.arange(WINDOW[0], WINDOW[1] + STEP / 10, STEP)


def raw_folder(made: Path) -> tuple[Path, str]:
    """The raw files in SPECTRA_NN_BENCH_DATA, or else as many made here, laid out the same."""
    data = Path(os.environ.get("SPECTRA_NN_BENCH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    archive = data / "hr10" / "specs_raw.tar.xz"
    if archive.is_file():
        with tarfile.open(archive) as tar:
            tar.extractall(made, filter="data")
        return next(made.rglob("spectra_parameters.csv")).parent, "the 160 raw HR10 files"
    print("the raw HR10 files are not here: 160 files of the same layout are made up")
    wave, rng = np.arange(WINDOW[0], WINDOW[1] + 1, STEP), np.random.default_rng(0)
    for i in range(160):
        rows = [f"{w:.3f}  {f:.5f}  {f * 1.2e7:.6e}\n" for w, f in zip(wave, rng.uniform(0.1, 1, len(wave)))]
        (made / f"{i}.spec").write_text("#Wavelength Normalised_flux Unnormalised_flux\n" + "".join(rows))
    (made / "spectra_parameters.csv").write_text("specname,teff\n" + "".join(f"{i}.spec,{4000 + i}\n" for i in range(160)))
    return made, "160 made-up files"


def serial(folder: Path, times: int = 1) -> float:
    """Seconds of the plain way."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in times * sorted(folder.glob("*.spec")):
            try:
                np.interp(GRID, *np.loadtxt(path, usecols=(0, 1), unpack=True))
            except ValueError:
                pass
    return time.perf_counter() - start


def ours(folders: Path | list[Path]) -> float:
    """Seconds of prepare_grid, label table and all checks included."""
    start = time.perf_counter()
    prepare_grid(folders, windows=[WINDOW], step=STEP, progress=False)
    return time.perf_counter() - start


def report(name: str, plain: list[float], fast: list[float], n_files: int) -> None:
    """One line of result, from the best of several turns each."""
    value, peer = 1e3 * min(fast) / n_files, 1e3 * min(plain) / n_files
    print(json.dumps({"name": name, "value": value, "unit": "ms/file", "peer": peer, "ratio": peer / value, "target": ">= 10"}))


def peak_memory(folders: list[Path], budget: float) -> None:
    """Grow the result to several times the budget and look at what the process held more than at its start."""
    script = (
        "import sys, resource; from spectra_nn.data_prep import prepare_grid; import numpy, tracemalloc\n"
        f"prepare_grid(sys.argv[1], windows=[{WINDOW}], step={STEP}, progress=False, memory_budget=1e6)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"grid = prepare_grid(sys.argv[1:], windows=[{WINDOW}], step={STEP}, progress=False, memory_budget={budget}, n_workers=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, grid.flux.nbytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, folders)], capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"name": f"prep of a {size / 1e6:.0f} MB grid, memory held beyond the start", "value": grown * unit / 1e6, "unit": "MB", "target": f"<= {budget / 1e6:g} MB"}))


def main() -> None:
    """Print the results."""
    made = Path(tempfile.mkdtemp())
    try:
        unpacked, what = raw_folder(made)
        # files written line by line lie in memory in small pieces until they are read from disk again; a copy is in one piece
        copies = [Path(shutil.copytree(unpacked, made / f"copy_{k}")) for k in range(10)]
        folder = copies[0]
        ours(folder)
        turns = [(serial(folder), ours(folder)) for _ in range(7)]
        report(f"prep, {what}", *zip(*turns), 160)
        turns = [(serial(folder, 10), ours(copies)) for _ in range(5)]
        report(f"prep, ten times {what}", *zip(*turns), 1600)
        peak_memory(copies, 20e6)
    finally:
        shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
