"""What the audit tried and what held then: it must go on to hold.

The rest of its list has tests elsewhere: names and keys (test_names.py, tests/storage), pickles and
arrays of objects (tests/convert/test_safe_unpickle.py, tests/features/test_importer.py), playlists
and pictures (test_opening_videos.py), reports on deliveries (tests/retrain/test_outcomes.py),
promotions at once and killed ones (tests/registry/test_champion.py), addresses and passwords of
`make services` (tests/infra/test_services.py).
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrmodel.config.schema import load_config
from mrmodel.data.annotations import scan_annotations
from mrmodel.data.ingest.videos import VideoLibrary
from mrmodel.errors import ConfigError, DataError, OrchestrationError, StorageError
from mrmodel.files import parse_yaml
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.report.build import Example, Report, ReportSection, Table, render
from mrmodel.report.charts import Timeline, bar_chart
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import list_deliveries
from mrmodel.retrain.row_checks import check_records
from mrmodel.retrain.videos import DeliveredVideos
from mrmodel.stages import report as report_stage
from mrmodel.stages.paths import Paths
from mrmodel.stages.profile import Profile
from mrmodel.storage import open_store
from mrmodel.types import Annotation
from tests.limits import files_of_at_most
from tests.project import ROOT

PLACES_OF_FILES = ["../secret", "../../secret", "/etc/passwd", "a\x00b", ".", "..", "", "a/../b"]


# --- code ---

# Function -> what makes a call of it harmless.
LOADERS = {
    "torch.load": "weights_only=True",
    "np.load": "",  # `allow_pickle` is off
    "pickle.load": None,
    "pickle.loads": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "joblib.load": None,
}


def calls_that_run_code(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {ast.unparse(option) for option in node.keywords}
        wanted = LOADERS.get(name, "")
        is_open = wanted is None or (wanted and wanted not in options)
        if is_open or "allow_pickle=True" in options or "shell=True" in options:
            found.append(ast.unparse(node))
    return found


def test_nothing_is_read_as_code() -> None:
    """A way around the checked readers would show here."""
    assert (
        calls_that_run_code("np.load(a); torch.load(a, weights_only=True); yaml.safe_load(a)") == []
    )
    bad = "pickle.load(a); torch.load(a); np.load(a, allow_pickle=True); run(a, shell=True)"
    assert len(calls_that_run_code(bad)) == 4
    for folder in ("mrmodel", "flows", "infra"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not calls_that_run_code(file.read_text(encoding="utf-8")), file


def test_yaml_makes_no_objects() -> None:
    for text in (
        "!!python/object/apply:os.system ['touch pwned']",
        "!!python/name:os.system",
        "a: !!python/object/new:subprocess.Popen [[touch, pwned]]",
    ):
        with pytest.raises(DataError, match="not valid YAML"):
            parse_yaml(text)


@pytest.mark.parametrize("key", ["name: sample", "study: main", "gap: 1"])
def test_aliases_of_yaml_make_no_long_message(tmp_path: Path, key: str) -> None:
    """The message about a line of 300 bytes had 600 MB; that about 400 bytes filled the memory."""
    ten = [f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    name = key.partition(":")[0]
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    bomb = f"{name}: [&a0 [x, y], {', '.join(ten)}]"
    (tmp_path / "params.yaml").write_text(
        text.replace(key, bomb, 1) if key in text else f"{text}\n{bomb}\n"
    )
    with pytest.raises(ConfigError, match=f"{name} = ") as error:
        load_config(tmp_path / "params.yaml")
    assert len(str(error.value)) < 600


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> RuntimeEnvironment:
    folder = tmp_path_factory.mktemp("git") / "repository"
    (folder / ".dvc").mkdir(parents=True)
    (folder / "file").write_text("text")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *words], check=True)
    own = folder.parent / "own"
    return RuntimeEnvironment(str(folder), None, str(own), None, own, own, own / "clones")


@pytest.mark.parametrize(
    "rev",
    ["--upload-pack=touch pwned", "-c", "--", "HEAD\n--quiet", "..", "HEAD..HEAD", "HEAD:file", ""],
)
def test_a_revision_is_a_commit(environment: RuntimeEnvironment, rev: str) -> None:
    with pytest.raises(OrchestrationError), fresh_clone(environment, rev, {}):
        pytest.fail("a clone of it")
    assert not list(environment.clones.rglob("pwned"))


@pytest.mark.parametrize(
    "url",
    ["--upload-pack=touch pwned", "ext::touch pwned", "ssh://-oProxyCommand=touch%20pwned/x", "-u"],
)
def test_an_address_of_git_runs_nothing(environment: RuntimeEnvironment, url: str) -> None:
    with pytest.raises(OrchestrationError), fresh_clone(replace(environment, git=url), "HEAD", {}):
        pytest.fail("a clone of it")
    assert not list(environment.clones.rglob("pwned"))


# --- files elsewhere ---


def test_a_video_is_looked_up_by_name_only(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_bytes(b"a")
    os.mkfifo(tmp_path / "videos/pipe.mp4")
    library = VideoLibrary(tmp_path / "videos")
    delivered = DeliveredVideos(tmp_path / "videos", Reference(no_profile()), 2.0, [])
    for vid in [*PLACES_OF_FILES, "pipe"]:
        assert "no video" in str(library.problem(vid, 0.0))
        assert "no video" in str(delivered.problem(vid, 0.0))
    assert delivered.files.keys() == {"a"}


def no_profile() -> Profile:
    return object.__new__(Profile)


@pytest.mark.parametrize("vid", [*PLACES_OF_FILES, "../../../secret.mp4"])
def test_a_report_shows_pictures_of_the_corpus_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vid: str
) -> None:
    """Where features are imported, a record may name any video; its frames were put on the page."""
    paths = Paths(load_config(ROOT / "params.yaml"), tmp_path)
    paths.videos.mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    monkeypatch.setattr(report_stage, "film_strip", lambda video, _: pytest.fail(f"read {video}"))
    row = Annotation(qid=1, query="q", vid=vid, duration=4.0, relevant_windows=((0.0, 2.0),))
    answer = {"pred_relevant_windows": [[0.0, 2.0, 1.0]], "pred_saliency_scores": [0.5, 0.5]}
    config = load_config(ROOT / "params.yaml")
    assert report_stage._example(config, paths, row, {1: answer}, 1).frames == []


def test_a_linked_table_shows_nothing_of_its_content(tmp_path: Path) -> None:
    """Whoever may write into a folder of deliveries may link what the retraining may read."""
    (tmp_path / "secret").write_text("TOPSECRET: 123\n[TOPSECRET]\n")
    folder = tmp_path / "incoming/monday"
    (folder / "videos").mkdir(parents=True)
    for table in ("train.jsonl", "captions.jsonl"):
        (folder / table).symlink_to(tmp_path / "secret")
    (folder / "videos/a.mp4.s3").write_text("{}")
    (found,) = list_deliveries(open_store(str(folder.parent)))
    assert found.known == ["captions.jsonl", "train.jsonl"], "a pointer is no video"
    reference = Reference(no_profile())
    videos = DeliveredVideos(folder / "videos", reference, 2.0, [])
    judged = check_records(folder, reference, videos, load_config(ROOT / "params.yaml"))
    assert len(judged.bad) == 4
    assert "TOPSECRET" not in str(judged.bad)


# --- rows and pages ---


def row(**change: Any) -> str:
    moment = {"relevant_windows": [[0.0, 4.0]], "relevant_clip_ids": [0, 1]}
    return json.dumps({"qid": "a", "query": "a", "vid": "v", "duration": 20.0} | moment | change)


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        (row(duration=float("inf")), False),
        (row(duration=1e300), False),
        (row(relevant_windows=[[0.0, 1e300]]), False),
        (row(qid=int("9" * 4000)), True),
        (row(qid=1).replace("1", "9" * 10_000, 1), False),
        (row(x=1).replace("1}", "[" * 100_000 + "]" * 100_000 + "}"), False),
        (row(query="a" * 10_000_000), True),
    ],
    ids=["Infinity", "1e300", "window", "long number", "longer number", "deep", "10 MB"],
)
def test_odd_rows_end_no_reader(tmp_path: Path, text: str, is_good: bool) -> None:
    (tmp_path / "a.jsonl").write_text(f"{row(qid='good')}\n{text}\n")
    scan = scan_annotations(tmp_path / "a.jsonl")
    assert len(scan.rows) == 1 + is_good
    assert all(len(error.rule) < 500 for error in scan.errors)


@pytest.mark.parametrize("key", ["qid", "vid", "duration", "saliency_scores"])
def test_a_value_that_can_just_be_read_can_be_told(tmp_path: Path, key: str) -> None:
    """Writing nested values takes deeper recursion than reading them: it ended in a traceback."""
    deep = [f'{row()[:-1]}, "{key}": {"[" * depth}{"]" * depth}}}' for depth in range(800, 1000)]
    (tmp_path / "a.jsonl").write_text("\n".join([row(), *deep]))
    scan = scan_annotations(tmp_path / "a.jsonl")
    assert (len(scan.rows), len(scan.errors)) == (1, 200)
    assert all(len(error.rule) < 200 for error in scan.errors)


def test_a_page_shows_texts_as_texts() -> None:
    evil = "</text></svg><script>alert(1)</script>\"'"
    chart = bar_chart({evil: 0.5}, evil)
    line = Timeline(4.0, 2.0, ((0.0, 2.0),), [(0.0, 2.0, 1.0)], [0.5, 0.5], [0.0, 0.0])
    example = Example(evil, evil, evil, evil, 0.5, line, [])
    table = Table(evil, [evil], [[evil]])
    section = ReportSection(evil, evil, [table], [chart], [example])
    page = render(Report(evil, evil, {evil: evil}, [section], {evil: evil}))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


# --- disks and neighbours ---


def test_a_full_disk_leaves_the_pointer_as_it_was(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "registry"))
    tag = store.put("moments/champion.json", b"1" * 50)
    with files_of_at_most(100), pytest.raises(StorageError, match="File too large"):
        store.put("moments/champion.json", b"2" * 500, if_match=tag)
    found = store.get("moments/champion.json")
    assert found is not None
    assert (found.content, found.tag) == (b"1" * 50, tag)
    assert [path.name for path in (tmp_path / "registry/moments").iterdir()] == ["champion.json"]


def test_a_registry_that_takes_nothing_is_one_line() -> None:
    """/proc, because root may write into every other folder."""
    store = open_store("/proc/registry")
    assert store.get("moments/champion.json") is None
    with pytest.raises(StorageError, match=r"^/proc/registry: key "):
        store.put("moments/champion.json", b"1")


def test_the_second_of_two_repros_is_refused(tmp_path: Path) -> None:
    from dvc.repo import Repo

    Repo.init(str(tmp_path), no_scm=True).close()
    wait = f"{sys.executable} -c \"import time, pathlib; pathlib.Path('begun').touch(); "
    wait += "[time.sleep(0.05) for _ in range(400) if not pathlib.Path('go').exists()]; "
    wait += "pathlib.Path('out').write_text('first')\""
    (tmp_path / "dvc.yaml").write_text(
        json.dumps({"stages": {"one": {"cmd": wait, "outs": ["out"]}}})
    )
    repro = [sys.executable, "-m", "dvc", "repro"]
    with subprocess.Popen(repro, cwd=tmp_path, stdout=subprocess.DEVNULL) as first:
        while not (tmp_path / "begun").exists():
            assert first.poll() is None
        second = subprocess.run(repro, cwd=tmp_path, capture_output=True, text=True, check=False)
        (tmp_path / "go").touch()
    assert (first.returncode, second.returncode) == (0, 255)
    assert "lock" in second.stderr
    assert (tmp_path / "out").read_text() == "first"
