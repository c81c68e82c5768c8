"""Bodies of requests and answers. Fields are added, never removed or renamed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mrmodel.server.feedback import Verdict
from mrmodel.types import MAX_DURATION_S

QUERIES_MAX = 16
Query = Annotated[str, Field(min_length=1, max_length=1000, examples=["a dog runs"])]
VideoId = Annotated[str, Field(pattern="^[0-9a-z-]{1,64}$")]
Seconds = Annotated[float, Field(ge=0, le=MAX_DURATION_S, allow_inf_nan=False)]
# In the order of `mrmodel.export`.
Format = Literal["csv", "json", "vtt", "otio", "edl", "label_studio", "mp4", "reel"]


class _Request(BaseModel):
    """A body that holds what it says, and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="For programs.")
    message: str = Field(description="For people.")
    request_id: str = Field(description="Also in the header X-Request-Id and in the log.")


class ErrorAnswer(BaseModel):
    """The body of every answer with a status from 400 on."""

    error: ErrorBody


class Status(BaseModel):
    """The server and its model."""

    model: str
    trained_on: str | None = Field(description="Corpus of the model; null: none, or not known.")
    zero_shot: bool
    videos: int
    version: str
    queries_max: int = QUERIES_MAX
    languages: list[str] = Field(description="That the text encoder reads; empty: any.")
    note: str = Field(description="Why another model than the served one answers; or empty.")
    upload_bytes_max: int


class Video(BaseModel):
    """A video of the library; copies with one content are one video."""

    id: str
    name: str
    duration_s: float
    clip_len_s: float
    status: str = Field(description="ok, partial (frames are missing), missing or not encoded")
    offset_s: float = Field(description="Of the first picture on a player's clock.")
    uploaded: bool = Field(description="Here, so it can be deleted here.")


class Videos(BaseModel):
    """The videos of the library, by name."""

    videos: list[Video]


class SearchRequest(_Request):
    """Sentences to search for in one video."""

    queries: list[Query] = Field(min_length=1, max_length=QUERIES_MAX)
    top: int = Field(default=5, ge=1, le=100, description="Moments of each query.")


class LibrarySearchRequest(_Request):
    """A sentence to search for in all videos."""

    query: Query
    top: int = Field(default=10, ge=1, le=100, description="Videos.")


class HighlightsRequest(_Request):
    """How many highlights."""

    top: int = Field(default=5, ge=1, le=100)


class MomentBody(BaseModel):
    """A window, in a player's seconds."""

    start_s: float
    end_s: float
    score: float = Field(description="Comparable within one query and video only.")
    window_probability: float | None = Field(
        default=None, description="That the window is right; null: the model is not calibrated."
    )
    query: str | None = Field(
        default=None, description="Of highlights: the sentence that fits it best."
    )


class QueryAnswer(BaseModel):
    """The answer to a query about one video."""

    query: str
    moments: list[MomentBody] = Field(description="Best first.")
    clip_scores: list[float] = Field(description="One per clip, from second 0 of a player.")
    clip_len_s: float
    in_video_probability: float | None = Field(
        default=None, description="That the query is about the video at all; null: not calibrated."
    )
    notes: list[str] = Field(description="What to know about the answer.")


class SearchAnswer(BaseModel):
    """One result per query, in their order."""

    results: list[QueryAnswer]


class Hit(BaseModel):
    """The best moment of a video that answers a query."""

    video: Video
    start_s: float
    end_s: float
    score: float
    window_probability: float | None = None
    evidence: str | None = Field(default=None, description="What is said in the video about it.")
    in_video_probability: float | None = None


class LibraryAnswer(BaseModel):
    """Videos that answer a query, best first."""

    hits: list[Hit]
    notes: list[str]


class ExportedHit(_Request):
    """A window to export."""

    video: VideoId
    start_s: Seconds
    end_s: Seconds
    query: Annotated[str, Field(max_length=1000)] = ""
    score: float = Field(default=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> ExportedHit:
        if self.end_s <= self.start_s:
            raise ValueError("end_s must be after start_s")
        return self


class ExportRequest(_Request):
    """Hits and the kind of file to make of them."""

    format: Format
    hits: list[ExportedHit] = Field(min_length=1, max_length=1000)
    exact: bool = Field(default=False, description="Encode clips again, at most one frame off.")


class Job(BaseModel):
    """Work that takes longer than a request."""

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: float | None = Field(description="From 0 to 1; null: not known.")
    message: str
    result: dict[str, Any] | None
    error: ErrorBody | None


class JobAnswer(BaseModel):
    """A job that was begun; poll it."""

    job: Job


class FeedbackRequest(Verdict):
    """What somebody says about a hit."""

    model_config = ConfigDict(strict=True, extra="forbid")

    video: VideoId


class FeedbackBody(Verdict):
    """An entry of the journal."""

    id: str
    time: datetime
    video: str


class FeedbackAnswer(BaseModel):
    """The entry that was made."""

    entry: FeedbackBody


class FeedbackCounts(BaseModel):
    """What the journal holds."""

    entries: int
    deliverable: int = Field(description="Accepted and corrected hits that wait for a delivery.")
    rejected_waiting: int = Field(description="Rejected hits; no delivery can hold them yet.")


class SessionRequest(_Request):
    """The token of the server."""

    token: str = Field(max_length=1000)
