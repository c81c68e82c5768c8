"""The routes of the server, and `run`, which serves them."""

from __future__ import annotations

import logging
import mimetypes
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path as FilePath
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from mrmodel.predict.predictor import Predictor
from mrmodel.predict.queries import unread_note
from mrmodel.server import schema
from mrmodel.server.answers import Id, content_of, error_answers, on_http, on_invalid, request_id_of
from mrmodel.server.errors import ApiError
from mrmodel.server.feedback_routes import add_feedback
from mrmodel.server.gate import COOKIE, Gate, is_token, session_of
from mrmodel.server.server import Server
from mrmodel.server.settings import ServerSettings
from mrmodel.types import MAX_DURATION_S, Moment, QueryResult
from mrmodel.version import __version__
from mrmodel.video.remote import is_pointer

# Types that the table of the machine may lack.
_TYPES = {".mkv": "video/x-matroska", ".ts": "video/mp2t", ".webm": "video/webm"}
# Of numbers that a file can have bytes; Python reads no number of 5,000 digits.
_RANGE = r"(\d{1,19}-(\d{1,19})?|-\d{1,19})"
_RANGES = re.compile(rf"bytes=\s*{_RANGE}(\s*,\s*{_RANGE})*\s*", re.ASCII)
_PAGE = resources.files("mrmodel.server") / "page"
_TEXT = content_of("text/plain", "As text.")
_DESCRIPTION = "Search videos for the moments that sentences describe."
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


def build_app(server: Server) -> FastAPI:
    """The application of a server, with all middleware.

    Args:
        server: whose lifetime is that of the application.
    """
    app = FastAPI(
        title="mrmodel",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=server.running,
        docs_url=None,
        redoc_url=None,
        responses=error_answers(),
    )
    app.add_middleware(
        Gate,
        token=server.settings.token,
        metrics=server.metrics,
        upload_bytes=server.settings.uploads.n_bytes,
    )
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    _add_service_routes(app, server)
    _add_videos(app, server)
    _add_search(app, server)
    _add_jobs(app, server)
    add_feedback(app, server)
    return app


