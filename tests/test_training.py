"""A training run survives what happens to it: kills, full disks, damaged files, Ctrl-C, several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spectra_nn.training
from spectra_nn.core import SpectraError
from spectra_nn.training import SOAP, History, TrainConfig, TrainingWarning, latest_checkpoint, train

PROGRAM = '''
import hashlib, json, sys, torch
from torch import nn
from spectra_nn.training import TrainConfig, train

torch.set_num_threads(1)
torch.manual_seed(0)
layers = [nn.Linear(3, 32), nn.SiLU(), nn.Dropout(0.1), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)]
model = nn.Sequential(*(layer for layer in layers if "plain" not in sys.argv or not isinstance(layer, (nn.Dropout, nn.BatchNorm1d))))
x = torch.randn(130, 3)
y = (x[:, :1] * x[:, 1:2]).sin()
loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
config = TrainConfig(steps=int(sys.argv[2]), batch_size=32, optimiser=sys.argv[3], check_every=10, checkpoint_every=0, weight_decay=0.01)
history = train(model, loss, (x[:100], y[:100]), (x[100:], y[100:]), config, folder=sys.argv[1], progress=False)
weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
said = json.dumps([hashlib.sha256(weights).hexdigest(), history.stopped, history.best_loss.hex(), history.train_loss.sum().hex(), len(history.steps)])
sys.stdout.write(said + "\\n")  # at once: two processes may share this pipe
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
'''


def mean_square(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.fixture
def data():
    x = torch.randn(130, 3, generator=torch.Generator().manual_seed(1))
    y = (x[:, :1] * x[:, 1:2]).sin()
    return (x[:100], y[:100]), (x[100:], y[100:])


def network(width=16):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 1))


def start(folder: Path, steps: int, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    program = folder.parent / "program.py"
    program.write_text(PROGRAM)
    root = str(Path(spectra_nn.training.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1",
                   "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, *launcher, str(program), str(folder), str(steps), *options]
    restore = (lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) if os.name == "posix" else None  # a shell that runs tests in the background lets them ignore it
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=restore)


def result(process: subprocess.Popen) -> list:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def reached(folder: Path) -> int:
    return max((int(path.name.split("_")[1]) for path in folder.glob("step_*.safetensors")), default=-1)


def wait_for(folder: Path, step: int, process: subprocess.Popen):
    while reached(folder) < step and process.poll() is None:
        time.sleep(0.0005)


def test_killed_runs_end_with_the_same_bits(tmp_path):
    steps, chance = 1500, random.Random(0)
    undisturbed = result(start(tmp_path / "whole", steps, "soap"))
    folder, kills = tmp_path / "killed", 0
    for part in (0, 1, 3, 5, 8):
        process = start(folder, steps, "soap")
        wait_for(folder, part * steps // 10 + chance.randrange(30), process)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 4
    assert result(start(folder, steps, "soap")) == undisturbed
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, steps + 1, 10))
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".jsonl"} and len(list(folder.iterdir())) == 3


def test_ctrl_c_keeps_the_best(tmp_path):
    process = start(tmp_path / "run", 10**6, "adamw")
    wait_for(tmp_path / "run", 100, process)
    process.send_signal(signal.SIGINT)
    _, stopped, best, *_ = result(process)
    assert stopped == "interrupted" and 0 < float.fromhex(best) < 1


def test_two_processes_agree_with_one(tmp_path):
    """They share each batch and average gradients, so only rounding differs; one of them writes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = start(tmp_path / "two", 100, "adamw", "plain", launcher=launcher)
    one = result(start(tmp_path / "one", 100, "adamw", "plain"))
    two = result(two)
    assert one[1] == two[1] == "finished" and one[4] == two[4] == 10
    for a, b in zip(one[2:4], two[2:4]):
        assert float.fromhex(a) == pytest.approx(float.fromhex(b), rel=1e-4)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 10
    assert reached(tmp_path / "two") == 100 and len(list((tmp_path / "two").iterdir())) == 3


@pytest.mark.parametrize("n_train", [2, 9, 10, 11, 255, 256, 257])
@pytest.mark.parametrize("optimiser", ["adamw", "soap"])
def test_any_number_of_spectra(n_train, optimiser):
    x = torch.randn(n_train + 1, 3, generator=torch.Generator().manual_seed(2))
    history = train(network(), mean_square, (x[1:], x[1:, :1]), (x[:1], x[:1, :1]), TrainConfig(steps=7, optimiser=optimiser), progress=False)
    assert isinstance(history, History) and history.steps[-1] == 7 and history.stopped == "finished"


def test_a_finished_run_returns_at_once(tmp_path, data):
    config = TrainConfig(steps=40, batch_size=16)
    first = train(network(), mean_square, *data, config, folder=tmp_path, progress=False)
    model = network()
    second = train(model, None, *data, config, folder=tmp_path, progress=False)
    assert np.array_equal(first.valid_loss, second.valid_loss) and first.best_step == second.best_step
    assert np.isclose(mean_square(model, data[1]).item(), first.best_loss, rtol=1e-5)


@pytest.mark.parametrize("change, words", [
    (dict(learning_rate=0.1), "learning_rate: 0.01 there, 0.1 now"), (dict(seed=1), "seed"), (dict(width=17), "model"), (dict(shift=1.0), "train_data"),
])
def test_checkpoints_of_another_run_are_refused(tmp_path, data, change, words):
    settings = dict(steps=20, learning_rate=0.01)
    train(network(), mean_square, *data, TrainConfig(**settings), folder=tmp_path, progress=False)
    width, shift = change.pop("width", 16), change.pop("shift", 0.0)
    other = ((data[0][0] + shift, data[0][1]), data[1])
    with pytest.raises(SpectraError, match=words):
        train(network(width), mean_square, *other, TrainConfig(**settings | change), folder=tmp_path, progress=False)
    anew = train(network(width), mean_square, *other, TrainConfig(**settings | change), folder=tmp_path, progress=False, resume=False)
    assert anew.stopped == "finished" and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 20


