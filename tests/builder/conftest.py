"""Artefacts of a tiny checkpoint that the tests of TensorRT share."""

from __future__ import annotations

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.tensors import PRECISIONS, TOWERS


@pytest.fixture(scope="session")
def tiny_artefacts(tiny_vit: Arch, tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """Both encoders of a tiny ViT in both precisions."""
    root = tmp_path_factory.mktemp("tensorrt")
    return build_artefacts(
        tiny_vit, "random:0", root / "artefacts", towers=TOWERS, precisions=PRECISIONS, download_root=root
    )
