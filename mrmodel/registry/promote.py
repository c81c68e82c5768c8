"""Registration, promotion and rollback; every decision leaves an audit object."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mrmodel.config.schema import Config
from mrmodel.errors import AlreadyChampion, ConflictError, PromotionRefused, RegistryError
from mrmodel.evaluate.rows import read_rows
from mrmodel.files import folder_bytes
from mrmodel.progress import Reporter, Steps
from mrmodel.registry.candidate import Candidate, gather
from mrmodel.registry.champion import CHALLENGER, ModelRegistry, PointerSnapshot
from mrmodel.registry.decision import Decision, Gate, Pointer, actor, decision_id, timestamp
from mrmodel.registry.gates import GateRules, ModelUnderTest, evaluate_gates
from mrmodel.registry.mlflow_versions import Files, Versions
from mrmodel.registry.smoke_test import run_smoke
from mrmodel.stages.paths import Paths
from mrmodel.stages.scorer import Scorer
from mrmodel.tracking.mlflow_model import write_mlflow_model


def promote(
    registry: ModelRegistry,
    config: Config,
    version: int | None = None,
    reset_baseline: str = "",
    reporter: Reporter | None = None,
) -> Decision:
    """Make a version the champion if it passes every gate.

    Args:
        registry: see `champion.open_registry`.
        config: section `promotion` has the rules, `evaluate` the scoring.
        version: None means the challenger.
        reset_baseline: reason to skip the comparison with a champion of another test set.
        reporter: shows the steps; None: not shown.

    Raises:
        PromotionRefused: a gate failed; the decision was recorded.
        RegistryError: there is no such version, it is the champion, or another promotion was
            faster; in the last case the decision was recorded.
    """
    decision = decide(registry, config, version or _challenger(registry), reset_baseline, reporter)
    if decision.kind == "refuse":
        listed = "".join(f"\n  {gate.name}: {gate.detail}" for gate in decision.failed)
        raise PromotionRefused(f"{registry.name} version {decision.version} is refused:{listed}")
    if decision.kind == "conflict":
        rule = f"{decision.version} was judged against version {decision.before}; promote it again"
        raise RegistryError(f"{registry.name}: the champion changed while version {rule}")
    return decision


def decide(
    registry: ModelRegistry,
    config: Config,
    version: int,
    reset_baseline: str = "",
    reporter: Reporter | None = None,
) -> Decision:
    """Evaluate a version and make it the champion if it passes; the decision is recorded.

    Args:
        registry: see `champion.open_registry`.
        config: as of `promote`.
        version: to evaluate.
        reset_baseline: as of `promote`.
        reporter: as of `promote`.

    Returns:
        Of kind ``promote``, ``refuse`` or ``conflict`` (another promotion was faster).

    Raises:
        AlreadyChampion: it is the champion.
        RegistryError: there is no such version.
    """
    registry.reconcile()
    seen = registry.read()
    if seen.pointer is not None and seen.pointer.version == version:
        raise AlreadyChampion(f"{registry.name} version {version} is the champion already")
    with Steps(reporter, "promote", 4 if seen.pointer is None else 5) as steps:
        gates, test_set = _judged(
            registry, config, seen.pointer, version, bool(reset_baseline), steps
        )
    decision = _decision(registry, seen, version, test_set, reset_baseline)
    decision = decision.model_copy(update={"gates": gates})
    if decision.failed:
        decision = decision.model_copy(update={"kind": "refuse"})
        registry.note(decision)
        return decision
    try:
        registry.move(seen, promoted(seen.pointer, decision))
    except ConflictError:
        decision = decision.model_copy(update={"kind": "conflict"})
        registry.note(decision)
    return decision


def rollback(registry: ModelRegistry, reason: str, version: int | None = None) -> Decision:
    """Make an earlier champion the champion again; no gate is evaluated.

    The version that served until now is withdrawn: the gates reject it from now on.

    Args:
        registry: see `champion.open_registry`.
        reason: for the audit object.
        version: None means the previous champion.

    Raises:
        RegistryError: there is none, the version was never champion, or a promotion or another
            rollback was faster; in the last case the decision was recorded.
    """
    registry.reconcile()
    seen = registry.read()
    pointer = seen.pointer
    if pointer is None:
        raise RegistryError(f"{registry.name} has no champion, so there is nothing to roll back")
    target = version or pointer.previous
    if target is None or target == pointer.version or target not in pointer.champions:
        known = ", ".join(str(one) for one in pointer.champions if one != pointer.version)
        rule = f"version {target} was no champion before (there is: {known or 'none'})"
        raise RegistryError(f"{registry.name}: cannot roll back: {rule}")
    test_set = registry.versions.record(target).test_set.digest
    decision = _decision(registry, seen, target, test_set, reason)
    decision = decision.model_copy(update={"kind": "rollback"})
    try:
        registry.move(seen, rolled_back(pointer, decision))
    except ConflictError:
        registry.note(decision.model_copy(update={"kind": "conflict"}))
        rule = f"version {pointer.version}, which was to be withdrawn, serves no more"
        raise RegistryError(f"{registry.name}: the champion changed meanwhile: {rule}") from None
    return decision


def promoted(pointer: Pointer | None, decision: Decision) -> Pointer:
    """The pointer after a promotion."""
    before = pointer.champions if pointer else []
    champions = [*(one for one in before if one != decision.version), decision.version]
    return Pointer(
        sequence=pointer.sequence + 1 if pointer else 1,
        version=decision.version,
        previous=pointer.version if pointer else None,
        champions=champions,
        withdrawn=pointer.withdrawn if pointer else [],
        decision=decision,
    )


def rolled_back(pointer: Pointer, decision: Decision) -> Pointer:
    """The pointer after a rollback.

    The current champion is withdrawn. Rolling back to a later champion undoes a rollback: it only
    makes that version eligible again. A second rollback goes further back, never forward.
    """
    order, target = pointer.champions, decision.version
    withdrawn = set(pointer.withdrawn) - {target}
    if order.index(target) < order.index(pointer.version):
        withdrawn.add(pointer.version)
    earlier = [one for one in order[: order.index(target)] if one not in withdrawn]
    return Pointer(
        sequence=pointer.sequence + 1,
        version=target,
        previous=earlier[-1] if earlier else None,
        champions=order,
        withdrawn=sorted(withdrawn),
        decision=decision,
    )


def _challenger(registry: ModelRegistry) -> int:
    registry.reconcile()
    version = registry.versions.aliases().get(CHALLENGER)
    if version is None:
        rule = "has no challenger: the newest version was champion; register another one"
        raise RegistryError(f"{registry.name} {rule}")
    return version


def _judged(
    registry: ModelRegistry,
    config: Config,
    pointer: Pointer | None,
    version: int,
    reset_baseline: bool,
    steps: Steps,
) -> tuple[list[Gate], str]:
    """All gates, and the digest of the version's test set."""
    withdrawn = pointer.withdrawn if pointer else []
    rules = GateRules(config.promotion, reset_baseline, registry.versions.weights(withdrawn))
    with tempfile.TemporaryDirectory(prefix="mrmodel-promote-") as folder:
        steps.begin(f"fetching version {version}")
        files = registry.versions.files(version, Path(folder) / "candidate")
        steps.begin("smoke test in a fresh process")
        smoke, _ = run_smoke(files.model, files.answers, rules.settings.smoke_timeout_s)
        steps.begin(f"scoring version {version}")
        candidate = _side(registry, config, version, files)
        champion = None
        if pointer is not None:
            steps.begin(f"fetching and scoring the champion, version {pointer.version}")
            theirs = registry.versions.files(pointer.version, Path(folder) / "champion")
            champion = _side(registry, config, pointer.version, theirs)
        steps.begin("comparing by the gates")
        return evaluate_gates(candidate, champion, smoke, rules), candidate.record.test_set.digest


