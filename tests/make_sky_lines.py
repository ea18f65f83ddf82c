"""Make spectra_nn/tables/sky_lines.csv: python tests/make_sky_lines.py sky-lines.txt OH_R24000_lines.dat

The first file is in the wheel spender 0.3 (spender/data), the second in pypeit 2.0.1 (pypeit/data/arc_lines/lists).
"""

import sys
from pathlib import Path

import numpy as np

from spectra_nn.core import air_to_vacuum

# Lines that the first list leaves out. Wavelengths in air: Hg I, Na I and [N I] from Osterbrock & Martel 1992 (PASP 104, 76) and the NIST
# tables. Strengths: peaks above the continuum in the median sky of 25 SDSS spectra, with [O I] 5577 set to 100 as in the first list.
MORE = [(4046.563, 3.6, "HgI"), (4077.837, 0.8, "HgI"), (4358.328, 7.4, "HgI"), (5197.902, 1.1, "NI"), (5200.257, 1.1, "NI"),
        (5460.735, 5.7, "HgI"), (5682.633, 2.0, "NaI"), (5688.205, 2.5, "NaI"), (5769.598, 1.6, "HgI"), (5790.663, 1.7, "HgI")]
BAND = [(8631.8, 7.8, "O2"), (8661.6, 7.2, "O2")]  # the two heads of the O2 (0-1) band, where the same skies show them (vacuum)
SODIUM = {5891.5832: 16.3, 5897.5581: 9.9}  # measured likewise; the list's 800 and 400 are not on the scale of its other lines


def main(optical: str, infrared: str) -> None:
    rows = []
    for line in Path(optical).read_text().splitlines():
        cells = line.partition("#")[0].split()
        if cells:
            wave = round(10 * float(cells[0]), 4)
            rows.append((wave, SODIUM.get(wave, float(cells[1])), cells[2], "list"))
    known = np.array([row[:2] for row in rows])
    lines = np.array([[float(x) for x in line.split("|")[1:3]] for line in Path(infrared).read_text().splitlines() if "| OH |" in line.replace("  ", " ")])
    pairs = [(strength, known[np.abs(known[:, 0] - wave) < 0.5, 1].sum()) for wave, strength in lines]
    scale = np.median([ours / theirs for theirs, ours in pairs if ours > 0])
    rows += [(wave, round(strength * scale, 2), "OH", "h-band") for wave, strength in lines if 15000 < wave < 17000]
    rows += [(round(float(air_to_vacuum(np.array([wave]))[0]), 3), strength, name, "added") for wave, strength, name in MORE]
    rows += [(*row, "added") for row in BAND]
    text = "\n".join(f"{wave:.3f},{strength:g},{name},{source}" for wave, strength, name, source in sorted(rows))
    target = Path(__file__).parents[1] / "spectra_nn" / "tables" / "sky_lines.csv"
    target.write_text("wave,strength,species,source\n" + text + "\n")
    print(f"{len(rows)} lines; scale of the infrared list {scale:.3g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
