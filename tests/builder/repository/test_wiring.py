"""The validator of ensembles: what fits passes, and every misfit is named."""

from __future__ import annotations

from typing import Any

import pytest
from cnclip_builder.errors import RepositoryError
from cnclip_builder.repository.render import parse_config
from cnclip_builder.repository.wiring import check_wiring

ENSEMBLE = """
name: "e" platform: "ensemble" max_batch_size: 4
input [ { name: "IN" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 8 ] } ]
ensemble_scheduling { step [
  { model_name: "b" input_map { key: "b_in" value: "middle" } output_map { key: "b_out" value: "OUT" } },
  { model_name: "a" input_map { key: "a_in" value: "IN" } output_map { key: "a_out" value: "middle" } }
] }
"""
A = """
name: "a" max_batch_size: 4
input [ { name: "a_in" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "a_out" data_type: TYPE_INT32 dims: [ -1 ] } ]
"""
B = """
name: "b" max_batch_size: 8
input [ { name: "b_in" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "b_out" data_type: TYPE_FP32 dims: [ 8 ] }, { name: "b_more" data_type: TYPE_FP32 dims: [ 8 ] } ]
"""


def configs(*texts: str) -> dict[str, Any]:
    parsed = [parse_config(text, "test") for text in texts]
    return {config.name: config for config in parsed}


@pytest.mark.parametrize(
    ("asked", "policy", "complaint"),
    [
        ("2", "specific { versions: [ 1, 3 ] }", "calls version 2 of a, which serves 1, 3: build that version again"),
        ("1", "specific { }", "calls version 1 of a, which serves none"),
        ("1", "specific { versions: [ 1, 3 ] }", None),
        ("-1", "specific { versions: [ 3 ] }", None),
        ("2", "latest { num_versions: 1 }", None),  # which those are is not in the config
        ("2", "all { }", None),
    ],
)
def test_a_step_calls_a_version_that_is_served(asked: str, policy: str, complaint: str | None) -> None:
    ensemble = ENSEMBLE.replace('model_name: "a"', f'model_name: "a" model_version: {asked}')
    parsed = configs(ensemble, A + f"version_policy {{ {policy} }}", B)
    if complaint is None:
        check_wiring(parsed)
        return
    with pytest.raises(RepositoryError, match=complaint):
        check_wiring(parsed)


def test_a_chain_in_any_order_fits() -> None:
    check_wiring(configs(ENSEMBLE, A, B))


@pytest.mark.parametrize(
    ("part", "old", "new", "complaint"),
    [
        ("e", 'model_name: "a"', 'model_name: "c"', "uses model c, which is not in the repository"),
        ("e", "max_batch_size: 4", "max_batch_size: 5", "takes batches of 5, its model a of 4 only"),
        ("e", 'key: "a_in"', 'key: "other"', "input_map names 'other'; the model has a_in"),
        ("e", 'key: "b_out"', 'key: "other"', "output_map names 'other'"),
        ("e", 'value: "middle" } output_map { key: "b_out"', 'value: "none" } output_map { key: "b_out"', "no step makes"),
        ("e", 'key: "a_out" value: "middle"', 'key: "a_out" value: "IN"', "no step makes middle|makes tensor 'IN' twice"),
        ("e", 'name: "OUT" data_type: TYPE_FP32', 'name: "OUT" data_type: TYPE_FP16', "output 'OUT' is TYPE_FP16"),
        ("e", 'name: "OUT" data_type: TYPE_FP32 dims: [ 8 ]', 'name: "OUT" data_type: TYPE_FP32 dims: [ 9 ]', "batch, 9]"),
        ("e", 'name: "OUT"', 'name: "LOST"', "no step makes its output 'LOST'"),
        ("e", '{ key: "b_out" value: "OUT" }', '{ key: "b_out" value: "OUT" } output_map { key: "b_more" value: "x" }',
         "nothing uses x"),
        ("a", "TYPE_INT32", "TYPE_INT64", "'middle' is TYPE_INT64.*'b_in' of b is TYPE_INT32"),
        ("b", "dims: [ -1 ]", "dims: [ 4, 4 ]", "'middle' is"),
        ("b", 'input [ {', 'input [ { name: "more" data_type: TYPE_INT32 dims: [ 1 ] }, {', "feeds model b no more"),
    ],
)  # fmt: skip
def test_misfits(part: str, old: str, new: str, complaint: str) -> None:
    texts = {"e": ENSEMBLE, "a": A, "b": B}
    assert old in texts[part]
    texts[part] = texts[part].replace(old, new)
    with pytest.raises(RepositoryError, match=complaint if "|" in complaint or "*" in complaint else None) as caught:
        check_wiring(configs(*texts.values()))
    assert any(option.split(".*")[0] in str(caught.value) for option in complaint.split("|"))


@pytest.mark.parametrize("text", ['name: "a" colour: 1', "input [ { data_type: TYPE_FP31 } ]", "name: "])
def test_what_is_no_config(text: str) -> None:
    with pytest.raises(RepositoryError, match="no Triton model configuration"):
        parse_config(text, "x")
