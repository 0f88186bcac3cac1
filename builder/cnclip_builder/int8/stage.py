"""The stage that converts to INT8, to be run in a process of its own: naming it costs no onnx."""

from __future__ import annotations

from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.stage import finish_artefact
from cnclip_builder.int8.report import Int8Report
from cnclip_builder.parity.distance import Parity


def make_int8_artefact(made: Artefact, fp32: Artefact, least_speed_up: float) -> tuple[Parity, Int8Report]:
    """Converts to INT8 and proves the artefact; imports onnx and onnxruntime.

    Args:
        made: the artefact to write.
        fp32: its FP32 twin, with PyTorch's features of the probes.
        least_speed_up: how many times FP32's speed it must reach.

    Returns:
        The parity with PyTorch on the probes, and how it came out.

    Raises:
        SlowerError: it does not reach that speed.
        ParityError: no choice of products in FP32 makes it hold its tolerance.
    """
    from cnclip_builder.int8.convert import convert_to_int8

    report = convert_to_int8(fp32, made.path, least_speed_up=least_speed_up)
    return finish_artefact(made, fp32), report
