"""What the command prints of names: data that means what it meant, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from cnclip_client._cli import _render as render
from cnclip_client._cli._classify import _line
from cnclip_client.classification import Classification

CHANCES = np.array([[0.25, 0.75]], np.float32)
ODD = ("a\x1b]0;owned\x07.jpg", "b\x9b31m.jpg", "c\x7f", "d\u202egpj.exe", "e\u2028f", "half \ud83d", "皮卡丘 é 👩‍👧")


@pytest.mark.parametrize("name", ODD)
def test_names_come_back_from_json_and_drive_no_terminal(name: str) -> None:
    classified = Classification(0, (name,), np.array([0.5], np.float32))
    lines = [
        _line(name, classified).encode("utf-8", "surrogateescape"),
        render.feature_line("image", name, np.zeros(2, np.float32)),
        render.similarity_json("m", [name], [name, "b"], CHANCES),
    ]
    for line in lines:
        text = line.decode()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
        found = json.loads(text)
        assert name in (found.get("image"), *found.get("images", ()))
    assert ("皮" in name) == all("皮" in line.decode() for line in lines)


def test_a_path_that_is_no_utf8_keeps_its_bytes() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert b"caf\xe9.jpg" in render.feature_line("image", name, np.zeros(2, np.float32))
    assert b"caf\xe9.jpg\t" in render.similarity_tsv([name], ["a", "b"], CHANCES)


def test_names_in_tsv() -> None:
    made = render.similarity_tsv(["a\x1b[1m\tb\\\n"], ["一", "\x9b"], CHANCES).decode()
    assert made == "image\t一\t\\x9b\na\\x1b[1m\\tb\\\\\\n\t0.25\t0.75\n"
