"""The request's tensor, and the one form of a refusal for bad rows."""

from __future__ import annotations

import pytest
from cnclip_client._connection.wire import Tensors, bad_rows, rows_input
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.binary(), min_size=1, max_size=9))
def test_the_tensor_keeps_rows_and_bytes(payloads: list[bytes]) -> None:
    tensor = rows_input(Tensors("IMAGE", ""), payloads)
    assert (tensor.name(), tensor.datatype(), list(tensor.shape())) == ("IMAGE", "BYTES", [len(payloads), 1])
    expected = b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)
    assert tensor._get_content() == expected


@given(
    rows=st.dictionaries(st.integers(0, 31), st.text(), min_size=1),
    prefix=st.sampled_from(["", "in ensemble 'vit-b-16-text', ", "Failed to process the request(s) "]),
    suffix=st.sampled_from(["", ", Stack trace: {}", "\n"]),
)
def test_bad_rows_are_read_from_any_place_in_the_message(rows: dict[int, str], prefix: str, suffix: str) -> None:
    import json

    message = prefix + "bad rows: " + json.dumps({str(row): reason for row, reason in rows.items()}) + suffix
    found = bad_rows(message, 32)
    assert found is not None
    assert list(found) == sorted(rows)
    assert all(found[row] == (reason or "the server refused it without a reason") for row, reason in rows.items())


@pytest.mark.parametrize(
    "message",
    [
        "",
        "unexpected shape for input 'TEXT'",
        "bad rows: ",
        "bad rows: {}",
        "bad rows: [1, 2]",
        'bad rows: {"x": "reason"}',
        'bad rows: {"32": "past the end"}',
        'bad rows: {"-1": "before the start"}',
        'bad rows: {"1": "there", "32": "past the end"}',
        'in a row {"1": "of another\'s"}',
        'bad rows: {"1": "cut of',
    ],
)
def test_a_message_of_another_form_names_no_rows(message: str) -> None:
    assert bad_rows(message, 32) is None
