"""Make the data files in spectra_nn/assets from the data set of the project: python tests/make_assets.py GRID.npz MILES.npz [specs] [miles] [hr10] [hr10_errors] [miles_emulator].

GRID.npz is the HR10 grid in the Kovalev layout, MILES.npz the MILES library (983 stars with labels). README.md there
says where both come from. Everything is seeded: the same input gives the same files.
"""
import io
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[1] / "spectra_nn" / "assets"
WINDOW = (5330.0, 5430.0)


def spec_text(wave, flux, labels, names) -> str:
    "One spectrum as the synthesis wrapper TSFitPy writes it."
    head = [f"#{n}: {v:.4f}" for n, v in zip(names[:4], labels[:4])] + [f"#[{n.replace('_', '/')}]={v:.4f} LTE" for n, v in zip(names[4:], labels[4:])]
    rows = "\n".join(f"{w:.3f}  {f:.5f}" for w, f in zip(wave, flux))
    return "\n".join(["#Generated using LTE Turbospectrum", *head, "#", "#Wavelength Normalised_flux", rows, ""])


def flawed(texts: dict[str, str]) -> dict[str, str]:
    "A few files as real folders have them: empty, cut short, with NaN, unsorted, not normalised."
    out = dict(texts)
    names = list(texts)[-6:]
    out[names[0]] = ""
    out[names[1]] = "\n".join(texts[names[1]].split("\n")[:1200])
    out[names[2]] = texts[names[2]].replace(texts[names[2]].split("\n")[600].split()[1], "nan", 1)
    head = [line for line in texts[names[3]].split("\n") if line.startswith("#")]
    body = [line for line in texts[names[3]].split("\n") if line and not line.startswith("#")]
    out[names[3]] = "\n".join(head + body[::-1] + [""])
    body = [line.split() for line in texts[names[4]].split("\n") if line and not line.startswith("#")]
    out[names[4]] = "\n".join([f"{w}  {float(f) * 1.2e7:.6e}" for w, f in body] + [""])
    return out


def make_specs(grid, n_spec=300):
    "hr10_specs.tar.xz: the first spectra of the grid, cut to 100 Å, as text files with their label table; six of them flawed."
    wave, names = grid["wvl"], [str(n) for n in grid["label_names"]]
    keep = (wave >= WINDOW[0] - 1e-6) & (wave <= WINDOW[1] + 1e-6)
    labels = grid["labels"].T.copy()
    labels[:, names.index("teff")] *= 1000
    flux = grid["flxn"][keep, :n_spec].T
    texts = flawed({f"{i}.spec": spec_text(wave[keep], flux[i], labels[i], names) for i in range(n_spec)})
    table = ["specname,rv," + ",".join(names)]
    table += [f"{name},0.0," + ",".join(f"{v:.5f}" for v in labels[i]) for i, name in enumerate(texts) if i != n_spec - 1]
    texts["spectra_parameters.csv"] = "\n".join(table) + "\n"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"hr10_specs/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    (HERE / "hr10_specs.tar.xz").write_bytes(lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def make_miles(miles):
    "miles_stars.npz: MILES stars of 3500–7500 K with all three labels, 4000–6500 Å, flux divided by its median, as float16."
    wave = float(miles["crval"]) + float(miles["cdelt"]) * np.arange(miles["flux"].shape[1])
    keep = (wave >= 4000) & (wave <= 6500)
    labels, flux = miles["labels"], miles["flux"][:, keep]
    good = np.isfinite(labels).all(1) & np.isfinite(flux).all(1) & (flux.min(1) > 0) & (labels[:, 0] >= 3500) & (labels[:, 0] <= 7500)
    flux = (flux[good] / np.median(flux[good], axis=1, keepdims=True)).astype(np.float16)
    np.savez_compressed(HERE / "miles_stars.npz", wave=wave[keep], flux=flux, labels=labels[good].astype(np.float32),
                        label_names=np.array(["teff", "logg", "feh"]), names=miles["name"][good].astype(str))


def spectra_of(grid):
    "The HR10 grid as a SpectralGrid, temperatures in K."
    from spectra_nn.data_prep import SpectralGrid

    names = tuple(str(n) for n in grid["label_names"])
    labels = grid["labels"].T.astype(float)
    labels[:, names.index("teff")] *= 1000
    return SpectralGrid(grid["wvl"], np.ascontiguousarray(grid["flxn"].T), labels, names, file_names=tuple(f"{i}.spec" for i in range(len(labels))), frame="air")


def make_hr10(grid):
    "hr10_turbospectrum.safetensors: the default recipe, with fewer centres and a smaller basis for the sake of the file's size."
    from dataclasses import replace

    from spectra_nn.emulator import recipe_named, train_emulator

    recipe = replace(recipe_named("kernel"), n_basis=250, n_centre=2000)
    origin = ("Turbospectrum 20 (1D LTE, Gaia-ESO line list, no molecules; ATLAS12-type atmospheres interpolated by atmosnet), Giraffe HR10, "
              "at the resolution of the synthesis; 3999 spectra computed for spectra_nn")
    emulator, _ = train_emulator(spectra_of(grid), recipe, origin=origin)
    print(emulator)
    emulator.save(HERE / "hr10_turbospectrum.safetensors", compress=True)


def make_hr10_errors(grid):
    "hr10_turbospectrum.safetensors: its error model measured anew, from training spectra left out one at a time; the network stays as it is."
    from spectra_nn.emulator import Emulator, measure_left_out

    path = HERE / "hr10_turbospectrum.safetensors"
    measure_left_out(Emulator.load(path), spectra_of(grid)).save(path, compress=True)


def make_miles_emulator():
    "miles_stars.safetensors: a data-driven emulator of the MILES stars in this folder."
    from dataclasses import replace

    from spectra_nn.demo import DATA_DRIVEN, flattened, real_stars
    from spectra_nn.emulator import train_emulator

    grid = replace(flattened(real_stars()), settings={"resolution": 2100.0})  # FWHM 2.5 Å, at the middle of the range
    origin = ("MILES library of observed stars (Sánchez-Blázquez et al. 2006; labels of Cenarro et al. 2007), each spectrum divided by a polynomial of "
              "order 6 fitted to it; FWHM 2.5 Å throughout, so R grows from 1600 to 2600")
    emulator, _ = train_emulator(grid, DATA_DRIVEN, origin=origin)
    print(emulator)
    emulator.save(HERE / "miles_stars.safetensors", compress=True)


if __name__ == "__main__":
    grid, miles = (np.load(p, allow_pickle=False) for p in sys.argv[1:3])
    wanted = sys.argv[3:] or ["specs", "miles", "hr10", "miles_emulator"]
    if "specs" in wanted:
        make_specs(grid)
    if "miles" in wanted:
        make_miles(miles)
    if "hr10" in wanted:
        make_hr10(grid)
    if "hr10_errors" in wanted:
        make_hr10_errors(grid)
    if "miles_emulator" in wanted:
        make_miles_emulator()
