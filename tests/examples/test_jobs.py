"""The jobs of examples/jobs, run as their users run them, on the demo behind a real tritonserver."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jinja2
import numpy as np
import pytest
from cnclip_client import Client
from cnclip_client.retrieval import read_features
from cnclip_server import TritonServer

from tests.conftest import DEMO, ROOT

JOBS = ROOT / "examples/jobs"
PICTURES = 60


@pytest.fixture(scope="module")
def held_out() -> Iterator[Any]:
    """The demo's drawer of pictures that training never saw."""
    sys.path.insert(0, str(DEMO))
    yield importlib.import_module("pictures").held_out
    sys.path.remove(str(DEMO))


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        **variables,
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def rows(path: Path, kind: Any) -> dict[Any, Any]:
    return {
        one: feature
        for block in read_features(path, kind)
        for one, feature in zip(block.ids.tolist(), block.features, strict=True)
    }


@pytest.mark.slow
@pytest.mark.triton
def test_ray_data_gives_what_the_client_gives(tmp_path: Path, demo_server: TritonServer, held_out: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pytest.importorskip("ray", reason="Ray is not installed; pip install '.[ray]'")
    _, pictures, _ = zip(*held_out(PICTURES), strict=True)
    encoded = []
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        encoded.append((tmp_path / f"{number}.png").read_bytes())
    table = pa.table({"image_id": range(PICTURES + 1), "bytes": [*encoded, b"torn"]})
    pq.write_table(table, tmp_path / "images.parquet")
    job = [sys.executable, JOBS / "ray_features.py", "images.parquet", "features", "--url", demo_server.grpc_url]
    done = run(*job, "--model", "demo", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == f"{PICTURES} images have features, in features/good; 1 have none"
    found = rows(tmp_path / "features/good", "image")
    assert set(found) == set(range(PICTURES))
    with Client(demo_server.grpc_url, model="demo") as client:
        np.testing.assert_allclose([found[row] for row in range(PICTURES)], client.encode_images(encoded), atol=1e-5)
    (bad,) = pq.read_table(tmp_path / "features/bad").to_pylist()
    assert bad["image_id"] == PICTURES
    assert bad["error"]
    again = run(*job, "--model", "demo", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17 or later, and there is no java")
def test_spark_gives_what_the_client_gives(tmp_path: Path, demo_server: TritonServer, held_out: Any) -> None:
    import pyarrow.parquet as pq

    pytest.importorskip("pyspark", reason="Spark is not installed; pip install '.[spark]'")
    _, _, captions = zip(*held_out(PICTURES), strict=True)
    lines = [json.dumps({"text_id": number, "text": text}) for number, text in enumerate(captions)]
    (tmp_path / "texts.jsonl").write_text("\n".join([*lines, json.dumps({"text_id": 999}), ""]), encoding="utf-8")
    job = [sys.executable, JOBS / "spark_features.py", "texts.jsonl", "features", "--url", demo_server.grpc_url]
    done = run(*job, "--model", "demo", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == f"{PICTURES} texts have features, in features/good; 1 have none"
    found = rows(tmp_path / "features/good", "text")
    assert set(found) == set(range(PICTURES))
    with Client(demo_server.grpc_url, model="demo") as client:
        np.testing.assert_allclose([found[row] for row in range(PICTURES)], client.encode_texts(captions), atol=1e-5)
    assert pq.read_table(tmp_path / "features/bad").to_pylist() == [{"text_id": 999, "error": "is null"}]


class Day:
    """What Airflow does of the DAG: its tasks in their order, each command through a shell, `{{ ds }}` filled in."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "work").mkdir()
        variables = {"PHOTOS": "photos", "QUERIES": "queries.jsonl", "WORK": "work"}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(folder / value))
        monkeypatch.setenv("CNCLIP_URL", url)
        monkeypatch.setenv("CNCLIP_MODEL", "demo")
        self.dag = load("airflow_dag")

    def run(self, ds: str) -> None:
        for task in self.dag.TASKS:
            if isinstance(task, self.dag.Command):
                done = run("bash", "-c", jinja2.Template(task.line).render(ds=ds), cwd=self.folder)
                assert done.returncode == 0, f"{task.name}: {done.stderr}"
            else:
                assert task(ds=ds) >= self.dag.LOWEST_RECALL


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # its dataclass looks there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[module.__name__]
    return module


@pytest.mark.slow
@pytest.mark.triton
def test_each_day_is_added_and_a_bad_one_is_not_published(
    tmp_path: Path, demo_server: TritonServer, held_out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pictures, captions = zip(*held_out(PICTURES), strict=True)
    half = PICTURES // 2
    for number, picture in enumerate(pictures):
        folder = tmp_path / "photos" / ("2026-11-25" if number < half else "2026-11-26")
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.png")
    (tmp_path / "photos/2026-11-26/torn.png").write_bytes(b"torn")
    queries = [{"text_id": number, "text": captions[number], "image_ids": [f"{number}.png"]} for number in range(half)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries), encoding="utf-8")
    day = Day(tmp_path, demo_server.grpc_url, monkeypatch)
    work = tmp_path / "work"
    for ds, held in (("2026-11-25", half), ("2026-11-26", PICTURES), ("2026-11-26", PICTURES)):
        day.run(ds)
        assert (work / "index").resolve().name == ds
        record = json.loads((work / "index/index.json").read_text(encoding="utf-8"))
        assert sum(part["rows"] for part in record["parts"]) == held
    assert "torn.png" in (work / "features/2026-11-26.parquet.errors.jsonl").read_text(encoding="utf-8")
    # A day whose queries find nothing: their pictures are others'.
    shuffled = [{**one, "image_ids": [f"{PICTURES - 1 - one['text_id']}.png"]} for one in queries]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in shuffled), encoding="utf-8")
    shutil.copytree(tmp_path / "photos/2026-11-25", tmp_path / "photos/2026-11-27")
    for picture in (tmp_path / "photos/2026-11-27").iterdir():
        picture.rename(picture.with_name(f"again-{picture.name}"))
    with pytest.raises(ValueError, match=r"R@10 is .* on 2026-11-27, below 80\.0 %"):
        day.run("2026-11-27")
    assert (work / "index").resolve().name == "2026-11-26"


class _Operator:
    def __init__(self, task_id: str, **settings: Any) -> None:
        self.task_id, self.settings, self.after = task_id, settings, list[str]()

    def __rshift__(self, other: _Operator) -> _Operator:
        other.after.append(self.task_id)
        return other


class _Dag:
    made: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def __init__(self, dag_id: str, **settings: Any) -> None:
        self.made.append((dag_id, settings))

    def __enter__(self) -> _Dag:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_airflow_is_given_the_same_tasks_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the three names that the file takes from Airflow, which is not installed here."""
    for name, members in {
        "airflow": {},
        "airflow.sdk": {"DAG": _Dag},
        "airflow.providers": {},
        "airflow.providers.standard": {},
        "airflow.providers.standard.operators": {},
        "airflow.providers.standard.operators.bash": {"BashOperator": _Operator},
        "airflow.providers.standard.operators.python": {"PythonOperator": _Operator},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(members, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(_Dag, "made", [])
    dag = load("airflow_dag")
    ((name, settings),) = _Dag.made
    assert (name, settings["max_active_runs"]) == ("searchable_photos", 1)
    operator = dag.operator
    assert (operator.task_id, operator.after) == ("publish", ["recall_is_kept"])
    assert operator.settings["bash_command"] == dag.PUBLISH.line
