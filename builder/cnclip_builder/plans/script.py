"""Makes the plans of a folder that `cnclip-build tensorrt --bundle` wrote: the script of that folder.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cnclip_builder.errors import BuildError
from cnclip_builder.plans.api import BuildOptions, load_tensorrt
from cnclip_builder.plans.device import current_device
from cnclip_builder.plans.make import make_plan
from cnclip_builder.plans.record import read_jobs
from cnclip_builder.plans.requirements import require_machine


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes every plan of the folder; an error is one line on stderr and exit status 1."""
    here = Path(sys.argv[0]).resolve().parent
    parser = argparse.ArgumentParser(
        prog="build_plans.pyz",
        description="Makes TensorRT plans of the ONNX files beside it, for this machine's GPU, and proves each against "
        "PyTorch's features before it keeps it.",
    )
    parser.add_argument("--sources", type=Path, default=here, help="folder of plans.json (default: the script's own)")
    parser.add_argument("--output", type=Path, help="folder for the plans (default: that of the sources)")
    parser.add_argument("--workspace-mib", type=int, help="most GPU memory for a kernel's scratch, in MiB")
    parser.add_argument("--optimization-level", type=int, help="0 (fast to build) to 5 (fast to run)")
    parser.add_argument("--fast", action="store_true", help="build for a first trial, at optimization level 1")
    parser.add_argument("--tf32", action="store_true", help="let FP32 products round what they multiply to TF32")
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        settings = BuildOptions(options.workspace_mib, options.optimization_level, options.tf32, options.fast)
        jobs = read_jobs(options.sources)
        tensorrt, device = load_tensorrt(), current_device()
        libraries = require_machine(tensorrt, device)
        output = options.output or options.sources
        for job in jobs:
            record = make_plan(job, options.sources, output, tensorrt, device, settings, libraries)
            print(f"{output / job.plan}  1 - cosine <= {record.parity['pytorch']['cosine_distance']:.0e}")
    except (BuildError, OSError) as error:
        if options.verbose:
            logging.getLogger(__name__).exception("the plans were not all made")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
