"""Each gate alone, on figures made up so that one thing is wrong."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mrmodel.components import DATASETS
from mrmodel.config.schema import CardSettings, PromotionSettings
from mrmodel.evaluate.significance import BootstrapSettings, PerQuery, paired_bootstrap
from mrmodel.registry.decision import Gate
from mrmodel.registry.gates import SLICES, GateRules, ModelUnderTest, Smoke, evaluate_gates
from mrmodel.registry.model_record import ModelRecord, TestSet

SETTINGS = PromotionSettings(
    registered_model="moments",
    resamples=2000,
    confidence=0.95,
    min_gain=0.0,
    slices=None,
    max_slice_loss=2.0,
    max_latency_s=1.0,
    max_size_mb=10.0,
    smoke_timeout_s=60.0,
    card=CardSettings(data_licence=None, limits=[]),
)
GOOD = Smoke("", 0.5)
HEADLINE = "MR-full-mAP"


def record(digest: str = "a" * 64) -> ModelRecord:
    test_set = TestSet(
        digest=digest, split="test", queries=1, videos=1, protocol="qvhighlights", mode="clean"
    )
    return ModelRecord.model_construct(
        test_set=test_set, headline=HEADLINE, weights_sha256="of-the-candidate"
    )


def side(version: int, values: dict[str, Any], **changes: Any) -> ModelUnderTest:
    """A version with these values of 100 queries about 50 videos."""
    per_query = PerQuery(
        list(range(100)),
        [f"v{query // 2}" for query in range(100)],
        {name: np.broadcast_to(np.asarray(value, float), 100) for name, value in values.items()},
    )
    whole = ModelUnderTest(version, record(), per_query, '{"inputs": []}', 5_000_000, {})
    return replace(whole, **changes)


def flat(value: float, **others: Any) -> dict[str, Any]:
    return {HEADLINE: value, **dict.fromkeys(SLICES["qvhighlights"], 50.0), **others}


def verdicts(*arguments: Any) -> dict[str, Gate]:
    gates = evaluate_gates(*arguments)
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


def failed(gates: dict[str, Gate]) -> set[str]:
    return {name for name, gate in gates.items() if gate.passed is False}


def test_a_better_model_passes_every_gate() -> None:
    gates = verdicts(side(2, flat(55.0)), side(1, flat(50.0)), GOOD, GateRules(SETTINGS))
    assert failed(gates) == set()
    assert {name for name, gate in gates.items() if gate.passed is None} == {"decontaminated"}
    assert {f"slice {name}" for name in SLICES["qvhighlights"]} < gates.keys()
    assert gates["better"].figures["low"] == pytest.approx(5.0)


def test_the_first_model_is_compared_with_nothing() -> None:
    gates = verdicts(side(1, flat(50.0)), None, GOOD, GateRules(SETTINGS))
    assert failed(gates) == set()
    assert gates["better"].passed is None
    assert gates["smoke"].passed


def test_an_equal_model_is_not_better() -> None:
    gates = verdicts(side(2, flat(50.0)), side(1, flat(50.0)), GOOD, GateRules(SETTINGS))
    assert failed(gates) == {"better"}
    lenient = SETTINGS.model_copy(update={"min_gain": -0.1})
    assert not failed(verdicts(side(2, flat(50.0)), side(1, flat(50.0)), GOOD, GateRules(lenient)))


def test_a_gain_that_chance_explains_is_not_one() -> None:
    noise = np.random.default_rng(0).normal(0.0, 30.0, 100)
    noise += 1.0 - noise.mean()
    gates = verdicts(side(2, flat(50.0 + noise)), side(1, flat(50.0)), GOOD, GateRules(SETTINGS))
    found = gates["better"].figures
    assert found["difference"] == pytest.approx(1.0)
    assert found["low"] < 0.0 < found["high"]
    assert failed(gates) == {"better"}
    assert "MR-full-mAP +1.00, interval -" in gates["better"].detail


@pytest.mark.parametrize(("loss", "passes"), [(2.0, True), (2.1, False)])
def test_a_slice_may_fall_by_the_margin(loss: float, passes: bool) -> None:
    worse = flat(60.0, **{"MR-short-mAP": 50.0 - loss})
    gates = verdicts(side(2, worse), side(1, flat(50.0)), GOOD, GateRules(SETTINGS))
    assert failed(gates) == (set() if passes else {"slice MR-short-mAP"})
    assert gates["slice MR-short-mAP"].figures["change"] == pytest.approx(-loss)


def test_a_slice_that_no_query_enters_is_not_judged() -> None:
    none = {"MR-long-mAP": np.nan}
    gates = verdicts(
        side(2, flat(60, **none)), side(1, flat(50, **none)), GOOD, GateRules(SETTINGS)
    )
    assert gates["slice MR-long-mAP"].passed is None


def test_a_slice_that_only_one_model_has_fails() -> None:
    values = flat(60.0)
    gates = verdicts(
        side(2, values), side(1, flat(50, **{"MR-long-mAP": np.nan})), GOOD, GateRules(SETTINGS)
    )
    assert failed(gates) == {"slice MR-long-mAP"}
    del values["MR-long-mAP"]
    gates = verdicts(side(2, values), side(1, flat(50.0)), GOOD, GateRules(SETTINGS))
    assert failed(gates) == {"slice MR-long-mAP"}


def test_slices_of_the_parameter_file_replace_those_of_the_protocol() -> None:
    chosen = SETTINGS.model_copy(update={"slices": ["MR-long-mAP"]})
    gates = verdicts(side(2, flat(60.0)), side(1, flat(50.0)), GOOD, GateRules(chosen))
    assert [name for name in gates if name.startswith("slice")] == ["slice MR-long-mAP"]


def test_another_test_set_is_never_compared_in_silence() -> None:
    other = side(2, flat(90.0), record=record("b" * 64))
    gates = verdicts(other, side(1, flat(50.0)), GOOD, GateRules(SETTINGS))
    assert failed(gates) == {"test_set"}
    assert "better" not in gates
    assert "bbbbbbbbbbbb" in gates["test_set"].detail
    assert "aaaaaaaaaaaa" in gates["test_set"].detail
    asked = verdicts(other, side(1, flat(50.0)), GOOD, GateRules(SETTINGS, reset_baseline=True))
    assert failed(asked) == set()
    assert asked["test_set"].passed is None
    # The same test set is compared, whatever was asked for.
    same = verdicts(
        side(2, flat(40.0)), side(1, flat(50.0)), GOOD, GateRules(SETTINGS, reset_baseline=True)
    )
    assert failed(same) == {"better"}


def test_what_a_fresh_process_says_counts() -> None:
    champion = side(1, flat(50.0))
    slow = verdicts(side(2, flat(60.0)), champion, Smoke("", 1.5), GateRules(SETTINGS))
    assert failed(slow) == {"latency"}
    assert slow["latency"].figures == {"latency_s": 1.5, "max_latency_s": 1.0}
    silent = verdicts(side(2, flat(60.0)), champion, Smoke("no answer", None), GateRules(SETTINGS))
    assert failed(silent) == {"latency", "smoke"}


@pytest.mark.parametrize(
    ("corpus", "excluded", "passed"),
    [
        ("lakes", None, False),  # rule `leak` was off
        ("lakes", {"lakes": 9}, True),
        ("tvsum", {"tvsum": 50}, False),
        ("tvsum", dict.fromkeys(DATASETS, 50), True),
    ],
)
def test_captions_of_evaluation_videos_are_refused(
    corpus: str, excluded: dict[str, int] | None, passed: bool
) -> None:
    card = {"pretraining": {"excluded": excluded}, "params": {"corpus": {"name": corpus}}}
    candidate = side(1, flat(50.0), record=record().model_copy(update=card))
    gate = verdicts(candidate, None, GOOD, GateRules(SETTINGS))["decontaminated"]
    assert gate.passed == passed
    assert ("qvhighlights" in gate.detail) == (corpus == "tvsum")


def test_size_signature_leakage_and_withdrawal() -> None:
    bad = side(
        2,
        flat(60.0),
        size_bytes=10_100_000,
        signature="null",
        tags={"leakage.train": "test-0001", "way": "m.finetuned"},
    )
    gates = verdicts(
        bad, side(1, flat(50.0)), GOOD, GateRules(SETTINGS, withdrawn=["of-the-candidate"])
    )
    assert failed(gates) == {"size", "signature", "leakage", "withdrawn"}
    assert gates["size"].detail == "10.1 MB; at most 10 MB"
    assert gates["leakage"].detail == "leakage.train = test-0001"


def test_the_bootstrap_of_qvhighlights_size_takes_under_a_second() -> None:
    """10,000 resamples over 1,550 queries, in processor time: other machines are busy too."""
    rng = np.random.default_rng(0)
    vids = [f"v{query % 1529}" for query in range(1550)]
    first, second = (
        PerQuery(list(range(1550)), vids, {HEADLINE: rng.normal(40, 20, 1550)}) for _ in range(2)
    )
    seconds = []
    for _ in range(3):
        started = time.process_time()
        paired_bootstrap(first, second, HEADLINE, BootstrapSettings(10_000))
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1.0
