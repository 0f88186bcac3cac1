"""A comparison as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import json
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cnclip_builder.comparison.compare import Comparison
from cnclip_builder.comparison.distances import QUANTILES
from cnclip_builder.comparison.plot import draw_distances
from cnclip_builder.tensors import Tower

_LEFT_OUT_SHOWN = 100


def comparison_page(comparison: Comparison) -> str:
    """Writes the page, which shows its reader's language, Chinese or English; ids and reasons are escaped."""
    folder = resources.files("cnclip_builder.comparison")
    template = folder / "page.html.j2"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        chinese=json.loads((folder / "words.json").read_text(encoding="utf-8")),
        comparison=comparison,
        found=comparison.as_dict(),
        quantiles=list(QUANTILES),
        plots={tower: _plot(comparison, tower) for tower in comparison.distances},
        left_out_shown=_LEFT_OUT_SHOWN,
    )


def _plot(comparison: Comparison, tower: Tower) -> Markup:
    distances = comparison.distances[tower]
    curves = {"plain": distances.cosine}
    if distances.centred is not None:
        curves["centred"] = distances.centred
    return Markup(draw_distances(curves))  # noqa: S704 - numbers alone are in it
