"""A wall clock that jumps, as one does that is set by hand or by NTP, changes nothing in a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# Everything that asks for the wall clock, gRPC's C++ core included, gets it from here: `jump_s` seconds off.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/time.h>
#include <time.h>

typedef int (*clock_fn)(clockid_t, struct timespec *);

static int now(clockid_t clock, struct timespec *out) {
    static clock_fn real;
    if (!real) real = (clock_fn)dlsym(RTLD_NEXT, "clock_gettime");
    return real(clock, out);
}

volatile int jump_s = 0;

int clock_gettime(clockid_t clock, struct timespec *out) {
    int status = now(clock, out);
    if (!status && clock == CLOCK_REALTIME) out->tv_sec += jump_s;
    return status;
}

int gettimeofday(struct timeval *out, void *zone) {
    struct timespec t;
    (void)zone;
    int status = clock_gettime(CLOCK_REALTIME, &t);
    out->tv_sec = t.tv_sec;
    out->tv_usec = t.tv_nsec / 1000;
    return status;
}

time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
"""

# The job takes 2.5 seconds at least, and the clock is an hour early from its first third of a second to its second.
# (Early first: a jump forward in the very microseconds in which a request computes its deadline would expire it.)
_JOB = """
import ctypes, json, sys, threading, time
from cnclip_client import Client
from cnclip_client.extraction import ExtractOptions, extract
from cnclip_client.sources import text_source

url, source, output, preloaded = *sys.argv[1:4], len(sys.argv) > 4
offsets, over = [], threading.Event()

def watch():
    for jump_s in (0, -3600, 0):
        if preloaded:
            ctypes.c_int.in_dll(ctypes.CDLL(None), "jump_s").value = jump_s
        offsets.append(round((time.time() - time.monotonic()) / 3600))
        over.wait(0.3)

watcher = threading.Thread(target=watch)
watcher.start()
with Client(url, model="vit-b-16") as client:
    summary = extract(client, text_source(source), output, ExtractOptions(checkpoint_s=0.0, batch_size=4))
over.set()
watcher.join()
print(json.dumps({"hours": offsets, "seconds": summary.seconds, "items": summary.items}))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the clock with")
def test_a_job_whose_clock_goes_back_an_hour_and_returns(tmp_path: Path, triton: Any) -> None:
    (tmp_path / "clock.c").write_text(_SHIM)
    shim, source = tmp_path / "clock.so", tmp_path / "texts.txt"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "clock.c", "-ldl"], check=True)
    source.write_text("".join(f"第{row}句\n" for row in range(400)), encoding="utf-8")
    triton.before_infer = lambda attempt, items: time.sleep(0.1)  # some 40 requests a second, for 2.5 seconds
    outputs = [tmp_path / name / "out.jsonl" for name in ("steady", "jumping")]
    for output, preloaded in zip(outputs, (False, True), strict=True):
        output.parent.mkdir()
        command = [sys.executable, "-c", _JOB, triton.url, str(source), str(output), *["preloaded"] * preloaded]
        environment = {**os.environ, **({"LD_PRELOAD": str(shim)} if preloaded else {})}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        before, during, after = said["hours"]
        assert (before - during, after) == (1 if preloaded else 0, before)
        assert said["items"] == 400
        assert 0 < said["seconds"] < 60
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
