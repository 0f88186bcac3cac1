"""The configs of the Python models, rendered and read back by Triton's own message, each setting turned alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.repository.render import quote, render_config
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.values import template_values
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

PLAIN = ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8)

PREPROCESS = """
name: "n"
backend: "python"
max_batch_size: 8
version_policy { specific { versions: [ 1, 2 ] } }
input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "pixels" data_type: TYPE_UINT8 dims: [ 32, 32, 3 ] },
  { name: "pillow" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { max_queue_delay_microseconds: 0 }
model_warmup [ {
  name: "a real image"
  batch_size: 1
  inputs { key: "IMAGE" value { data_type: TYPE_STRING dims: [ 1 ] input_data_file: "image" } }
} ]
parameters { key: "resolution" value { string_value: "32" } }
parameters { key: "threads" value { string_value: "0" } }
parameters { key: "max_image_pixels" value { string_value: "178956970" } }
parameters { key: "decoding" value { string_value: "exact" } }
"""


def render(kind: str, arch: Arch, **changes: Any) -> Any:
    serving = replace(PLAIN, **changes)
    return render_config(kind, template_values(kind, "n", arch, serving, [1, 2], 2, {"checkpoint_sha256": "c" * 64}))[1]


def test_the_whole_of_one(tiny_vit: Arch) -> None:
    assert render("image-preprocess", tiny_vit) == text_format.Parse(PREPROCESS, pb.ModelConfig())


@pytest.mark.parametrize("kind", ["image-preprocess", "text-tokenize"])
def test_no_queue_policy_unless_asked_for(tiny_vit: Arch, kind: str) -> None:
    """A policy of any kind turns off Triton's prefetching, and requests stall: see docs/serving.md."""
    assert not render(kind, tiny_vit).dynamic_batching.HasField("default_queue_policy")
    bounded = render(kind, tiny_vit, max_queue_size=7)
    assert bounded.dynamic_batching.default_queue_policy == pb.ModelQueuePolicy(max_queue_size=7)


@pytest.mark.parametrize(
    ("kind", "setting", "change"),
    [
        ("image-preprocess", "preprocess_instances", lambda config: setattr(config.instance_group[0], "count", 3)),
        ("image-preprocess", "preprocess_threads", lambda config: set_parameter(config, "threads")),
        ("image-preprocess", "max_image_pixels", lambda config: set_parameter(config, "max_image_pixels")),
        ("image-preprocess", "max_batch_size", lambda config: setattr(config, "max_batch_size", 3)),
        ("text-tokenize", "tokenize_instances", lambda config: setattr(config.instance_group[0], "count", 3)),
        (
            "text-tokenize",
            "context_length",
            lambda config: [set_parameter(config, name) for name in ("context_length", "lengths")],
        ),
    ],
)
def test_each_setting_alone(tiny_vit: Arch, kind: str, setting: str, change: Any) -> None:
    expected = render(kind, tiny_vit)
    change(expected)
    assert render(kind, tiny_vit, **{setting: 3}) == expected


def test_before_gpus_several_processes_decode(tiny_vit: Arch) -> None:
    """Each takes its share of the cores: `threads` stays 0."""
    expected = render("image-preprocess", tiny_vit)
    expected.instance_group[0].count = 4
    assert render("image-preprocess", tiny_vit, target="gpu") == expected
    expected.instance_group[0].count = 1
    assert render("image-preprocess", tiny_vit, target="gpu", preprocess_instances=1) == expected


def test_more_formats(tiny_vit: Arch) -> None:
    expected = render("image-preprocess", tiny_vit)
    expected.parameters["image_formats"].string_value = "MPEG,WMF"
    assert render("image-preprocess", tiny_vit, image_formats="MPEG,WMF") == expected


def test_reduced_decoding(tiny_vit: Arch) -> None:
    expected = render("image-preprocess", tiny_vit)
    expected.parameters["decoding"].string_value = "reduced"
    assert render("image-preprocess", tiny_vit, reduced_decoding=True) == expected


def test_images_decoded_on_gpus(tiny_vit: Arch) -> None:
    """Two processes of each GPU, those that encode alone; and Triton leaves tensors where they are."""
    expected = render("image-preprocess", tiny_vit)
    expected.instance_group[0].count, expected.instance_group[0].kind = 2, pb.ModelInstanceGroup.KIND_GPU
    expected.parameters["decoding"].string_value = "gpu"
    expected.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    assert render("image-preprocess", tiny_vit, target="gpu", preprocess="gpu") == expected
    expected.instance_group[0].gpus[:] = [0, 2]
    expected.instance_group[0].count = 3
    of_two = {"gpus": (0, 2), "preprocess_instances": 3}
    assert render("image-preprocess", tiny_vit, target="gpu", preprocess="gpu", **of_two) == expected
    for kind in ("image", "image-encoder", "text", "text-tokenize", "text-encoder"):
        expected = render(kind, tiny_vit, target="gpu")
        if kind.startswith("image"):
            expected.parameters["decoding"].string_value = "gpu"
        if kind == "image-encoder":
            expected.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
        assert render(kind, tiny_vit, target="gpu", preprocess="gpu") == expected
    exact = render("image-preprocess", tiny_vit, target="gpu", gpus=(1,))
    assert (exact.instance_group[0].kind, list(exact.instance_group[0].gpus)) == (pb.ModelInstanceGroup.KIND_CPU, [])


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({"target": "cpu"}, "52"),
        ({"target": "gpu"}, "40,52"),
        ({"target": "gpu", "context_length": 40}, "40"),
        ({"target": "gpu", "context_length": 30}, "30"),
        ({"target": "gpu", "text_lengths": (24, 16)}, "16,24,52"),
        ({"target": "gpu", "text_lengths": (52,)}, "52"),
        ({"target": "gpu", "text_lengths": ()}, "52"),
        ({"target": "cpu", "text_lengths": (24,)}, "24,52"),
    ],
)
def test_texts_have_few_shapes_and_one_where_padding_costs_nothing(
    tiny_vit: Arch, changes: dict[str, Any], lengths: str
) -> None:
    changes = {"context_length": 52, **changes}
    parameters = render("text-tokenize", tiny_vit, **changes).parameters
    assert parameters["context_length"].string_value == str(changes["context_length"])
    assert parameters["lengths"].string_value == lengths
    warmups = render("text-encoder", tiny_vit, **changes).model_warmup
    assert sorted({sample.inputs["text"].dims[0] for sample in warmups}) == [int(part) for part in lengths.split(",")]


@pytest.mark.parametrize(
    ("kind", "changes", "batching"),
    [
        ("image-encoder", {}, "preferred_batch_size: 4 max_queue_delay_microseconds: 0"),
        ("image-encoder", {"max_batch_size": 3}, "preferred_batch_size: 3 max_queue_delay_microseconds: 0"),
        ("image-encoder", {"target": "gpu"}, "max_queue_delay_microseconds: 1000"),
        ("text-encoder", {}, "max_queue_delay_microseconds: 1000"),
    ],
)
def test_few_images_a_batch_on_a_cpu(tiny_vit: Arch, kind: str, changes: dict[str, Any], batching: str) -> None:
    config = render(kind, tiny_vit, **changes)
    assert config.dynamic_batching == text_format.Parse(batching, pb.ModelDynamicBatching())


def set_parameter(config: Any, name: str) -> None:
    config.parameters[name].string_value = "3"


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb: 1", "名", "{{ serving }}"])
def test_a_value_cannot_leave_its_quotes(name: str) -> None:
    assert text_format.Parse(f"name: {quote(name)}", pb.ModelConfig()) == pb.ModelConfig(name=name)
