"""What stands in a request for an embedding: texts and pictures, and why what stands there is neither."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pybase64

from cnclip_gateway._errors import BadRequest

__all__ = ["Address", "Asked", "Item", "decoded", "parsed", "parsed_bytes", "refusal"]

Item = str | bytes | ValueError
"""A text, an encoded picture, or why it is neither."""

# An element of JSON takes some hundred bytes once it is parsed, and a byte or two before.
_PARSED_BYTES = 100
# The other alphabet, and without the ends of lines that `base64` and MIME write.
_STANDARD = str.maketrans("-_", "+/", "\r\n")
_NAMED = 20
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Address:
    """Where a picture is that was not sent.

    Attributes:
        url: Of http: or https:.
    """

    url: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for embeddings.

    Attributes:
        model: The slug; None where none was named.
        items: What to encode, in its order; pictures that are elsewhere by their addresses.
        base64: Whether features are wanted as base64 of float32, and not as numbers.
    """

    model: str | None
    items: list[Item | Address]
    base64: bool


def parsed_bytes(body: bytes) -> int:
    """Returns about how many bytes the JSON of a body takes when it is parsed, beside its strings."""
    return _PARSED_BYTES * (body.count(b",") + body.count(b"[") + body.count(b"{"))


def parsed(body: bytes, max_items: int) -> Asked:
    """Reads a request.

    Args:
        body: JSON.
        max_items: Most items.

    Raises:
        BadRequest: It is none.
    """
    try:
        found = json.loads(body)
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8; send its JSON in it", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the body is no JSON ({what}); send an object", code="invalid_json") from None
    if not isinstance(found, dict):
        raise BadRequest("the body is no JSON object; send one with model and input", code="invalid_json")
    model = found.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest("model is no string; name one that GET /v1/models lists", param="model")
    if found.get("dimensions") is not None:
        raise BadRequest(
            "dimensions cannot be chosen, as these models are not trained for it; leave it out", param="dimensions"
        )
    form: Literal["float", "base64"] = found.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise BadRequest("encoding_format is neither float nor base64; choose one", param="encoding_format")
    return Asked(model, _items(found.get("input"), max_items), form == "base64")


def _items(given: Any, max_items: int) -> list[Item | Address]:
    if isinstance(given, str | dict):
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRequest(
            "input is missing or empty; send a text, an object with text or image, or a list of those", param="input"
        )
    if any(isinstance(one, int | list) and not isinstance(one, bool) for one in given[:max_items]):
        raise BadRequest("input holds token ids, which are not taken; send texts", param="input", code="token_ids")
    if len(given) > max_items:
        raise BadRequest(
            f"input has {len(given)} items; send {max_items} at most at a time", param="input", code="too_many_items"
        )
    return [_item(one) for one in given]


def _item(given: Any) -> Item | Address:
    try:
        if isinstance(given, str):
            return decoded(given) if given.startswith("data:image/") else _text(given)
        if isinstance(given, dict) and len(given) == 1:
            ((name, value),) = given.items()
            if name == "text" and isinstance(value, str):
                return _text(value)
            if name == "image" and isinstance(value, str):
                return Address(value) if value[:8].lower().startswith(("http://", "https://")) else decoded(value)
    except ValueError as reason:
        return reason
    return ValueError('is neither a text nor an object with one of "text" and "image", a string each')


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is no Unicode: it holds half of a surrogate pair") from None
    return text


def decoded(text: str) -> bytes:
    """Returns the bytes of base64 in either alphabet, by itself or in a `data:` URL.

    Raises:
        ValueError: It is neither.
    """
    if text.startswith("data:"):
        kind, comma, text = text[5:].partition(",")
        if not comma or not kind.endswith(";base64") or not kind.startswith("image/"):
            raise ValueError("is no data:image/...;base64, URL")
    text = text.rstrip("=\r\n").translate(_STANDARD)
    try:
        return pybase64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError(f"is no base64 of an image: {text[:_SHOWN]!r}") from None


def refusal(reasons: Iterable[tuple[int, object]]) -> BadRequest:
    """Returns the error of items that cannot be encoded.

    Args:
        reasons: The index in `input` and the reason of each.
    """
    told = [f"input[{index}] {reason}" for index, reason in sorted(reasons, key=lambda one: one[0])]
    more = f"; and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    count = f"{len(told)} item{'s' if len(told) > 1 else ''}"
    message = f"{count} cannot be encoded: {'; '.join(told[:_NAMED])}{more}; leave out or mend what is named"
    return BadRequest(message, param="input", code="bad_input")
