"""A curve of distances as SVG, written by hand: a page with it needs nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 40
_POINTS = 200
_LEAST = 1e-16  # what is nearer stands here: a logarithm has no zero


def draw_distances(curves: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """Draws, for each curve, the share of rows that are at most so far apart.

    Args:
        curves: by the name of their CSS class, 1 - cosine of each row.

    Returns:
        An `<svg>` element; the names come into it as they are.
    """
    values = {name: np.maximum(distances, _LEAST) for name, distances in curves.items()}
    lowest = math.floor(math.log10(min(float(one.min()) for one in values.values())))
    highest = max(lowest + 1, math.ceil(math.log10(max(float(one.max()) for one in values.values()))))
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(logarithm: float) -> float:
        return _LEFT + inner_width * (logarithm - lowest) / (highest - lowest)

    def y(share: float) -> float:
        return _TOP + inner_height * (1 - share)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="1 - cosine">']
    every = max(1, math.ceil((highest - lowest) / 10))
    for decade in range(lowest, highest + 1, every):
        parts.append(f'<line class="grid" x1="{x(decade):.1f}" y1="{_TOP}" x2="{x(decade):.1f}" y2="{y(0):.1f}"/>')
        parts.append(f'<text x="{x(decade):.1f}" y="{y(0) + 16:.1f}" text-anchor="middle">1e{decade}</text>')
    for share in (0, 0.5, 1):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{y(share):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(share):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    parts.append(f'<text x="{_LEFT + inner_width / 2}" y="{_HEIGHT - 6}" text-anchor="middle">1 - cosine</text>')
    shares = np.linspace(0, 1, _POINTS)
    for name, one in values.items():
        points = zip(np.quantile(np.log10(one), shares).tolist(), shares.tolist(), strict=True)
        path = " ".join(f"{x(logarithm):.1f},{y(share):.1f}" for logarithm, share in points)
        parts.append(f'<polyline class="{name}" points="{path}"/>')
    return "".join([*parts, "</svg>"])
