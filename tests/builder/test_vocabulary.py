"""A text encoder with its own tokens: checked against its embedding, and carried to all that reads or writes ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cn_clip.clip import bert_tokenizer, tokenize
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import Arch, cn_clip_vocabulary, get_arch, official_archs
from cnclip_builder.artefacts.maker import build_artefacts
from cnclip_builder.artefacts.store import ArtefactStore
from cnclip_builder.checkpoint.stage import open_checkpoint
from cnclip_builder.errors import BuildError, RepositoryError, SettingError
from cnclip_builder.int8.calibration import calibration_inputs
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.parity.samples import sample_texts
from cnclip_builder.prepared import tokenize_as_cn_clip
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.write import add_version
from cnclip_builder.tensors import TOWERS
from cnclip_token_ids import TokenIds

from tests.builder.damaged import complaint_of, cut, require_one_line_about, turned
from tests.conftest import TINY_VIT

SERVING = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)


def tokens() -> list[str]:
    """Of cn_clip's, every third, in another order: ids that mean something else."""
    whole = cn_clip_vocabulary().read_text(encoding="utf-8").splitlines()
    special = ["[PAD]", "[MASK]", "[SEP]", "[UNK]", "[CLS]"]
    return [*special, *(token for token in reversed(whole[670::3]) if token not in special)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "mine.txt"
    path.write_text("\n".join(tokens()) + "\n", encoding="utf-8")
    return path


def arch_of(folder: Path, rows: int, vocabulary: Path | None, name: str = "own") -> Arch:
    (folder / f"{name}.json").write_text(json.dumps({**TINY_VIT, "vocab_size": rows}))
    return get_arch(str(folder / f"{name}.json"), vocabulary)


@pytest.fixture(scope="module")
def own(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Arch:
    return arch_of(tmp_path_factory.mktemp("arch"), len(tokens()), vocabulary)


@pytest.mark.parametrize("arch", official_archs(), ids=lambda arch: arch.slug)
def test_official_models_have_cn_clips(arch: Arch) -> None:
    arch.require_vocabulary()
    assert arch.options == ["--arch", arch.name]


@pytest.mark.parametrize("spare", [0, 1, 127])
def test_rows_may_be_padded(tmp_path: Path, vocabulary: Path, spare: int) -> None:
    arch_of(tmp_path, len(tokens()) + spare, vocabulary).require_vocabulary()


@pytest.mark.parametrize("spare", [-1, 128, 14000])
def test_rows_that_do_not_fit(tmp_path: Path, vocabulary: Path, spare: int) -> None:
    with pytest.raises(
        SettingError, match=rf"own embeds {len(tokens()) + spare} tokens, and .*mine\.txt has {len(tokens())}: "
    ):
        arch_of(tmp_path, len(tokens()) + spare, vocabulary)


@pytest.mark.parametrize("rows", [5000, 21127, 21129, 30522])
def test_another_models_tokens_are_told_before_anything_is_fetched(tmp_path: Path, rows: int) -> None:
    arch = arch_of(tmp_path, rows, None)
    with pytest.raises(
        SettingError, match=rf"own embeds {rows} tokens, and cn_clip's vocabulary has 21128: .*--vocabulary"
    ):
        open_checkpoint("random:0", arch, tmp_path / "root", "huggingface")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\nx\n", r"lacks \[SEP\], which cn_clip's model and tokeniser need"),
        (b"[UNK]\n[CLS]\n[SEP]\n[PAD]\n", r"begins with '\[UNK\]' and not with \[PAD\]"),
        ("[PAD]\n喵".encode("gb18030"), r"can't be read as a vocabulary .*UTF-8 with a token a line"),
        (b"", r"lacks \[UNK\], \[CLS\], \[SEP\]"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, complaint: str) -> None:
    (path := tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(SettingError, match=complaint):
        get_arch("ViT-B-16", path)


def test_broken_files(tmp_path: Path) -> None:
    """Cut or turned, it is told, or it has as many tokens still: which ones they are it can't say."""
    whole = cn_clip_vocabulary().read_bytes()
    path = tmp_path / "vocab.txt"
    for content in [*cut(whole), *turned(whole, 20, range(20))]:
        path.write_bytes(content)
        complaint = complaint_of(lambda: get_arch("ViT-B-16", path))
        if complaint is None:
            assert abs(len(content.split(b"\n")) - 21129) <= 1
        else:
            require_one_line_about(path, complaint)
    path.write_bytes(whole[: len(whole) // 2])
    assert complaint_of(lambda: get_arch("ViT-B-16", path)) is not None


def test_ids_are_the_vocabularys_everywhere(own: Arch, tiny_vit: Arch, vocabulary: Path) -> None:
    texts = sample_texts()
    served = TokenIds(vocabulary, 52)
    reference = tokenize_as_cn_clip(own, texts, 52)
    assert [
        [int(number) for number in row[: len(served.encode(text))]] for row, text in zip(reference, texts, strict=True)
    ] == [served.encode(text) for text in texts]
    assert np.array_equal(tokenize_as_cn_clip(tiny_vit, texts, 52), tokenize(texts).numpy())
    assert not np.array_equal(reference, tokenize(texts).numpy())
    assert [row[0].tolist() for row in calibration_inputs(own, "text")] == [served.encode(text) for text in texts]
    probes = make_probes(own).text
    assert set(probes[:, 0]) == {tokens().index("[CLS]")}
    assert all(row[np.count_nonzero(row) - 1] == tokens().index("[SEP]") for row in probes)
    assert 4 < np.median(probes[probes > 0]) < probes.max() < len(tokens())


def test_cn_clips_probes_are_what_they_were(tiny_vit: Arch) -> None:
    """References that lie beside artefacts were made of them."""
    digest = hashlib.sha256(make_probes(tiny_vit).text.tobytes()).hexdigest()
    assert digest == "ca89410c9fe5321d0c7e507661d88008cee4d49fde0575c274c26b0064b14fc9"


def test_what_is_built_with_one_holds_it(own: Arch, vocabulary: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.save({"state_dict": CLIP(**own.model_info).state_dict()}, checkpoint := tmp_path / "own.pt")
    artefacts = build_artefacts(
        own, str(checkpoint), tmp_path / "a", towers=TOWERS, precisions=["fp32"], download_root=tmp_path
    )
    repository = tmp_path / "repository"
    add_version(RepositoryEntry("own", 1, own, artefacts, SERVING), repository)
    digest = hashlib.sha256(vocabulary.read_bytes()).hexdigest()
    assert (repository / "own-text-tokenize" / "1" / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    assert json.loads((repository / "manifest.json").read_text())["models"]["own"]["1"]["vocabulary"] == {
        "file": "mine.txt",
        "sha256": digest,
    }
    ids = np.frombuffer((repository / "own-text-encoder" / "warmup" / "text-40").read_bytes(), dtype=np.int32)
    assert ids[0] == tokens().index("[CLS]")
    assert tokens().index("[SEP]") in ids
    # Another vocabulary makes other artefacts, and no version beside this one: they share what warms encoders up.
    (other := tmp_path / "other.txt").write_text("\n".join([*tokens()[:5], *reversed(tokens()[5:])]), encoding="utf-8")
    relabelled = get_arch(own.option, other)
    sha256 = artefacts.checkpoint.sha256
    assert ArtefactStore(own, tmp_path / "a", sha256).find("text", "fp32") is not None
    assert ArtefactStore(relabelled, tmp_path / "a", sha256).find("text", "fp32") is None
    with pytest.raises(
        RepositoryError, match=f"own version 1 has vocabulary {digest}, and versions of a model must share it"
    ):
        add_version(RepositoryEntry("own", 2, relabelled, artefacts, SERVING), repository)
    assert issubclass(SettingError, BuildError)


def test_a_vocabulary_is_read_once_for_all_texts(own: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    tokeniser = bert_tokenizer.FullTokenizer
    monkeypatch.setattr(
        bert_tokenizer, "FullTokenizer", lambda vocab_file: (read.append(vocab_file), tokeniser(vocab_file))[1]
    )
    for text in ("只", "猫", "狗"):
        tokenize_as_cn_clip(own, [text], 52)
    assert len(read) <= 1
