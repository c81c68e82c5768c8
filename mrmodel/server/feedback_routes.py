"""The routes of feedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request

from mrmodel.server import schema
from mrmodel.server.answers import error_answers, request_id_of
from mrmodel.server.feedback import JOURNAL, FeedbackEntry, Journal
from mrmodel.server.jobs import Job
from mrmodel.server.server import Server


def add_feedback(app: FastAPI, server: Server) -> None:
    """Add the routes to an application."""
    journal = Journal(server.settings.library / JOURNAL)

    @app.post(
        "/v1/feedback",
        tags=["feedback"],
        status_code=201,
        responses=error_answers(404, 429, 503, 507),
    )
    async def give_feedback(body: schema.FeedbackRequest) -> schema.FeedbackAnswer:
        """Say that a hit is right, is elsewhere, or is none."""
        served = server.served
        file = served.file(body.video)
        entry = FeedbackEntry.of(
            body, file.path, file.path.name, file.sha256, file.duration_s, served.name
        )
        await server.with_file(lambda: journal.append(entry))
        made = {**entry.model_dump(), "video": body.video}
        return schema.FeedbackAnswer(entry=schema.FeedbackBody.model_validate(made))

    @app.get("/v1/feedback", tags=["feedback"], responses=error_answers(429, 503))
    async def count_feedback() -> schema.FeedbackCounts:
        """How much feedback waits for a delivery."""
        state = await server.with_file(journal.read)
        return schema.FeedbackCounts(
            entries=len(state.entries),
            deliverable=len(state.deliverable),
            rejected_waiting=len(state.rejected),
        )

    @app.post(
        "/v1/feedback/deliver",
        tags=["feedback"],
        status_code=202,
        responses=error_answers(429),
    )
    async def deliver_feedback(request: Request) -> schema.JobAnswer:
        """Make one delivery for retraining, as `mrmodel feedback deliver` does."""

        def work(_: Job) -> Mapping[str, Any]:
            from mrmodel.server.feedback_delivery import deliver_here  # DVC takes a second.

            done = deliver_here(journal)
            return {
                "delivery": done.name,
                "rows": done.rows,
                "left_out": [str(one) for one in done.left_out],
                "waiting": [str(one) for one in done.waiting],
            }

        job = server.jobs.submit("deliver", work, request_id_of(request))
        return schema.JobAnswer(job=job.as_body())
