"""A month of retraining on real servers: what is better serves, what is worse never does.

The tests are the weeks of one story and run in their order.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from mrmodel.registry.decision import Decision
from mrmodel.retrain.outcomes import Ledger, LedgerEntry
from mrmodel.storage import open_store
from tests.flows.conftest import Site, open_site, wait_until
from tests.flows.month import GOOD, ROUGH, START, Material, Row, rough
from tests.project import Project
from tests.services import Service
from tests.tracking.serving import invoke, serving

CLIPS = "clips"
MAIN = "main"
# The worker of the flow runs the stages itself: that other workers can is what
# tests/flows/test_on_workers.py sees.
NIGHT = {"rev": MAIN, "here": True}
PARAMETERS: dict[str, Any] = {
    "corpus": {"name": "own", "source": "folder", "folder": CLIPS},
    "intervid": {"captions": {"video_id_length": None}},
    "train": {
        "batch_size": 16,
        "checkpoint_every_steps": 1000,
        "pretrain": {"steps": 1},
        "finetune": {"steps": 120},
        "scratch": {"steps": 121},
    },
    # The first annotations are known to be rough, so windows may be of another length; a part of
    # so small a test set says nothing.
    "promotion": {"max_slice_loss": 50.0},
    "retrain": {"drift": {"window_s": None}},
}


class Inbox:
    """A web address that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                inbox.told.append(json.loads(self.rfile.read(length)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?token=of-the-inbox"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()


@dataclass
class Month:
    """The site, with the material and the ways in which a team uses it."""

    site: Site
    material: Material
    inbox: Inbox

    def git(self, *arguments: str) -> str:
        return self.site.project.git(*arguments).strip()

    def mrmodel(self, *arguments: str) -> str:
        """A command of the command line, in a clone that people work in."""
        done = subprocess.run(
            ["mrmodel", *arguments],
            cwd=self.site.project.folder,
            env=self.site.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, deployment: str, timeout_s: float = 900, **parameters: Any) -> FlowRun:
        """A deployment from start to end."""
        with temporary_settings(server_of(self.site)):
            started: Any = run_deployment(deployment, parameters=parameters, timeout=0)
        ended = self.site.wait_until(lambda: final(self, started), timeout_s, every_s=0.5)
        assert isinstance(ended, FlowRun)
        return ended

    def retrain(self, end: str) -> str:
        """One night; it must end as that. The reasons."""
        state = self.run("retrain/retrain", **NIGHT).state
        assert state is not None
        assert state.name == end, f"{state}\n{self.site.logs()}"
        return state.message or ""

    def send(
        self, name: str, tables: dict[str, list[Row]], change: Callable[[Row], Row] | None = None
    ) -> None:
        """A delivery arrives."""
        folder = self.site.folder / "sent" / name
        self.material.deliver(folder, tables, change)
        store = open_store(self.site.environment["MRMODEL_INCOMING"])
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                store.upload(f"{name}/{path.relative_to(folder)}", path)
        store.put(f"{name}/COMPLETE", b"")

    def aliases(self) -> dict[str, str]:
        """Alias -> version, as MLflow has them."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self.site.environment["MLFLOW_TRACKING_URI"])
        return {
            alias: str(version)
            for alias, version in client.get_registered_model("moments").aliases.items()
        }

    def entries(self) -> list[LedgerEntry]:
        """What became of deliveries."""
        store = open_store(self.site.environment["MRMODEL_REGISTRY"])
        return Ledger(store, "moments").entries()

    def outcomes(self) -> dict[str, str]:
        """Delivery -> what became of it."""
        return {one.delivery: one.outcome for one in self.entries()}

    def audit(self) -> list[Decision]:
        """The audit objects, in their order."""
        store = open_store(self.site.environment["MRMODEL_REGISTRY"])
        found = [store.get(key) for key in store.keys("moments/audit/")]
        return [Decision.model_validate_json(one.content) for one in found if one is not None]

    def await_news(self, count: int) -> dict[str, str]:
        """The last of so many messages."""
        wait_until(lambda: len(self.inbox.told) >= count, 60, lambda: str(self.inbox.told))
        assert len(self.inbox.told) == count
        return self.inbox.told[-1]


def server_of(site: Site) -> dict[Any, str]:
    """Prefect's settings for the server of a site."""
    settings = (PREFECT_API_URL, PREFECT_API_AUTH_STRING)
    return {setting: site.environment[setting.name] for setting in settings}


@pytest.fixture(scope="module")
def month(
    s3: Service,
    prefect_server: Service,
    mlflow_server: Service,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Month]:
    """A repository with few and rough annotations, its hub, servers and workers."""
    folder = tmp_path_factory.mktemp("month")
    material = Material(folder / "material")
    project = Project(folder / "repository")
    project.apply("miniature", PARAMETERS)
    project.keep_studies("seed_run", "seeds")
    project.commit()
    project.git("branch", "--move", MAIN)
    start = material.rows("train", START)
    tables = {"train": start, "val": material.rows("val"), "test": material.rows("test")}
    material.deliver(project.folder / CLIPS, tables)
    material.deliver(folder / "rough", {"train": start}, rough)
    shutil.copy(folder / "rough/train.jsonl", project.folder / CLIPS)
    hub = folder / "hub.git"
    project.git("clone", "--quiet", "--bare", str(project.folder), str(hub))
    project.git("remote", "add", "origin", str(hub))
    inbox, base = Inbox(), f"s3://mrmodel/{folder.name}"
    variables = {
        "MRMODEL_GIT_URL": str(hub),
        "MRMODEL_REGISTRY": f"{base}/registry",
        "MRMODEL_INCOMING": f"{base}/incoming",
        "MRMODEL_NOTIFY_URL": inbox.url,
    }
    services = (s3, prefect_server, mlflow_server)
    with open_site(project, folder, services, ("control",), variables=variables) as site:
        remote = [
            "dvc",
            "remote",
            "add",
            "--default",
            "hub",
            site.environment["MRMODEL_DVC_REMOTE"],
        ]
        modify = ["dvc", "remote", "modify", "hub", "endpointurl", s3.env()["MRMODEL_S3_ENDPOINT"]]
        for command in (remote, modify, ["dvc", "add", CLIPS]):
            run_in(site, command)
        project.make_here()
        run_in(site, ["dvc", "push", "--all-branches"])
        project.git("add", "-A")
        project.git("commit", "-q", "-m", "The first annotations")
        project.git("push", "-q", "origin", MAIN)
        yield Month(site, material, inbox)
    inbox.close()


def run_in(site: Site, command: list[str]) -> None:
    """A command in the clone that people work in."""
    folder, environment = site.project.folder, site.environment
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def test_the_first_model_is_promoted(month: Month) -> None:
    """The worker finds what was made without it, and runs what a parameter changes."""
    before = month.site.lock(MAIN)
    params = {"evaluate.bootstrap_resamples": 150}
    state = month.run("orchestrate/pipeline", **NIGHT, params=params).state
    assert state is not None
    assert state.is_completed(), f"{state}\n{month.site.logs()}"
    month.git("fetch", "-q", "origin")
    (branch,) = month.git("branch", "-r", "--list", "origin/runs/*").split()
    after = month.site.lock(branch)
    assert [name for name in after if after[name] != before.get(name)] == ["evaluate", "report"]
    month.git("merge", "-q", "--ff-only", branch)
    month.git("push", "-q", "origin", MAIN)
    state = month.run("promote/promote", rev=MAIN).state
    assert state is not None
    assert state.name == "Promoted", f"{state}\n{month.site.logs()}"
    assert month.aliases() == {"champion": "1"}
    # The log of the flow run shows each step of the registration and of the promotion.
    steps = ("register: 3/4 now storing the version", "promote: 3/4 now comparing by the gates")
    for step in steps:
        month.site.wait_until(lambda step=step: month.site.said(step) == 1, 60)


def test_better_data_make_a_champion(month: Month) -> None:
    month.send("week-1", {"train": month.material.rows("train", GOOD)})
    said = month.retrain("Promoted")
    assert "moments version 2 is champion (better: MR-full-mAP +" in said
    assert month.aliases() == {"champion": "2", "previous": "1"}
    assert month.outcomes() == {"week-1": "promoted"}
    month.git("pull", "-q", "--ff-only", "origin", MAIN)
    (taken,) = json.loads((month.site.project.folder / f"{CLIPS}.deliveries.json").read_text())
    assert (taken["name"], len(taken["videos"])) == ("week-1", len(GOOD))
    news = month.await_news(1)
    assert news["state"] == "Promoted"
    assert "version 2 is champion" in news["message"]


def test_the_champion_answers_as_mrmodel_predict_does(month: Month, tmp_path: Path) -> None:
    """By its alias, in a fresh process and behind a server, from the artifacts in S3."""
    folder, environment = month.site.project.folder, month.site.environment
    pull = ["dvc", "pull", "models/served/moment_detr"]
    subprocess.run(pull, cwd=folder, env=environment, check=True, capture_output=True)
    test = month.material.rows("test")[0]
    video = str(month.material.folder / f"videos/{test['vid']}.mp4")
    asked = ("--query", test["query"], "--json", "--top", "1000")
    expected = json.loads(month.mrmodel("predict", video, *asked))
    rows = [{"query": test["query"], "video": video}]
    champion = "models:/moments@champion"
    del (outside := dict(environment))["PYTHONPATH"]
    outside["MRMODEL_SERVE_FROM"] = str(month.material.folder)
    code = (
        "import sys, json, mlflow.pyfunc, pandas\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print('\\n' + json.dumps(model.predict(pandas.DataFrame(json.loads(sys.argv[2])))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, champion, json.dumps(rows)],
        cwd=tmp_path,
        env=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [expected]
    with serving(champion, tmp_path, outside) as address:
        assert invoke(address, rows) == [expected]


@pytest.mark.slow
def test_a_retrained_model_is_made_again_to_the_last_bit(month: Month) -> None:
    """From the revision, the videos of that revision, and nothing else."""
    assert "equal to the last bit" in month.mrmodel("lineage", "reproduce", "2")


def test_nothing_new_is_no_work_and_two_nights_do_not_overlap(month: Month) -> None:
    before = len(month.site.flow_runs("evaluate"))
    parameters = NIGHT
    with temporary_settings(server_of(month.site)):
        first: Any = run_deployment("retrain/retrain", parameters=parameters, timeout=0)
        second: Any = run_deployment("retrain/retrain", parameters=parameters, timeout=0)
        names = [
            month.site.wait_until(lambda run=run: final(month, run), 180, every_s=0.5).state.name
            for run in (first, second)
        ]
    assert sorted(names) == ["Cancelled", "Unchanged"]
    assert len(month.site.flow_runs("evaluate")) == before
    assert len(month.audit()) == 2


def final(month: Month, run: FlowRun) -> FlowRun | None:
    """The flow run, once it has ended."""
    with month.site.client() as client:
        found = client.read_flow_run(run.id)
    return found if found.state is not None and found.state.is_final() else None


def test_bad_labels_are_quarantined_with_reasons(month: Month) -> None:
    rows = month.material.rows("train", ROUGH)
    broken = [row | {"relevant_windows": [[20.0, 4.0]]} for row in rows[:40]]
    month.send("week-2-broken", {"train": broken})
    foreign = [row | {"query": f"zwei Hunde springen, {row['qid']}"} for row in rows[40:80:2]]
    month.send("week-2-foreign", {"train": foreign})
    said = month.retrain("Quarantined")
    assert "starts at or after its end" in said
    assert "unknown words" in said
    assert month.outcomes() == {
        "week-1": "promoted",
        "week-2-broken": "quarantined",
        "week-2-foreign": "quarantined",
    }
    assert len(month.audit()) == 2
    assert month.retrain("Unchanged") == "no new delivery"


@pytest.mark.slow
def test_a_worse_candidate_is_refused(month: Month) -> None:
    head = month.git("ls-remote", "origin", MAIN)
    month.send("week-3", {"train": month.material.rows("train", ROUGH)}, rough)
    said = month.retrain("Refused")
    assert "moments version 3 is refused (better: MR-full-mAP -" in said
    assert month.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}
    assert month.outcomes()["week-3"] == "refused"
    assert month.git("ls-remote", "origin", MAIN) == head


@pytest.mark.slow
def test_a_rollback_and_the_whole_history(month: Month) -> None:
    month.mrmodel("registry", "rollback", "--reason", "misses the new camera")
    assert month.aliases() == {"champion": "1", "challenger": "3"}
    history = month.mrmodel("registry", "history")
    kinds = [line.split()[1] for line in history.splitlines() if not line.startswith(" ")]
    assert kinds == ["promote", "promote", "refuse", "rollback"]
    assert "misses the new camera" in history
    assert [(one.kind, one.version, one.before) for one in month.audit()] == [
        ("promote", 1, None),
        ("promote", 2, 1),
        ("refuse", 3, 2),
        ("rollback", 1, 2),
    ]
    assert "everything agrees" in month.mrmodel("registry", "reconcile")


@pytest.mark.slow
def test_after_a_rollback_the_bad_data_can_go(month: Month) -> None:
    """Reverted on the branch, they are neither missed nor taken again."""
    (entry,) = [one for one in month.entries() if one.version == 2]
    month.git("fetch", "-q", "origin")
    month.git("revert", "--no-edit", f"origin/{entry.branch}~2..origin/{entry.branch}")
    assert not (month.site.project.folder / f"{CLIPS}.deliveries.json").exists()
    month.git("push", "-q", "origin", MAIN)
    assert month.retrain("Unchanged") == "no new delivery"


def test_news_were_told_and_no_secret(month: Month) -> None:
    refused = [one for one in month.audit() if one.kind == "refuse"]
    expected = ["Promoted", "Quarantined", *["Refused"] * len(refused)]
    month.await_news(len(expected))
    assert [one["state"] for one in month.inbox.told] == expected
    assert "token=of-the-inbox" not in month.site.logs()
