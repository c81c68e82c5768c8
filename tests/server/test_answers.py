"""What the routes answer: the Predictor's and the library's results, files in ranges, errors."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from mrmodel.library.library import Library
from mrmodel.predict.predictor import Predictor
from mrmodel.server.app import build_app
from mrmodel.server.errors import ApiError, BusyError
from mrmodel.server.server import Server
from mrmodel.server.settings import ServerSettings
from mrmodel.server.threads import Threads
from mrmodel.version import __version__
from tests.server.conftest import HERE, error_of

QUERIES = ["a red car", "two people talk"]
TOKEN = "0123456789abcdef"


def test_status_and_videos(client: TestClient, made: Path, ids: dict[str, str]) -> None:
    status = client.get("/v1/status").json()
    assert (status["videos"], status["version"], status["zero_shot"]) == (3, __version__, False)
    assert status["model"] == str(made / "model")
    assert list(ids) == ["a.mp4", "b.mp4", "c.mp4"]
    video = client.get(f"/v1/videos/{ids['b.mp4']}").json()
    assert video == {
        "id": ids["b.mp4"],
        "name": "b.mp4",
        "duration_s": 8.0,
        "clip_len_s": 2.0,
        "status": "ok",
        "offset_s": 0.0,
        "uploaded": False,
    }
    assert client.get("/readyz").text == "ready\n"


def test_search_in_a_video_is_that_of_the_predictor(
    client: TestClient, made: Path, ids: dict[str, str]
) -> None:
    body = {"queries": QUERIES, "top": 3}
    found = client.post(f"/v1/videos/{ids['c.mp4']}/search", json=body).json()["results"]
    predictor = Predictor.load(made / "model", "cpu")
    expected = predictor.search(predictor.encode(made / "videos/c.mp4"), QUERIES)
    assert [one["query"] for one in found] == QUERIES
    for one, result in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["clip_scores"], result.clip_scores, atol=1e-4)
        windows = [[m["start_s"], m["end_s"]] for m in one["moments"]]
        wanted = [[m.start_s, m.end_s] for m in result.moments[:3]]
        np.testing.assert_allclose(windows, wanted, atol=1e-3)
        assert one["in_video_probability"] is None
        assert one["moments"][0]["window_probability"] is None


def test_search_in_the_library_is_that_of_the_library(client: TestClient, made: Path) -> None:
    found = client.post("/v1/search", json={"query": QUERIES[0], "top": 2}).json()["hits"]
    (expected,) = Library(made / "library", made / "model").search(QUERIES[:1], 2)
    assert [one["video"]["name"] for one in found] == [one.path.name for one in expected.hits]
    best = expected.hits[0].result.moments[0]
    assert (found[0]["start_s"], found[0]["end_s"]) == pytest.approx((best.start_s, best.end_s))


def test_highlights(client: TestClient, ids: dict[str, str]) -> None:
    found = client.post(f"/v1/videos/{ids['c.mp4']}/highlights", json={"top": 1}).json()
    assert len(found["moments"]) == 1
    assert found["moments"][0]["query"]
    assert len(found["clip_scores"]) == 6


def test_media_in_ranges(client: TestClient, made: Path, ids: dict[str, str]) -> None:
    content = (made / "videos/a.mp4").read_bytes()
    path = f"/v1/videos/{ids['a.mp4']}/media"
    whole = client.get(path)
    assert (whole.content, whole.headers["Content-Type"]) == (content, "video/mp4")
    part = client.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(content)}"
    assert client.get(path, headers={"Range": "bytes=-5"}).content == content[-5:]
    beyond = client.get(path, headers={"Range": f"bytes={len(content)}-"})
    assert error_of(beyond, 416) == "no_such_range"
    assert beyond.headers["Content-Range"] == f"bytes */{len(content)}"
    assert error_of(client.get(path, headers={"Range": "bytes=9-3"}), 416) == "no_such_range"
    assert error_of(client.get(path, headers={"Range": "bytes=x"}), 400) == "bad_range"
    for text in (f"bytes={'9' * 5000}-", f"bytes=0-{'9' * 5000}", f"bytes=-{'9' * 5000}"):
        assert error_of(client.get(path, headers={"Range": text}), 400) == "bad_range"


@pytest.mark.parametrize("name", ["a" * 300, "%00", "a%0a", "%25"])
def test_a_page_of_any_name_is_one_that_is_there_or_none(client: TestClient, name: str) -> None:
    """A name that is too long for the file system was a defect of the server."""
    assert error_of(client.get(f"/static/{name}"), 404)


def test_every_answer_carries_the_headers(client: TestClient) -> None:
    for path in ("/healthz", "/v1/videos", "/nothing"):
        answer = client.get(path, headers={"X-Request-Id": "mine-1"})
        assert answer.headers["X-Request-Id"] == "mine-1"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-")
    assert client.get("/healthz", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"


def test_errors_have_one_form(client: TestClient, ids: dict[str, str]) -> None:
    search = f"/v1/videos/{ids['a.mp4']}/search"
    assert error_of(client.get("/nothing"), 404) == "no_such_path"
    assert error_of(client.get("/static/..%2fapp.py"), 404) == "no_such_path"
    assert error_of(client.get("/v1/videos/abc"), 404) == "no_such_video"
    assert error_of(client.get("/v1/videos/..%2f"), 404) == "no_such_path"
    assert error_of(client.put("/v1/videos"), 405) == "no_such_method"
    assert error_of(client.post(search, json={"queries": []}), 422) == "invalid"
    assert error_of(client.post(search, json={"queries": ["\u200b"]}), 422) == "invalid"
    assert error_of(client.post(search, content=b"{"), 422) == "invalid"
    assert error_of(client.post("/v1/search", json={"query": "a", "x": 1}), 422) == "invalid"
    assert error_of(client.post("/v1/search", content=b" " * (2 << 20)), 413) == "too_large"
    assert error_of(client.get("/v1/jobs/0"), 404) == "no_such_job"
    gone = client.delete(f"/v1/videos/{ids['a.mp4']}")
    assert error_of(gone, 409) == "not_uploaded"


def test_pages_of_other_servers_change_nothing(client: TestClient) -> None:
    other = {"Origin": "http://localhost:9"}
    body = {"query": "a dog"}
    assert error_of(client.post("/v1/search", json=body, headers=other), 403) == "other_origin"
    assert client.post("/v1/search", json=body, headers={"Origin": HERE}).status_code == 200
    assert client.get("/v1/status", headers=other).status_code == 200
    assert error_of(client.get("/v1/status", headers={"Host": "evil.example"}), 421) == "wrong_host"


def test_a_token_is_needed_where_there_is_one(made: Path) -> None:
    settings = ServerSettings(made / "library", str(made / "model"), token=TOKEN)
    with TestClient(build_app(Server(settings)), base_url="http://videos.example") as client:
        assert error_of(client.get("/v1/status"), 401) == "no_token"
        for path in ("/v1/videos", "/metrics", "/openapi.json"):
            assert error_of(client.get(path), 401) == "no_token"
        assert client.get("/healthz").status_code == 200
        for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            answer = client.get("/v1/status", headers={"Authorization": given})
            assert answer.status_code == 200
        for given in ("Bearer wrong", TOKEN, "Bearer", "Basic " + TOKEN):
            answer = client.get("/v1/status", headers={"Authorization": given})
            assert error_of(answer, 401) == "no_token"
        assert error_of(client.post("/v1/session", json={"token": "x"}), 401) == "no_token"
        answer = client.post("/v1/session", json={"token": TOKEN})
        cookie = answer.headers["Set-Cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert client.get("/v1/status").status_code == 200  # with the cookie


def test_metrics_count_answers(client: TestClient) -> None:
    client.get("/v1/videos")
    text = client.get("/metrics").text
    assert 'mrmodel_requests_total{method="GET",route="/v1/videos",status="200"}' in text
    assert "mrmodel_videos 3.0" in text
    assert 'mrmodel_request_seconds_count{route="none"}' in text


def test_more_than_fits_the_queue_is_refused() -> None:
    release = threading.Event()

    async def ask() -> None:
        threads = Threads("test", 1, 1)
        accepted = [asyncio.create_task(threads.run(release.wait, 100.0)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as refused:
            await threads.run(release.wait, 100.0)
        assert refused.value.status_code == 429
        assert int((refused.value.headers or {})["Retry-After"]) >= 1
        release.set()
        assert await asyncio.gather(*accepted) == [True, True]
        assert await threads.run(lambda: 7, 100.0) == 7
        release.clear()
        with pytest.raises(ApiError, match="not done within"):
            await threads.run(release.wait, 0.01)
        assert threads.pending == 1  # It still takes a thread.
        release.set()
        threads.close()

    asyncio.run(ask())
