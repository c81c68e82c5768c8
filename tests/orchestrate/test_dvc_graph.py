"""What must run, judged without data, is what DVC runs with the data at hand."""

import json
from pathlib import Path

import pytest
import yaml

from mrmodel.errors import OrchestrationError
from mrmodel.orchestrate.dvc_graph import StageGraph
from tests.orchestrate.conftest import OpenGraph
from tests.project import Project

ALL = [
    "corpus",
    "extract@tiny.video",
    "extract_text@tiny.text",
    "profile",
    "intervid_filter",
    "intervid_select",
    "intervid_mr",
    "video_captions",
    "pretrain@moment_detr",
    "finetune@moment_detr",
    "scratch@moment_detr",
    "package@moment_detr",
    "evaluate",
    "report",
]


def changed(graph: StageGraph) -> dict[str, str]:
    verdicts = {name: graph.status(name).reason for name in graph.names()}
    return {name: reason for name, reason in verdicts.items() if reason is not None}


def test_nothing_changed(graph: StageGraph) -> None:
    assert not (graph.folder / "data").exists(), "the clone must hold no data"
    assert sorted(graph.names()) == sorted(ALL)
    assert changed(graph) == {}


def test_upstream_stages_come_first(graph: StageGraph) -> None:
    order = graph.names()
    for name in order:
        for needed in graph.upstream(name):
            assert order.index(needed) < order.index(name)
    assert graph.upstream("extract@tiny.video") == {"corpus"}


def test_targets_bring_what_they_need(graph: StageGraph) -> None:
    assert graph.names(["extract"]) == ["corpus", "extract@tiny.video"]
    assert "seed_run" in " ".join(graph.names(["studies/dvc.yaml:seeds"]))
    with pytest.raises(OrchestrationError, match=r"'finetun'.*did you mean 'finetune@moment"):
        graph.names(["finetun"])


@pytest.mark.parametrize(
    ("edits", "reasons"),
    [
        (
            {"params.yaml": ("bootstrap_resamples: 200", "bootstrap_resamples: 300")},
            {"evaluate": "parameter evaluate changed"},
        ),
        (
            # No stage depends on the number of attempts.
            {
                "params.yaml": ("attempts: 3", "attempts: 4"),
                "mrmodel/report/build.py": ('"""', '"""Now '),
            },
            {"report": "mrmodel/report changed"},
        ),
        (
            {"dvc.yaml": ("cmd: python -m mrmodel.stages.report", "cmd: python -m mrmodel.x")},
            {"report": "its command changed"},
        ),
    ],
)
def test_an_edit_changes_its_stages_alone(
    open_graph: OpenGraph, edits: dict[str, tuple[str, str]], reasons: dict[str, str]
) -> None:
    with open_graph(edits) as graph:
        assert changed(graph) == reasons


@pytest.mark.parametrize(
    ("stage", "path", "behind"),
    [
        # A dependency inside of an output (data/miniature), and one above it (models/served).
        ("corpus", "data/miniature", {"extract@tiny.video", "extract_text@tiny.text"}),
        ("finetune@moment_detr", "models/finetuned/moment_detr", {"package@moment_detr"}),
        ("package@moment_detr", "models/served/moment_detr", {"evaluate"}),
        ("finetune@moment_detr", "reports/training/finetune-moment_detr.csv", {"report"}),
    ],
)
def test_a_changed_output_is_seen_by_what_reads_it(
    open_graph: OpenGraph, recorded: Project, stage: str, path: str, behind: set[str]
) -> None:
    """DVC's own check without data compares equal paths only and would miss all of these."""
    with open_graph() as graph:
        entry = graph.entry(stage)
        out = next(out for out in entry["outs"] if out["path"] == path)
        out["md5"] = another_object(recorded, graph, out["md5"])
        graph.merge(stage, entry)
        found = changed(graph)
        assert behind <= set(found), found
        assert all("changed" in reason for reason in found.values())


def another_object(project: Project, graph: StageGraph, md5: str) -> str:
    """Hash of another object of the project's cache, to stand for a new output."""
    if not md5.endswith(".dir"):
        return graph.entry("evaluate")["outs"][1]["md5"]
    cache = project.folder / ".dvc/cache/files/md5"
    listing = json.loads((cache / md5[:2] / md5[2:]).read_text())
    for row in listing:
        row["md5"] = "0" * 31 + "1"
    changed_md5 = "ab" + "0" * 30 + ".dir"
    target = cache / "ab" / changed_md5[2:]
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(listing))
    return changed_md5


def test_lost_data_are_made_again(open_graph: OpenGraph) -> None:
    waited = []
    with open_graph() as graph:
        entry = graph.entry("extract@tiny.video")
        entry["outs"][0]["md5"] = "cd" + "0" * 30 + ".dir"
        graph.merge("extract@tiny.video", entry)
        asked = StageGraph(graph.folder, None, lambda: waited.append(1))
        reason = asked.status("extract@tiny.video").reason
    assert reason == "features/miniature/tiny.video is not in the store"
    assert waited, "a store that does not answer is no store without the data"


def test_a_stage_that_never_ran(open_graph: OpenGraph) -> None:
    with open_graph() as graph:
        (graph.folder / "dvc.lock").unlink()
        empty = StageGraph(graph.folder, None)
        assert changed(empty) == dict.fromkeys(empty.names(), "never ran")
        with pytest.raises(OrchestrationError, match="says nothing of the stage report"):
            empty.entry("report")


def test_merging_keeps_the_file(open_graph: OpenGraph, recorded: Project) -> None:
    """All records, merged in any order into no file at all, are the file of `dvc repro`."""
    before = recorded.read("dvc.lock")
    with open_graph() as graph:
        entries = {name: graph.entry(name) for name in graph.names()}
        graph.merge("evaluate", entries["evaluate"])
        assert (graph.folder / "dvc.lock").read_bytes() == before
        orders = [list(entries), list(reversed(entries))]
        texts = []
        for order in orders:
            (graph.folder / "dvc.lock").unlink()
            empty = StageGraph(graph.folder, None)
            for name in order:
                empty.merge(name, entries[name])
            texts.append((graph.folder / "dvc.lock").read_text())
        assert texts[0] == texts[1]
        assert yaml.safe_load(texts[0]) == yaml.safe_load(before)


def test_the_key_is_about_content(graph: StageGraph, open_graph: OpenGraph) -> None:
    with open_graph({"params.yaml": ("bootstrap_resamples: 200", "bootstrap_resamples: 9")}) as one:
        assert one.status("evaluate").key != graph.status("evaluate").key
        for name in ("corpus", "scratch@moment_detr"):
            key = graph.status(name).key
            assert one.status(name).key == key, "it must not depend on the clone"


def test_inputs_are_what_other_stages_wrote(graph: StageGraph) -> None:
    assert graph.inputs("corpus") == []
    assert graph.inputs("extract@tiny.video") == ["data/miniature/videos"]
    inputs = graph.inputs("evaluate")
    assert {"models/served/moment_detr", "features/miniature/tiny.text"} <= set(inputs)
    assert not any(Path(path).parts[0] == "mrmodel" for path in inputs)
