"""To which lengths should texts be padded where padding is computed? A simulation of tokeniser, batcher and encoder.

    python benchmarks/text_lengths.py --captions captions.txt

Few lengths make padding, many make small batches: Triton's batcher ends a batch at the first request of another shape.
Clients keep a number of requests under way, each of texts drawn from the captions, and send the next some time (random,
1 ms on average) after one is answered. The tokeniser takes all requests that wait, and pads them alike or one by one.
The encoder's time is one part that every batch takes and one for each token, padding included. The defaults are a fit
to what ViT-B-16's text encoder took on an H100 (docs/gpu.md).
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

REQUESTS = 4000


@dataclass(frozen=True)
class Costs:
    """What work takes, in seconds.

    Attributes:
        batch_s: every batch of the encoder.
        token_s: each token in it, padding included.
        text_s: each text at the tokeniser.
        pause_s: until a client that was answered asks again, on average.
        most_rows: of a batch.
    """

    batch_s: float = 0.83e-3
    token_s: float = 0.36e-6
    text_s: float = 20e-6
    pause_s: float = 1e-3
    most_rows: int = 128


@dataclass(frozen=True)
class Served:
    """What came of it.

    Attributes:
        texts_per_s: the rate.
        rows: of a batch, on average.
        padding: share of the tokens that were computed for nothing.
    """

    texts_per_s: float
    rows: float
    padding: float


def padded(longest: int, lengths: Sequence[int]) -> int:
    """The shortest length that holds a text, or the last."""
    return next((length for length in lengths if length >= longest), lengths[-1])


def draw(captions: Lengths, rows: int, window: int, random: np.random.Generator) -> Lengths:
    """The tokens of the texts of each request, `[REQUESTS, rows]`; the arguments are those of `simulate`."""
    drawn = random.choice(captions, (-(-REQUESTS // window), window * rows))
    return (np.sort(drawn, axis=1) if window > 1 else drawn).reshape(-1, rows)[:REQUESTS]


def simulate(
    captions: Lengths,
    lengths: Sequence[int],
    *,
    rows: int,
    under_way: int,
    together: bool,
    costs: Costs,
    window: int,
) -> Served:
    """Serves `REQUESTS` requests of several texts each.

    Args:
        captions: tokens of each text that may be asked for.
        lengths: to which texts are padded, ascending.
        rows: texts of a request.
        under_way: requests at once.
        together: whether the tokeniser pads all requests that it takes at once alike, rather than each by itself.
        costs: what work takes.
        window: requests' worth of texts that a client sorts by length before it makes requests of them; 1 for none.
    """
    random = np.random.default_rng(0)
    texts = draw(captions, rows, window, random)
    pauses = random.exponential(costs.pause_s, REQUESTS)
    longest, most = texts.max(axis=1), max(costs.most_rows // rows, 1)
    arrived: deque[int] = deque()
    tokenised: deque[tuple[int, int]] = deque()
    events: list[tuple[float, int, str, list[tuple[int, int]]]] = []
    sent = answered = batches = computed = order = 0
    now, busy = 0.0, {"tokenised": False, "answered": False}

    def later(seconds: float, what: str, items: list[tuple[int, int]]) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (now + seconds, order, what, items))
        if what in busy:
            busy[what] = True

    def send(count: int) -> None:
        nonlocal sent
        upto = min(sent + count, REQUESTS)
        for item in range(sent, upto):
            later(float(pauses[item]), "arrived", [(item, 0)])
        sent = upto

    send(under_way)
    while answered < REQUESTS:
        now, _, what, items = heapq.heappop(events)
        if what in busy:
            busy[what] = False
        if what == "arrived":
            arrived.append(items[0][0])
        elif what == "tokenised":
            tokenised.extend(items)
        else:
            answered += len(items)
            send(len(items))
        if arrived and not busy["tokenised"]:
            taken = [arrived.popleft() for _ in range(min(len(arrived), most))]
            alike = padded(int(longest[taken].max()), lengths)
            shaped = [(item, alike if together else padded(int(longest[item]), lengths)) for item in taken]
            later(costs.text_s * rows * len(taken), "tokenised", shaped)
        if tokenised and not busy["answered"]:
            batch = [tokenised.popleft()]
            while tokenised and tokenised[0][1] == batch[0][1] and len(batch) < most:
                batch.append(tokenised.popleft())
            tokens = len(batch) * rows * batch[0][1]
            batches, computed = batches + 1, computed + tokens
            later(costs.batch_s + costs.token_s * tokens, "answered", batch)
    return Served(texts.size / now, texts.size / batches, 1 - float(texts.sum()) / computed)


def main() -> None:
    """Prints texts a second for several lists of lengths, sizes of requests and requests at once."""
    from cnclip_builder.arch import cn_clip_vocabulary
    from cnclip_token_ids import TokenIds

    parser = argparse.ArgumentParser(description="Rates by the lengths to which texts are padded.")
    parser.add_argument("--captions", type=Path, required=True, help="a caption a line")
    parser.add_argument("--context-length", type=int, default=52)
    parser.add_argument(
        "--lengths", action="append", help="such as 24,52; may be repeated; the context length is added"
    )
    parser.add_argument("--batch-ms", type=float, default=Costs.batch_s * 1e3)
    parser.add_argument("--token-us", type=float, default=Costs.token_s * 1e6)
    parser.add_argument("--tokenize-us", type=float, default=Costs.text_s * 1e6)
    parser.add_argument("--max-batch-size", type=int, default=Costs.most_rows)
    arguments = parser.parse_args()

    most = arguments.context_length
    costs = Costs(
        batch_s=arguments.batch_ms / 1e3,
        token_s=arguments.token_us / 1e6,
        text_s=arguments.tokenize_us / 1e6,
        most_rows=arguments.max_batch_size,
    )
    encode = TokenIds(cn_clip_vocabulary(), most).encode
    captions = np.array([len(encode(line)) for line in arguments.captions.read_text(encoding="utf-8").splitlines()])
    steps = ",".join(map(str, range(8, most, 8)))
    lists = arguments.lengths or [steps, "", "24", "32", "40", "32,40", "24,40", "24,32,40"]
    loads = [(1, 16, 1), (1, 128, 1), (8, 4, 1), (8, 16, 1), (32, 2, 1), (32, 8, 1), (32, 8, 32)]
    heads = [f"{rows} x {count}{', sorted' if window > 1 else ''}" for rows, count, window in loads]
    shares = ", ".join(f"{share} % have at most {np.percentile(captions, share):.0f} tokens" for share in (50, 95, 99))
    print(f"{len(captions)} captions: {shares}\n")
    print("| lengths | padded | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|" * len(loads))
    for text in lists:
        lengths = sorted({*(int(part) for part in text.split(",") if part), most})
        for together in (True, False):
            found = [
                simulate(captions, lengths, rows=rows, under_way=count, together=together, costs=costs, window=window)
                for rows, count, window in loads
            ]
            cells = [f"{served.texts_per_s:,.0f} ({served.rows:.0f})" for served in found]
            named = ", ".join(map(str, lengths))
            print(f"| {named} | {'alike' if together else 'each'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
