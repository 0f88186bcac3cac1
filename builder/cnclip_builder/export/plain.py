"""The plain ONNX file of an encoder, written from cn_clip's modules: a second's work, and a tenth of an exporter's."""

from __future__ import annotations

from typing import Any

from cnclip_builder.cn_clip import ModifiedResNet
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.files import plain_input
from cnclip_builder.export.graph_writer import GraphWriter
from cnclip_builder.export.plain_image import lower_plain_image
from cnclip_builder.export.plain_resnet import lower_plain_resnet
from cnclip_builder.export.plain_text import lower_plain_text


def write_plain_encoder(clip: Any, fp32: Artefact) -> None:
    """Writes an encoder's .onnx file in FP32 and its weights.

    Args:
        clip: a `cn_clip.clip.model.CLIP` in eval mode, without FlashAttention, with this encoder's weights.
        fp32: the artefact to write.
    """
    with GraphWriter(fp32.path, "fp32") as graph:
        if fp32.tower == "text":
            lower_plain_text(graph, clip.bert, clip.text_projection)
        elif isinstance(clip.visual, ModifiedResNet):
            lower_plain_resnet(graph, clip.visual)
        else:
            lower_plain_image(graph, clip.visual)
        graph.finish_plain(fp32.arch, fp32.tower, plain_input(fp32.arch, fp32.tower))
