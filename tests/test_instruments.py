"""Named instruments and the mask of the night sky."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from spectra_nn import instruments, spectrum_files
from spectra_nn.core import air_to_vacuum
from spectra_nn.instruments import Instrument, sky_mask

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "real"


def test_reading_is_offered_here_too():
    assert instruments.read_spectra is spectrum_files.read_spectra and instruments.info_column is spectrum_files.info_column


def test_sky_mask_agrees_in_both_media_and_grows_with_strength():
    wave = np.arange(5500.0, 9500, 0.5)
    vacuum = sky_mask(air_to_vacuum(wave))
    assert (sky_mask(wave, frame="air") != vacuum).sum() <= 2  # pixels on an edge
    wide, few = sky_mask(wave, half_width=8), sky_mask(wave, minimum=20)
    assert (wide | sky_mask(wave)).sum() == wide.sum() and few.sum() < vacuum.sum() < wide.sum()


@pytest.mark.parametrize("name", ["SDSS", "BOSS", "DESI", "APOGEE", "LAMOST", "GIRAFFE_HR10", "FOURMOST_HRS", "FOURMOST_LRS"])
def test_instruments_are_consistent(name):
    one = getattr(instruments, name)
    assert isinstance(one, Instrument) and one.name == name and one.source
    low, high = min(low for low, _ in one.windows), max(high for _, high in one.windows)
    assert one.wave.min() <= low + 30 and one.wave.max() >= high - 30 and (np.diff(one.wave) > 0).all()
    resolution = one.resolution_at(one.wave)
    assert 0.5 < np.median(resolution) / one.resolution < 1.5


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")
def test_the_sky_of_real_spectra_is_masked():
    """Pixels where SDSS's own subtracted sky stands out lie in the mask."""
    for path in sorted(REAL.glob("galaxies/spec-0412-*.fits"))[:3]:
        with fits.open(path) as hdus:
            sky, wave = hdus[1].data["sky"].astype(float), 10.0 ** hdus[1].data["loglam"].astype(float)
        excess = sky - np.convolve(np.pad(sky, 75, "edge"), np.ones(151) / 151, "valid")
        strong = (excess > 6 * np.median(sky)) & (wave > 5570) & (wave < 9100)
        assert strong.sum() > 20 and sky_mask(wave)[strong].mean() > 0.9
