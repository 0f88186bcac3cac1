"""Zero-shot classification: cn_clip's arithmetic, every image answered in its order, and errors that say the way on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from cnclip_client import CheckpointMismatch, Client
from cnclip_client._cli._classify import _lines
from cnclip_client.classification import TEMPLATES, Classifier

from tests.commands import run_command, run_command_text

LABELS = ["猫", "狗", "“大”Horse", "鸟"]


@pytest.fixture
def client(triton: Any) -> Any:
    with Client(triton.url, model="vit-b-16") as connected:
        yield connected


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_definition(fake: Any, images: list[bytes], templates: list[str]) -> np.ndarray:
    """float64 [n_images, n_labels], the probabilities as cn_clip's zeroshot_evaluation.py has them."""
    weights = []
    for label in LABELS:
        prompts = [template.replace("{}", label).lower().replace("“", '"').replace("”", '"') for template in templates]
        weights.append(unit(unit(np.stack([fake.features_of(p.encode()) for p in prompts]).astype(float)).mean(axis=0)))
    features = unit(np.stack([fake.features_of(image) for image in images]).astype(float))
    powers = np.exp(100 * (features @ np.stack(weights).T))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("templates", [list(TEMPLATES), ["{}", "一张{}的{照片", "{}和{}"]])
def test_probabilities_are_those_of_cn_clips_steps(client: Client, fake: Any, templates: list[str]) -> None:
    images = [f"图{row}".encode() for row in range(20)]
    classifier = Classifier.of(client, LABELS, templates=templates)
    np.testing.assert_allclose(np.linalg.norm(classifier.features, axis=1), 1, rtol=1e-6)
    expected = by_definition(fake, images, templates)
    found = list(classifier.classify(client, iter(images), k=10))
    assert [one.index for one in found] == list(range(20))
    for one, chances in zip(found, expected, strict=True):
        order = np.argsort(-chances, kind="stable")
        assert list(one.labels) == [LABELS[label] for label in order]
        np.testing.assert_allclose(one.probabilities, chances[order], rtol=1e-3, atol=1e-6)
    top = list(classifier.classify(client, iter(images), k=2))
    assert [one.labels for one in top] == [one.labels[:2] for one in found]
    assert [one.probabilities.tolist() for one in top] == [one.probabilities[:2].tolist() for one in found]


def test_what_is_sent(client: Client, triton: Any) -> None:
    Classifier.of(client, ["“A”", "B{}"], templates=["{}的照片", "{}、{}"])
    assert [item.decode() for request in triton.requests for item in request] == [
        '"a"的照片',
        '"a"、"a"',
        "b{}的照片",
        "b{}、b{}",
    ]


def test_of_equal_labels_the_earlier_is_first(client: Client) -> None:
    classifier = Classifier.of(client, [*"ab", *"ab"])
    (found,) = classifier.classify(client, [b"x"], k=4)
    assert list(found.labels) in ([*"aabb"], [*"bbaa"])


def test_a_bad_image_costs_no_other(client: Client) -> None:
    classifier = Classifier.of(client, LABELS)
    found = list(classifier.classify(client, [b"1", b"BAD:torn", "/absent.jpg", b"2"], k=1))
    assert [bool(one.labels) for one in found] == [True, False, False, True]
    assert found[1].failure == "torn"
    assert "No such file" in found[2].failure
    assert len(found[1].probabilities) == 0


def test_it_says_what_cannot_be(client: Client, serve: Callable[..., Any], fake: Any) -> None:
    for labels, templates, message in [
        ([], ["{}"], "got 0 labels and 1 templates"),
        (["a"], [], "got 1 labels and 0 templates"),
        (["a"], ["{}", "照片"], "the template '照片' has no {} where the label goes"),
        (["a", "\ud800"], ["{}", "{}的照片"], r"the label '\\ud800' cannot be encoded: is not Unicode"),
    ]:
        with pytest.raises(ValueError, match=message):
            Classifier.of(client, labels, templates=templates)
    classifier = Classifier.of(client, LABELS)
    with pytest.raises(ValueError, match="k must be at least 1"):
        classifier.classify(client, [], k=0)
    with Client(serve(*fake.both("vit-b-16", sha="b" * 64)).url, model="vit-b-16") as other:
        with pytest.raises(CheckpointMismatch):
            classifier.classify(other, [])


