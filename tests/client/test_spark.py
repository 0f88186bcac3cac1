"""On local Spark: a column of texts or images becomes a struct of features and reasons."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from cnclip_client import Client
from cnclip_pixels import decode_pixels
from cnclip_token_ids import VOCABULARY, TokenIds
from PIL import Image

pyspark = pytest.importorskip("pyspark", reason="Spark is not installed; pip install '.[spark]'")

from cnclip_client.spark import feature_type, make_predict_fn  # noqa: E402

pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17 or later, and there is no java"),
    # Of pyspark's own, not of ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[1]").config("spark.driver.memory", "1g")
    builder = builder.config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", "2")
    # What runs for seconds is not worth Java's second compiler, nor its parallel collector.
    builder = builder.config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    # Nor compiling each query to Java; and each core is a Python more, that imports all.
    builder = builder.config("spark.sql.codegen.wholeStage", "false")
    builder = builder.config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
    session = (
        builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1").getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def encode(connect: Any, kind: Any, **options: Any) -> Any:
    from pyspark.ml.functions import predict_batch_udf

    return predict_batch_udf(
        partial(make_predict_fn, connect, kind, **options), return_type=feature_type(), batch_size=64
    )


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_column_gets_features_and_reasons(spark: Any, triton: Any, fake: Any, kind: str) -> None:
    values: list[Any] = [f"{kind} {number}" for number in range(300)]
    values[7], values[8] = "BAD:torn", None
    if kind == "image":
        values = [value and value.encode() for value in values]
    column = "string" if kind == "text" else "binary"
    table = spark.createDataFrame(list(enumerate(values)), f"id long, value {column}").repartition(3)
    connect = partial(Client, triton.url, model="vit-b-16")
    encoded = table.withColumn("encoded", encode(connect, kind, normalize=False)("value"))
    rows = encoded.select("id", "encoded.feature", "encoded.error").orderBy("id").collect()
    assert [row.id for row in rows] == list(range(300))
    # Texts are made lower case, as by `cnclip extract`.
    reasons = {row.id: row.error for row in rows if row.error is not None}
    assert reasons.pop(8) == "is null"
    if kind == "image":
        assert reasons == {7: "torn"}
    for row in rows:
        if row.error is not None:
            assert np.isnan(row.feature).all()
            assert len(row.feature) == fake.dimension
        else:
            sent = f"{kind} {row.id}" if row.id != 7 else "bad:torn"
            np.testing.assert_array_equal(row.feature, fake.features_of(sent.encode()))
    assert max(map(len, triton.requests)) == (32 if kind == "text" else 8)


@pytest.mark.parametrize("prepare", ["client", "auto"])
def test_processes_prepare_for_a_server_of_encoders_alone(serve: Any, fake: Any, prepare: Any) -> None:
    """What Spark calls in each of them, without it: its own way to them is above."""
    alone = serve(fake.image_encoder("vit-b-16", 32), fake.text_encoder("vit-b-16"))
    connect = partial(Client, alone.url, model="vit-b-16", prepare=prepare)
    texts = make_predict_fn(connect, "text", normalize=False)(np.array(["我", None], np.object_))
    token_ids = TokenIds(VOCABULARY, 52, (40, 52))
    np.testing.assert_array_equal(
        texts["feature"][0], fake.features_of(token_ids.pad([token_ids.encode("我")]).tobytes())
    )
    assert texts["error"].tolist() == [None, "is null"]
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (7, 0, 0)).save(buffer, "PNG")
    predict = make_predict_fn(connect, "image", normalize=False)
    images = predict(np.array([buffer.getvalue(), b"no image"], np.object_))
    pixels = decode_pixels(buffer.getvalue(), 32).tobytes()
    np.testing.assert_array_equal(images["feature"][0], fake.features_of(pixels))
    assert images["error"].tolist() == [None, "UnidentifiedImageError: cannot identify image file"]


def test_another_model_than_the_expected_fails_the_job(spark: Any, triton: Any, serve: Any, fake: Any) -> None:
    other = serve(*fake.both("vit-b-16", sha="b" * 64))
    with Client(triton.url, model="vit-b-16") as client:
        expected = client.info
    table = spark.createDataFrame([("a",)], "value string")
    udf = encode(partial(Client, other.url, model="vit-b-16"), "text", expected=expected)
    with pytest.raises(Exception, match="aaaaaaaaaaaa -> bbbbbbbbbbbb"):
        table.select(udf("value")).collect()
    assert not other.requests
