"""Results keep what they say: through files of every format, and without the packages that only some formats need."""

import builtins
import warnings

import numpy as np
import pytest
from astropy.table import QTable

from spectra_nn.core import SpectraError
from spectra_nn.fit_results import FitFlag, FitResult, result_table


class Labels:
    label_names, label_units = ("teff", "logg", "Mg_Fe", "vsini"), ("K", "dex(cm/s2)", "dex", "km/s")


def result(n=5, names=("teff", "logg", "velocity")):
    rng, p = np.random.default_rng(1), len(names)
    root = rng.normal(size=(n, p, p))
    covariance = root @ root.swapaxes(1, 2)
    covariance[-1:] = np.nan
    labels = rng.normal(size=(n, 4))
    labels[-1:] = np.nan
    fitted = dict(labels=labels, covariance=covariance, velocity=rng.normal(size=n), chi2=rng.uniform(90, 110, n), dof=np.full(n, 100),
                  flags=np.arange(n) * 8, held=rng.random((n, p)) > 0.5)
    ids = [f"star {k} é" for k in range(n)]
    return FitResult(result_table(Labels, ids, fitted, names), covariance, names)


@pytest.mark.parametrize("suffix", [".fits", ".ecsv", ".parquet"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_round_trip(tmp_path, suffix, n):
    """Numbers to the last bit, NaN, units, types, texts beyond ASCII, covariances, names and flags; and no warning."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    one, path = result(n), tmp_path / f"a{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.write(path)
        other = FitResult.read(path)
    assert other.table.colnames == one.table.colnames and other.parameter_names == one.parameter_names
    for name in one.table.colnames:
        mine, read = one.table[name], other.table[name]
        assert mine.unit == read.unit and mine.dtype.kind == read.dtype.kind and type(mine) is type(read)
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(read))
        assert mine.info.format == read.info.format and (mine.info.format is None) == (mine.dtype.kind != "f"), "shown with the same few digits"
    np.testing.assert_array_equal(one.covariance, other.covariance)
    assert [other.table.meta[f"FLAG{flag.value}"] for flag in FitFlag] == [flag.name for flag in FitFlag]
    assert other.summary() == one.summary()


@pytest.mark.parametrize("suffix", [".fits", ".ecsv"])
def test_other_readers_find_the_covariance(tmp_path, suffix):
    one = result()
    one.write(tmp_path / f"a{suffix}")
    table = QTable.read(tmp_path / f"a{suffix}")
    assert table.meta["PARAMS"] == "teff,logg,velocity" and table["covariance"].shape == (5, 3, 3)
    np.testing.assert_allclose(np.sqrt(table["covariance"][0, 0, 0]), table["teff_err"][0].value)


def test_parquet_without_pyarrow_is_a_plain_sentence(tmp_path, monkeypatch):
    true_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SpectraError, match=r"pip install 'spectra_nn\[formats\]'"):
        result().write(tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_files_are_refused(tmp_path):
    one = result()
    one.write(tmp_path / "a.fits")
    (tmp_path / "cut.fits").write_bytes((tmp_path / "a.fits").read_bytes()[:3000])
    QTable({"x": [1.0]}).write(tmp_path / "other.fits")
    for name, message in (("cut.fits", "damaged"), ("other.fits", "is not a result"), ("none.fits", "there is no file"), ("a.txt", "are read from")):
        with pytest.raises(SpectraError, match=message):
            FitResult.read(tmp_path / name)


def test_correlation(tmp_path):
    one = result()
    correlation = one.correlation
    np.testing.assert_allclose(np.diagonal(correlation[:-1], axis1=1, axis2=2), 1)
    errors = np.stack([one.table[f"{name}_err"].value for name in one.parameter_names], 1)
    np.testing.assert_allclose((correlation * errors[:, :, None] * errors[:, None])[:-1], one.covariance[:-1])
    assert np.isnan(correlation[-1]).all()


def test_without_spectra_there_is_no_model_but_a_report(tmp_path):
    one = result()
    with pytest.raises(SpectraError, match="read from a file"):
        one.plot(0)
    page = one.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "star 3 é" in page and page.count("data:image/png") == 2 and "<script" not in page
