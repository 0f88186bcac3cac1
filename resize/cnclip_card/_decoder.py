"""JPEGs decoded by nvImageCodec, into a GPU's memory or, for tests and comparisons, the processor's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cnclip_card._errors import CardUnfit
from cnclip_card._resize import Picture

__all__ = ["Decoder", "NvImageCodec"]


class Decoder(Protocol):
    """What decodes.

    Attributes:
        about: what it is, for logs.
    """

    about: str

    def decode(self, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Picture | None]:
        """Decodes files; None for each that it can't, or of which it makes anything but RGB of its size.

        Raises:
            Exception: whatever its library raises, as where memory is full.
        """


class NvImageCodec:
    """nvImageCodec's decoder.

    Args:
        number: the GPU's, as this process sees it; None for the processor.
        threads: of the host.
        stream: the address of the CUDA stream of whoever reads the pictures: what it asks for next finds them decoded.

    Raises:
        CardUnfit: it is missing, or can't decode there.
    """

    def __init__(self, number: int | None, threads: int, stream: int = 0) -> None:
        self._stream = stream
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise CardUnfit(
                f"nvImageCodec is not installed ({error}): pip install 'cn-clip-triton[gpu-decode]'"
            ) from None
        # Those of the card alone: what they do not decode is decoded the exact way, and not by another library here.
        kinds = ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU") if number is not None else ("CPU_ONLY",)
        self._interface = "__array_interface__" if number is None else "__cuda_array_interface__"
        try:
            self._decoder = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY if number is None else number,
                max_num_cpu_threads=threads,
                backends=[nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, kind)) for kind in kinds],
                options=":fancy_upsampling=1",  # of chroma, as libjpeg does it
            )
            # As Pillow reads it: EXIF's orientation is for who shows a picture.
            self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
        except Exception as error:  # its own classes say no more
            raise CardUnfit(f"nvImageCodec does not work ({error})") from error
        self.about = (
            f"nvImageCodec {nvimgcodec.__version__} on {'the processor' if number is None else f'GPU {number}'}"
        )

    def decode(self, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Picture | None]:
        """Decodes files; None for each that it can't, or of which it makes anything but RGB of its size."""
        decoded = self._decoder.decode(list(jpegs), params=self._params, cuda_stream=self._stream)
        return [self._picture(image, size) for image, size in zip(decoded, sizes, strict=True)]

    def _picture(self, image: Any, size: tuple[int, int]) -> Picture | None:
        if image is None:
            return None
        told = getattr(image, self._interface)
        wide, high = size
        pitch, *within = told["strides"] or (3 * wide, 3, 1)
        if told["typestr"] != "|u1" or tuple(told["shape"]) != (high, wide, 3) or tuple(within) != (3, 1):
            return None
        return Picture(told["data"][0], pitch, wide, high, image)
