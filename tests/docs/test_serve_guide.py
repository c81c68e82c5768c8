"""The lines of docs/howto/serve.md, run against a server."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cases.models import write_model
from tests.project import ROOT
from tests.server.process import serving
from tests.video.fixtures import write_video

GUIDE = (ROOT / "docs/howto/serve.md").read_text()


@pytest.mark.services
def test_its_lines_do_what_it_says(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_video(tmp_path / "lake.mp4", 40)
    start, *blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    program, *options = start.split()[1:]
    assert program == "serve"
    assert len(blocks) == 7
    with serving(tmp_path, *options, "--model", "model") as server:
        lines = "\n".join(blocks).replace("http://127.0.0.1:8765", server.url)
        environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.client.get("/v1/videos").json() == {"videos": []}
    assert (tmp_path / "start.bin").read_bytes() == (tmp_path / "lake.mp4").read_bytes()[:1024]
    assert (tmp_path / "still.jpg").read_bytes().startswith(b"\xff\xd8")
    (_, row) = (tmp_path / "hits.csv").read_text().splitlines()
    assert row == "1,lake.mp4,a dog runs,1.0,3.0,0.0,,"
    shown = ('"results":[{"query":"a dog runs"', '"hits":[{"video":', "mrmodel_videos 0.0")
    for field in (*shown, '{"entries":1,"deliverable":1,"rejected_waiting":0}'):
        assert field in done.stdout
