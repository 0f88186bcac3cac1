"""A Spark job: a table of texts becomes a table of features, in all of a cluster's Python processes.

    spark-submit examples/jobs/spark_features.py texts.jsonl features/ --url triton-a:8001,triton-b:8001 --model NAME

`texts.jsonl` has `text_id` and `text` on each line, as MUGE's does. Afterwards `features/good` is what
`cnclip search --text-feats` reads, and `features/bad` names what has no feature, and why.

Needs `pip install 'cn-clip-triton[spark]'` on every node, and Java 17 or later. Without a cluster
`python examples/jobs/spark_features.py ...` runs it on this machine's cores.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from cnclip_client import Client, Retry
from cnclip_client.spark import feature_type, make_predict_fn
from pyspark import StorageLevel
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.functions import col


def encode(spark: SparkSession, texts: str, output: Path, url: str, model: str) -> tuple[int, int]:
    """Encodes a table of texts; returns how many have features, and how many have none."""
    # Sent to every process, which makes its own client. A server that restarts is waited for.
    connect = partial(Client, url, model=model, retry=Retry.patient(600))
    with connect() as client:
        expected = client.info  # all processes are held to it: features of two checkpoints are no table
    encode_text = predict_batch_udf(
        partial(make_predict_fn, connect, "text", expected=expected),
        return_type=feature_type(),
        batch_size=512,  # several requests' worth, so that they are under way together
    )
    table = spark.read.schema("text_id long, text string").json(texts)
    encoded = table.withColumn("encoded", encode_text("text"))
    encoded = encoded.select("text_id", "encoded.feature", "encoded.error")
    # Written twice, encoded once.
    encoded = encoded.persist(StorageLevel.DISK_ONLY)
    good = encoded.filter(col("error").isNull()).drop("error")
    bad = encoded.filter(col("error").isNotNull()).drop("feature")
    good.write.parquet(str(output / "good"))
    bad.write.parquet(str(output / "bad"))
    return good.count(), bad.count()


def main() -> int:
    """Reads the command line; returns the exit status, 1 if some texts have no feature."""
    parser = argparse.ArgumentParser(description="Features of a table of texts, on Spark.")
    parser.add_argument("texts", help="JSONL with text_id and text: a file, a folder or a pattern")
    parser.add_argument("output", type=Path, help="a folder that is not there yet, which every node sees")
    parser.add_argument("--url", default="localhost:8001", help="the servers' gRPC addresses, with commas")
    parser.add_argument("--model", default="vit-b-16")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} is there already; remove it, or name another folder")
    spark = SparkSession.builder.appName("features of texts").getOrCreate()
    try:
        done, failed = encode(spark, options.texts, options.output.absolute(), options.url, options.model)
    finally:
        spark.stop()
    print(f"{done} texts have features, in {options.output / 'good'}; {failed} have none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
