"""What is done, the most important first: a machine may be lost at any time."""

from __future__ import annotations

from cnclip_bench.gpu_report import card, in_process, installed, repositories, served
from cnclip_bench.gpu_report.ceiling import measure_ceiling
from cnclip_bench.gpu_report.rows import Report, Setup
from cnclip_bench.gpu_report.run import Step

__all__ = ["STEPS"]

_BUILD, _PLANS, _CARD = "build for ONNX Runtime", "build plans", "build for decoding on the card"


def _time_pytorch(setup: Setup, report: Report) -> None:
    from cnclip_bench.gpu_report.pytorch import time_pytorch  # torch, which the process of all steps does without

    time_pytorch(setup, report)


STEPS = (
    Step("look around", installed.look_around, 90),  # from a cold disk: gigabytes of CUDA
    Step("ceiling", measure_ceiling, 40),
    Step(_BUILD, repositories.build_for_onnxruntime, 240),
    Step("images in ONNX Runtime", in_process.time_images_in_onnxruntime, 60, needs=_BUILD),
    Step("texts in ONNX Runtime", in_process.time_texts_in_onnxruntime, 60, needs=_BUILD),
    Step("verify ONNX Runtime", served.verify_onnxruntime, 90, needs=_BUILD),
    Step("load ONNX Runtime", served.load_onnxruntime, 120, needs=_BUILD),
    Step("decode on the card", card.time_card, 90),
    Step(_CARD, card.build_for_card, 90, needs=_BUILD),
    Step("load with decoding on the card", card.load_card, 90, needs=_CARD),
    Step("load two encoders", served.load_two_encoders, 60, needs=_BUILD),
    Step("PyTorch", _time_pytorch, 90),
    # Measuring what took minutes to build has to fit behind it.
    Step(_PLANS, repositories.build_for_tensorrt, 360, needs=_BUILD, leave=60),
    Step("plans in TensorRT", in_process.time_plans, 60, needs=_PLANS),
    Step("verify plans", served.verify_plans, 60, needs=_PLANS),
    Step("load plans", served.load_plans, 120, needs=_PLANS),
)
"""In their order. Builds need no more than a checkpoint, which they make or fetch."""
