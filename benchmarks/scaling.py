"""What a billion images take: prints the tables of docs/scaling.md. Plain arithmetic on the constants below.

python benchmarks/scaling.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cnclip_builder.arch import Arch, get_arch

IMAGES = 1_000_000_000
DAY_S = 86_400.0
DAYS = 7.0

# The share of a GPU's datasheet rate that an encoder reaches in FP16: ViT-B-16's on an H100, 9,090 images/s in ONNX
# Runtime (docs/gpu.md); an assumption for the others.
UTILISATION = 0.32
# What a server has beside a GPU, and the network it is on: cores, and bits a second.
CORES_PER_GPU = 16
NETWORK_BITS_PER_S = 25e9
# Assumptions, to be replaced by what you pay.
CORE_HOUR_DOLLARS = 0.04


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as NVIDIA's datasheet has it.
        flops: dense FP16 tensor operations a second, from its datasheet (which prints twice that, "with sparsity", for
            H100 and L4).
        hour_dollars: an assumed price of an hour.
    """

    name: str
    flops: float
    hour_dollars: float


@dataclass(frozen=True)
class Source:
    """A kind of image.

    Attributes:
        name: of it.
        seconds: of one core to decode and resize one, as was measured (docs/scaling.md).
        encoded_bytes: of one as JPEG; an assumption.
    """

    name: str
    seconds: float
    encoded_bytes: float


GPUS = (
    Gpu("H100 SXM", 989.5e12, 3.0),
    Gpu("A100", 312e12, 2.0),
    Gpu("A10", 125e12, 1.0),
    Gpu("L4", 121e12, 0.8),
)
SOURCES = (Source("640x480", 1.65e-3, 100e3), Source("1920x1080", 8e-3, 500e3))
ARCHS = ("ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14")


def image_flops(arch: Arch) -> float:
    """Floating-point operations of a vision transformer for one image; a multiplication and an addition are two.

    Each layer multiplies every token by 12 width^2 weights (4 of attention, 8 of the MLP), and the tokens' queries by
    their keys and the result by their values.
    """
    info = arch.model_info
    width, patch = info["vision_width"], info["vision_patch_size"]
    tokens = (arch.resolution // patch) ** 2 + 1
    layer = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    embed = 2 * (tokens - 1) * 3 * patch**2 * width
    return float(info["vision_layers"] * layer + embed + 2 * width * arch.embedding_size)


def gpu_rate(gpu: Gpu, arch: Arch) -> float:
    """Images a second that a GPU encodes."""
    return gpu.flops * UTILISATION / image_flops(arch)


def first_limit(gpu: Gpu, arch: Arch, source: Source) -> tuple[str, float]:
    """What of a server with one GPU runs out first, and the images a second that it then does."""
    limits = {
        "GPU": gpu_rate(gpu, arch),
        "cores": CORES_PER_GPU / source.seconds,
        "network": NETWORK_BITS_PER_S / 8 / source.encoded_bytes,
    }
    name = min(limits, key=lambda limit: limits[limit])
    return name, limits[name]


def gpu_table() -> str:
    """GPUs, hours and cost of encoding alone."""
    rows = []
    for arch in map(get_arch, ARCHS):
        for gpu in GPUS:
            rate = gpu_rate(gpu, arch)
            hours = IMAGES / rate / 3600
            rows.append(
                [
                    arch.name,
                    f"{image_flops(arch) / 1e9:.0f}",
                    gpu.name,
                    f"{rate:,.0f}",
                    f"{hours:,.0f}",
                    f"{hours * 3600 / DAY_S / DAYS:.2f}",
                    f"{hours * gpu.hour_dollars:,.0f}",
                ]
            )
    return _table(["arch", "GFLOP an image", "GPU", "images/s", "GPU hours", f"GPUs for {DAYS:g} days", "$"], rows)


def feed_table() -> str:
    """What the encoders are fed with."""
    rows = []
    for source in SOURCES:
        core_hours = IMAGES * source.seconds / 3600
        total = IMAGES * source.encoded_bytes
        rows.append(
            [
                source.name,
                f"{1 / source.seconds:,.0f}",
                f"{core_hours:,.0f}",
                f"{core_hours * 3600 / DAY_S / DAYS:.1f}",
                f"{core_hours * CORE_HOUR_DOLLARS:,.0f}",
                f"{total / 1e12:,.0f} TB",
                f"{total * 8 / DAY_S / DAYS / 1e9:.2f} Gb/s",
            ]
        )
    head = ["images", "images/s a core", "core hours", f"cores for {DAYS:g} days", "$", "read", f"over {DAYS:g} days"]
    return _table(head, rows)


def balance_table() -> str:
    """The cores and the network that keep one GPU busy, and what of a common server runs out first."""
    rows = []
    for arch in map(get_arch, ARCHS):
        for gpu in GPUS:
            rate = gpu_rate(gpu, arch)
            row = [arch.name, gpu.name]
            for source in SOURCES:
                limit, reached = first_limit(gpu, arch, source)
                row += [
                    f"{rate * source.seconds:,.1f}",
                    f"{rate * source.encoded_bytes * 8 / 1e9:.1f}",
                    f"{limit}, at {reached:,.0f}/s",
                ]
            rows.append(row)
    head = ["arch", "GPU"]
    for source in SOURCES:
        head += [f"{source.name}: cores", "Gb/s", "runs out first"]
    return _table(head, rows)


def feature_table() -> str:
    """What is written."""
    rows = []
    for arch in map(get_arch, ARCHS):
        size = arch.embedding_size
        rows.append([arch.name, str(size), *(f"{IMAGES * size * width / 1e12:.2f} TB" for width in (4, 2))])
    return _table(["arch", "numbers", "float32", "float16"], rows)


def tables() -> dict[str, str]:
    """All tables, by title."""
    return {
        "Encoding": gpu_table(),
        "Reading and preprocessing": feed_table(),
        "A server with one GPU": balance_table(),
        "Features": feature_table(),
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for title, table in tables().items():
        print(f"{title}\n\n{table}\n")
