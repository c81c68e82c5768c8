"""A Prefect flow that registers a revision's model and evaluates the gates."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.registry.decision import Decision
from mrmodel.registry.revision import decision_markdown, promote_revision
from mrmodel.retrain.finish import summarize_decision


@flow(flow_run_name="promote {rev}")
def promote(
    rev: str = "HEAD", model: str | None = None, kind: str = "finetuned", reset_baseline: str = ""
) -> State[Any]:
    """Register the model that a revision made, and promote it if it passes every gate.

    Args:
        rev: e.g. a run branch of the pipeline; its data are pulled.
        model: name below `models`; None: the first of `train.models`.
        kind: ``finetuned``, ``scratch``, ``pretrained`` or ``imported``.
        reset_baseline: reason to skip the comparison with a champion of another test set.

    Ends as Promoted, Refused or Conflict; all are regular final states.
    """
    end = summarize_decision(register_and_decide(rev, model, kind, reset_baseline), "", [])
    state: State[Any] = Completed(name=end.name, message=end.text)
    return state


@task(cache_policy=NO_CACHE)
def register_and_decide(rev: str, model: str | None, kind: str, reset_baseline: str) -> Decision:
    """Register and evaluate the model in a clone; show every gate."""
    say = get_run_logger().info
    decision = promote_revision(
        RuntimeEnvironment.from_environment(), rev, say, model, kind, reset_baseline
    )
    create_markdown_artifact(decision_markdown(decision), "promotion", "What every gate found")
    return decision
