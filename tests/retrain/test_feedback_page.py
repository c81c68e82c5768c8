"""From the page to the training set: a correction is made, delivered and ingested."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from mrmodel.library.adder import AddSettings
from mrmodel.library.library import Library
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.server.server import Server
from mrmodel.server.settings import ServerSettings
from tests.browser import chromium, opened, serving
from tests.cases.models import write_model
from tests.retrain.conftest import FOLDER, Site
from tests.synthetic.conftest import read_rows

QUERY = "a red kite over the hill"


@pytest.mark.services
@pytest.mark.usefixtures("checks_here")
def test_a_correction_in_the_page_reaches_the_training_set(
    plain: Site, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRMODEL_INCOMING", plain.incoming.url)
    monkeypatch.setenv("MRMODEL_GIT_URL", plain.environment.git)
    video = rendered / "videos/new-train-0000.mp4"
    library, model = tmp_path / "library", write_model(tmp_path / "model")
    Library(library, model).add([video], AddSettings(workers=1))
    server = Server(ServerSettings(library, str(model)))
    with (
        chromium() as browser,
        serving(server) as address,
        opened(browser, address) as (page, said),
    ):
        page.click(f".video[title='{video.name}']")
        page.locator(".query").first.fill(QUERY)
        page.click("#go")
        page.locator(".moment .correct").first.click()
        page.get_by_label("Start in seconds").fill("3")
        page.get_by_label("End in seconds").fill("7.5")
        page.click("text=Save")
        page.wait_for_selector("text=1 to deliver")
        page.click("#deliver")
        name = page.locator("#delivered p").first.inner_text().partition(":")[0]
        page.wait_for_selector("text=nothing to deliver")
        assert said == []
    ingested = plain.take()
    assert [report.name for report in ingested.taken] == [name]
    assert ingested.branch is not None
    with fresh_clone(plain.environment, ingested.branch, {}) as clone:
        Repo(str(clone)).checkout([str(clone / f"{FOLDER}.dvc")])
        row = read_rows(clone / FOLDER / "train.jsonl")[-1]
        sent = clone / FOLDER / "videos" / f"{row['vid']}.mp4"
        assert sent.read_bytes() == video.read_bytes()
    assert (row["query"], row["relevant_windows"]) == (QUERY, [[3.0, 7.5]])
