"""What holds for the package as a whole: it loads lazily, installs completely, and its README is true."""

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import spectra_nn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
README_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
NOTEBOOKS = sorted(path.name for path in ROOT.glob("nbs/[0-9]*.ipynb"))


def python(code: str, folder: Path | None = None) -> str:
    """Run `code` in a fresh interpreter and return what it prints."""
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_import_is_quick_and_light():
    code = (
        "import sys, time; start = time.perf_counter(); import spectra_nn\n"
        "print(time.perf_counter() - start, *{'torch', 'matplotlib', 'scipy', 'pandas', 'astropy', 'numpy'} & set(sys.modules))"
    )
    seconds, *heavy = python(code).split()
    assert not heavy
    assert float(seconds) < 1  # a bound against accidents; .ci/run holds the real one


@pytest.mark.parametrize("name", sorted(set(spectra_nn.__all__)))
def test_every_lazy_name_exists(name):
    assert getattr(spectra_nn, name) is not None
    assert name in dir(spectra_nn)


def test_every_module_is_reachable():
    modules = {path.stem for path in ROOT.glob("spectra_nn/*.py")} - {"__init__", "__main__", "_modidx"}
    assert modules == set(spectra_nn._NAMES)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Emulatr'"):
        spectra_nn.Emulatr
    assert not hasattr(spectra_nn, "nothing_of_this_name")


@pytest.mark.parametrize("package, command", [("tensorboard", "pip install 'spectra_nn\\[track\\]'"), ("astropy", "pip install astropy")])
def test_missing_package_is_named(monkeypatch, package, command):
    def without(module):
        raise ModuleNotFoundError(f"No module named '{package}.io'", name=f"{package}.io")

    monkeypatch.setattr(spectra_nn, "_import_module", without)
    with pytest.raises(ImportError, match=f"needs {package}, which is not installed: {command}"):
        spectra_nn._load("training")


def test_version_is_the_one_in_settings():
    assert spectra_nn.__version__ == settings()["version"]


def test_package_data_names_every_shipped_file():
    patterns = shlex.split(settings()["package_data"])
    package = ROOT / "spectra_nn"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    shipped = {path for folder in ("tables", "assets") for path in (package / folder).rglob("*") if path.is_file()}
    assert shipped <= packed, f"not in the wheel: {sorted(path.name for path in shipped - packed)}"


def test_every_asset_has_its_origin_and_licence():
    for folder in ("tables", "assets"):
        files = {path.name for path in (ROOT / "spectra_nn" / folder).glob("*")} - {"README.md", "__pycache__"}
        if files:
            listing = (ROOT / "spectra_nn" / folder / "README.md").read_text(encoding="utf-8")
            rows = {name: line for line in listing.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1] if line.startswith("|") else "")}
            assert files <= set(rows), f"{folder}/README.md says nothing of {sorted(files - set(rows))}"
            silent = [name for name in files if not re.search(r"MIT|BSD|CC|public domain|Apache", rows[name])]
            assert not silent, f"{folder}/README.md names no licence for {silent}"


def test_assets_are_small():
    total = sum(path.stat().st_size for path in (ROOT / "spectra_nn").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert total < 25e6, f"{total / 1e6:.1f} MB"


@pytest.mark.parametrize("code", README_BLOCKS)
def test_readme_example_runs_in_an_empty_folder(code, tmp_path):
    python(code, tmp_path)


def test_readme_names_every_notebook_and_file_it_links():
    missing = [name for name in NOTEBOOKS if f"nbs/{name}" not in README]
    assert not missing, f"the README's table leaves out {missing}"
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert not [link for link in links if not (ROOT / link).exists()]


def test_console_script_starts():
    target = dict(entry.split("=") for entry in shlex.split(settings()["console_scripts"]))["spectra-nn"]
    module, function = target.split(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
