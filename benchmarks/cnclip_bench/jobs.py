"""What a batch job's source costs: `cnclip extract` of each kind of source beside the same items from memory."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from cnclip_bench.stats import in_turns

__all__ = ["MEMORY_WAYS", "RATE_WAYS", "local_s3", "moto_server", "peaks", "rates", "write_sources"]

RATE_WAYS = ("folder", "glob", "list", "tar", "tar.gz", "tsv", "parquet", "lmdb", "s3 tar", "s3 parquet", "s3 folder")
MEMORY_WAYS = ("folder", "glob", "list", "tar", "tsv", "parquet", "lmdb")
_TAR_SAMPLES = 1000
_COMMAND = "from cnclip_console.start.client import main; main()"


def write_sources(folder: Path, images: Sequence[bytes], items: int, ways: Sequence[str]) -> dict[str, str]:
    """Writes so many items in each format, the images over and over; returns what `cnclip extract` is told of each.

    Raises:
        ModuleNotFoundError: pyarrow is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(zip((f"{row:09d}" for row in range(items)), cycle(images), strict=False))
    local = {way.removeprefix("s3 ") for way in ways}
    made: dict[str, str] = {}
    if local & {"folder", "glob", "list"}:
        _photos(folder / "photos", rows)
        (folder / "list.txt").write_text("".join(f"{_photo(folder / 'photos', key)}\n" for key, _ in rows))
        made |= {"folder": str(folder / "photos"), "glob": f"{folder}/photos/*/*.jpg", "list": str(folder / "list.txt")}
    for way, mode in {"tar": "w", "tar.gz": "w:gz"}.items():
        if way in local:
            _tars(folder / way, rows, mode)
            made[way] = str(folder / way)
    if "tsv" in local:
        with (folder / "images.tsv").open("wb") as file:
            file.writelines(b"%b\t%b\n" % (key.encode(), base64.b64encode(data)) for key, data in rows)
        made["tsv"] = str(folder / "images.tsv")
    if "parquet" in local:
        _parquet(folder / "images.parquet", rows)
        made["parquet"] = str(folder / "images.parquet")
    if "lmdb" in local and _lmdb(folder / "lmdb", rows):
        made["lmdb"] = str(folder / "lmdb")
    return {way: made[way] for way in made if way in ways or f"s3 {way}" in ways}


def _photo(folder: Path, key: str) -> Path:
    return folder / key[:6] / f"{key}.jpg"  # a thousand in a folder, as who has many keeps them


def _photos(folder: Path, rows: Sequence[tuple[str, bytes]]) -> None:
    for key, data in rows:
        path = _photo(folder, key)
        if key.endswith("000"):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _tars(folder: Path, rows: Sequence[tuple[str, bytes]], mode: str) -> None:
    """Writes tars as img2dataset does, with a text and a table beside each image."""
    folder.mkdir()
    for begin in range(0, len(rows), _TAR_SAMPLES):
        ending = "tar.gz" if mode.endswith("gz") else "tar"
        with tarfile.open(folder / f"{begin // _TAR_SAMPLES:05d}.{ending}", mode) as archive:  # type: ignore[call-overload]
            for key, data in rows[begin : begin + _TAR_SAMPLES]:
                told = {"key": key, "caption": f"图片{key}", "status": "success"}
                for name, part in (("jpg", data), ("json", json.dumps(told).encode()), ("txt", f"图片{key}".encode())):
                    member = tarfile.TarInfo(f"{key}.{name}")
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))


