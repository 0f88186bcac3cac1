"""Compares what is prepared for a live server's encoders, pixels and token ids, with cn_clip's own: number by number.

Features alone don't prove it. Those of an FP16 or INT8 encoder may be off by more than slightly wrong pixels take them,
and a few captions hold few of a vocabulary's tokens: two of its lines in each other's place are seen in no other text.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnclip_builder.arch import Arch
from cnclip_builder.errors import ParityError
from cnclip_builder.vocabulary import read_tokens

if TYPE_CHECKING:
    from cnclip_client import Client, ModelInfo

_NAMED = 3

# Both sides of what a tokeniser decides: what vanishes, what parts words, what is one character and what several, where
# CJK begins and ends, how long a word may be, and a text that fills its context to the last token.
_EDGES = (
    "零\u200b宽\u00ad软\x07控\ufeff制\ufffd换\u2060接\x00",
    "a\u00a0b\u3000c\u2003d\te\nf\rg\x0bh\u2028i\x85j",
    "㐀a䶿b䷀c一d鿿eꀀf豈g﫿h𠀀i𪛟j𪜀k𫜿l𫝀m𫠠n𬺯o𬺰p丽q𯨟r",
    "$^`|~<=>+ [CLS] [SEP] [MASK] [PAD] ①½™№ ℃ ﬁ ㎡ ·—…《》「」",
    "e\u0301 é n\u0303 ก็ हि 한글 がぎ ｶﾞ İI ẞß ΑΣ ΑΣΑ Ǆ",
    "👩‍👩‍👧‍👦🇨🇳❤️𝐀𝒜",
    f"{'x' * 150} {'y' * 200} {'z' * 201}",
    "字" * 600,
)


@dataclass(frozen=True)
class Preparation:
    """What a server prepares, or a client for its encoders, beside what cn_clip does.

    Attributes:
        images: how many images' pixels were compared; 0 where a GPU decodes, whose pixels are near and not equal.
        texts: how many texts' token ids were compared; all words of the vocabulary are in them.
        differing: what is not equal, in words, one for each image and text.
        by_client: whether they are those of this machine's client, since the server serves encoders alone.
    """

    images: int
    texts: int
    differing: tuple[str, ...] = ()
    by_client: bool = False

    def require(self, model: str) -> None:
        """Raises ParityError if anything is not equal.

        Args:
            model: the name that the models are served under.
        """
        if self.differing:
            more = f"; and {len(self.differing) - _NAMED} more" if len(self.differing) > _NAMED else ""
            who, fix = (
                (
                    f"this machine's client does not prepare what {model} takes",
                    "install the libraries of constraints.txt",
                )
                if self.by_client
                else (
                    f"{model} does not prepare its inputs",
                    "build the repository again, and check that the server runs the libraries of constraints.txt",
                )
            )
            raise ParityError(f"{who} as cn_clip does: {'; '.join(self.differing[:_NAMED])}{more}: {fix}")


@dataclass(frozen=True)
class _Preparer:
    """Whoever prepares.

    Attributes:
        pixels: from an encoded image to its pixels, `[R, R, 3]`.
        token_ids: from texts, no more than the server takes at once, to each one's ids, padded or not.
    """

    pixels: Callable[[bytes], npt.NDArray[Any]]
    token_ids: Callable[[Sequence[str]], Sequence[Sequence[int]]]


def compare_preparation(
    url: str, client: Client, arch: Arch, images: Mapping[str, bytes], texts: Sequence[str]
) -> Preparation:
    """Compares a server's pixels and token ids with cn_clip's; of encoders alone, those that a client here makes.

    Args:
        url: the server's gRPC address.
        client: connected to it.
        arch: the architecture of what it serves.
        images: encoded images by name.
        texts: what is compared beside the words of the vocabulary.

    Returns:
        What was found.

    Raises:
        InferenceServerException: the server does not answer.
    """
    from tritonclient.grpc import InferenceServerClient

    info = client.info
    differing = []
    with InferenceServerClient(url) as connection:
        image, text = (
            _first_step(connection, f"{info.model}-{tower}", client.info_of(tower).version)
            for tower in ("image", "text")
        )
        preparer = _there(connection, image, text) if image and text else _here(info, arch)
        exact = info.decoding != "gpu"
        for name, encoded in images.items() if exact else ():
            pixels = preparer.pixels(encoded)
            scaled = transform_as_cn_clip(
                encoded, arch.resolution, reduced=info.decoding == "reduced", normalised=False
            )
            off = np.abs(pixels.transpose(2, 0, 1) - np.rint(scaled * 255))
            if off.any():
                differing.append(
                    f"{np.count_nonzero(off)} of {off.size} pixel values of {name} differ, by up to {off.max():.0f}"
                )
        asked = [*texts, *_EDGES, *_all_words(arch, info.context_length)]
        for start in range(0, len(asked), info.max_batch_size):
            some = asked[start : start + info.max_batch_size]
            rows = preparer.token_ids(some)
            # Padded to the longest of the batch there, to the context length here.
            for one, ours, theirs in zip(some, rows, tokenize_as_cn_clip(arch, some, info.context_length), strict=True):
                if told := _first_difference(_unpadded(ours), _unpadded(theirs)):
                    differing.append(f"token {told} for {one!r:.60}")
    return Preparation(len(images) if exact else 0, len(asked), tuple(differing), not (image and text))


def transform_as_cn_clip(
    encoded: bytes, resolution: int, *, reduced: bool = False, normalised: bool = True
) -> npt.NDArray[np.float32]:
    """cn_clip's own transform of an image.

    Args:
        encoded: the image file's bytes.
        resolution: of the encoder.
        reduced: whether large JPEGs are decoded at a reduced scale, which cn_clip itself does not do.
        normalised: whether to take its last step, `Normalize`.

    Returns:
        float32 `[3, R, R]`; from 0 to 1 if it is not normalised.
    """
    from cnclip_pixels import reduce_scale
    from PIL import Image

    from cnclip_builder.cn_clip import image_transform

    transform = image_transform(resolution)
    if not normalised:
        transform.transforms.pop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as image:
            if reduced:
                reduce_scale(image, resolution)
            transformed: npt.NDArray[np.float32] = transform(image).numpy()
    return transformed


def tokenize_as_cn_clip(arch: Arch, texts: Sequence[str], context_length: int) -> npt.NDArray[np.int64]:
    """cn_clip's `tokenize`; where the vocabulary is another, its steps with cn_clip's own tokeniser on that.

    Returns:
        int64 ids `[N, context_length]`.
    """
    from cnclip_builder.cn_clip import tokenize

    if arch.vocabulary is None:
        ids: npt.NDArray[np.int64] = tokenize(list(texts), context_length=context_length).numpy()
        return ids
    tokenizer = _tokenizer(arch.vocabulary)
    ids = np.zeros((len(texts), context_length), dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        words = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[: context_length - 2]
        row[: len(words) + 2] = [tokenizer.vocab["[CLS]"], *words, tokenizer.vocab["[SEP]"]]
    return ids


@cache
def _tokenizer(vocabulary: Path) -> Any:
    """cn_clip's own tokeniser on a vocabulary, of which reading takes 400 times as long as a text."""
    from cnclip_builder.cn_clip import FullTokenizer

    return FullTokenizer(vocab_file=str(vocabulary))


