import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from mrmodel.tracking.mlflow_events import Outbox, RequestRefused, is_transient

AWAY = MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)
WRONG = MlflowException("no such name", error_code=INVALID_PARAMETER_VALUE)


class Server:
    """Takes messages while it has no fault."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.fault: Exception | None = None

    def handle(self, text: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.taken.append(text)


def put(outbox: Outbox, server: Server, *texts: str) -> None:
    for text in texts:
        outbox.put(text, lambda text=text: server.handle(text))


def test_what_an_absent_server_did_not_take_comes_later_in_order() -> None:
    outbox, server = Outbox(), Server()
    put(outbox, server, "a")
    outbox.push()
    server.fault = AWAY
    put(outbox, server, "b", "c")
    outbox.push()
    assert (server.taken, len(outbox)) == (["a"], 2)
    server.fault = None
    outbox.push()
    assert server.taken == ["a"], "a server that did not answer is left alone for a second"
    assert outbox.failing_s > 0
    outbox.hurry()
    outbox.push()
    assert (server.taken, len(outbox), outbox.failing_s) == (["a", "b", "c"], 0, 0.0)


def test_a_message_that_is_wrong_itself_does_not_hold_up_the_rest() -> None:
    outbox, server = Outbox(), Server()
    server.fault = WRONG
    put(outbox, server, "wrong")
    outbox.push()
    server.fault = None
    put(outbox, server, "right")
    outbox.push()
    assert (server.taken, len(outbox)) == (["right"], 0)


def test_tries_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still between two calls."""
    outbox, now, tries = Outbox(), 1000.0, []

    def send() -> None:
        tries.append(now - 1000.0)
        raise AWAY

    monkeypatch.setattr("mrmodel.tracking.mlflow_events.time.monotonic", lambda: now)
    outbox.put("counted", send)
    for quarter in range(4 * 130):
        now = 1000.0 + quarter / 4
        outbox.push()
    assert tries == [0, 1, 3, 7, 15, 31, 61, 91, 121], "the pause doubles up to 30 s"
    assert outbox.failing_s == 129.75


def test_a_refused_record_is_told() -> None:
    outbox = Outbox()

    def refuse() -> None:
        raise RequestRefused("no")

    outbox.put("the run", refuse)
    with pytest.raises(RequestRefused):
        outbox.push()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (AWAY, True),
        (WRONG, False),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (FileNotFoundError(), False),
        (KeyError("a bug"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, passes: bool) -> None:
    assert is_transient(error) is passes
