AVX2: int
BEST: int
SCALAR: int

def resize(
    schema: object,
    array: object,
    copied: bytes | None,
    channels: int,
    wide: int,
    high: int,
    side: int,
    vertical_first: bool,
    path: int,
) -> bytes | None: ...
