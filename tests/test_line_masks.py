"""Line masks: dialects of files, windows, and lines found from an emulator."""
import numpy as np
import pytest

from spectra_nn.core import SpectraError, air_to_vacuum, asset
from spectra_nn.emulator import Emulator
from spectra_nn.line_masks import LineMask, element_responses, find_lines, identify_lines, join_masks, like_the_sun, width_growth
from spectra_nn.observe import BroadenedEmulator
from spectra_nn.resample import broaden


@pytest.fixture(scope="module")
def emulator():
    return Emulator.load(asset("hr10_turbospectrum.safetensors"))


DIALECTS = {
    "header": "ll,dlam\n5380.32,0.4\n5401.1,0.4\n",
    "no header": "5401.1,0.4\n5380.32,0.4\n",
    "more columns, index, crlf, byte-order mark": "\ufeff,ll,Bluewidth,dlam\r\n0,5380.32,7,0.4\r\n1,5401.1,7,0.4\r\n",
    "TSFitPy": "; carbon\n5380.32 5379.92 5380.72 ; C I\n\n# iron\n5401.1\t5400.7\t5401.5\n",
    "TSFitPy with header": "center left right\n5380.32 5379.92 5380.72\n5401.1 5400.7 5401.5\n",
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS)
def test_file_dialects_say_the_same(text, tmp_path):
    path = tmp_path / "mask.csv"
    path.write_bytes(text.encode())
    mask = LineMask.read(path)
    assert np.allclose(mask.centre, [5380.32, 5401.1]) and np.allclose(mask.left, 0.4) and np.allclose(mask.right, 0.4)
    assert mask.frame == "air"


@pytest.mark.parametrize("name", ["out.csv", "out.txt"])
def test_written_masks_are_read_again(name, tmp_path):
    mask = LineMask([5000.0, 5010.0], 0.3, 0.3, names=["Fe I", "Fe II"])
    mask.to_frame("vacuum").write(tmp_path / name)
    again = LineMask.read(tmp_path / name)
    assert again.names == mask.names and np.allclose(again.edges(), mask.edges(), atol=1e-4)


@pytest.mark.parametrize("text, what", [
    ("", "no line"), ("ll\n", "nothing else"), ("ll\nfive\n", "line 2"), ("5383.4 5383.9 5383.1\n", "do not enclose"),
    ("5330.0 5340.0\n", "segments"), ("ll,dlam\n5000,-0.5\n", "half-width"), ("a,b\n5000,1\n", "no column ll")])
def test_broken_files_name_the_line(text, what, tmp_path):
    (tmp_path / "mask.csv").write_text(text)
    with pytest.raises(SpectraError, match=what):
        LineMask.read(tmp_path / "mask.csv")


def test_windows_grow_as_in_the_recipe():
    b = 37.0
    assert width_growth(b) == pytest.approx(2 * (5.7e-5 * b**2 + 0.014481 * b + 0.472108))
    mask = LineMask([5500.0], 0.5, 0.7)
    wave = np.arange(5495, 5505, 0.01)
    width = [mask.widened(vsini, vmac).covers(wave).sum() * 0.01 for vsini, vmac in ((0, 0), (30, 20), (100, 0))]
    assert np.allclose(width, 1.2 * np.array([0.944, 2.677, 4.978]), atol=0.03)
    assert mask.widened(resolution=1000).left == pytest.approx([5.5]) and mask.widened(resolution=20_000).left == pytest.approx([0.472108])


def test_coverage_is_that_of_the_single_windows(seed=1):
    rng = np.random.default_rng(seed)
    mask = LineMask(rng.uniform(5000, 5030, 40), rng.uniform(0, 1, 40), rng.uniform(0.01, 1, 40))
    wave = rng.uniform(4995, 5035, (3, 500))
    growth = np.array([0.5, 1.0, 3.0])
    offset = wave[..., None] - mask.centre
    expected = ((offset >= -mask.left * growth[:, None, None]) & (offset <= mask.right * growth[:, None, None])).any(-1)
    assert (mask.covers(wave, growth) == expected).all() and expected.any() and not expected.all()


