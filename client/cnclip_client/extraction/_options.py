"""How a job is done, and what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from cnclip_client.features import Dtype

__all__ = ["ExtractOptions", "RepeatedIds", "Summary"]

RepeatedIds: TypeAlias = Literal["keep", "first", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How a job is done.

    `normalize`, `dtype`, `preprocess` and `repeated_ids="first"` belong to its output; the others may change between
    its runs.

    Attributes:
        normalize: Whether each feature is divided by its length.
        dtype: Of the numbers in a .parquet or .npy file.
        max_errors: How many items may fail before the job stops; without it, any number, unless none of the first
            1,000 of a run can be read.
        overwrite: Whether what there is of the output may be replaced, by something else or by the same made anew.
            It stays until what takes its place is whole. Work on this very job is gone on with, that on another goes.
        batch_size: Items a request; by default the client's.
        checkpoint_s: How often what was done is made safe, in seconds: so much work at most is done again.
        repeated_ids: What becomes of the features of ids that came before: `keep` writes them, as cn_clip's scripts
            do; `first` leaves them out; `refuse` stops the job at the first one.
        preprocess: Whether texts are prepared with `preprocess_text`, as cn_clip's own extraction does.
    """

    normalize: bool = True
    dtype: Dtype = "float32"
    max_errors: int | None = None
    overwrite: bool = False
    batch_size: int | None = None
    checkpoint_s: float = 5.0
    repeated_ids: RepeatedIds = "keep"
    preprocess: bool = True

    def __post_init__(self) -> None:
        if self.repeated_ids not in get_args(RepeatedIds):
            raise ValueError(f"repeated_ids must be {', '.join(get_args(RepeatedIds))}; got {self.repeated_ids!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a finished job did.

    Attributes:
        items: How many items the source has.
        failures: How many of them have no feature; the errors file says why.
        seconds: How long it took, all its runs together.
        already_finished: Whether it was finished before, and nothing was done now.
        repeated: How many ids came again; their features were written or left out, as `repeated_ids` says.
        parts: Of a folder of parts, how many there are of this job's; the figures are those of them.
    """

    items: int
    failures: int
    seconds: float
    already_finished: bool = False
    repeated: int = 0
    parts: int = 0
