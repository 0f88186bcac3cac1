"""Files of object stores and web servers, by fsspec: `s3://`, `gs://`, `https://`, `hf://` and what else it knows.

| module | what it is |
|---|---|
| `paths.py` | `RemotePath`, which has the methods of a `Path` that are used of it; `located` makes one or the other |
| `reading.py` | a remote file as one that can be read and sought in, ahead over several connections |
| `errors.py` | what libraries raise, as this package's errors |
"""

from cnclip_client._remote.errors import is_unanswered
from cnclip_client._remote.paths import FileState, Location, RemotePath, is_remote, located, state_digest, state_of

__all__ = ["FileState", "Location", "RemotePath", "is_remote", "is_unanswered", "located", "state_digest", "state_of"]
