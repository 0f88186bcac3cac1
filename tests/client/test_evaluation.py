"""Recall is what cn_clip's own scripts say, run as they are on the same files."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import BadFile
from cnclip_client.evaluation import Prediction, annotated, read_annotations, read_predictions, recall
from cnclip_client.report import image_ids
from cnclip_client.retrieval import Features, Gallery, read_features, search

from tests.commands import run_command_text, run_script

# The scripts move tensors to a GPU; on a machine without one they stay where they are.
_RUN_SCRIPTS = """
import json, runpy, sys, torch
torch.Tensor.cuda = lambda self: self
for argv in json.loads(sys.argv[1]):
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
"""


def cn_clip(*commands: tuple[object, ...]) -> None:
    """Runs cn_clip's scripts one after the other, in a process that has torch."""
    import cn_clip.eval

    folder = Path(next(iter(cn_clip.eval.__path__)))
    given = [[str(folder / f"{script}.py"), *map(str, arguments)] for script, *arguments in commands]
    done = run_script(_RUN_SCRIPTS, json.dumps(given), name="torch")
    assert done.returncode == 0, done.stderr.decode()


def cnclip(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = run_command_text("cnclip", *arguments)
    assert done.returncode == status, done.stderr
    return done


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def make_set(folder: Path, seed: int) -> tuple[Path, Path, Path]:
    """A set as they come: several right images for a text, several texts for an image, some with none, noise."""
    rng, order = np.random.default_rng(seed), random.Random(seed)
    images = rng.standard_normal((60, 16)).astype(np.float32)
    texts, annotations = [], []
    for text in range(90):
        right = order.sample(range(60), order.choice([0, 1, 1, 1, 2, 3])) if text >= 5 else [text]
        texts.append(images[right].sum(axis=0) + rng.standard_normal(16).astype(np.float32) * 1.5)
        annotations.append({"text_id": 5000 + text, "text": f"第{text}句", "image_ids": [image * 7 for image in right]})
    unannotated = annotations.pop()
    assert unannotated["text_id"] == 5089
    annotations.append({**annotations[9], "image_ids": [7]})  # a text that comes twice: the last one counts

    def unit(feature: np.ndarray) -> list[float]:
        return (feature / np.linalg.norm(feature)).tolist()

    return (
        write(folder / "imgs.jsonl", [{"image_id": row * 7, "feature": unit(one)} for row, one in enumerate(images)]),
        write(folder / "txts.jsonl", [{"text_id": 5000 + row, "feature": unit(one)} for row, one in enumerate(texts)]),
        write(folder / "texts.jsonl", annotations),
    )


@pytest.mark.parametrize("seed", range(3))
def test_predictions_and_recall_are_those_of_cn_clips_scripts(tmp_path: Path, seed: int) -> None:
    images, texts, annotations = make_set(tmp_path, seed)
    sides = ("--image-feats", images, "--text-feats", texts)
    truths = {"": annotations, "_tr": annotations.with_suffix(".tr.jsonl")}
    options = ("--top-k", 10, "--eval-batch-size", 17, "--output")
    commands: list[tuple[object, ...]] = [("transform_ir_annotation_to_tr", "--input", annotations)]
    for ending, truth in truths.items():
        theirs, score = tmp_path / f"theirs{ending}.jsonl", tmp_path / f"score{ending}.json"
        commands.append((f"make_topk_predictions{ending}", *sides, *options, theirs))
        commands.append((f"evaluation{ending}", truth, theirs, score))
    cn_clip(*commands)
    expected = {}
    for ending, direction in [("", "text_to_image"), ("_tr", "image_to_text")]:
        cnclip("search", *sides, f"--{direction.replace('_', '-')}", "--output", tmp_path / "ours.jsonl")
        assert (tmp_path / "ours.jsonl").read_text() == (tmp_path / f"theirs{ending}.jsonl").read_text()
        result = json.loads((tmp_path / f"score{ending}.json").read_text())
        assert result["success"], result
        expected[direction] = {name: result["scoreJson"][name] for name in ("r1", "r5", "r10", "mean_recall")}
    assert 0 < expected["text_to_image"]["r1"] < expected["image_to_text"]["r10"] < 100
    predictions = ("--text-to-image", tmp_path / "theirs.jsonl", "--image-to-text", tmp_path / "theirs_tr.jsonl")
    for given in (sides, predictions):
        found = json.loads(cnclip("evaluate", "--annotations", annotations, *given, "--json").stdout)
        assert {one: {name: found[one][name] for name in expected[one]} for one in found} == expected
        assert found["text_to_image"]["queries"] == 89


def test_the_table(tmp_path: Path) -> None:
    images, texts, annotations = make_set(tmp_path, 0)
    shown = cnclip("evaluate", "--annotations", annotations, "--image-feats", images, "--text-feats", texts).stdout
    header, *rows = shown.splitlines()
    assert header.split() == ["recall", "in", "%", "R@1", "R@5", "R@10", "mean", "recall", "queries"]
    assert [row.split()[0] for row in rows] == ["text-to-image", "image-to-text"]
    assert rows[0].split()[-1] == "89"


def test_counting() -> None:
    answers = {1: {"a"}, 2: {"b", "z"}, 3: set(), 4: {"d"}}
    twelve = tuple("abcdefghijkl")
    found = [Prediction(1, twelve), Prediction(9, twelve), Prediction(2, twelve[::-1]), Prediction(3, twelve)]
    figures = recall([*found, Prediction(4, ("x",)), Prediction(4, twelve)], answers)
    assert (figures.r1, figures.r5, figures.r10) == (0.25, 0.5, 0.5)
    assert figures.mean_recall == pytest.approx(1.25 / 3)
    with pytest.raises(ValueError, match=r"1 of 4 annotated queries were not searched \(4\); .* --missing-as-misses"):
        recall(found, answers)
    assert recall(found, answers, missing="miss").missing == 1
    with pytest.raises(ValueError, match=r"7 of 7 .*\(217153, 498374, 481009, 404889, 375521, \.\.\.\)"):
        recall([], {key: {"a"} for key in (217153, 498374, 481009, 404889, 375521, 266680, 188390)})
    with pytest.raises(ValueError, match="no query is annotated"):
        recall(found, {})


def test_an_integer_and_its_digits_are_one_id(tmp_path: Path) -> None:
    """Parquet has the one for the other where some ids are no integers, and so have TSVs."""
    answers = {7: {1, "007"}, "8": {"2"}}
    found = [Prediction("7", ("3", "1")), Prediction(8, (2,)), Prediction("007", ("1",))]
    assert recall(found, answers).r5 == 1
    held = np.array(["7", 8, "007", "x"], dtype=object)
    (block,) = annotated([Features(held, np.eye(4, dtype=np.float32))], answers)
    assert block.ids.tolist() == ["7", 8]
    images = [{"image_id": one, "feature": [1.0, 0.0]} for one in (7, "007")]
    texts = [{"text_id": 1, "feature": [1.0, 0.0]}]
    read = {kind: write(tmp_path / f"{kind}.jsonl", lines) for kind, lines in (("images", images), ("texts", texts))}
    right = read_annotations(write(tmp_path / "right.jsonl", [{"text_id": 1, "text": "猫", "image_ids": [7]}]))
    (block,) = read_features(read["images"], "image")
    as_parquet = Features(np.array(list(map(str, block.ids)), dtype=object), block.features)
    with Gallery([as_parquet]) as gallery:
        hits = list(search(read_features(read["texts"], "text"), gallery))
    assert recall(hits, right.images_of_text).r1 == 1
    assert image_ids(hits, "text-to-image", right) == {"7", "007"}


def test_queries_that_were_not_searched_are_an_error_or_a_miss(tmp_path: Path) -> None:
    images, texts, annotations = make_set(tmp_path, 1)
    lines = texts.read_text().splitlines(keepends=True)
    texts.write_text("".join(lines[2:]))
    given = ("evaluate", "--annotations", annotations, "--image-feats", images, "--text-feats", texts)
    refused = " ".join(cnclip(*given, status=2).stderr.replace("│", " ").split())
    assert "2 of 89 annotated queries were not searched (5000, 5001); extract them too" in refused
    done = cnclip(*given, "--missing-as-misses", "--json")
    assert "text-to-image: 2 of 89 queries were not searched: misses" in done.stderr
    assert json.loads(done.stdout)["text_to_image"]["missing"] == 2


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (read_annotations, "{", "line 1 is no JSON .*; mend or remove it"),
        (read_annotations, "[1]", "line 1 is no JSON object"),
        (read_annotations, '{"image_id": 1, "text_ids": [2]}', "line 1 is an image .* give the texts' own file"),
        (read_annotations, '{"image_ids": [1]}', "line 1 has no text_id among image_ids"),
        (read_annotations, '{"text_id": true, "image_ids": [1]}', "line 1: text_id is True"),
        (read_annotations, '{"text_id": 1, "image_ids": 1}', "line 1: image_ids is 1"),
        (read_annotations, '{"text_id": 1, "image_ids": [1.5]}', "line 1: image_ids holds 1.5"),
        (read_annotations, '{"text_id": 1, "image_ids": []}', "no text in it has an image"),
        (read_annotations, "", "no text in it has an image"),
        (lambda path: list(read_predictions(path, "text-to-image")), '{"text_id": 1, "image_ids": [1]}', "1 different"),
        (
            lambda path: list(read_predictions(path, "image-to-text")),
            json.dumps({"image_id": 1, "text_ids": [*range(10), 3]}),
            "line 1 has 10 different texts; R@10 needs 10, each once",
        ),
        (
            lambda path: list(read_predictions(path, "image-to-text")),
            json.dumps({"text_id": 1, "image_ids": [*range(10)]}),
            "line 1 has no image_id among text_id, image_ids",
        ),
    ],
)
def test_files_that_are_not_as_they_should_be(
    tmp_path: Path, read: Callable[[Path], object], line: str, message: str
) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text(line)
    with pytest.raises(BadFile, match=f"^{path}: .*{message}"):
        read(path)


def test_annotations_of_a_windows_editor(tmp_path: Path) -> None:
    """A byte order mark, CRLF and a blank line at the end are none of its lines; another charset is told."""
    (path := tmp_path / "a.jsonl").write_text(
        '\ufeff{"text_id": 1, "text": "黑猫", "image_ids": ["图一"]}\r\n\r\n', encoding="utf-8", newline=""
    )
    assert read_annotations(path).texts == {1: "黑猫"}
    path.write_text('{"text_id": 1, "text": "黑猫", "image_ids": ["图一"]}\n', encoding="gbk")
    with pytest.raises(BadFile, match=r"line 1 is not UTF-8 \(GBK\?\); convert the file \(iconv -f GB18030"):
        read_annotations(path)


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("--image-feats", "a.npy"),
        ("--image-feats", "a.npy", "--text-feats", "b.npy", "--text-to-image", "c.jsonl"),
    ],
)
def test_evaluate_needs_features_or_predictions(given: tuple[str, ...]) -> None:
    done = cnclip("evaluate", "--annotations", "x.jsonl", *given, status=2)
    assert "--image-feats and --text-feats" in done.stderr
