"""A day's photographs become searchable: a DAG for Airflow 3, whose tasks are commands of `cnclip` and one function.

Put it where Airflow looks for DAGs, and set the three paths and the address below. A day's photographs are extracted
and added to the index; if fixed queries still find what they should, the index takes the place of the one before:

    extract_photos -> add_to_index -> measure -> recall_is_kept -> publish

Airflow itself is not among this project's dependencies. Without it this file is a list of tasks, in order, and the
project's tests run them as they stand, each command through a shell, with `{{ ds }}` filled in as Airflow does. What
Airflow does beside that, when to run and when to try again, they do not see. Seen once by hand: Airflow 3.3.2 ran two
days of it to their end (`dag.test()`, 26 November 2026).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

PHOTOS = os.environ.get("PHOTOS", "/data/photos")  # a folder for each day in it, such as 2026-11-26
QUERIES = os.environ.get("QUERIES", "/data/queries.jsonl")  # MUGE's lines: text_id, text, image_ids
WORK = os.environ.get("WORK", "/data/work")
SERVER = os.environ.get("CNCLIP_URL", "triton:8001")
MODEL = os.environ.get("CNCLIP_MODEL", "vit-b-16")

LOWEST_RECALL = 80.0  # of R@10, in percent: a day that falls below it is not published

ASK = f"--url {SERVER} --model {MODEL} --wait-for-server 600 --progress json"


@dataclass(frozen=True)
class Command:
    """A task that is a line of shell; Airflow fills in `{{ ds }}`, the day."""

    name: str
    line: str


# Each can be done again at any time: what is finished is found finished, what was killed goes on. `extract` ends with 1
# where some photographs could not be read: they are in a file beside the features, and the day goes on without them.
EXTRACT_PHOTOS = Command(
    "extract_photos",
    f"mkdir -p {WORK}/features"
    f"; cnclip extract images {PHOTOS}/{{{{ ds }}}} -o {WORK}/features/{{{{ ds }}}}.parquet {ASK} || [ $? -eq 1 ]",
)
# From the index of the day before, so that only the day's rows are new; the features of the first day make the first.
ADD_TO_INDEX = Command(
    "add_to_index",
    f"cd {WORK} && mkdir -p indexes && if [ -e index ] && [ ! -e indexes/{{{{ ds }}}} ]; then"
    f" rm -rf indexes/copy && cp -rL index indexes/copy && mv indexes/copy indexes/{{{{ ds }}}}; fi"
    f" && cnclip index images features/*.parquet -o indexes/{{{{ ds }}}}",
)
MEASURE = Command(
    "measure",
    f"cd {WORK} && cnclip extract texts {QUERIES} -o queries.parquet --overwrite {ASK}"
    f" && cnclip evaluate --index indexes/{{{{ ds }}}} --text-feats queries.parquet --annotations {QUERIES} --json"
    f" > recall-{{{{ ds }}}}.json",
)
# In one step: whoever searches has the old index or the new one.
PUBLISH = Command(
    "publish",
    f"cd {WORK} && ln -sfn indexes/{{{{ ds }}}} index.new && mv -T index.new index",
)


def recall_is_kept(ds: str) -> float:
    """Returns a day's R@10, in percent; Airflow calls it with the day.

    Raises:
        ValueError: It is below `LOWEST_RECALL`; nothing is published.
    """
    found = json.loads(Path(WORK, f"recall-{ds}.json").read_text(encoding="utf-8"))
    r10 = float(found["text_to_image"]["r10"])
    if r10 < LOWEST_RECALL:
        raise ValueError(f"R@10 is {r10:.1f} % on {ds}, below {LOWEST_RECALL} %; see {WORK}/recall-{ds}.json")
    return r10


TASKS = (EXTRACT_PHOTOS, ADD_TO_INDEX, MEASURE, recall_is_kept, PUBLISH)

try:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.providers.standard.operators.python import PythonOperator
    from airflow.sdk import DAG
except ImportError:
    pass
else:
    # One day after the other: each begins with the index of the day before.
    with DAG("searchable_photos", schedule="@daily", catchup=False, max_active_runs=1) as dag:
        before = None
        for task in TASKS:
            if isinstance(task, Command):
                operator = BashOperator(task_id=task.name, bash_command=task.line, append_env=True, retries=3)
            else:
                operator = PythonOperator(task_id=task.__name__, python_callable=task)
            if before is not None:
                before >> operator
            before = operator