def _parquet(path: Path, rows: Sequence[tuple[str, bytes]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("key", pa.string()), ("jpg", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for begin in range(0, len(rows), 1000):
            some = rows[begin : begin + 1000]
            writer.write_table(pa.table({"key": [key for key, _ in some], "jpg": [data for _, data in some]}, schema))


def _lmdb(folder: Path, rows: Sequence[tuple[str, bytes]]) -> bool:
    """Writes cn_clip's LMDB; tells whether there is the library to write one with."""
    try:
        import lmdb
    except ModuleNotFoundError:
        return False
    folder.mkdir()
    size = sum(2 * len(data) + 16384 for _, data in rows[:1000]) * (len(rows) // min(len(rows), 1000) + 1)
    with lmdb.open(str(folder / "imgs"), map_size=size + 2**26) as made:
        for begin in range(0, len(rows), 10_000):
            with made.begin(write=True) as transaction:
                for key, data in rows[begin : begin + 10_000]:
                    transaction.put(key.encode(), base64.urlsafe_b64encode(data))
                transaction.put(b"num_images", str(len(rows)).encode())
    return True


@contextmanager
def local_s3(folder: Path, sources: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Serves sources from moto's S3 on this machine, and gives their addresses; none where moto or s3fs is missing."""
    try:
        import moto  # noqa: F401
        import s3fs
    except ModuleNotFoundError:
        yield {}
        return
    named = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"}
    with moto_server(folder / "s3.log") as url, mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": url, **named}):
        bucket = f"jobs-{uuid.uuid4()}"
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.mkdir(bucket)
        there = {}
        for way, path in sources.items():
            store.put(path, f"{bucket}/{Path(path).name}", recursive=Path(path).is_dir())
            there[f"s3 {way}"] = f"s3://{bucket}/{Path(path).name}"
        yield there


@contextmanager
def moto_server(log: Path) -> Iterator[str]:
    """Runs moto's S3 on a free port of this machine, and gives its address.

    Raises:
        ValueError: It does not start.
    """
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + 60
        while "Running on " not in log.read_text():
            if server.poll() is not None or time.monotonic() > until:
                raise ValueError(f"the local S3 does not start: {log.read_text()[-300:]}")
            time.sleep(0.1)
        yield log.read_text().split("Running on ")[1].split()[0]
    finally:
        server.kill()
        server.wait()


def rates(
    url: str, sources: Mapping[str, str], images: Sequence[bytes], items: int, rounds: int, folder: Path
) -> dict[str, list[float]]:
    """Returns the items a second of each way's rounds, those of `memory` among them, all in turns.

    Each is a process of its own: the command, or for the items in memory a few lines of Python that call what the
    command does. What counts is the job's own time, from its first item to its last, and not how Python begins.

    Raises:
        ValueError: A job did not come to its end.
    """
    kept = folder / "memory"
    kept.mkdir()
    for number, image in enumerate(images):
        (kept / f"{number:09d}").write_bytes(image)

    def rate(way: str) -> float:
        with TemporaryDirectory(dir=folder) as out:
            if way == "memory":
                command = ["-m", "cnclip_bench.jobs_child", "rate", url, str(kept), str(items), f"{out}/features.npy"]
            else:
                command = ["-c", _COMMAND, "extract", "images", sources[way], "-o", f"{out}/features.npy"]
            _run([sys.executable, *command], {"CNCLIP_URL": url})
            job = json.loads(Path(out, "features.npy.job.json").read_text())
        if (job["items"], job["failures"]) != (items, 0):
            raise ValueError(f"{way}: {job['items']} items, {job['failures']} failures, and not all of {items}")
        return float(items / job["seconds"])

    ways = {way: partial(rate, way) for way in ("memory", *sources)}
    in_turns(ways, 1)  # to warm the server and the disk
    return in_turns(ways, rounds)


def peaks(sources: Mapping[str, str], folder: Path) -> dict[str, float]:
    """Returns the peak resident memory, in MiB, of a whole job on each source, with a server that answers at once."""
    found = {}
    for way, source in sources.items():
        with TemporaryDirectory(dir=folder) as out:
            child = [sys.executable, "-m", "cnclip_bench.jobs_child", "peak", source, f"{out}/features.npy"]
            found[way] = float(_run(child, {}).split()[-1])
    return found


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise ValueError(f"{' '.join(command[3:])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
