"""What is asked at which path, and what holds for all of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import anyio
import numpy as np
from cnclip_client import CnclipError
from cnclip_client.report import Pictures
from cnclip_client.retrieval import Id
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cnclip_gateway import _pages as pages
from cnclip_gateway._bodies import Bodies, Held
from cnclip_gateway._embeddings import answer, embeddings, together
from cnclip_gateway._errors import BadRequest, GatewayError, NotNow, told
from cnclip_gateway._fetching import Fetcher
from cnclip_gateway._guard import Guard, refused
from cnclip_gateway._items import Asked, Item, parsed
from cnclip_gateway._metrics import CONTENT_TYPE, Metrics
from cnclip_gateway._models import Models
from cnclip_gateway._search import Searcher
from cnclip_gateway._settings import Settings
from cnclip_gateway._sharing import MOST_SHARED, Sharing

__all__ = ["Gateway"]

_T = TypeVar("_T")
_MOST_FOUND = 200
_QUERY_CHARACTERS = 10_000
_HEALTH_S = 10.0
_BUSY_THUMBNAILS = 4
# A body's bytes, or an answer's numbers.
_SMALL_BYTES = 64 * 1024


class Gateway:
    """The application.

    Args:
        models: What is served.
        settings: What others may do.
        searcher: What is searched, where there is something to search.
        pictures: The pictures of it.
    """

    def __init__(
        self, models: Models, settings: Settings, searcher: Searcher | None = None, pictures: Pictures | None = None
    ) -> None:
        self._models = models
        self._settings = settings
        self._searcher = searcher
        self._pictures = pictures
        self._metrics = Metrics()
        held = Held(settings.held_bytes, self._metrics)
        self._bodies = Bodies(settings, held)
        self._fetcher = Fetcher(settings.hosts, settings.body_bytes, settings.time_limit_s / 2, held)
        # Separate pools: thumbnails must not keep features waiting, nor either of them a question after our health.
        self._workers = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="work")
        self._drawers = ThreadPoolExecutor(_BUSY_THUMBNAILS, thread_name_prefix="thumbnail")
        self._askers = ThreadPoolExecutor(2, thread_name_prefix="health")
        self._sharing = Sharing(partial(together, models, settings), self._workers)
        self._began = int(time.time())

    def app(self) -> ASGIApp:
        """Returns it for a server of ASGI."""
        routes = [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{model}", self._one_model),
            Route("/health", self._health),
            Route("/health/live", self._live),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._openapi),
            Route("/docs", self._docs),
            Route("/pages/{name}", self._asset),
        ]
        if self._searcher is not None:
            routes += [
                Route("/", self._page),
                Route("/search", self._search, methods=["GET"]),
                Route("/search", self._search_by_picture, methods=["POST"]),
                Route("/thumbnails/{row}", self._thumbnail),
            ]
        handlers: Mapping[Any, Any] = {GatewayError: _refuse, HTTPException: _refuse_http, Exception: _fail}
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        # A redirect would lead to whatever host the request's own header names.
        app.router.redirect_slashes = False
        known = frozenset(route.path for route in routes)
        return Guard(app, self._settings.keys, self._metrics, known)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._models.close()
        self._fetcher.close()
        for pool in (self._workers, self._drawers, self._askers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _in_time(self, work: Awaitable[_T], seconds: float) -> _T:
        """Returns what work returns that waits; after so many seconds nobody waits for it any more."""
        try:
            with anyio.fail_after(seconds):
                return await work
        except TimeoutError:
            message = f"there was no answer within {seconds:g} seconds; send fewer items, or try again"
            raise NotNow(message, status=504, code="timeout") from None
        except CnclipError as error:
            raise told(error) from error

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], _T], seconds: float) -> _T:
        kept = [work]
        future = asyncio.get_running_loop().run_in_executor(pool, lambda: kept.pop()())
        try:
            return await self._in_time(future, seconds)
        finally:
            kept.clear()  # what is cancelled stays in the pool until a thread comes to it: not with a request's items

    async def _work(self, work: Callable[[], _T]) -> _T:
        return await self._run(self._workers, work, self._settings.time_limit_s)

    async def _embeddings(self, request: Request) -> Response:
        async with self._bodies.read(request, json=True) as body:
            parse = partial(parsed, body, self._settings.max_items)
            # What takes no time and cannot wait is done here: handing it to a thread would take longer.
            asked = parse() if len(body) < _SMALL_BYTES else await self._work(parse)
            name = partial(self._models.chosen, asked.model)
            slug = name() if self._models.is_known(asked.model) else await self._work(name)
            features = await self._features(asked, slug)
            self._metrics.encoded(asked.items)
            make = partial(answer, slug, features, asked)
            content = make() if features.size < _SMALL_BYTES else await self._work(make)
        return Response(content, media_type="application/json")

    async def _features(self, asked: Asked, slug: str) -> NDArray[np.float32]:
        kinds = {type(one) for one in asked.items}
        if len(asked.items) <= MOST_SHARED and kinds in ({str}, {bytes}):
            items: list[Item] = [one for one in asked.items if isinstance(one, str | bytes)]
            return await self._in_time(self._sharing.encoded(slug, items), self._settings.time_limit_s)
        unwanted = threading.Event()
        try:
            return await self._work(
                partial(embeddings, asked, slug, self._models, self._settings, self._fetcher, unwanted)
            )
        finally:
            unwanted.set()

    async def _list_models(self, _: Request) -> Response:
        names = await self._work(self._models.names)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in names]})

    async def _one_model(self, request: Request) -> Response:
        name = await self._work(partial(self._models.chosen, request.path_params["model"]))
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "cn-clip-triton"}

    async def _health(self, _: Request) -> Response:
        await self._run(self._askers, self._models.require_one, _HEALTH_S)
        return JSONResponse({"status": "ok"})

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(pages.openapi())

    async def _docs(self, _: Request) -> Response:
        return HTMLResponse(pages.docs_page())

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in pages.ASSETS:
            raise HTTPException(404)
        return Response(pages.asset(name), media_type=pages.ASSETS[name])

    async def _page(self, request: Request) -> Response:
        asked = request.query_params.get("lang")
        language = pages.language_of(asked, request.headers.get("accept-language", ""))
        return HTMLResponse(pages.search_page(language, len(self._found_in())), headers={"Vary": "Accept-Language"})

    async def _search(self, request: Request) -> Response:
        # Starlette would put U+FFFD in the place of bytes that are not UTF-8, such as GBK's.
        parameters = parse_qsl(
            request.scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape"
        )
        text = dict(parameters).get("q", "").strip()
        if not text:
            raise BadRequest("q is missing or empty; ask for /search?q=SENTENCE", param="q")
        if len(text) > _QUERY_CHARACTERS:
            raise BadRequest(f"q is longer than {_QUERY_CHARACTERS} characters; ask for less", param="q")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest("q is not UTF-8; percent-encode the sentence's UTF-8", param="q") from None
        return await self._found(request, text)

    async def _search_by_picture(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            if not body:
                raise BadRequest("the body is empty; send an image's bytes")
            return await self._found(request, body)

    async def _found(self, request: Request, item: str | bytes) -> Response:
        asked = _number(request.query_params.get("k", "24"))
        if asked is None or not 1 <= asked <= _MOST_FOUND:
            raise BadRequest(f"k is no number from 1 to {_MOST_FOUND}", param="k")
        slug, hits = await self._work(partial(self._found_in().find, item, asked))
        self._metrics.encoded([item])
        found = [
            {
                "id": hit.id,
                "score": round(hit.score, 6),
                "thumbnail": f"thumbnails/{hit.row}?of={_mark(hit.id)}" if self._pictures is not None else None,
            }
            for hit in hits
        ]
        # Starlette's own JSON is UTF-8, which no path of other bytes can be in.
        return Response(json.dumps({"model": slug, "hits": found}), media_type="application/json")

    async def _thumbnail(self, request: Request) -> Response:
        row, pictures = _number(request.path_params["row"]), self._pictures
        of = request.query_params.get("of")

        def draw() -> bytes | None:
            one = self._found_in().id_of(-1 if row is None else row)
            return None if pictures is None or of not in (None, _mark(one)) else pictures.thumbnail(one)

        data = await self._run(self._drawers, draw, self._settings.time_limit_s)
        if data is None:
            raise BadRequest("there is no such picture, or it cannot be shown", status=404, code="not_found")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def _found_in(self) -> Searcher:
        if self._searcher is None:
            raise AssertionError("a route that is only there with something to search")
        return self._searcher


def _mark(one: Id) -> str:
    """Returns what tells a row of one index from the same row of another: browsers keep thumbnails, and pods differ."""
    return f"{zlib.crc32(str(one).encode('utf-8', 'surrogatepass')):08x}"


def _number(text: str) -> int | None:
    """Returns what digits say; None of anything else, and of more digits than any row or count has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


async def _refuse(_: Request, error: GatewayError) -> Response:
    return refused(error)


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    what = "does not take this method" if error.status_code == 405 else "is not here"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    message = f"{json.dumps(request.url.path)[:200]} {what}; see /docs"
    return refused(BadRequest(message, status=error.status_code, code=code, headers=dict(error.headers or {})))


async def _fail(_: Request, __: Exception) -> Response:
    return refused(GatewayError("the gateway failed; whoever runs it finds why in its log", code="failed"))
