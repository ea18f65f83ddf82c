"""Named instruments and the mask of the night sky."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from spectra_nn import instruments, spectrum_files
from spectra_nn.core import SpectraError, air_to_vacuum
from spectra_nn.instruments import Instrument, in_ranges, sky_mask

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


def test_batch_grids_are_those_of_the_published_networks():
    for name, legacy in (("SDSS", 10 ** np.arange(3.578, 3.97, 1e-4)), ("BOSS", 10 ** np.arange(3.549, 4.0175, 1e-4)), ("DESI", np.linspace(3600, 9824, 7781))):
        grid = getattr(instruments, name).wave_obs
        assert grid.dtype == np.float64 and len(grid) == {"SDSS": 3921, "BOSS": 4686, "DESI": 7781}[name]
        np.testing.assert_allclose(grid, legacy[: len(grid)], rtol=1e-11)
    np.testing.assert_array_equal(instruments.LAMOST.wave_obs, instruments.LAMOST.wave)


def test_survey_calls_reach_the_archive(tmp_path, monkeypatch):
    """Each method passes the archive and the grid of its instrument on, in spender's order of arguments."""
    from spectra_nn import archives

    calls = {"query": ("data",), "get_spectra": ("data", ["id"]), "make_batch": ("data", ["id"]), "prepare_spectrum": ("file", 0.1), "prepare_spectra": ("file",),
             "get_image": ("data", (1, 2))}
    for name, arguments in calls.items():
        monkeypatch.setattr(archives, name, lambda *args, **options: (args, options))
        passed, options = getattr(instruments.BOSS, name)(*arguments, extra=1)
        assert passed == (instruments.BOSS.archive, *arguments) and options.pop("extra") == 1
        assert (options.keys() == {"wave"}) == name.startswith(("make", "prepare"))
        with pytest.raises(SpectraError, match="GIRAFFE_HR10 are in no public archive"):
            getattr(instruments.GIRAFFE_HR10, name)(*arguments)


def test_ranges_are_pixels():
    wave = np.arange(5000.0, 5100)
    assert in_ranges(wave, [(5003, 5005), (5004, 5010.5), (5090, 6000)]).sum() == 8 + 10 and in_ranges(wave[None], []).shape == (1, 100)