def _all_words(arch: Arch, context_length: int) -> Iterator[str]:
    """Texts that have every word of a vocabulary in them, and every piece of one behind an x."""
    tokens = read_tokens(arch.vocabulary_file)
    words = [token for token in tokens if token and not token.startswith(("##", "["))]
    # Chinese characters are words by themselves, so that cn_clip's 7,000 pieces of them are in no text's ids.
    pieces = [f"x{token[2:]}" for token in tokens if token.startswith("##") and not "一" <= token[2:3] <= "鿿"]
    room = max(1, context_length - 2)
    for some, each in ((words, room), (pieces, max(1, room // 2))):
        for start in range(0, len(some), each):
            yield " ".join(some[start : start + each])


def _there(connection: Any, image: tuple[str, str], text: tuple[str, str]) -> _Preparer:
    """The server's Python models."""

    def pixels(encoded: bytes) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = _ask(connection, image, "IMAGE", "pixels", [encoded])[0]
        return found

    def token_ids(texts: Sequence[str]) -> Any:
        return _ask(connection, text, "TEXT", "text", [one.encode() for one in texts])

    return _Preparer(pixels, token_ids)


def _here(info: ModelInfo, arch: Arch) -> _Preparer:
    """What a client runs for encoders that prepare nothing, with the settings that they tell it."""
    from cnclip_pixels import decode_pixels, image_formats
    from cnclip_token_ids import TokenIds

    formats, reduced = image_formats(info.image_formats), info.decoding == "reduced"
    tokens = TokenIds(arch.vocabulary_file, info.context_length, info.text_lengths)

    def pixels(encoded: bytes) -> npt.NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode_pixels(encoded, info.resolution or arch.resolution, reduced=reduced, formats=formats)

    return _Preparer(pixels, lambda texts: tokens.pad([tokens.encode(text) for text in texts]).tolist())


def _first_step(connection: Any, ensemble: str, version: str) -> tuple[str, str] | None:
    """The name and the version of the model that prepares an ensemble's inputs; None where there is no ensemble."""
    from tritonclient.utils import InferenceServerException

    try:
        config = connection.get_model_config(ensemble, version).config
    except InferenceServerException as error:
        if "NOT_FOUND" in str(error.status()):
            return None
        raise
    step = config.ensemble_scheduling.step[0]
    return step.model_name, str(step.model_version)


def _ask(connection: Any, step: tuple[str, str], name: str, output: str, rows: Sequence[bytes]) -> npt.NDArray[Any]:
    from tritonclient.grpc import InferInput, InferRequestedOutput

    tensor = InferInput(name, [len(rows), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(rows, dtype=np.object_).reshape(-1, 1))
    model, version = step
    answer = connection.infer(model, [tensor], model_version=version, outputs=[InferRequestedOutput(output)])
    found: npt.NDArray[Any] = answer.as_numpy(output)
    return found


def _unpadded(ids: npt.ArrayLike) -> list[int]:
    trimmed: list[int] = np.trim_zeros(np.asarray(ids), "b").tolist()
    return trimmed


def _first_difference(ours: list[int], theirs: list[int]) -> str:
    """The first of the token ids that differs, in words; nothing where all are equal."""
    for number, (one, other) in enumerate(zip_longest(ours, theirs), start=1):
        if one != other:
            return f"{number} is {one or 'missing'}, not {other or 'missing'}"
    return ""
