from collections.abc import Iterator

AVX2: int
BEST: int
SCALAR: int
VNNI: int

def find_jpeg(path: str) -> str | None: ...
def jpeg(
    file: bytes,
    channels: int,
    wide: int,
    high: int,
    scale: int,
    side: int,
    vertical_first: bool,
    path: int,
) -> bytes | None: ...
def resize(
    schema: object,
    array: object,
    channels: int,
    wide: int,
    high: int,
    side: int,
    vertical_first: bool,
    path: int,
) -> bytes | None: ...
def strips(
    strips: Iterator[tuple[object, object, int]],
    channels: int,
    wide: int,
    high: int,
    side: int,
    vertical_first: bool,
    path: int,
) -> bytes | None: ...
