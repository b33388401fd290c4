"""The web application: which endpoint takes what, the page, and errors in OpenAI's shape."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from onebase.errors import OnebaseError
from onebase.runs.progress import say
from onebase.serving.errors import Refusal, from_error, from_validation
from onebase.serving.gate import Gate
from onebase.serving.protocol import Body, ChatBody, CompareBody, CompletionBody, RoleBody, ScoreBody
from onebase.serving.server import Server
from onebase.shown import shown

PAGE = Path(__file__).with_name("page")
PAGE_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def create_app(server: Server, *, api_key: str | None = None) -> FastAPI:
    """The web application around a server."""
    app = FastAPI(title="onebase", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = server.metrics

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        return _warned(await server.chat(body, request), body)

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        return _warned(await server.complete(body, request), body)

    @app.post("/v1/score")
    async def score(body: ScoreBody, request: Request) -> Response:
        return _warned(await server.score(body, request), body)

    @app.post("/v1/compare")
    async def compare(body: CompareBody, request: Request) -> Response:
        return _warned(await server.compare(body, request), body)

    @app.post("/v1/roles")
    async def load(body: RoleBody) -> Response:
        return await server.load(body)

    @app.delete("/v1/roles/{name}")
    async def unload(name: str) -> Response:
        return await server.unload(name)

    @app.get("/v1/models")
    async def models() -> Response:
        return server.models()

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        served = server.roles.find(name, "policy")
        return JSONResponse({"id": served.name, "object": "model", "owned_by": "onebase", "version": served.version})

    @app.get("/health")
    async def health() -> Response:
        return server.health()

    @app.get("/metrics")
    async def counts() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _serve_page(app)
    _answer_errors(app)
    app.add_middleware(
        Gate,
        api_key=api_key,
        most_bytes=server.config.limits.request_bytes,
        local=api_key is None,
        count=metrics.count_request,
    )
    return app


def _serve_page(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}

    @app.get("/")
    async def page() -> Response:
        if not (PAGE / "page.html").is_file():
            raise Refusal(404, "there is no page here; the API is under /v1")
        return FileResponse(PAGE / "page.html", headers=headers | {"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False))


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return _refused(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def wrong_place(request: Request, error: HTTPException) -> Response:
        place = f"{request.method} {shown(request.url.path, 100)}"
        said = {404: f"there is no {place}", 405: f"{place} is not possible"}.get(error.status_code, str(error.detail))
        return _refused(Refusal(error.status_code, said))

    @app.exception_handler(OnebaseError)
    async def refused(request: Request, error: OnebaseError) -> Response:
        return _refused(from_error(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _refused(from_error(error))


def _refused(refusal: Refusal) -> Response:
    headers = {"Retry-After": "1"} if refusal.status == 429 else {}
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=headers)


def _warned(response: Response, body: Body) -> Response:
    """The response, with a header and a line in the log for fields that look misspelt."""
    if found := body.misspelt():
        text = "; ".join(found)
        say(f"serve: {text}")
        response.headers["X-Onebase-Warning"] = text.encode("ascii", "backslashreplace").decode()
    return response
