"""Where `cnclip extract` writes to: a file, or a folder of parts that several jobs may share out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cnclip_console import option

from cnclip_client.extraction import PartFormat, Sharding
from cnclip_client.extraction._parts_folder import work_folder

__all__ = ["Destination", "Output", "OutputFormat", "Shard", "ShardItems", "Work", "destination_of"]

Output = Annotated[
    str,
    option(
        "FILE.jsonl (cn_clip's), .parquet, or .npy with FILE.ids.jsonl; or, ending in /, a folder of parts, here "
        "or in an object store (s3://BUCKET/FEATURES/).",
        "--output",
        "-o",
        metavar="FILE|FOLDER/",
    ),
]
ShardItems = Annotated[
    int | None, option("Items of SOURCE in each part of a folder.", metavar="N", min=1, show_default="100000")
]
Shard = Annotated[
    str | None, option("Of N jobs on one folder this is number I, from 0; each does its parts.", metavar="I/N")
]
OutputFormat = Annotated[PartFormat | None, option("Of a folder's parts.", show_default="parquet")]
Work = Annotated[
    Path | None,
    option(
        "Where unfinished parts are kept if the output is in an object store.",
        metavar="FOLDER",
        show_default="NAME.partial here",
    ),
]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where features go.

    Attributes:
        output: As it was given.
        sharding: Of a folder of parts; None of a file.
        work: Where unfinished parts are kept, if that was said.
    """

    output: str
    sharding: Sharding | None
    work: Path | None

    @property
    def partial(self) -> Path:
        """A folder that is there if there is something to go on with."""
        if self.sharding is None:
            return Path(f"{self.output}.partial")
        return Path(self.output) if "://" not in self.output else work_folder(self.output, self.work)


def destination_of(
    output: str, shard_items: int | None, shard: str | None, format: PartFormat | None, work: Path | None
) -> Destination:
    """Tells a folder of parts from a file. Raises ValueError if what was said of it does not go together."""
    if not output:
        raise ValueError("--output is empty; name a file, or a folder with a / behind it")
    is_remote = "://" in output
    is_file = Path(output).suffix in (".jsonl", ".npy", ".parquet") and not output.endswith("/")
    if is_remote and is_file:
        raise ValueError(f"{output} is in a store, which takes a folder of parts; end it in /")
    if not is_remote and (is_file or not (output.endswith("/") or Path(output).is_dir())):
        given = {"--shard-items": shard_items, "--shard": shard, "--output-format": format, "--work": work}
        if named := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"{' and '.join(named)} are for a folder of parts; end --output {output} in / to write one"
            )
        return Destination(output, None, None)
    if work is not None and not is_remote:
        raise ValueError("--work is for an output in an object store; a folder here holds its unfinished parts itself")
    index, jobs = Sharding.parse(shard) if shard is not None else (0, 1)
    sharding = Sharding(items=shard_items or Sharding().items, format=format or "parquet", index=index, jobs=jobs)
    return Destination(output, sharding, work)
