"""The benchmark runner: what it takes for a result, when a target is met, and what it keeps."""

import importlib.util
import json
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("bench_runner", Path(__file__).parent / "benchmarks" / "run.py")
runner = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(runner)


@pytest.mark.parametrize(
    "result, verdict",
    [
        ({"ratio": 150, "target": ">= 100"}, True),
        ({"ratio": 99, "value": 1e9, "target": ">= 100"}, False),
        ({"value": 5e-6, "target": "<= 6e-6"}, True),
        ({"value": 7e-6, "target": "<=6e-6"}, False),
        ({"value": 300, "target": "< 300 s"}, False),
        ({"value": 1.04, "target": "0.95-1.05"}, True),
        ({"value": 0.94, "target": "0.95-1.05"}, False),
        ({"value": 3}, None),
        ({"value": 3, "target": "soon"}, None),
    ],
)
def test_target(result, verdict):
    assert runner.met(result) is verdict


def test_only_json_objects_are_results():
    assert runner.parse('{"name": "x"}\n') == {"name": "x"}
    assert [runner.parse(line) for line in ("epoch 3\n", "12\n", "[1]\n", "{broken\n", "\n")] == [None] * 5


def test_run_reports_results_and_exit_code(tmp_path, capfd):
    script = tmp_path / "bench_toy.py"
    script.write_text("print('waiting')\nprint('{\"name\": \"speed\", \"value\": 41000}')\nraise SystemExit(3)\n")
    assert runner.run(script) == ([{"benchmark": "toy", "name": "speed", "value": 41000}], 3)
    assert "waiting" in capfd.readouterr().out


def test_a_new_run_replaces_its_own_benchmark_only(tmp_path):
    path = tmp_path / "results" / "laptop.json"
    runner.store(path, {"cores": 2}, [{"benchmark": "prep", "value": 1}, {"benchmark": "fit", "value": 2}])
    merged = runner.store(path, {"cores": 2}, [{"benchmark": "prep", "value": 3}])
    assert merged == [{"benchmark": "fit", "value": 2}, {"benchmark": "prep", "value": 3}]
    stored = json.loads(path.read_text())
    assert stored["results"] == merged and stored["machine"] == {"cores": 2}


def test_table_reads_well():
    result = {"benchmark": "predict", "name": "batches", "value": 41234.5, "unit": "1/s", "peer": 0.00012345, "ratio": 45.67, "target": ">= 20", "n": 256}
    rows = runner.table([result]).splitlines()
    assert rows[-1] == "| predict | batches | 41,234 | 1/s | 0.000123 | 45.7 | >= 20 | yes | n 256 |"
    assert len({row.count("|") for row in rows}) == 1