def interrupted(tmp_path, data, config):
    """Train in `tmp_path` until the loss is asked for the 150th time."""
    calls = iter(range(150))

    def loss(model, batch):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return mean_square(model, batch)

    assert train(network(), loss, *data, config, folder=tmp_path, progress=False).stopped == "interrupted"


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "emptied"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, data, damage):
    config = TrainConfig(steps=200, batch_size=16, checkpoint_every=0)
    whole = train(network(), mean_square, *data, config, progress=False)
    interrupted(tmp_path, data, config)
    newest = latest_checkpoint(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes({"flipped bit": content, "cut short": content[:-100], "emptied": b""}[damage])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')
    with pytest.warns(TrainingWarning, match="damaged"):
        again = train(network(), mean_square, *data, config, folder=tmp_path, progress=False)
    assert np.array_equal(whole.valid_loss, again.valid_loss)


def test_a_full_disk_does_not_end_the_run(tmp_path, data, monkeypatch):
    written = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: written(self, content[:100]) and full() if "_0000000000_" not in self.name else written(self, content))

    def full():
        raise OSError(28, "No space left on device")

    config = TrainConfig(steps=50, checkpoint_every=0)
    with pytest.warns(TrainingWarning, match="no space left"):
        history = train(network(), mean_square, *data, config, folder=tmp_path, progress=False)
    assert history.stopped == "finished" and reached(tmp_path) == 0 and latest_checkpoint(tmp_path) is not None
    monkeypatch.undo()
    again = train(network(), mean_square, *data, config, folder=tmp_path, progress=False)
    assert np.array_equal(history.valid_loss, again.valid_loss) and reached(tmp_path) == 50


def test_a_full_disk_at_the_start_is_an_error(tmp_path, data, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SpectraError, match="no space left"):
        train(network(), mean_square, *data, TrainConfig(steps=50), folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_data_is_named(data, bad):
    x = data[0][0].clone()
    x[7, 1] = bad
    with pytest.raises(SpectraError, match=r"train_data\[0\].*1 of 100 rows, first in row 7"):
        train(network(), mean_square, (x, data[0][1]), data[1], TrainConfig(steps=5), progress=False)


@pytest.mark.parametrize("optimiser", ["adamw", "soap"])
def test_a_loss_that_breaks_names_step_and_rate(data, optimiser):
    calls = iter(range(60))

    def loss(model, batch):
        return mean_square(model, batch) * (1.0 if next(calls, None) is not None else float("nan"))

    model = network()
    with pytest.raises(SpectraError, match=r"at step \d+ \(learning rate .*overflow"):
        train(model, loss, *data, TrainConfig(steps=1000, optimiser=optimiser), progress=False)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.parametrize("optimiser", ["adamw", "soap"])
def test_a_loss_that_breaks_at_the_first_step(data, optimiser):
    def loss(model, batch):
        return mean_square(model, batch) * (float("nan") if model.training else 1.0)

    model = network()
    with pytest.raises(SpectraError, match="training loss is not finite at step 0 .*not finite with good weights either"):
        train(model, loss, *data, TrainConfig(steps=1000, optimiser=optimiser), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), network().state_dict().values()))


def test_arrays_and_read_only_arrays_are_taken(data):
    arrays = [[part.numpy() for part in parts] for parts in data]
    arrays[0][0].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_array = train(network(), mean_square, *arrays, TrainConfig(steps=5), progress=False)
    assert np.array_equal(by_array.valid_loss, train(network(), mean_square, *data, TrainConfig(steps=5), progress=False).valid_loss)


def test_tensorboard_is_optional(tmp_path, data):
    from accelerate.utils import is_tensorboard_available

    config = TrainConfig(steps=5, log_with="tensorboard")
    if is_tensorboard_available():
        train(network(), mean_square, *data, config, folder=tmp_path, progress=False)
        assert list(tmp_path.rglob("events.out.tfevents*"))
    else:
        with pytest.warns(TrainingWarning, match="pip install tensorboard"):
            train(network(), mean_square, *data, config, folder=tmp_path, progress=False)


def test_inputs_and_session_are_untouched(data):
    state, copies = torch.random.get_rng_state(), [part.clone() for part in data[0]]
    model = network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, mean_square, *data, TrainConfig(steps=5), progress=False)
    assert torch.equal(state, torch.random.get_rng_state()) and not model.training
    assert all(torch.equal(a, b) for a, b in zip(copies, data[0]))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_soap_needs_few_steps_where_the_axes_are_turned():
    """One-sided as well: the long side keeps its axes."""
    generator = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    metric, goal = turn * torch.logspace(0, -2, 8), torch.randn(20, 8, generator=generator)
    ends = {}
    for name, optimiser in {"soap": lambda p: SOAP(p, lr=0.1, max_precondition_dim=10), "adam": lambda p: torch.optim.Adam(p, lr=0.1)}.items():
        weight = torch.zeros(20, 8, requires_grad=True)
        taken = optimiser([weight])
        for step in range(400):
            taken.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
            taken.zero_grad()
            value = ((weight - goal) @ metric).square().sum()
            value.backward()
            taken.step()
        ends[name] = value.item()
    assert ends["soap"] < 0.1 * ends["adam"]
