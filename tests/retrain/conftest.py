"""A repository that is trained on a folder of its own, and deliveries for it."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from mrmodel.config.schema import Config, CorpusVideos, load_config
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.progress import NullReporter
from mrmodel.retrain import ingest as ingest_module
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.dvc_dataset import DvcDataset
from mrmodel.retrain.ingest import IngestResult, ingest
from mrmodel.retrain.outcomes import Ledger
from mrmodel.storage import Store, open_store
from mrmodel.synthetic.render import render_corpus
from tests.project import Project, made_once
from tests.services import Service
from tests.synthetic.conftest import CLIP_LEN_S, read_rows, settings_of

FOLDER = "clips"
MODEL = "moments"
TABLES = ("train.jsonl", "val.jsonl", "captions.jsonl")
SMALL = {
    "corpus": {"folder": FOLDER},
    "features": {"video_streams": ["tiny.video"], "text_streams": ["tiny.text"], "workers": 1},
    "tracking": {"enabled": False},
}
Rows = list[dict[str, Any]]
APART = ingest_module._apart


def render(out: Path, seed: int, **videos: int) -> Path:
    """A corpus of videos of 20 s with 8 queries each."""
    settings = settings_of(
        seed=seed, videos=CorpusVideos(**videos), queries_per_video=8, captions_per_video=8
    )
    render_corpus(settings, CLIP_LEN_S, out, 1, NullReporter())
    return out


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Its folder is tracked by DVC, and its training data have a profile.

    Without studies, of which no retraining reads a file: DVC takes half as long to read its stages,
    which it does several times in each ingestion.
    """

    def make(folder: Path) -> None:
        project = Project(folder)
        shutil.rmtree(folder / "studies")
        project.apply("own_videos", SMALL)
        project.commit()
        corpus = render(project.folder / FOLDER, 11, pretrain=2, train=12, val=2, test=3)
        for name in ("corpus.json", "pretrain.jsonl", "pretrain_val.jsonl"):
            (corpus / name).unlink()
        with project.inside(), Repo() as repo:
            repo.add(FOLDER)
            needed = {one.addressing for one in repo.stage.collect("profile", with_deps=True)}
            for name, command in project.commands().items():
                if name in needed:
                    project.stage(command)
            repo.commit("profile", with_deps=True, force=True)
        project.git("add", "-A")
        project.git("commit", "-q", "-m", "data")

    folder = made_once(tmp_path_factory, "retrain-repository", make)
    return Project.at(folder).copy(tmp_path_factory.mktemp("retrain") / "clone")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus of the same kind, under names and qids that the repository has not."""
    out = tmp_path_factory.mktemp("more") / "corpus"
    render(out, 12, pretrain=1, train=4, val=1, test=1)
    for path in (out / "videos").iterdir():
        path.rename(path.with_name(f"new-{path.name}"))
    for table in TABLES:
        rows = read_rows(out / table)
        for row in rows:
            name = "vid" if "vid" in row else "YoutubeID"
            row[name] = f"new-{row[name]}"
            if "qid" in row:
                row["qid"] = f"new-{row['qid']}"
        write_rows(out / table, rows)
    return out


@dataclass
class Parcel:
    """A delivery on the sender's machine."""

    folder: Path

    def rows(self, table: str) -> Rows:
        """The rows of a table."""
        return read_rows(self.folder / table)

    def change(self, table: str, change: Callable[[Rows], Rows | None]) -> None:
        """Edit the rows of a table, in place or by returning others."""
        rows = self.rows(table)
        write_rows(self.folder / table, change(rows) or rows)

    def keep(self, *vids: str) -> None:
        """Only these videos, and what is said of them."""
        for path in (self.folder / "videos").iterdir():
            if path.stem not in vids:
                path.unlink()
        for table in TABLES:
            path = self.folder / table
            if path.exists():
                rows = [row for row in read_rows(path) if (row.get("vid") in vids)]
                if rows:
                    write_rows(path, rows)
                else:
                    path.unlink()


