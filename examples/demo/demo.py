"""The whole way, on a small scale: build the demo checkpoint, serve it, and match its pictures with captions.

Run it as `make demo`. It leaves `build/demo/repository` behind, which `make serve REPOSITORY=...` serves again.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, get_arch
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.errors import BuildError
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.system.isolation import configure_logging
from cnclip_client import Client, CnclipError
from cnclip_console import print_table
from cnclip_server import ServerError, TritonServer
from rich.console import Console

HERE = Path(__file__).resolve().parent
BUILD = Path("build/demo")


def build(repository: Path) -> str:
    """Builds the bundled checkpoint; returns the name that its models are served under."""
    request = BuildRequest(
        arch=get_arch(str(HERE / "demo.json")),
        checkpoint=str(HERE / "clip_cn_demo.pt"),
        serving=ServingConfig(target="cpu", precision="fp32", context_length=DEFAULT_CONTEXT_LENGTH, max_batch_size=16),
        repository=repository,
        artefacts=BUILD / "artefacts",
        download_root=BUILD,
    )
    return build_repository(request).name


def read_samples() -> tuple[list[Path], list[str]]:
    """Reads the sample pictures' paths and their captions, in the same order."""
    _, *lines = (HERE / "captions.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    return [HERE / "images" / name for name, _ in pairs], [caption for _, caption in pairs]


def show(pictures: list[Path], captions: list[str], probabilities: npt.NDArray[np.float32]) -> bool:
    """Prints each picture's probabilities of the captions; returns whether every picture's own caption won."""
    numbers = [str(row + 1) for row in range(len(pictures))]
    rows = [
        (number, picture.stem, *(f"{chance:.0%}" for chance in chances))
        for number, picture, chances in zip(numbers, pictures, probabilities, strict=True)
    ]
    print_table(("", "picture", *numbers), rows, "\nHow well each caption fits each picture")
    winners = probabilities.argmax(axis=1)
    verdicts = ["✓" if winner == row else f"✗ {captions[winner]}" for row, winner in enumerate(winners)]
    print_table(("", "its caption", "won"), zip(numbers, captions, verdicts, strict=True), "\nThe captions")
    return bool((winners == np.arange(len(pictures))).all())


def main() -> int:
    """Runs the demo; returns its exit status, 0 if the right caption won for every picture."""
    configure_logging(logging.WARNING)
    say = Console(stderr=True).print
    repository = BUILD / "repository"
    pictures, captions = read_samples()
    try:
        say("[bold]1/3[/] Building the model repository")
        name = build(repository)
        say("[bold]2/3[/] Starting tritonserver")
        with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
            say(f"[bold]3/3[/] Sending {len(pictures)} pictures and {len(captions)} captions to {server.grpc_url}")
            with Client(server.grpc_url, model=name) as client:
                probabilities = client.similarity(pictures, captions)
    except (BuildError, ServerError, CnclipError) as error:
        say(f"error: {error}", markup=False)
        return 1
    if not show(pictures, captions, probabilities):
        say("a wrong caption won: the served features are not what the checkpoint gives; please report this")
        return 1
    say("Every picture found its own caption. The server has stopped. To start it again:")
    say("  source .venv/bin/activate\n  cnclip-serve build/demo/repository", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
