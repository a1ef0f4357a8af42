"""deploy/feeds.sh: a cluster's feeds are live or simulated, and never change from one to the other."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.health import Health, Server

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "feeds.sh"


def feeds(folder: Path, *words: str, simulator: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "FEEDS": str(folder / "feeds.toml"),
        "SIMULATOR": simulator,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(["sh", SCRIPT, *words], env=environment, capture_output=True, text=True, cwd=folder)


def test_the_first_start_without_a_simulator_is_live_and_stays_so(tmp_path: Path):
    for _ in range(2):
        done = feeds(tmp_path)
        assert (done.returncode, done.stdout) == (0, "feeds: live\n")
        assert (tmp_path / "feeds.toml").read_text().startswith("# Live public feeds")
    done = feeds(tmp_path, "simulated", "echo", "the simulator runs")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is live and stays so" in done.stderr


def test_a_simulator_that_came_first_must_run(tmp_path: Path):
    done = feeds(tmp_path, "simulated", "echo", "the simulator runs")
    assert (done.returncode, done.stdout) == (0, "the simulator runs\n")
    done = feeds(tmp_path)
    assert done.returncode == 1, "nothing has written the addresses"
    assert "docker compose --profile sim up -d" in done.stderr
    assert not (tmp_path / "feeds.toml").exists(), "so that nothing else starts, live"
    (tmp_path / "feeds.toml").write_text("# addresses\n")
    assert feeds(tmp_path).returncode == 1, "it does not answer"
    with Server(Health("simulator"), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = feeds(tmp_path, simulator=f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert (done.returncode, done.stdout) == (0, "feeds: simulated\n"), done.stderr
    assert (tmp_path / "feeds.toml").read_text() == "# addresses\n"


@pytest.mark.parametrize("words", [(), ("simulated", "echo", "runs")])
def test_what_cannot_be_written_is_an_error(tmp_path: Path, words: tuple[str, ...]):
    (tmp_path / "said").mkdir()
    done = feeds(tmp_path, *words)
    assert done.returncode != 0
    assert "runs" not in done.stdout
