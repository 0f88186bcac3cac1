"""The commands and a server of encoders alone: all that encode can be told to prepare, and info needs not be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.commands import run_command_text


@pytest.fixture
def alone(serve: Any, fake: Any) -> Any:
    return serve(fake.image_encoder("vit-b-16", 32), fake.text_encoder("vit-b-16"))


def cnclip(server: Any, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("CNCLIP_")}
    env = {**given, "CNCLIP_URL": server.url, "CNCLIP_PREPARERS": "1", "NO_COLOR": "1", **environment}
    return run_command_text("cnclip", *arguments, env=env)


def test_every_command_that_encodes_can_be_told_to_prepare(alone: Any, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 30), (200, 0, 0)).save(picture)
    for command in (
        ["features", "images", picture, "--prepare", "client"],
        ["features", "texts", "我", "--prepare", "auto"],
        ["similarity", "--image", picture, "--text", "我", "--prepare", "client"],
        ["classify", picture, "--label", "猫", "--prepare", "client"],
    ):
        done = cnclip(alone, *command)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    sizes = {len(item) for items in alone.requests for item in items}
    assert sizes == {32 * 32 * 3, 40 * 4}


def test_info_needs_not_be_told(alone: Any) -> None:
    done = cnclip(alone, "info")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) > 1)
    assert (lines["model"].strip(), lines["text_lengths"].strip()) == ("vit-b-16", "40, 52")


def test_what_does_not_go_is_one_line(alone: Any, tmp_path: Path) -> None:
    refused = cnclip(alone, "features", "texts", "我")
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert 'have this machine prepare them (prepare="client", --prepare client)' in refused.stderr
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    wrong = cnclip(
        alone, "features", "texts", "我", CNCLIP_PREPARE="client", CNCLIP_VOCABULARY=str(tmp_path / "vocab.txt")
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "vocab.txt: is not the vocabulary that vit-b-16-text-encoder was built with" in wrong.stderr
