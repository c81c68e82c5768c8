"""schemathesis, all checks: what the schema allows is answered as it says, the rest is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.process import serving

pytestmark = pytest.mark.services

# Of a run, in seconds; the phases that come after it are left out.
MOST_S = 170


def test_schemathesis_finds_nothing(made: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    config = Path(__file__).with_name("schemathesis.toml")
    library = f"--library={made / 'library'}"
    with serving(tmp_path, library, f"--model={made / 'model'}") as server:
        command = [str(program), f"--config-file={config}", "run", f"{server.url}/openapi.json"]
        command += ["--checks=all", "--max-examples=20", f"--max-time={MOST_S}", "--no-color"]
        command += ["--request-timeout=300", "--generation-database=none"]
        done = subprocess.run(
            command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
        assert "Traceback" not in server.log()
        assert server.client.get("/v1/status").status_code == 200
