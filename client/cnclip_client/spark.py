"""Features in Spark's tables, with a client in each of its Python processes.

A column of texts becomes one of features, and of what is wrong with those that have none:

    from cnclip_client import Client
    from cnclip_client.spark import feature_type, make_predict_fn
    from pyspark.ml.functions import predict_batch_udf

    connect = lambda: Client("triton-a:8001,triton-b:8001", model="vit-b-16")
    encode = predict_batch_udf(
        lambda: make_predict_fn(connect, "text"), return_type=feature_type(), batch_size=512
    )
    encoded = table.withColumn("encoded", encode("text")).select("id", "encoded.feature", "encoded.error")
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._extras import require
from cnclip_client._flow.preparation import PREPARERS_VARIABLE
from cnclip_client._info import ModelInfo
from cnclip_client._vocabulary import Kind
from cnclip_client.extraction._rows import Connect, RowEncoder

__all__ = ["feature_type", "make_predict_fn"]


def feature_type() -> Any:
    """Returns what `predict_batch_udf` is to be told of the result: a struct of `feature` and `error`.

    `feature` is an array of floats, `error` a string that is null where there is a feature.

    Raises:
        MissingExtra: pyspark is not installed.
    """
    types = require("pyspark.sql.types", extra="spark")
    return types.StructType(
        [
            types.StructField("feature", types.ArrayType(types.FloatType())),
            types.StructField("error", types.StringType()),
        ]
    )


def make_predict_fn(
    connect: Connect,
    kind: Kind,
    *,
    normalize: bool = True,
    batch_size: int | None = None,
    expected: ModelInfo | None = None,
) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """Returns what encodes a batch of a column in the process that calls this.

    Give `predict_batch_udf` a function that calls this, so that each of Spark's processes does. A task that Spark
    does again encodes its rows again, which changes nothing on the server.

    Args:
        connect: Makes the process's client.
        kind: Whether the column holds images, encoded or paths that are the same on every node, or texts.
        normalize: Whether each feature is divided by its length.
        batch_size: Items a request; by default the client's. That of `predict_batch_udf` is best some times larger,
            as only what it hands over at once can be under way together.
        expected: The model that all processes are held to, such as `Client.info`; without it each is held to the one
            that it finds.

    Returns:
        A function of n values, [n], to `feature`, float32 [n, D], all NaN where it failed, and `error`, [n], why. It
        raises `CnclipError` where the server could not be had, or serves another model.
    """
    # Spark has a process for each core that a task may use: where clients prepare images, each does so in one.
    os.environ.setdefault(PREPARERS_VARIABLE, "1")
    rows = RowEncoder(connect, kind, normalize=normalize, batch_size=batch_size, expected=expected)

    def predict(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        features, reasons = rows.column([_value(one) for one in values.tolist()])
        return {"feature": features, "error": np.array(reasons, np.object_)}

    return predict


def _value(value: Any) -> Any:
    # A null becomes NaN on its way through pandas; Spark's binary comes as bytearray.
    if isinstance(value, float) and np.isnan(value):
        return None
    return bytes(value) if isinstance(value, bytearray) else value
