"""`POST /v1/embeddings`: what OpenAI's own client gets, and what is refused in the API's form."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import Client

from tests.client.conftest import FakeTriton, both, features_of
from tests.conftest import ROOT
from tests.gateway.conftest import Running, require_schema

PNG = b"\x89PNG\r\n\x1a\n made up"


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def unit(*items: bytes) -> np.ndarray:
    rows = np.stack([features_of(item) for item in items])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(answer: Any) -> np.ndarray:
    return np.array([one["embedding"] for one in answer.json["data"]], dtype=np.float32)


@pytest.fixture
def openai(gateway: Running) -> Any:
    module = pytest.importorskip("openai", reason="the openai package is not installed")
    with module.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openais_client_gets_the_clients_features(openai: Any, triton: FakeTriton) -> None:
    texts = ["杰尼龟", "皮卡丘", "一只游隼"]
    found = openai.embeddings.create(model="vit-b-16", input=texts)
    with Client(triton.url, model="vit-b-16") as client:
        expected = client.encode_texts(texts)
    np.testing.assert_array_equal(np.array([one.embedding for one in found.data], dtype=np.float32), expected)
    assert [one.index for one in found.data] == [0, 1, 2]
    assert (found.model, found.object) == ("vit-b-16", "list")
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (0, 0)
    one = openai.embeddings.create(model="vit-b-16", input=texts[0], encoding_format="float")
    np.testing.assert_array_equal(np.array(one.data[0].embedding, dtype=np.float32), expected[0])


def test_openais_client_lists_models_and_raises_its_own_errors(openai: Any) -> None:
    import openai as module

    assert [one.id for one in openai.models.list()] == ["vit-b-16"]
    assert openai.models.retrieve("vit-b-16").object == "model"
    with pytest.raises(module.NotFoundError) as no_model:
        openai.embeddings.create(model="gpt", input="x")
    assert no_model.value.code == "model_not_found"
    with pytest.raises(module.BadRequestError, match="token ids") as bad:
        openai.embeddings.create(model="vit-b-16", input=[[1, 2, 3]])
    assert (bad.value.param, bad.value.type) == ("input", "invalid_request_error")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_documented_curl_sends_a_photo(gateway: Running, tmp_path: Path) -> None:
    """Linux takes no argument of more than 128 KiB, which a photo's base64 has."""
    photo = PNG * 20_000
    (tmp_path / "a.jpg").write_bytes(photo)
    page = (ROOT / "docs/gateway.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"(?ms)^curl \S+/v1/embeddings.*?(?=^```)", page)
    command = command.replace("http://localhost:8080", gateway.url)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True, timeout=30)
    found = np.array([one["embedding"] for one in json.loads(done.stdout)["data"]], dtype=np.float32)
    np.testing.assert_allclose(found, unit("杰尼龟".encode(), photo), atol=1e-6)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_texts_and_images_come_out_in_their_order(gateway: Running, form: str) -> None:
    items = [
        "短",
        {"image": data_url(PNG)},
        {"text": "a much longer text"},
        {"image": base64.b64encode(PNG + b"\xfb\xff").decode()},
        {"image": base64.urlsafe_b64encode(PNG + b"\xfb\xfe").decode().rstrip("=")},
        {"image": base64.encodebytes(PNG * 9).decode()},  # in lines, as `base64` writes it
        {"image": "data:image/png;base64," + base64.encodebytes(PNG * 9).decode().replace("\n", "\r\n")},
        data_url(PNG + b"3", "image/jpeg"),
    ]
    answer = gateway.embed(items, encoding_format=form)
    assert answer.status == 200, answer.body
    require_schema("Embeddings", answer.json)
    rows = [one["embedding"] for one in answer.json["data"]]
    if form == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    texts_and_images = ["短".encode(), PNG, b"a much longer text", PNG + b"\xfb\xff", PNG + b"\xfb\xfe"]
    texts_and_images += [PNG * 9, PNG * 9, PNG + b"3"]
    np.testing.assert_allclose(np.array(rows, np.float32), unit(*texts_and_images), rtol=0, atol=1e-7)


def test_a_float32_comes_back_as_it_was(gateway: Running) -> None:
    items = [f"text {number}" for number in range(300)]
    numbers = rows_of(gateway.embed(items))
    packed = [one["embedding"] for one in gateway.embed(items, encoding_format="base64").json["data"]]
    np.testing.assert_array_equal(numbers, [np.frombuffer(base64.b64decode(one), "<f4") for one in packed])


def test_texts_are_prepared_as_extracted_ones_unless_told(run: Callable[..., Running], triton: FakeTriton) -> None:
    text = "“Hello”"
    np.testing.assert_allclose(rows_of(run(triton.url).embed(text)), unit(b'"hello"'), atol=1e-7)
    np.testing.assert_allclose(rows_of(run(triton.url, preprocess=False).embed(text)), unit(text.encode()), atol=1e-7)


def test_what_looks_like_an_address_is_a_text_unless_it_is_an_image(
    run: Callable[..., Running], triton: FakeTriton, picture: Path
) -> None:
    gateway = run(triton.url, preprocess=False)
    for text in ("https://example.com/a.jpg", "data:text/plain;base64,aGk=", str(picture), "file:///etc/passwd"):
        np.testing.assert_allclose(rows_of(gateway.embed(text)), unit(text.encode()), atol=1e-7)


def test_a_models_name_may_be_left_out_where_there_is_one(
    run: Callable[..., Running], serve: Callable[..., FakeTriton]
) -> None:
    one = run(serve(*both("a")).url)
    assert one.ask("POST", "/v1/embeddings", {"input": "x"}).json["model"] == "a"
    two = run(serve(*both("a"), *both("b")).url)
    answer = two.ask("POST", "/v1/embeddings", {"input": "x"})
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert "a, b" in answer.error["message"]
    assert two.ask("POST", "/v1/embeddings", {"input": "x", "model": "b"}).json["model"] == "b"
    only = run(serve(*both("a"), *both("b")).url, only="b")
    assert [each["id"] for each in only.ask("GET", "/v1/models").json["data"]] == ["b"]
    assert only.embed("x", model="a").status == 404


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "no JSON"),
        (b"{", None, "no JSON"),
        (b"\xff\xfe{}", None, "no JSON"),
        (b"[]", None, "no JSON object"),
        (b'"text"', None, "no JSON object"),
        (b'{"input": "x", "model": 7}', "model", "no string"),
        (b'{"model": "vit-b-16"}', "input", "missing or empty"),
        (b'{"model": "vit-b-16", "input": []}', "input", "missing or empty"),
        (b'{"model": "vit-b-16", "input": 7}', "input", "missing or empty"),
        (b'{"model": "vit-b-16", "input": [1, 2]}', "input", "token ids"),
        (b'{"model": "vit-b-16", "input": [[1], [2]]}', "input", "token ids"),
        (b'{"model": "vit-b-16", "input": "x", "dimensions": 64}', "dimensions", "leave it out"),
        (b'{"model": "vit-b-16", "input": "x", "encoding_format": "int8"}', "encoding_format", "neither"),
        (b'{"model": "vit-b-16", "input": "x", "encoding_format": [[]]}', "encoding_format", "neither"),
        (b'{"model": "vit-b-16", "input": [null]}', "input", "input[0] is neither"),
        (b'{"model": "vit-b-16", "input": [true, "x"]}', "input", "input[0] is neither"),
        (b'{"model": "vit-b-16", "input": {"text": "x", "image": "x"}}', "input", "input[0] is neither"),
        (b'{"model": "vit-b-16", "input": {"text": ["x"]}}', "input", "input[0] is neither"),
        (b'{"model": "vit-b-16", "input": "\\ud800"}', "input", "input[0] is no Unicode"),
        (b'{"model": "vit-b-16", "input": {"image": "../../etc/passwd"}}', "input", "input[0] is no base64"),
        (b'{"model": "vit-b-16", "input": {"image": "data:image/png,x"}}', "input", "input[0] is no data:"),
        (b'{"model": "vit-b-16", "input": "data:image/png;base64,###"}', "input", "input[0] is no base64"),
        (b'{"model": "vit-b-16", "input": {"image": "https://example.com/a.jpg"}}', "input", "does not fetch"),
        (b'{"model": "vit-b-16", "input": {"image": ""}}', "input", "input[0]"),
    ],
)
def test_what_is_wrong_is_told_in_the_apis_form(
    gateway: Running, triton: FakeTriton, body: bytes, param: str | None, words: str
) -> None:
    answer = gateway.ask("POST", "/v1/embeddings", body)
    assert answer.status == 400
    assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", param)
    assert words in answer.error["message"]
    assert triton.requests == []


def test_each_bad_item_is_named_whoever_found_it(run: Callable[..., Running], triton: FakeTriton) -> None:
    gateway = run(triton.url, preprocess=False)
    bad = {"image": base64.b64encode(b"BAD:is no image").decode()}
    answer = gateway.embed(["good", bad, "BAD:too bad", {"image": base64.b64encode(PNG).decode()}, bad])
    assert (answer.status, answer.error["code"]) == (400, "bad_input")
    message = answer.error["message"]
    assert message.startswith("3 items cannot be encoded: input[1] is no image; input[2] too bad; ")
    assert "input[4] is no image; leave out or mend" in message
    many = gateway.embed([bad] * 100).error["message"]
    assert "input[19] is no image; and 80 more;" in many
    assert len(many) < 2000


def test_unknown_models_and_paths(gateway: Running) -> None:
    answer = gateway.embed("x", model="vit-h-14")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "vit-b-16" in answer.error["message"]
    assert gateway.ask("GET", "/v1/models/vit-h-14").status == 404
    require_schema("Model", gateway.ask("GET", "/v1/models/vit-b-16").json)
    require_schema("Models", gateway.ask("GET", "/v1/models").json)
    for path in ("/", "/search?q=x", "/v1/../../etc/passwd", "/pages/../_app.py", "/pages/%2e%2e%2f_app.py", "/%00"):
        answer = gateway.ask("GET", path)
        assert (answer.status, answer.error["code"]) == (404, "not_found"), path
    # An error does not say back whatever it was sent, and no answer leads to where a header points.
    assert len(gateway.embed("x", model="\0" * 100_000).body) < 2000
    answer = gateway.ask("GET", "/v1/models/", Host="evil.example")
    assert (answer.status, answer.headers["Location"]) == (404, None)
    answer = gateway.ask("GET", "/v1/embeddings")
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


def test_what_is_counted(gateway: Running) -> None:
    gateway.embed(["a", "b", data_url(PNG)])
    gateway.embed([])
    for path in ("/nothing", "/nothing/else", "/v1/models/x/y"):
        gateway.ask("GET", path)
    assert gateway.metric('cnclip_gateway_items_total{kind="text"}') == 2
    assert gateway.metric('cnclip_gateway_items_total{kind="image"}') == 1
    assert gateway.metric('cnclip_gateway_requests_total{route="/v1/embeddings",status="200"}') == 1
    assert gateway.metric('cnclip_gateway_requests_total{route="/v1/embeddings",status="400"}') == 1
    # Made-up paths make no counters of their own.
    assert gateway.metric('cnclip_gateway_requests_total{route="other",status="404"}') == 3
    assert json.dumps("nothing") not in gateway.ask("GET", "/metrics").body.decode()
