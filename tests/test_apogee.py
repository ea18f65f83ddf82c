"""APOGEE's grids, its continuum pixels and mask, and normalisation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spectra_nn.apogee import apogee_pixels, apogee_wave, aspcap_cut, aspcap_restore, normalise_apogee
from spectra_nn.core import Spectra, SpectraError, asset
from spectra_nn.instruments import APOGEE, in_ranges
from spectra_nn.spectrum_files import read_spectra

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def bent(n_spec=3, n_pix=8575):
    wave, rng = apogee_wave(n_pix), np.random.default_rng(2)
    x = (wave - 16_000) / 1000
    shape = np.stack([np.polynomial.chebyshev.chebval(x, [3 + k, *rng.normal(0, 0.2, 4)]) for k in range(n_spec)])
    return Spectra(wave, shape * rng.normal(1, 0.01, shape.shape), (100 / shape) ** 2, frame="vacuum"), shape


def test_cut_and_restore_are_inverse():
    spectra, _ = bent()
    cut = aspcap_cut(spectra)
    np.testing.assert_array_equal(aspcap_cut(aspcap_restore(cut)).flux, cut.flux)
    np.testing.assert_array_equal(aspcap_cut(spectra.wave), cut.wave)
    assert aspcap_restore(cut).mask.sum(1).tolist() == [8575 - 7214] * 3 and aspcap_restore(np.arange(7214), -1)[[0, 322, 8574]].tolist() == [-1, 0, -1]
    np.testing.assert_array_equal(aspcap_restore(aspcap_cut(np.arange(8575.0)), -1)[3648:6048], np.arange(3648, 6048))


def test_instrument_has_the_same_pixels():
    for kind in ("masked", "continuum"):
        for n_pix in (7214, 8575):
            expected = apogee_pixels(kind, n_pix) if kind == "continuum" or n_pix == 7214 else apogee_pixels(kind, n_pix) & aspcap_restore(np.ones(7214, bool), False)
            np.testing.assert_array_equal(in_ranges(apogee_wave(n_pix), getattr(APOGEE, kind)), expected)


def test_normalisation_takes_out_what_was_put_in():
    spectra, shape = bent()
    flat = normalise_apogee(spectra)
    assert flat.flux.shape == (3, 7214) and np.abs(flat.flux - 1).std() < 0.011
    np.testing.assert_allclose(flat.flux * aspcap_cut(shape) / aspcap_cut(spectra).flux, 1, atol=0.01)
    np.testing.assert_allclose(flat.flux * np.sqrt(flat.ivar), aspcap_cut(spectra.flux * np.sqrt(spectra.ivar)))


def test_lines_do_not_pull_the_continuum():
    """Half of the light is missing wherever there may be lines; the continuum pixels alone decide."""
    spectra, _ = bent()
    lines = replace(spectra, flux=np.where(apogee_pixels("continuum", 8575), spectra.flux, 0.5 * spectra.flux))
    np.testing.assert_allclose(normalise_apogee(lines).flux[:, apogee_pixels("continuum")], normalise_apogee(spectra).flux[:, apogee_pixels("continuum")])


def test_one_bad_star_or_chip_leaves_the_others_alone():
    spectra, _ = bent()
    ivar = spectra.ivar.copy()
    ivar[0] = 0
    ivar[1, :3300] = 0
    some = normalise_apogee(replace(spectra, ivar=ivar))
    assert some.mask[0].all() and some.mask[1, :2920].all() and not some.mask[1, 2920:].any()
    np.testing.assert_allclose(some.flux[2], normalise_apogee(spectra).flux[2], rtol=1e-12)
    with pytest.raises(SpectraError, match="single visits"):
        normalise_apogee(Spectra(np.linspace(15_000, 17_000, 8575), np.ones(8575), np.ones(8575), frame="vacuum"))


def test_a_real_giant_is_normalised():
    flat = normalise_apogee(read_spectra(asset("apogee_star.fits.gz")))
    continuum = apogee_pixels("continuum") & ~flat.mask[0]
    assert abs(np.median(flat.flux[0, continuum]) - 1) < 0.02 and np.median(flat.flux[0, ~continuum]) < 0.95


@pytest.mark.skipif(not SHARED.is_dir(), reason="the other project's mask is not here")
def test_the_mask_agrees_with_the_paynes_better_than_chance():
    theirs = np.load(SHARED / "nets" / "apogee_mask.npz")["apogee_mask"]
    assert theirs[apogee_pixels("masked")].mean() > 2 * theirs.mean() and theirs[apogee_pixels("continuum")].mean() < 0.7 * theirs.mean()