def test_other_medium_keeps_the_light():
    mask = LineMask([4000.0, 9000.0], 0.5, 1.0)
    wave = np.arange(3990, 9010, 0.05)
    assert (mask.covers(wave) == mask.to_frame("vacuum").covers(air_to_vacuum(wave))).mean() > 0.99999
    assert len(join_masks([mask, mask.to_frame("vacuum")])) == 4


def test_mask_beyond_the_emulator_is_an_error(emulator):
    with pytest.raises(SpectraError, match="none of the 2 lines"):
        LineMask([6000.0, 6100.0]).within(emulator.wave)
    assert len(LineMask([5330.1, 5400.0, 6100.0]).within(emulator.wave)) == 1  # the first sticks out


def test_inputs_are_left_alone():
    centre, left = np.array([2.0, 1.0]) * 1000, np.array([0.1, 0.2])
    mask = LineMask(centre, left, 0.5)
    assert centre.tolist() == [2000, 1000] and left.tolist() == [0.1, 0.2] and mask.left.tolist() == [0.2, 0.1]
    mask.left[0] = 9
    assert left[1] == 0.2


def test_found_lines_are_known_lines(emulator):
    "Wavelengths in air of Moore, Minnaert & Houtgast (1966); responses at the emulator's step of 0.02 Å."
    known = dict(C_Fe=[5380.34], Ca_Fe=[5349.47, 5512.99, 5581.97, 5588.76, 5590.12, 5601.28], Ti_Fe=[5336.79, 5381.02, 5490.15],
                 Mn_Fe=[5420.36, 5432.55, 5516.78], Y_Fe=[5402.78, 5544.61], Mg_Fe=[5528.42])
    for label, wavelengths in known.items():
        centre = find_lines(emulator, label).centre
        width = 0.25 if label in ("Mg_Fe", "Mn_Fe") else 0.06  # saturated cores and hyperfine structure answer beside the centre
        assert all(np.abs(centre - w).min() < width for w in wavelengths), (label, centre)


def test_found_lines_are_pure(emulator):
    responses = element_responses(emulator)
    mask = find_lines(emulator, "Ti_Fe", purity=2.0)
    inside = mask.covers(emulator.wave)
    others = sum(np.abs(r) for name, r in responses.items() if name != "Ti_Fe")
    assert (-responses["Ti_Fe"][inside] >= 2 * others[inside]).all() and len(mask) < len(find_lines(emulator, "Ti_Fe", purity=0.5))


def test_unknown_element_suggests_the_nearest(emulator):
    with pytest.raises(SpectraError, match="Did you mean 'Ca_Fe'"):
        find_lines(emulator, "ca_fe")


def test_table_of_strong_lines_agrees_with_the_physics(emulator):
    "At each wavelength of the table the emulator's Sun has a line, and it is of that element."
    table, responses = identify_lines(emulator, resolution=None, least=0.0), element_responses(emulator, None, 60_000)
    flux = broaden(emulator.wave, emulator.predict(like_the_sun(emulator)), resolution=150_000)[0]
    lowest = 1 + np.flatnonzero((flux[1:-1] < flux[:-2]) & (flux[1:-1] <= flux[2:]))
    assert len(table) == 110
    for species, wave in zip(table["species"], table["wave"].value):
        element = species.split()[0]
        label = f"{element}_Fe" if f"{element}_Fe" in responses else "feh"
        answer = {name: -r[np.abs(emulator.wave - wave) < 0.15].sum() for name, r in responses.items()}
        off = np.abs(emulator.wave[lowest] - wave).min()
        assert off < (0.05 if element == "Mn" else 0.025) and max(answer, key=answer.get) == label, (species, wave, off)  # Mn has hyperfine structure


def test_names_of_lines_follow_the_star(emulator):
    sun, poor = identify_lines(emulator), identify_lines(emulator, like_the_sun(emulator) | {"feh": -2.0})
    assert set(poor["wave"].value) < set(sun["wave"].value)
    assert len(identify_lines(BroadenedEmulator(emulator, ("vsini",)))) == len(sun)


def test_lines_of_coarse_spectra_are_at_least_some_pixels_wide():
    coarse = Emulator.load(asset("miles_stars.safetensors"))
    mask = find_lines(coarse, "feh", resolution=None)
    assert len(mask) > 10 and (mask.covers(coarse.wave).sum() >= 2 * len(mask)) and len(identify_lines(coarse)) == 0