@pytest.fixture
def parcel(rendered: Path, tmp_path: Path) -> Callable[[str], Parcel]:
    """Makes a good delivery: 4 videos for training, 1 for val, 1 with captions."""

    def make(name: str = "parcel") -> Parcel:
        folder = tmp_path / "sender" / name
        kept = shutil.ignore_patterns("pretrain*.jsonl", "test.jsonl", "corpus.json", "*test-*")
        shutil.copytree(rendered, folder, ignore=kept)
        return Parcel(folder)

    return make


@dataclass
class Site:
    """Stores and runtime environment of one test, and the repository that all tests share."""

    project: Project
    environment: RuntimeEnvironment
    incoming: Store
    store: Store

    @property
    def ledger(self) -> Ledger:
        """Outcomes of the deliveries."""
        return Ledger(self.store, MODEL)

    def send(self, name: str, parcel: Parcel, *, marked: bool = True) -> None:
        """Upload a delivery, the marker last."""
        for path in sorted(parcel.folder.rglob("*")):
            if path.is_file():
                self.incoming.upload(f"{name}/{path.relative_to(parcel.folder).as_posix()}", path)
        if marked:
            self.incoming.put(f"{name}/COMPLETE", b"")

    def take(self, rev: str = "HEAD") -> IngestResult:
        """Take in what is new."""
        return ingest(self.incoming, self.ledger, self.environment, rev)

    def show(self, rev: str, path: str) -> str:
        """A file of a revision."""
        return self.project.git("show", f"{rev}:{path}")

    def branches(self) -> list[str]:
        """Run branches that were pushed."""
        return self.project.git("branch", "--list", "runs/*").split()


def places_of(repository: Project, folder: Path) -> RuntimeEnvironment:
    """The repository with its cache, and `folder` for everything else."""
    there = RuntimeEnvironment.from_environment({"MRMODEL_GIT_URL": str(repository.folder)})
    own = {name: folder / name for name in ("state", "clones")}
    return replace(there, result_store=str(folder / "handover"), **own)


@pytest.fixture
def plain(repository: Project, tmp_path: Path, checks_here: None) -> Site:
    """Everything in folders."""
    stores = [open_store(str(tmp_path / name)) for name in ("incoming", "registry")]
    return Site(repository, places_of(repository, tmp_path), *stores)


@pytest.fixture
def checks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries are checked in this process: starting another takes longer than the check."""
    monkeypatch.setattr(ingest_module, "_apart", ingest_module._check)


@pytest.fixture
def checks_apart(plain: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries are checked as always, in processes of their own."""
    monkeypatch.setattr(ingest_module, "_apart", APART)


@pytest.fixture(
    params=["folder", pytest.param("s3", marks=[pytest.mark.services, pytest.mark.slow])]
)
def site(request: pytest.FixtureRequest, plain: Site, tmp_path: Path) -> Site:
    """Everything in folders, or everything but the repository in S3 and nothing in the cache."""
    if request.param == "folder":
        return plain
    service: Service = request.getfixturevalue("s3")
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name, value in service.env().items():
        patch.setenv(name, value)
    base = f"s3://mrmodel/{secrets.token_hex(8)}"
    environment = replace(
        plain.environment,
        remote=f"{base}/dvc",
        result_store=f"{base}/handover",
        endpoint=service.url,
    )
    with fresh_clone(environment, "HEAD", {}) as folder:
        Repo(str(folder)).push()
    environment = replace(environment, cache=tmp_path / "cache")
    return Site(
        plain.project, environment, open_store(f"{base}/in"), open_store(f"{base}/registry")
    )


@pytest.fixture(scope="session")
def config(repository: Project) -> Config:
    """Parameters of the repository."""
    return load_config(repository.folder / "params.yaml")


@pytest.fixture(scope="session")
def reference(
    repository: Project, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    """What the repository's data hold; no test changes it."""
    environment = places_of(repository, tmp_path_factory.mktemp("reference"))
    with fresh_clone(environment, "HEAD", {}) as folder:
        return DvcDataset(folder, config, environment).reference()
