"""The hub lists without weight, fetches once, and loads nothing that is not what it should be (see nbs/10_hub.ipynb)."""

import base64
import bz2
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import warnings
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_server import Handler, serve
from safetensors.numpy import load_file, save_file

from spectra_nn import download as download_module
from spectra_nn import hub
from spectra_nn.core import SpectraError, asset
from spectra_nn.download import DownloadError

MILES = asset("miles_stars.safetensors")
DATA = MILES.read_bytes()
SHA = hashlib.sha256(DATA).hexdigest()
COMMIT = "c" * 40
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache and an environment without the user's settings."""
    for name in ("SPECTRA_NN_OFFLINE", "HF_HUB_OFFLINE", "SPECTRA_NN_HUB", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPECTRA_NN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture
def register(tmp_path, monkeypatch):
    """A function that makes a registry of one model, 'stars', whose file has these sources."""

    def write(*sources, name="stars", sha256=SHA, size=len(DATA), kind="weights", task="stellar emulator", file="stars.safetensors"):
        stored = {"name": file, "sources": list(sources)} | ({"sha256": sha256} if sha256 else {}) | ({"size": size} if size else {})
        entry = dict(name=name, task=task, kind=kind, files=[stored])
        path = tmp_path / "registry.json"
        path.write_text(json.dumps({"format": "spectra_nn registry", "version": 1, "models": [entry]}))
        monkeypatch.setenv("SPECTRA_NN_HUB", str(path))
        return path

    return write


def held(home: Path) -> list[str]:
    """Files in the cache, those of our own bookkeeping apart."""
    return sorted(path.name for path in home.rglob("*") if path.is_file() and not path.name.startswith("."))


# --- what there is -------------------------------------------------------------------------------------------------------


def test_list_and_help_are_light():
    code = (
        "import sys, time; from spectra_nn import hub; start = time.process_time(); hub.list(); hub.help('sdss_II'); repr(hub.list('desi*'))\n"
        "seconds = time.process_time() - start\n"
        "print(seconds, *{'torch', 'scipy', 'astropy', 'huggingface_hub', 'safetensors'} & set(sys.modules))"
    )
    seconds, *heavy = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not heavy
    assert float(seconds) < 1  # a bound against accidents


@pytest.mark.parametrize("name", [entry.name for entry in hub.registry().values()])
def test_every_entry_is_complete(name):
    entry = hub.registry()[name]
    assert entry.summary.endswith(".") and entry.licence and entry.papers and entry.instrument
    assert entry.labels or entry.latents or entry.task in ("pixel mask", "outlier catalogue")
    for file in entry.files:
        assert file.sources
        assert file.expected or any("not known here" in note for note in entry.notes), "an unknown checksum must be said aloud"
        assert all(source.startswith(("hf://", "https://", "asset:")) for source in file.sources)
        if digits := re.search(r"-([0-9a-f]{8})\.pt$", file.name):
            assert file.sha256.startswith(digits[1])
    card = hub.help(name)
    assert card.startswith(f"# {name}") and "```python" in card and "Please cite" in card


def test_registered_checksums_are_those_of_the_built_in_files():
    for entry in hub.registry().values():
        for file in entry.files:
            for source in file.sources:
                if source.startswith("asset:"):
                    content = asset(source.removeprefix("asset:")).read_bytes()
                    now = (len(content), hashlib.sha256(content).hexdigest())
                    assert (file.size, file.sha256) == now, "trained anew? then run tests/make_hub_table.py"


@pytest.mark.parametrize("name", ["hr10_turbospectrum", "miles_stars"])
def test_card_is_true(name):
    entry, emulator = hub.registry()[name], hub.load(name)
    assert entry.labels == emulator.label_names and entry.frame == emulator.frame
    np.testing.assert_allclose(entry.wave, emulator.wave[[0, -1]], atol=0.01)
    example = re.search(r"```python\n(.*?)```", hub.help(name), re.S)[1]
    space = {}
    exec(example, space)
    assert space["flux"].shape == emulator.wave.shape and np.isfinite(space["flux"]).all()
    assert f"{emulator.info.metrics['median_abs']:.2g}" in hub.help(name)


def test_selection_and_suggestions():
    assert [entry.name for entry in hub.list("*_flow")] == ["sdss_mock_flow", "sdss_II_galaxy_flow", "desi_edr_galaxy_flow", "desi_edr_star_flow"]
    assert {entry.task for entry in hub.list(task="stellar")} == {"stellar emulator"}
    assert "no model fits" in repr(hub.list("quasar"))
    assert "<td>sdss_II</td>" in hub.list()._repr_html_()
    with pytest.raises(SpectraError, match="Did you mean 'desi_edr_galaxy'"):
        hub.help("desi_edr_galaxi")
    with pytest.raises(SpectraError, match="there is no task 'cooking'; .*stellar emulator"):
        hub.list(task="cooking")


def test_table_fits_the_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    *lines, last = repr(hub.list()).splitlines()
    assert max(map(len, lines)) <= 90 and "hr10_turbospectrum" in lines[2] and last.startswith("(") and "paper: see hub.help(name)" in last
    monkeypatch.setenv("COLUMNS", "200")
    assert "Liang et al. 2023a" in repr(hub.list())


# --- plain addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults, n_requests", [(["ok"], 1), (["cut"], 2), (["corrupt"], 2), ([(503, {"Retry-After": "0"})], 2), ([(429, {"Retry-After": "0"})], 2), (["no-length"], 1)])
def test_a_troubled_server_is_asked_again(register, home, faults, n_requests):
    with serve({"/s": DATA}, {"/s": faults}) as server:
        register(server.url("/s"))
        first = hub.load("stars", progress=False)
        again = hub.load("stars")  # cached: the server must not hear of it
        assert len(server.log) == n_requests
    assert np.array_equal(first.weight, again.weight)
    assert held(home) == ["stars.safetensors"]


def test_redirect_and_slow_server(register):
    with serve({"/s": DATA}, delay=0.2) as server:
        server.faults["/moved"] = iter([("redirect", server.url("/s"))])
        register(server.url("/moved"))
        assert hub.load("stars", progress=False).label_names == ("teff", "logg", "feh")


def test_second_home_is_asked_when_the_first_has_nothing(register):
    with serve({"/s": DATA}) as server:
        register(server.url("/gone"), server.url("/s"))
        hub.load("stars", progress=False)
        assert [path for _, path, _ in server.log] == ["/gone", "/s"]


def test_every_home_is_named_when_all_fail(register, home):
    with serve({}) as server:
        register(server.url("/one"), server.url("/two"))
        with pytest.raises(DownloadError, match="(?s)stars.safetensors of stars could not be had.*/one.*404.*/two.*404") as caught:
            hub.load("stars")
    assert caught.value.status == 404 and held(home) == []


def test_a_body_of_the_right_size_and_wrong_content_never_loads(register, home):
    with serve({"/s": DATA[:-1] + bytes([DATA[-1] ^ 1])}) as server:
        register(server.url("/s"))
        with pytest.raises(DownloadError, match="is not what was expected"):
            hub.load("stars", progress=False)
    assert held(home) == []


def test_full_disk(register, home, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    with serve({"/s": DATA}) as server:
        register(server.url("/s"))
        monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 10, 10))
        with pytest.raises(DownloadError, match="[Nn]o space left"):
            hub.load("stars", progress=False)
    assert held(home) == []