def _add_service_routes(app: FastAPI, server: Server) -> None:
    @app.get("/healthz", tags=["service"], response_class=Response, responses=_TEXT)
    async def healthz() -> Response:
        """The process answers."""
        return PlainTextResponse("ok\n")

    @app.get(
        "/readyz",
        tags=["service"],
        response_class=Response,
        responses=_TEXT | error_answers(503),
    )
    async def readyz() -> Response:
        """The server takes requests."""
        if not server.ready:
            raise ApiError(503, "not_ready", "the server is starting or stopping")
        return PlainTextResponse("ready\n")

    @app.get("/metrics", tags=["service"], response_class=Response, responses=_TEXT)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return _page_file(name)

    @app.post("/v1/session", tags=["service"], status_code=204, responses=error_answers())
    async def session(request: Request, body: schema.SessionRequest) -> Response:
        """Set a cookie that stands for the token, for pages, whose media send no headers."""
        token = server.settings.token
        answer = Response(status_code=204)
        if token is None:
            return answer
        if not is_token(body.token, token):
            raise ApiError(401, "no_token", "this is not the token of the server")
        answer.set_cookie(
            COOKIE,
            session_of(token),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @app.get("/v1/status", tags=["service"])
    async def status() -> schema.Status:
        """The model that answers, and limits."""
        served = server.served
        corpus = served.predictor.config.training.get("corpus")
        return schema.Status(
            model=served.name,
            trained_on=None if corpus is None else str(corpus),
            zero_shot=served.predictor.is_zero_shot,
            videos=len(served.files),
            version=__version__,
            languages=list(served.predictor.languages),
            note=served.note,
            upload_bytes_max=server.settings.uploads.n_bytes,
        )


def _add_videos(app: FastAPI, server: Server) -> None:
    @app.get("/v1/videos", tags=["videos"])
    async def list_videos() -> schema.Videos:
        """All videos of the library, by name."""
        found = map(server.video, server.served.files.values())
        return schema.Videos(videos=sorted(found, key=lambda one: (one.name, one.id)))

    @app.post(
        "/v1/videos",
        tags=["videos"],
        status_code=202,
        responses=error_answers(415, 429, 503, 507),
        openapi_extra=_FORM,
    )
    async def upload(request: Request) -> schema.JobAnswer:
        """Send a video file. It is checked at once, and encoded by a job."""
        kind = request.headers.get("content-type", "")
        path, name = await server.uploads.receive(kind, request.stream())
        accepted = await server.with_file(lambda: server.uploads.accept(path, name))
        try:
            job = server.add(accepted, request_id_of(request))
        except ApiError:
            accepted.delete()
            raise
        return schema.JobAnswer(job=job.as_body())

    @app.get("/v1/videos/{video}", tags=["videos"], responses=error_answers(404))
    async def get_video(video: Id) -> schema.Video:
        """One video."""
        return server.video(server.served.file(video))

    @app.delete(
        "/v1/videos/{video}",
        tags=["videos"],
        status_code=204,
        responses=error_answers(404, 409, 429),
    )
    async def delete_video(video: Id) -> Response:
        """Delete an uploaded video, and its file."""
        await server.with_file(lambda: server.delete(video))
        return Response(status_code=204)

    @app.get(
        "/v1/videos/{video}/media",
        tags=["videos"],
        response_class=Response,
        responses=content_of("video/*", "The file, or ranges of it.") | error_answers(404, 416),
    )
    async def media(video: Id, request: Request) -> Response:
        """The file; ranges of bytes may be asked for."""
        path = server.served.file(video).path
        if is_pointer(path):
            raise ApiError(404, "not_here", "the video lies in S3, and is not passed on")
        if not path.is_file():
            raise ApiError(404, "missing", "the file is not there any more")
        _require_ranges(request.headers.get("range"), path.stat().st_size)
        suffix = path.suffix.lower()
        kind = _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "private, no-cache"})

    @app.get(
        "/v1/videos/{video}/thumbnail",
        tags=["videos"],
        response_class=Response,
        responses=content_of("image/jpeg", "The picture.") | error_answers(404, 415, 429, 503),
    )
    async def thumbnail(
        video: Id,
        t: Annotated[float, Query(ge=0, le=MAX_DURATION_S, allow_inf_nan=False)] = 0.0,
        width: Annotated[int, Query(ge=16, le=1280)] = 320,
    ) -> Response:
        """What a player shows at a time."""
        content = await server.with_file(lambda: server.still(video, t, width))
        headers = {"Cache-Control": "private, max-age=86400"}
        return Response(content, media_type="image/jpeg", headers=headers)


def _add_search(app: FastAPI, server: Server) -> None:
    @app.post(
        "/v1/videos/{video}/search", tags=["search"], responses=error_answers(404, 409, 429, 503)
    )
    async def search_video(video: Id, body: schema.SearchRequest) -> schema.SearchAnswer:
        """Find the moments of one video that sentences describe."""
        served = server.served
        results = await server.search(lambda: served.answer(video, body.queries))
        found = [_query_answer(one, body.top, served.predictor) for one in results]
        return schema.SearchAnswer(results=found)

    @app.post(
        "/v1/videos/{video}/highlights",
        tags=["search"],
        responses=error_answers(404, 409, 429, 503),
    )
    async def highlights(video: Id, body: schema.HighlightsRequest) -> schema.QueryAnswer:
        """Find the best moments of a video without a query."""
        served = server.served
        found, scores = await server.search(lambda: served.highlights(video, body.top))
        return schema.QueryAnswer(
            query="",
            moments=[_moment(moment, query) for query, moment in found],
            clip_scores=scores,
            clip_len_s=served.predictor.config.clip_len_s,
            notes=[],
        )

    @app.post("/v1/search", tags=["search"], responses=error_answers(409, 429, 503))
    async def search_library(body: schema.LibrarySearchRequest) -> schema.LibraryAnswer:
        """Find the videos, and the best moment in each, that a sentence describes."""
        served = server.served
        answer = await server.search(lambda: served.answer_all(body.query, body.top))
        hits = []
        for hit in answer.hits:
            if not hit.result.moments:
                continue
            moment = hit.result.moments[0]
            hits.append(
                schema.Hit(
                    video=server.video(served.files[served.ids[hit.path]]),
                    start_s=moment.start_s,
                    end_s=moment.end_s,
                    score=moment.score,
                    window_probability=moment.probability,
                    evidence=None if hit.evidence is None else hit.evidence.text,
                    in_video_probability=hit.result.in_video_probability,
                )
            )
        results = [hit.result for hit in answer.hits[:1]]
        notes = [*answer.notes, *_unread(results, served.predictor)]
        return schema.LibraryAnswer(hits=hits, notes=notes)