def cnclip(url: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CNCLIP_URL": url, "COLUMNS": "200", "NO_COLOR": "1"}
    return run_command_text("cnclip", "classify", *arguments, env=environment)


def test_the_command(tmp_path: Path, triton: Any, client: Client) -> None:
    folder = tmp_path / "图片"
    (folder / "里面").mkdir(parents=True)
    names = ["b.JPG", "a.png", "里面/c.webp"]
    for name in names:
        (folder / name).write_bytes(name.encode())
    (folder / ".notes.txt").write_text("hidden")
    (tmp_path / "bad.jpg").write_bytes(b"BAD:torn")
    labels = tmp_path / "label_cn.txt"
    labels.write_text("\ufeff" + "\n".join(f" {label} " for label in LABELS) + "\n\n", encoding="utf-8")
    prompts = ["--template", "{}的照片", "--template", "{}"]
    done = cnclip(triton.url, folder, tmp_path / "bad.jpg", "--labels", labels, *prompts, "--top-k", 2)
    assert done.returncode == 1
    assert done.stderr == f"cnclip: {tmp_path}/bad.jpg: torn\n"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == [str(folder / name) for name in sorted(names)]
    expected = Classifier.of(client, LABELS, templates=["{}的照片", "{}"])
    for line, one in zip(lines, expected.classify(client, [line["image"] for line in lines], k=2), strict=True):
        assert line["labels"] == list(one.labels)
        assert np.array_equal(np.array(line["probabilities"], np.float32), one.probabilities)
    one_by_one = [option for label in LABELS for option in ("--label", label)]
    output = tmp_path / "found.jsonl"
    again = cnclip(triton.url, folder, *one_by_one, *prompts, "--top-k", 2, "-o", output)
    assert (again.returncode, again.stderr, again.stdout) == (0, "", "")
    assert output.read_text(encoding="utf-8") == done.stdout


def test_labels_in_another_charset_are_told(tmp_path: Path) -> None:
    (labels := tmp_path / "标签.txt").write_text("黑猫\n白狗\n", encoding="gbk")
    with pytest.raises(typer.BadParameter, match=r"标签\.txt is not UTF-8 \(GBK\?\); convert the file \(iconv"):
        _lines(labels, None, "--label")


def test_of_a_folder_it_sees_what_extract_sees(tmp_path: Path, triton: Any) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / ".DS_Store").write_bytes(b"hidden")
    (folder / "a.jpg").write_bytes(b"a")
    (folder / "more" / "b").write_bytes(b"without an ending")
    (folder / "notes.txt").write_bytes(b"BAD:cannot identify image file")
    (folder / "z.png").symlink_to("nowhere")
    output = tmp_path / "features.npy"
    assert run_command("cnclip", "extract", "images", folder, "-o", output, "--url", triton.url).returncode == 1
    extracted = [json.loads(line) for line in output.with_suffix(".ids.jsonl").read_text().splitlines()]
    failed = [json.loads(line) for line in Path(f"{output}.errors.jsonl").read_text().splitlines()]
    done = cnclip(triton.url, folder, "--label", "猫")
    assert done.returncode == 1
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [f"{folder}/{one}" for one in extracted]
    assert done.stderr.splitlines() == [f"cnclip: {folder}/{one['id']}: {one['reason']}" for one in failed]
    assert extracted == ["a.jpg", "more/b"]
    assert failed == [
        {"id": "notes.txt", "reason": "cannot identify image file"},
        {"id": "z.png", "reason": "is no file, or a broken link"},
    ]


def test_a_folder_of_parquet_names_its_ids(tmp_path: Path, triton: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "rows"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"image_id": [7, 9], "image": [b"a", b"BAD:torn"]}), folder / "0.parquet")
    done = cnclip(triton.url, folder, "--label", "猫")
    assert (done.returncode, done.stderr) == (1, "cnclip: 9: torn\n")
    assert json.loads(done.stdout)["image"] == 7


def test_a_label_ends_with_its_line(tmp_path: Path) -> None:
    (labels := tmp_path / "labels.txt").write_bytes("猫\u2028虎\r\n狗\x85狼\r\n\r\n".encode())
    assert _lines(labels, None, "--label") == ["猫\u2028虎", "狗\x85狼"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--label", "猫"], "name image files or folders"),
        (["a.jpg"], "name labels with --label"),
        (["a.jpg", "--label", "猫", "--labels", "LABELS"], "give --label or --labels, not both"),
        (["a.jpg", "--labels", "LABELS"], "line 2 is blank; fill or remove it"),
        (["a.jpg", "--label", "猫", "--template", "照片"], "has no {} where the label goes"),
        (["a.jpg", "--labels", "absent.txt"], "absent.txt"),
    ],
)
def test_wrong_usage(tmp_path: Path, triton: Any, arguments: list[str], complaint: str) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("猫\n\n狗\n", encoding="utf-8")
    done = cnclip(triton.url, *[str(labels) if one == "LABELS" else one for one in arguments])
    assert done.returncode == 2
    assert complaint in " ".join(done.stderr.replace("│", " ").split())
