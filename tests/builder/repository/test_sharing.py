"""Versions of a model share one config, so that what stands in it must be the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.errors import RepositoryError
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.sharing import check_place
from cnclip_builder.repository.write import RepositoryEntry, add_version

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)


def test_archs_of_one_name_and_other_sizes(tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    """Fine-tunes of other shapes are named by their users."""
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("prod", 1, tiny_vit, tiny_artefacts, SERVING), repository)
    trained_otherwise = {**tiny_vit.model_info, "text_hidden_dropout_prob": 0.3, "vision_head_width": 64}
    check_place("prod", 2, replace(tiny_vit, model_info=trained_otherwise), SERVING, repository)
    for key, value in (("embed_dim", 64), ("text_num_attention_heads", 4), ("vision_head_width", 32)):
        other = replace(tiny_vit, model_info={**tiny_vit.model_info, key: value})
        with pytest.raises(RepositoryError, match=r"other sizes that is named tiny-vit too, .*under another name"):
            check_place("prod", 2, other, SERVING, repository)
        check_place("prod", 1, other, SERVING, repository)  # takes the place of the one that is there
