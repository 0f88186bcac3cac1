"""What the Python models log of the items they refuse."""

from __future__ import annotations

import json

from cnclip_templates.cnclip_refusal_log import RefusalLog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_tells_which_and_why_and_no_content() -> None:
    lines: list[str] = []
    RefusalLog("m-image-preprocess", lines.append).refused([b"good", b"secret"], {1: "no image"}, "job-7")
    assert json.loads(lines[0]) == {
        "event": "refused",
        "model": "m-image-preprocess",
        "request": "job-7",
        "row": 1,
        "bytes": 6,
        "sha256": "2bb80d537b1da3e3",
        "reason": "no image",
        "left_out_before": 0,
    }
    assert "secret" not in lines[0]


def test_a_flood_is_cut_off_and_counted() -> None:
    lines: list[str] = []
    clock = Clock()
    log = RefusalLog("m", lines.append, clock)
    for _ in range(1000):
        log.refused([b"x"], {0: "bad"}, "")
    assert len(lines) == 100
    clock.now = 0.5
    for _ in range(1000):
        log.refused([b"x"], {0: "bad"}, "")
    assert len(lines) == 105
    assert json.loads(lines[100])["left_out_before"] == 900
    clock.now = 3600
    for _ in range(1000):
        log.refused([b"x"], {0: "bad"}, "")
    assert len(lines) == 205
    assert json.loads(lines[105])["left_out_before"] == 995


def test_a_reason_cannot_forge_a_line() -> None:
    lines: list[str] = []
    RefusalLog("m", lines.append).refused([b"x"], {0: 'bad"}\n{"event": "forged'}, "a\nb")
    assert "\n" not in lines[0]


def test_a_line_has_an_end_whatever_a_client_calls_its_request() -> None:
    lines: list[str] = []
    RefusalLog("m", lines.append).refused([b"x"], {0: "\0" * 100_000}, "\0" * 100_000)
    assert len(lines[0]) < 13_000
    assert json.loads(lines[0])["request"] == "\0" * 1000


def test_texts_that_are_cut_have_lines_of_their_own() -> None:
    lines: list[str] = []
    clock = Clock()
    log = RefusalLog("m-text-tokenize", lines.append, clock, lines_a_second=0.1)
    log.cut([b"short", b"secret"], [1], "job-7", 52)
    line = json.loads(lines[0])
    assert (line["event"], line["row"], line["bytes"], line["context_length"]) == ("cut", 1, 6, 52)
    assert "secret" not in lines[0]
    for _ in range(1000):
        log.cut([b"x"], [0], "", 52)
    assert len(lines) == 100
    clock.now = 20
    for _ in range(1000):
        log.cut([b"x"], [0], "", 52)
    assert len(lines) == 102