def test_two_processes_download_once(register, home):
    code = "from spectra_nn import hub; print(hub.download('stars', progress=False)[0].stat().st_size)"
    with serve({"/s": DATA}, delay=1.0) as server:
        register(server.url("/s"))
        both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for process in both:
            out, error = process.communicate(timeout=60)
            assert out.strip() == str(len(DATA)), error
        assert len(server.log) == 1


def test_offline(register, home, monkeypatch):
    with serve({"/s": DATA}) as server:
        register(server.url("/s"))
        with pytest.raises(SpectraError, match="stars.safetensors is not there. We are offline.*spectra-nn hub download stars"):
            hub.load("stars", offline=True)
        monkeypatch.setenv("SPECTRA_NN_OFFLINE", "1")
        with pytest.raises(SpectraError, match="offline"):
            hub.load("stars")
        monkeypatch.setenv("SPECTRA_NN_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(SpectraError, match="offline"):
            hub.load("stars")
        assert server.log == []
        path, = hub.download("stars", offline=False, progress=False)
        hub.load("stars")
    path.write_bytes(DATA[:1000])
    with pytest.raises(SpectraError, match="has 1000 bytes instead of .*offline"):
        hub.load("stars")


def test_damage_in_the_cache_is_named_and_repaired(register):
    with serve({"/s": DATA}) as server:
        register(server.url("/s"))
        path, = hub.download("stars", progress=False)
        path.write_bytes(DATA[:-1] + b"?")
        with pytest.warns(hub.HubWarning, match="stars.safetensors has sha256 .* damaged or changed; it is fetched again"):
            hub.load("stars", progress=False)
        assert path.read_bytes() == DATA


def test_without_a_checksum_the_first_that_came_counts(register):
    with serve({"/s": DATA}) as server:
        register(server.url("/s"), sha256="", size=None)
        with pytest.warns(hub.HubWarning, match=f"no checksum of it is known: it has sha256 {SHA}"):
            path, = hub.download("stars", progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hub.load("stars")
        assert len(server.log) == 1
        path.write_bytes(DATA + b" ")
        with pytest.raises(SpectraError, match="the record of its download says"):
            hub.load("stars", offline=True)
        (path.parent / ".files.json").write_text("{")  # the record is lost
        path.write_bytes(DATA)
        with pytest.raises(SpectraError, match="no known checksum and no record"):
            hub.load("stars", offline=True)


def test_cache_that_cannot_be_written(register, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SPECTRA_NN_HOME", str(tmp_path / "file"))
    register("http://127.0.0.1:9/s")
    with pytest.raises(SpectraError, match="cache folder .* cannot be written .*SPECTRA_NN_HOME"):
        hub.load("stars")
    assert hub.load("miles_stars").frame == "air"  # needs no cache


def test_read_only_cache_serves(register, home, monkeypatch):
    with serve({"/s": DATA}) as server:
        register(server.url("/s"))
        hub.download("stars", progress=False)
    monkeypatch.setattr(hub, "_writable", lambda folder: pytest.fail("the cache was to be written"))
    hub.load("stars")


def test_an_address_that_no_registry_knows(home):
    with serve({"/a/stars.safetensors": DATA}) as server:
        with pytest.warns(hub.HubWarning, match="no checksum"):
            hub.load(server.url("/a/stars.safetensors"), progress=False)
        hub.load(server.url("/a/stars.safetensors"))
        assert len(server.log) == 1
    name, = hub.cache().sizes
    assert hub.cache().clear(name) >= len(DATA) and held(home) == []


def test_wrong_kinds(register, tmp_path):
    source = (tmp_path / "x").as_uri()
    (tmp_path / "x").write_text("<html>moved</html>")
    register(source, sha256=hashlib.sha256(b"<html>moved</html>").hexdigest(), size=None)
    with pytest.raises(SpectraError, match="stars.safetensors is not a safetensors file"):
        hub.load("stars")
    register(source, sha256="", size=None, kind="table", file="x.txt", name="other")
    with pytest.raises(SpectraError, match="hub.load_catalog"):
        hub.load("other")
    with pytest.raises(SpectraError, match="is no catalogue"):
        hub.load_catalog("sdss_II")
    with pytest.raises(SpectraError, match="not for 'latent flow'"):
        hub.load("hr10_turbospectrum", task="latent flow")


def test_networks_of_the_payne_with_their_wavelengths_beside(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    shapes = dict(w_array_0=(5, 2), w_array_1=(5, 5), w_array_2=(30, 5), b_array_0=(5,), b_array_1=(5,), b_array_2=(30,))
    np.savez(tmp_path / "net.npz", x_min=[4000.0, 0.0], x_max=[7000.0, 5.0], **{name: rng.normal(size=shape) for name, shape in shapes.items()})
    np.savez(tmp_path / "wave.npz", wavelength=np.linspace(15200, 15206, 30))
    entry = dict(name="net", task="stellar emulator", kind="payne", options=dict(label_names=["teff", "logg"], frame="vacuum", dialect="payne"),
                 files=[dict(name=name, sources=[name]) for name in ("net.npz", "wave.npz")])
    (tmp_path / "registry.json").write_text(json.dumps({"format": "spectra_nn registry", "version": 1, "models": [entry]}))
    monkeypatch.setenv("SPECTRA_NN_HUB", str(tmp_path / "registry.json"))
    emulator = hub.load("net")
    assert emulator.wave[-1] == 15206 and emulator.frame == "vacuum" and emulator.predict([5000, 4]).shape == (1, 30)


@pytest.mark.parametrize("name, content", [("c.txt.bz2", bz2.compress(b"412-52254-308 -41.5\n412-52250-129 3.2\n")), ("c.txt", b"id logp\na 1.5\nb 2.5\n"), ("c.csv", b"id,logp\na,1.5\nb,2.5\n")])
def test_catalogues_of_text(register, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    register(name, sha256="", size=None, kind="table", file=name, task="outlier catalogue", name="odd")
    table = hub.load_catalog("odd")
    assert len(table) == 2 and table.columns[1].dtype.kind == "f"
    (tmp_path / name).write_bytes(content[: len(content) // 2] + b"\0\xff\xfe" * 9)
    with pytest.raises(SpectraError, match="is not a readable catalogue"):
        hub.load_catalog("odd")


def test_catalogue_in_parquet(register, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"PLATE-MJD-FIBERID": ["412-52254-308"], "logP": [-41.5]}), tmp_path / "c.parquet")
    register("c.parquet", sha256="", size=None, kind="table", file="c.parquet", task="outlier catalogue", name="odd")
    table = hub.load_catalog("odd")
    assert list(table["PLATE-MJD-FIBERID"]) == ["412-52254-308"] and table["logP"][0] == -41.5
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(SpectraError, match="is not a readable catalogue"):
        hub.load_catalog("odd")


def test_parquet_without_pyarrow_names_the_extra(register, tmp_path, monkeypatch):
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    register("c.parquet", sha256="", size=None, kind="table", file="c.parquet", task="outlier catalogue", name="odd")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SpectraError, match=r"needs pyarrow: pip install 'spectra_nn\[formats\]'"):
        hub.load_catalog("odd")


def test_map_location():
    assert hub.load("miles_stars", map_location="meta").weight.device.type == "meta"
    with pytest.raises(SpectraError, match="cannot be moved to 'gpu'"):
        hub.load("miles_stars", map_location="gpu")


NETS = ROOT.parent / "shared" / "data" / "nets"


@pytest.mark.skipif(not NETS.is_dir(), reason="no copies of The Payne's files here")
def test_the_paynes_mask_is_the_one_registered(tmp_path, monkeypatch):
    mask, wave = hub.registry()["payne_apogee_mask"].files
    files = [dict(name=file.name, size=file.size, sha256=file.sha256, sources=[(NETS / file.name).as_uri()]) for file in (mask, wave)]
    entry = dict(name="mask", task="pixel mask", kind="arrays", files=files)
    (tmp_path / "registry.json").write_text(json.dumps({"format": "spectra_nn registry", "version": 1, "models": [entry]}))
    monkeypatch.setenv("SPECTRA_NN_HUB", str(tmp_path / "registry.json"))
    arrays = hub.load("mask", progress=False)
    assert arrays["apogee_mask"].sum() == 875 and arrays["wavelength"].shape == arrays["apogee_mask"].shape == (7214,)


# --- registries ----------------------------------------------------------------------------------------------------------


def test_registry_on_the_net(tmp_path, home, monkeypatch):
    hub.publish(hub.load("miles_stars"), tmp_path / "site" / "our_stars", licence="MIT")
    text = hub.index(tmp_path / "site").read_bytes()
    files = {f"/m/our_stars/{path.name}": path.read_bytes() for path in (tmp_path / "site" / "our_stars").iterdir()}
    with serve({"/m/hub.json": text} | files) as server:
        monkeypatch.setenv("SPECTRA_NN_HUB", server.url("/m/hub.json"))
        assert hub.list("our*")[0].size == sum(map(len, files.values()))
        hub.load("our_stars", progress=False)
        n_requests = len(server.log)
        hub.list(), hub.load("our_stars")
        assert n_requests == 6 == len(server.log)
    copy, = (home / "registries").glob("*.json")
    os.utime(copy, (0, 0))  # two days old, and the server is gone
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    with pytest.warns(hub.HubWarning, match="could not be refreshed"):
        assert len(hub.list("our*")) == 1
    hub.cache().clear()
    shutil.rmtree(home / "registries")
    with pytest.raises(DownloadError, match="named by SPECTRA_NN_HUB could not be had"):
        hub.list()


def test_registry_on_the_net_may_not_point_at_this_machine(register, tmp_path, monkeypatch):
    text = register("file:///etc/hostname").read_bytes()
    with serve({"/hub.json": text, "/page": b"<html>log in</html>"}) as server:
        monkeypatch.setenv("SPECTRA_NN_HUB", server.url("/hub.json"))
        with pytest.raises(SpectraError, match="is not allowed"):
            hub.list()
        monkeypatch.setenv("SPECTRA_NN_HUB", server.url("/page"))
        with pytest.raises(SpectraError, match="not JSON .*Is it complete, and not a web page"):
            hub.list()


def test_a_broken_registry_is_named_and_leaves_the_built_in_models_alone(register):
    register("s").write_text("{")
    with pytest.raises(SpectraError, match="registry.json is not JSON"):
        hub.list()
    with pytest.raises(SpectraError, match="registry.json is not JSON"):
        hub.load("stars")
    assert hub.load("miles_stars").frame == "air"


# --- Hugging Face --------------------------------------------------------------------------------------------------------


class HuggingFace(Handler):
    """The part of Hugging Face's interface that uploading needs; `FakeServer.files` is the repository's store."""

    def do_POST(self):
        path, body = self.path.split("?")[0], self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.log.append(("POST", path, ""))
        if self.state.next_fault(path) == 403:
            return self.head(403, 0, {"X-Error-Message": "you may not write here"})
        if path.endswith("/preupload/main"):
            answer = {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]}
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.state.files[f"/our/repo/resolve/main/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            answer = {"commitOid": COMMIT, "commitUrl": self.state.url("/our/repo/commit/" + COMMIT), "success": True}
        else:
            answer = {"url": self.state.url("/our/repo"), "id": "our/repo", "errors": [], "warnings": []}
        text = json.dumps(answer).encode()
        self.head(200, len(text), {"Content-Type": "application/json"})
        self.wfile.write(text)

    def answer(self, with_body):
        path = urllib.parse.unquote(self.path.split("?")[0])
        if path.startswith("/api/"):
            text = json.dumps({"id": "our/repo", "modelId": "our/repo", "sha": COMMIT, "siblings": [], "tags": [], "private": False}).encode()
            self.head(200, len(text), {"Content-Type": "application/json"})
            return self.wfile.write(text) if with_body else None
        if path in self.state.files:
            etag = hashlib.sha256(self.state.files[path]).hexdigest()
            self.state.headers[path] = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        super().answer(with_body)


def served(monkeypatch, faults=None, **files):
    """A fake Hugging Face with `files` in the repository our/repo."""
    stored = {f"/our/repo/resolve/main/{name.replace('__', '.')}": content for name, content in files.items()}
    context = serve(stored, {f"/our/repo/resolve/main/{name}": order for name, order in (faults or {}).items()}, handler=HuggingFace)

    class Enter:
        def __enter__(self):
            server = context.__enter__()
            monkeypatch.setenv("HF_ENDPOINT", server.url())
            return server

        def __exit__(self, *error):
            return context.__exit__(*error)

    return Enter()


@pytest.mark.parametrize("faults, n_get", [(["ok"], 1), (["ok", "corrupt"], 2), ([(503, {}), "ok"], 1)])
def test_hugging_face_repository(register, home, monkeypatch, faults, n_get):
    register("hf://our/repo/stars.safetensors")
    with served(monkeypatch, {"stars.safetensors": faults}, stars__safetensors=DATA) as server:
        hub.load("stars", progress=False)
        asked = len(server.log)
        hub.load("stars")
        assert sum(verb == "GET" for verb, *_ in server.log) == n_get and len(server.log) == asked
    assert held(home) == ["stars.safetensors"]
    record = json.loads((home / "hub" / "stars" / ".files.json").read_text())["stars.safetensors"]
    assert record["sha256"] == SHA and record["commit"] == COMMIT


def test_hugging_face_body_of_the_right_size_and_wrong_content(register, home, monkeypatch):
    register("hf://our/repo/stars.safetensors")
    with served(monkeypatch, stars__safetensors=DATA[:-1] + b"?"), pytest.raises(DownloadError, match="damaged or changed, twice"):
        hub.load("stars", progress=False)
    assert held(home) == []


def test_hugging_face_and_a_full_disk(register, home, monkeypatch):
    import huggingface_hub

    def full(*repository, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    register("hf://our/repo/stars.safetensors")
    with pytest.raises(DownloadError, match="could not be fetched: .*No space left on device"):
        hub.load("stars", progress=False)
    assert held(home) == []


def test_hugging_face_down_then_the_other_home(register, monkeypatch):
    with served(monkeypatch) as server:
        server.files["/old/stars"] = DATA
        register("hf://our/repo/stars.safetensors", server.url("/old/stars"))
        hub.load("stars", progress=False)
        assert server.log[-1][1] == "/old/stars"


def test_revision_has_a_place_of_its_own(register, home, monkeypatch):
    other = DATA + b"\0" * 8
    register("hf://our/repo/stars.safetensors")
    with served(monkeypatch, stars__safetensors=DATA) as server:
        server.files["/our/repo/resolve/v2/stars.safetensors"] = other
        with pytest.warns(hub.HubWarning, match="no checksum"):
            path, = hub.download("stars", revision="v2", progress=False)
    assert path.read_bytes() == other and path.parent.name == "stars@v2"
    with pytest.raises(SpectraError, match="commit, a branch or a tag"):
        hub.download("stars", revision="../..")


def test_publish_to_hugging_face_and_back(monkeypatch, home):
    emulator = hub.load("miles_stars")
    with served(monkeypatch) as server:
        address = hub.publish(emulator, "hf://our/repo", summary="Stars.", licence="MIT", papers=["We 2027"])
        assert address == f"hf://our/repo@{COMMIT}"
        stored = {path.rsplit("/", 1)[1] for path in server.files}
        assert stored == {"README.md", "config.json", "manifest.json", "model.safetensors", "selftest.safetensors"}
        card = server.files["/our/repo/resolve/main/README.md"].decode()
        assert card.startswith("---\nlibrary_name: spectra_nn\nlicense: mit\n") and 'hub.load("hf://our/repo")' in card
        with pytest.warns(hub.HubWarning, match="manifest.json .* no checksum"):
            again = hub.load("hf://our/repo", progress=False)
        asked = len(server.log)
        hub.load("hf://our/repo"), hub.load("hf://our/repo", offline=True)
        assert len(server.log) == asked and np.array_equal(again.weight, emulator.weight)
        server.files |= {path.replace("/main/", "/v2/"): content for path, content in server.files.items()}
        with pytest.warns(hub.HubWarning) as warned:
            hub.load("hf://our/repo", revision="v2", progress=False)
        assert len(warned) == 1 and len(hub.cache().sizes) == 2  # of the manifest only: it vouches for the rest
        server.faults["/api/models/our/repo/commit/main"] = iter([403])
        with pytest.raises(DownloadError, match="was not published: .*token"):
            hub.publish(emulator, "hf://our/repo")


# --- bundles -------------------------------------------------------------------------------------------------------------


def test_publishing_replaces_completely_or_not_at_all(tmp_path, monkeypatch):
    emulator, folder = hub.load("miles_stars"), tmp_path / "our_stars"
    hub.publish(emulator, folder, summary="First.")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(hub, "_card", lambda *entry: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SpectraError, match="our_stars was not written: No space left"):
        hub.publish(emulator, folder, summary="Second.")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    hub.publish(emulator, folder, summary="Third.")
    assert "Third." in (folder / "README.md").read_text() and [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["our_stars"]


def test_links_and_foreign_names_in_a_bundle(tmp_path):
    folder = tmp_path / "our_stars"
    hub.publish(hub.load("miles_stars"), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("../secret", "/etc/hostname", "model.pkl", "sub/README.md", ".."):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": manifest["files"] | {name: manifest["files"]["README.md"]}}))
        with pytest.raises(SpectraError, match="and nothing else"):
            hub.load(folder)
    short = {name: said | {"sha256": said["sha256"][:8]} for name, said in manifest["files"].items()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": short}))
    with pytest.raises(SpectraError, match="no full sha256"):
        hub.load(folder)


# --- published autoencoders ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path, register):
    """A small autoencoder of SDSS spectra in spender's file format, registered as 'toy' with the digits in its name for a checksum."""
    import torch

    from spectra_nn.spender import SpectrumAutoencoder

    wave = 10 ** np.arange(3.578, 3.97, 1e-4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SpectrumAutoencoder(SimpleNamespace(wave_obs=wave.astype(np.float32), name="SDSS"), np.linspace(2500, 9333, 300, dtype=np.float32), 3, (8,))
    path = tmp_path / "toy.pt"
    torch.save({"model": model.state_dict(), "losses": np.zeros(3)}, path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    register(path.as_uri(), name="toy", sha256=digits, size=None, kind="spender", task="spectrum autoencoder", file=f"toy-{digits}.pt")
    return model.eval()


def test_a_checkpoint_of_spender_is_converted_once(checkpoint, home, monkeypatch):
    import torch

    from spectra_nn import instruments, spender_files

    spec = 1 + 0.1 * torch.randn(2, 3921, generator=torch.Generator().manual_seed(0))
    instrument, model = hub.load("toy", progress=False)
    assert instrument is instruments.SDSS and torch.equal(model.encode(spec), checkpoint.encode(spec))
    z = torch.tensor([0.1, 0.2])
    with monkeypatch.context() as patch:
        patch.setattr(spender_files, "load_checkpoint", lambda *arguments: pytest.fail("converted a second time"))
        instrument, again = hub.load("toy", map_location="cpu")
    assert torch.equal(again(spec, instrument=instrument, z=z), model(spec, instrument=instrument, z=z))
    bundle, = home.glob("hub/toy/*.converted")
    data = bytearray((bundle / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (bundle / "model.safetensors").write_bytes(data)
    with pytest.warns(hub.HubWarning, match="It is converted again"):
        assert torch.equal(hub.load("toy")[1].encode(spec), checkpoint.encode(spec))


def test_an_autoencoder_can_be_published(checkpoint, tmp_path):
    import torch

    spec = 1 + 0.1 * torch.randn(2, 3921, generator=torch.Generator().manual_seed(0))
    hub.publish(hub.load("toy", progress=False), tmp_path / "shared" / "galaxies", summary="Galaxies.", licence="MIT")
    instrument, model = hub.load(tmp_path / "shared" / "galaxies")
    assert torch.equal(model.encode(spec), checkpoint.encode(spec))
    card = (tmp_path / "shared" / "galaxies" / "README.md").read_text()
    assert "| latents | 3 |" in card and "spectrum autoencoder" in card
    hub.publish(model, tmp_path / "galaxies.safetensors")
    assert hub.load(tmp_path / "galaxies.safetensors")[0].name == "SDSS"
    data = load_file(tmp_path / "galaxies.safetensors")
    data["decoder.mlp.0.bias"][0] = np.nan
    save_file(data, tmp_path / "nan.safetensors", metadata={"spectra_nn": json.dumps(hub.read_header(tmp_path / "galaxies.safetensors"))})
    with pytest.raises(SpectraError, match="NaN"):
        hub.load(tmp_path / "nan.safetensors")


def test_a_checkpoint_that_wants_to_run_something(checkpoint, tmp_path, register):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    import torch

    path = tmp_path / "evil.pt"
    torch.save({"model": Evil()}, path)
    register(path.as_uri(), name="evil", sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=None, kind="spender", file="evil.pt")
    for name in ("evil", path):
        with pytest.raises(SpectraError, match="evil.pt (wants to call|is not)"):
            hub.load(name)
    assert not (tmp_path / "was_run").exists()


def test_flows_are_left_to_their_module(tmp_path, register, monkeypatch):
    (tmp_path / "flow.pt").write_bytes(b"weights")
    register("flow.pt", name="flow", sha256="", size=None, kind="flow", task="latent flow", file="flow.pt")
    monkeypatch.setitem(sys.modules, "spectra_nn.outliers", SimpleNamespace(load_flow=lambda path: path.read_bytes()))
    assert hub.load("flow") == b"weights"
    monkeypatch.setitem(sys.modules, "spectra_nn.outliers", None)
    with pytest.raises(SpectraError, match="flow is a normalising flow, which this version"):
        hub.load("flow")
