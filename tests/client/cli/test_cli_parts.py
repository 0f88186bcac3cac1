"""`cnclip extract -o FOLDER/` and what reads such a folder, as a user meets them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cnclip_client._cli._destination import destination_of
from cnclip_client._cli._progress import job_progress

from tests.commands import run_command_text


def cnclip(*arguments: object, url: str = "", status: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """Runs the command and returns its stdout and stderr."""
    environment = {**os.environ, "CNCLIP_URL": url or "nobody:1", "COLUMNS": "200", "NO_COLOR": "1"}
    done = run_command_text("cnclip", *arguments, env=environment, cwd=cwd)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"第{row}句\n" for row in range(1, 201)), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Pictures whose features are those of the texts, as a fake server makes them of the bytes alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    for row in range(1, 31):
        (folder / f"{row}.jpg").write_bytes(f"第{row}句".encode())
    return folder


def test_a_folder_of_parts_is_written_and_searched(tmp_path: Path, triton: Any, texts: Path, images: Path) -> None:
    given = ("extract", "texts", texts, "-o", f"{tmp_path}/texts/", "--shard-items", 60)
    _, said = cnclip(*given, url=triton.url)
    assert said.startswith("cnclip: 200 items in 4 parts, 0 failures, ")
    assert said.count("\n") == 1
    _, said = cnclip(*given, url=triton.url)
    assert "was finished before: 200 items in 4 parts" in said
    for shard in ("1/2", "0/2"):
        cnclip(
            "extract",
            "images",
            images,
            "-o",
            tmp_path / "images.d/",
            "--shard-items",
            7,
            "--shard",
            shard,
            url=triton.url,
            status=2,
        )
        more = ("--shard-items", 7, "--shard", shard, "--output-format", "npy")
        cnclip("extract", "images", images, "-o", f"{tmp_path}/imgs/", *more, url=triton.url)
    sides = ("--image-feats", tmp_path / "imgs", "--text-feats", tmp_path / "texts")
    found, said = cnclip("search", *sides, "--top-k", 1)
    assert said == ""
    hits = {line["text_id"]: line["image_ids"][0] for line in map(json.loads, found.splitlines())}
    assert all(hits[row] == f"{row}.jpg" for row in range(1, 31))
    lines = [json.dumps({"text_id": row, "text": "", "image_ids": [f"{row}.jpg"]}) for row in range(1, 31)]
    (tmp_path / "right.jsonl").write_text("\n".join(lines))
    found, _ = cnclip("evaluate", *sides, "--annotations", tmp_path / "right.jsonl", "--json")
    assert json.loads(found)["text_to_image"]["mean_recall"] == 100
    # One file is what it was, and its metadata tell what made it.
    cnclip("extract", "texts", texts, "-o", tmp_path / "one.parquet", url=triton.url)
    known = json.loads(pq.read_metadata(tmp_path / "one.parquet").metadata[b"cnclip"])
    assert (known["checkpoint_sha256"], known["kind"]) == ("a" * 64, "text")
    assert known == json.loads(pq.read_metadata(tmp_path / "texts" / "part-00003.parquet").metadata[b"cnclip"])


@pytest.mark.parametrize("format", ["parquet", "npy", "jsonl"])
def test_features_of_two_checkpoints_are_refused(
    tmp_path: Path, serve: Any, fake: Any, texts: Path, images: Path, format: str
) -> None:
    first, second = serve(*fake.both("vit-b-16")), serve(*fake.both("other", sha="b" * 64))
    cnclip("extract", "texts", texts, "-o", tmp_path / f"texts.{format}", url=first.url)
    cnclip("extract", "images", images, "-o", tmp_path / f"imgs.{format}", url=first.url)
    given = ("extract", "images", images, "-o", f"{tmp_path}/imgs/", "--output-format", format, "--shard-items", 20)
    cnclip(*given, url=second.url)
    (tmp_path / "right.jsonl").write_text('{"text_id": 1, "text": "", "image_ids": ["1.jpg"]}\n')
    asked = ("--text-feats", tmp_path / f"texts.{format}", "--image-feats")
    for command in (("search",), ("evaluate", "--annotations", tmp_path / "right.jsonl")):
        assert cnclip(*command, *asked, tmp_path / f"imgs.{format}")[1] == ""
        _, said = cnclip(*command, *asked, tmp_path / "imgs", status=2)
        assert f"are of checkpoint {'a' * 12} (vit-b-16)" in said or f"of checkpoint {'b' * 12} (other)" in said
        assert "they cannot be compared; extract both with one checkpoint" in said
    if format != "parquet":  # which says it by itself
        (tmp_path / f"imgs.{format}.job.json").unlink()
        _, said = cnclip("search", *asked, tmp_path / f"imgs.{format}")
        assert said.startswith("cnclip: no telling which checkpoint the features of ")
    else:
        # Somebody put two jobs' files into one folder.
        (tmp_path / "mixed").mkdir()
        for number, name in enumerate((tmp_path / "imgs.parquet", tmp_path / "imgs" / "part-00000.parquet")):
            (tmp_path / "mixed" / f"{number}.parquet").write_bytes(name.read_bytes())
        _, said = cnclip("search", *asked, tmp_path / "mixed", status=2)
        assert "they cannot be compared" in said


def test_a_job_that_has_not_come_to_its_end_is_not_searched(tmp_path: Path, triton: Any, texts: Path) -> None:
    given = ("extract", "texts", texts, "-o", f"{tmp_path}/out/", "--shard-items", 50, "--shard")
    cnclip(*given, "0/2", url=triton.url)
    sides = ("--image-feats", tmp_path / "out", "--text-feats", tmp_path / "out")
    _, said = cnclip("search", *sides, status=2)
    assert "part-00001.parquet is not whole yet; run the same command again" in said
    _, said = cnclip(*given, "1/3", url=triton.url)
    assert "out/ was shared out among 2 jobs, and is among 3 now" in said
    _, said = cnclip(*given, "2/3", url=triton.url)
    assert "was finished before: 50 items in 1 part," in said
    cnclip(*given, "0/3", url=triton.url)
    assert len(pq.read_table(tmp_path / "out" / "part-00003.parquet")) == 50


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("a.parquet", {"shard": "0/2"}, "--shard are for a folder of parts; end --output a.parquet in /"),
        ("a", {"shard_items": 5, "format": "npy"}, "--shard-items and --output-format are for a folder of parts"),
        ("a/", {"shard": "2/2"}, "give I/N, I from 0 to N - 1"),
        ("a/", {"shard": "x"}, "give I/N, I from 0 to N - 1"),
        ("a/", {"work": Path("w")}, "--work is for an output in an object store"),
        ("s3://bucket/a.parquet", {}, "takes a folder of parts; end it in /"),
    ],
)
def test_what_is_said_of_the_output_must_go_together(output: str, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"shard_items": None, "shard": None, "format": None, "work": None, **options}
    with pytest.raises(ValueError, match=message):
        destination_of(output, **given)


def test_a_folder_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there.npy").mkdir()
    for output, folder in {
        "a/": True,
        "a.npy/": True,
        "there": True,
        "s3://bucket/a": True,
        "there.npy": False,
        "a.npy": False,
        "a": False,
    }.items():
        assert (destination_of(output, None, None, None, None).sharding is not None) == folder, output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", ""), "--output is empty; name a file, or a folder with a / behind it"),
        (("-o", "a"), "a ends in none of .jsonl, .parquet and .npy; choose one, or end it in / for a folder of parts"),
        (("-o", "a/", "--output-format", "jsonl", "--dtype", "float16"), "JSON has no float16"),
        (("-o", "a/", "--repeated-ids", "first"), "leave out --repeated-ids, or write one file"),
        (("-o", "texts.txt/"), "is a file, and the parts need a folder"),
    ],
)
def test_wrong_usage(tmp_path: Path, triton: Any, texts: Path, arguments: tuple[str, ...], message: str) -> None:
    _, said = cnclip("extract", "texts", "texts.txt", *arguments, url=triton.url, status=2, cwd=tmp_path)
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


# --- How far it is, without a terminal.


def test_a_line_now_and_then(tmp_path: Path, triton: Any, texts: Path) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.2)
    given = ("extract", "texts", texts, "-o", tmp_path / "out.npy", "--batch-size", 2, "--progress-every")
    _, said = cnclip(*given, 0.1, url=triton.url)
    *lines, last = said.splitlines()
    assert last.startswith("cnclip: 200 items, 0 failures, ")
    assert lines
    assert any(" of 200 done, 0 failed, " in line and " items/s, " in line and line.endswith(" left") for line in lines)
    # A short job says nothing before its end.
    _, said = cnclip("extract", "texts", texts, "-o", tmp_path / "two.npy", url=triton.url)
    assert said.count("\n") == 1


def test_the_rate_of_a_job_counts_its_first_block_and_not_what_earlier_runs_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for earlier in (0, 10**12):
        began = time.monotonic()
        with job_progress("json", 60.0, lambda: None) as report:
            report(earlier, 0)
            time.sleep(0.01)
            report(earlier + 500, 0)
        line = json.loads(capsys.readouterr().err)
        assert 500 / (time.monotonic() - began) <= line["items_per_second"] + 0.1 <= 500 / 0.01 + 0.1


def test_json_lines_for_machines(tmp_path: Path, triton: Any, texts: Path) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.1)
    given = ("extract", "texts", texts, "-o", f"{tmp_path}/out/", "--shard-items", 30, "--progress", "json")
    _, said = cnclip(*given, "--shard", "1/2", "--progress-every", 0.1, "--batch-size", 2, url=triton.url)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert lines[-1]["finished"]
    assert (lines[-1]["done"], lines[-1]["failed"]) == (90, 0)
    assert lines[-1]["items_per_second"] > 0
    assert lines[-1]["total"] in (90, None)
    assert any(line["total"] == 90 for line in lines), "of its own parts, not of all"
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert not any(line["finished"] for line in lines[:-1])
    _, said = cnclip(*given, "--shard", "0/2", "--max-errors", 0, "--progress", "none", url=triton.url)
    assert said.count("\n") == 1
    stopped = tmp_path / "bad.txt"
    stopped.write_text("BAD:torn\n")
    more = ("--progress", "json", "--max-errors", 0)
    _, said = cnclip(
        "extract", "texts", stopped, "--no-preprocess", "-o", f"{tmp_path}/bad/", *more, url=triton.url, status=4
    )
    line = json.loads(said.splitlines()[0])
    assert (line["done"], line["failed"], line["finished"]) == (1, 1, False)


# --- A page that shows what was asked.


@pytest.mark.parametrize("format", ["jsonl", "lines", "parquet"])
def test_the_page_shows_the_texts_of_any_source(tmp_path: Path, triton: Any, images: Path, format: str) -> None:
    import pyarrow as pa

    words = {row: f"第{row}句" for row in range(1, 41)}
    source = tmp_path / {"jsonl": "t.jsonl", "lines": "t.txt", "parquet": "t.parquet"}[format]
    if format == "parquet":
        pq.write_table(pa.table({"text_id": list(words), "text": list(words.values())}), source)
    elif format == "lines":
        source.write_text("\n".join(words.values()) + "\n", encoding="utf-8")
    else:
        lines = (json.dumps({"text_id": one, "text": text}) for one, text in words.items())
        source.write_text("\n".join(lines), encoding="utf-8")
    cnclip("extract", "texts", source, "-o", f"{tmp_path}/texts/", url=triton.url)
    cnclip("extract", "images", images, "-o", f"{tmp_path}/imgs/", url=triton.url)
    given = ("search", "--image-feats", tmp_path / "imgs", "--text-feats", tmp_path / "texts", "--texts", source)
    _, said = cnclip(*given, status=2)
    assert "--images, --texts and --annotations are for the page" in said
    page = tmp_path / "page.html"
    cnclip(*given, "--html", page, "--html-queries", 3)
    shown = page.read_text(encoding="utf-8")
    assert [text for text in words.values() if text in shown] == ["第1句", "第2句", "第3句"]
    cnclip(*given, "--html", page, "--html-queries", 1, "--image-to-text", "--top-k", 4)
    shown = page.read_text(encoding="utf-8")
    assert len([text for text in words.values() if text in shown]) == 4