def _add_jobs(app: FastAPI, server: Server) -> None:
    @app.post("/v1/exports", tags=["jobs"], status_code=202, responses=error_answers(404, 429))
    async def export(request: Request, body: schema.ExportRequest) -> schema.JobAnswer:
        """Make files of hits, by a job; several files come as a ZIP."""
        job = server.export(body, request_id_of(request))
        return schema.JobAnswer(job=job.as_body())

    @app.get(
        "/v1/jobs/{job}/result",
        tags=["jobs"],
        response_class=Response,
        responses=content_of("*/*", "The file.") | error_answers(404, 409),
    )
    async def result(job: Id) -> Response:
        """The file that a job made."""
        found = server.jobs.get(job)
        if found.state != "done":
            raise ApiError(409, "not_done", f"the job is {found.state}")
        if found.file is None:
            raise ApiError(404, "no_file", f"jobs of the kind {found.kind} make no file")
        kind = mimetypes.types_map.get(found.file.suffix, "application/octet-stream")
        return FileResponse(found.file, media_type=kind, filename=found.file.name)

    @app.get("/v1/jobs/{job}", tags=["jobs"], responses=error_answers(404))
    async def get_job(job: Id) -> schema.Job:
        """How far a job is."""
        return server.jobs.get(job).as_body()

    @app.post("/v1/jobs/{job}/cancel", tags=["jobs"], responses=error_answers(404))
    async def cancel_job(job: Id) -> schema.Job:
        """End a job as soon as it can; one that has ended stays as it is."""
        return server.jobs.cancel(job).as_body()


def _query_answer(result: QueryResult, top: int, predictor: Predictor) -> schema.QueryAnswer:
    return schema.QueryAnswer(
        query=result.query,
        moments=[_moment(one) for one in result.moments[:top]],
        clip_scores=list(result.clip_scores),
        clip_len_s=result.clip_len_s,
        in_video_probability=result.in_video_probability,
        notes=_unread([result], predictor),
    )


def _unread(results: Iterable[QueryResult], predictor: Predictor) -> list[str]:
    return [unread_note(one, predictor.languages) for one in results if one.unread_tokens]


def _moment(moment: Moment, query: str | None = None) -> schema.MomentBody:
    return schema.MomentBody(
        start_s=moment.start_s,
        end_s=moment.end_s,
        score=moment.score,
        window_probability=moment.probability,
        query=query,
    )


def _require_ranges(header: str | None, n_bytes: int) -> None:
    """Raise unless a file has some of the bytes that a header names."""
    if header is None:
        return
    if not _RANGES.fullmatch(header):
        raise ApiError(400, "bad_range", f"Range = {header[:60]!r}: expected bytes=first-last")
    ranges = [part.strip().split("-") for part in header.partition("=")[2].split(",")]
    in_order = all(not first or not last or int(first) <= int(last) for first, last in ranges)
    if not in_order or all(first and int(first) >= n_bytes for first, _ in ranges):
        headers = {"Content-Range": f"bytes */{n_bytes}"}
        raise ApiError(416, "no_such_range", f"the file has {n_bytes} bytes", headers)


def _page_file(name: str) -> Response:
    """A file of the page."""
    # Looked up, because a name from outside may be too long for a file system.
    found = next((one for one in FilePath(str(_PAGE)).iterdir() if one.name == name), None)
    if found is None or not found.is_file():
        raise ApiError(404, "no_such_path", "there is no such page")
    return FileResponse(found, headers={"Cache-Control": "no-cache"})


# Seconds that requests have to end once the server is told to stop.
_STOP_S = 30
# Seconds that a connection may be idle; longer than clients are told to wait before they try again.
_IDLE_S = 75
# Connections that wait for the server to take them.
_BACKLOG = 256


def run(settings: ServerSettings, host: str, port: int) -> None:
    """Serve at an address until SIGTERM or SIGINT; requests that run are answered first.

    Args:
        settings: of the server.
        host: name or address to listen at.
        port: 0 takes a free one, which the log names.
    """
    logging.getLogger("mrmodel.server").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    config = uvicorn.Config(
        build_app(Server(settings)),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_STOP_S,
    )
    uvicorn.Server(config).run()
