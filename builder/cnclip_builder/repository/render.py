"""Renders a model's config from its template, and has Triton's own protobuf read it back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2
from cnclip_templates import templates_folder
from google.protobuf import text_encoding, text_format
from tritonclient.grpc import model_config_pb2

from cnclip_builder.errors import RepositoryError


def render_config(kind: str, values: Mapping[str, Any]) -> tuple[str, Any]:
    """Renders the config of a served model.

    Args:
        kind: the template's folder, such as "image-encoder".
        values: what the template asks for; a value it lacks is an error.

    Returns:
        The text of `config.pbtxt`, and the `ModelConfig` message that it parses as.

    Raises:
        RepositoryError: the text is no `ModelConfig`: an unknown field, enum or type.
    """
    rendered = _environment().get_template(f"{kind}/config.pbtxt.j2").render(values)
    text = "\n".join(line.rstrip() for line in rendered.splitlines() if line.strip()) + "\n"
    return text, parse_config(text, f"{kind}/config.pbtxt.j2")


def parse_config(text: str | bytes, where: str) -> Any:
    """Parses the text of a `config.pbtxt`, or its bytes.

    Raises:
        RepositoryError: it is no `ModelConfig`; the message holds the line.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return text_format.Parse(decoded, model_config_pb2.ModelConfig())
    except (text_format.ParseError, ValueError) as error:  # bytes that are no UTF-8, in the text or escaped in it
        reason = " ".join(str(error).split())
        raise RepositoryError(f"{where} is no Triton model configuration ({reason}): build it again") from error


def quote(value: object) -> str:
    """Writes a value as a string of protobuf's text format, quoted and escaped."""
    # protobuf 4 would take a byte for a letter; the stubs know bytes alone.
    return f'"{text_encoding.CEscape(str(value), as_utf8=True)}"'  # type: ignore[arg-type]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_folder()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  # not HTML; strings go through the `text` filter
        trim_blocks=True,
    )
    environment.filters["text"] = quote
    return environment
