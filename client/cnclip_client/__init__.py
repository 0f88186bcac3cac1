"""A thin client for Chinese-CLIP on Triton: features of images and texts in bulk, over gRPC.

    from cnclip_client import Client

    with Client("localhost:8001", model="vit-b-16") as client:
        features = client.encode_texts(["皮卡丘", "杰尼龟"])            # float32 [2, D], L2-normalised
        chances = client.similarity(["a.jpg"], ["皮卡丘", "杰尼龟"])    # float32 [1, 2], each row sums to 1

Everything that it raises on purpose is a `CnclipError`: `TransportError` (`ServerUnreachable`, `TlsFailed`,
`ServerBusy`, `RequestTimeout`), `AccessDenied`, `ModelNotFound`, `ModelNotReady`, `ModelChanged`,
`CheckpointMismatch`, `BadInput`, `BadFile`, `StoreError`, `MissingExtra`, `JobRefused`, `TooManyFailures`,
`ServerError`.
"""

from cnclip_client import _forks  # noqa: F401 - first, as it says
from cnclip_client._blocks import Block
from cnclip_client._client import Client
from cnclip_client._connection.catalogue import served_models
from cnclip_client._credentials import Credentials, Tls
from cnclip_client._exceptions import (
    AccessDenied,
    BadFile,
    BadInput,
    CheckpointMismatch,
    CnclipError,
    JobRefused,
    MissingExtra,
    ModelChanged,
    ModelNotFound,
    ModelNotReady,
    RequestTimeout,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    StoreError,
    TlsFailed,
    TooManyFailures,
    TransportError,
)
from cnclip_client._flow.items import ImageItem
from cnclip_client._info import ModelInfo
from cnclip_client._settings import Limits, Retry, Timeout
from cnclip_client._texts import preprocess_text

__all__ = [
    "AccessDenied",
    "BadFile",
    "BadInput",
    "Block",
    "CheckpointMismatch",
    "Client",
    "CnclipError",
    "Credentials",
    "ImageItem",
    "JobRefused",
    "Limits",
    "MissingExtra",
    "ModelChanged",
    "ModelInfo",
    "ModelNotFound",
    "ModelNotReady",
    "RequestTimeout",
    "Retry",
    "ServerBusy",
    "ServerError",
    "ServerUnreachable",
    "StoreError",
    "Timeout",
    "Tls",
    "TlsFailed",
    "TooManyFailures",
    "TransportError",
    "preprocess_text",
    "served_models",
]