def _side(registry: ModelRegistry, config: Config, version: int, files: Files) -> ModelUnderTest:
    """A version scored on its own frozen test set, with the current rules."""
    test_set = files.record.test_set
    if test_set.protocol != config.evaluate.protocol:
        raise RegistryError(
            f"{registry.name} version {version} was scored by protocol {test_set.protocol}, "
            f"evaluate.protocol is {config.evaluate.protocol}"
        )
    frozen = registry.test_set(test_set.digest)
    scores = Scorer(config).score(frozen.rows, read_rows(files.predictions))
    return ModelUnderTest(
        version=version,
        record=files.record,
        per_query=scores.per_query,
        signature=files.signature,
        size_bytes=folder_bytes(files.model),
        tags=files.tags,
    )


def _decision(
    registry: ModelRegistry, seen: PointerSnapshot, version: int, test_set: str, reason: str
) -> Decision:
    at = timestamp()
    return Decision(
        id=decision_id(at, seen.pointer.sequence + 1 if seen.pointer else 1),
        at=at.isoformat(timespec="seconds"),
        kind="promote",
        model=registry.name,
        version=version,
        before=seen.pointer.version if seen.pointer else None,
        test_set=test_set,
        reason=reason,
        actor=actor(),
    )


def register(
    registry: ModelRegistry,
    config: Config,
    paths: Paths,
    model: str,
    kind: str,
    reporter: Reporter | None = None,
) -> tuple[int, bool]:
    """Register a model folder as a version, which becomes the challenger.

    The same weights with the same predictions for the same test set are the same version.

    Args:
        registry: see `champion.open_registry`.
        config: the parameter file.
        paths: where the model and its evaluation are.
        model: name below `models`.
        kind: ``finetuned``, ``scratch``, ``pretrained`` or ``imported``.
        reporter: shows the steps; None: not shown.

    Returns:
        The version, and whether it is new.

    Raises:
        MrModelError: see `candidate.gather`.
        RegistryError: the model fails on its example in a fresh process.
    """
    with Steps(reporter, "register", 4) as steps:
        steps.begin("scoring the predictions")
        candidate = gather(config, paths, model, kind)
        steps.begin("looking for the same version")
        registry.keep(candidate.frozen)
        known = registry.versions.find_same(candidate)
        timeout_s = config.promotion.smoke_timeout_s
        version = known or _upload(registry.versions, candidate, timeout_s, steps)
        registry.reconcile()
    return version, known is None


def _upload(versions: Versions, candidate: Candidate, timeout_s: float, steps: Steps) -> int:
    with tempfile.TemporaryDirectory(prefix="mrmodel-register-") as folder:
        model = Path(folder) / "model"
        steps.begin("smoke test in a fresh process")
        rendered = candidate.record.corpus.get("source") == "sample"
        write_mlflow_model(model, candidate.folder, candidate.postprocess, rendered=rendered)
        smoke, answers = run_smoke(model, None, timeout_s)
        if smoke.fault:
            raise RegistryError(f"{candidate.folder}: cannot be served: {smoke.fault}")
        steps.begin("storing the version")
        return versions.add(candidate, model, answers)
