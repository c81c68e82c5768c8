"""Scheduled retraining: new deliveries, the pipeline, the gates.

``python -m flows.retrain`` runs it once, in this process, without workers.
"""

from __future__ import annotations

from typing import Any

import click
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.dispatch import require_completed
from flows.pipeline import orchestrate
from flows.promote import register_and_decide
from flows.server import require_server
from mrmodel.errors import exit_codes
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.retrain.finish import (
    RetrainingSummary,
    finish,
    open_incoming,
    open_ledger,
    summarize_ingestion,
)
from mrmodel.retrain.ingest import IngestResult, ingest
from mrmodel.retrain.outcomes import Ledger


@flow(flow_run_name="retrain {rev}")
def retrain(rev: str = "HEAD", model: str | None = None, here: bool = False) -> State[Any]:
    """Train on new deliveries, and promote the model if it passes the gates.

    Args:
        rev: branch with data and code; after a promotion it moves to the run branch.
        model: name below `models`; None: the first of `train.models`.
        here: run the stages as child processes instead of on workers.

    Ends as Promoted, Refused, Conflict, Quarantined (all new deliveries), or Unchanged (no new
    deliveries); as Failed if the pipeline did.
    """
    environment = RuntimeEnvironment.from_environment()
    ledger = open_ledger(environment, rev)
    ingested = ingest_deliveries(environment, ledger, rev)
    if ingested.branch is None:
        return ended(summarize_ingestion(ingested.reports))
    tried, attempts = ingested.identities, ledger.attempts
    with attempts.running(tried):
        trained: State[Any] = orchestrate(rev=ingested.branch, here=here, return_state=True)
        if not trained.is_completed():
            reason = f"the pipeline failed: {trained.message}"
            attempts.note_failure(tried, reason, trained.result(raise_on_failure=False))
            failed: State[Any] = Failed(message=reason)
            return failed
        branch = trained.result() or ingested.branch
        decision = register_and_decide(branch, model, "finetuned", "")
    return ended(finish(environment, rev, ledger, ingested, branch, decision))


@task(cache_policy=NO_CACHE)
def ingest_deliveries(environment: RuntimeEnvironment, ledger: Ledger, rev: str) -> IngestResult:
    """Check new deliveries, add them to the data or quarantine them, and show the reports."""
    ingested = ingest(open_incoming(environment), ledger, environment, rev)
    if ingested.reports:
        pages = "\n".join(report.markdown() for report in ingested.reports)
        create_markdown_artifact(pages, "deliveries", "What was found in each delivery")
    return ingested


def ended(summary: RetrainingSummary) -> State[Any]:
    """The final state, with the summary's name, and its text as message."""
    create_markdown_artifact(summary.text, "retraining", summary.name)
    get_run_logger().info("%s: %s", summary.name, summary.text)
    state: State[Any] = Completed(name=summary.name, message=summary.text)
    return state


@click.command()
@click.option("--rev", default="HEAD", show_default=True, help="Branch with data and code.")
@click.option("--model", help="Name below `models` [default: the first of train.models].")
@click.option("--workers", is_flag=True, help="Dispatch to the work pools of PREFECT_API_URL.")
def main(rev: str, model: str | None, workers: bool) -> None:
    """Train on new deliveries, in this process or on workers."""
    require_server()
    state = retrain(rev, model, here=not workers, return_state=True)
    require_completed(state)
    click.echo(f"{state.name}: {state.message}")


if __name__ == "__main__":
    with exit_codes():
        main()
