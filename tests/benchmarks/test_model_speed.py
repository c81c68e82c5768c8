"""The speed benchmarks run, and print what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import gpu, inference, predictor, train_step
from benchmarks.common import count_flops

SMALL = [
    *("--batch", "4", "--clips", "12", "--tokens", "5", "--video-dims", "16", "8"),
    *("--text-dim", "12", "--repeats", "2", "--settings", '{"hidden": 32, "ffn": 64}'),
]
FIGURES = {"samples_per_s", "wall_samples_per_s", "flop_utilisation", "peak_rss_mb"}


def assert_measured(line: str, parts: set[str]) -> None:
    figures = json.loads(line)
    assert figures.keys() >= FIGURES | parts | {"matmul_gflops", "matmul_gflop"}
    assert all(figures[name] > 0 for name in FIGURES | parts)


@pytest.mark.parametrize(
    ("benchmark", "parts"),
    [
        (train_step, {"load_s", "forward_s", "loss_s", "backward_s", "update_s", "outside_share"}),
        (inference, {"load_s", "forward_s"}),
    ],
    ids=["training", "inference"],
)
def test_a_benchmark_of_models_prints_one_json_line(
    benchmark: ModuleType,
    parts: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = str(torch.get_num_threads())  # As they are: other tests use this process too.
    monkeypatch.setattr(sys, "argv", ["benchmark", "--json", *SMALL, "--threads", threads])
    benchmark.main()
    assert_measured(capsys.readouterr().out, parts)


def test_the_benchmark_of_queries_prints_one_json_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # Others use this process too.
    settings = ["--settings", '{"hidden": 16, "heads": 2, "ffn": 24}']
    command = ["predictor", "--json", "--part", "query", "--queries", "2", "--clips", "12"]
    monkeypatch.setattr(sys, "argv", [*command, *settings])
    monkeypatch.setattr(predictor, "QUERIES_IN_A_BATCH", 4)
    predictor.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures.pop("part") == "query"
    names = {"queries", "median_ms", "p95_ms", "cpu_ms", "cpu_ratio", "batch_ratio"}
    assert figures.keys() == names
    assert min(figures.values()) > 0


GPU_FIGURES = {
    "invariance": {"equal"},
    "train": {"samples_per_s", "data_share", "syncs"},
    "encoders": {"clips_per_s", "network_clips_per_s", "tflops"},
    "inference": {"queries_per_s", "answers_per_s"},
    "determinism": {"equal", "finite"},
}


def test_gpu_benchmark_runs_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every part with tiny networks; on a CPU all that is compared is equal."""
    command = ["gpu", "--json", "--small", "--device", "cpu", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", [*command, "--models", "qd_detr"])
    gpu.main()
    first, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["part"] == "machine"
    assert {line["part"] for line in lines} == GPU_FIGURES.keys()
    for line in lines:
        assert "error" not in line, line["error"]
        assert line.keys() >= GPU_FIGURES[line["part"]], line
        assert line.get("equal", True), line
    rates = [line["tflops"] for line in lines if line["part"] == "encoders"]
    assert len(rates) == 6
    assert min(rates) > 0


def test_operations_are_counted() -> None:
    left, right, bias = torch.randn(2, 3), torch.randn(5, 3), torch.randn(5)

    def run() -> None:
        torch.addmm(bias, left, right.t())
        torch.bmm(left.expand(4, 2, 3), right.t().expand(4, 3, 5))

    assert count_flops(run) == 5 * 2 * 2 * 3 * 5
    clip, kernel = torch.randn(1, 3, 4, 8, 8), torch.randn(5, 3, 1, 2, 2)
    expected = 2 * 5 * (4 * 4 * 4) * (3 * 1 * 2 * 2)
    assert count_flops(lambda: torch.conv3d(clip, kernel, stride=(1, 2, 2))) == expected
    with torch.inference_mode():
        assert count_flops(lambda: torch.conv3d(clip, kernel, stride=(1, 2, 2))) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        (
            ("decoding", "--seconds", "4", "--repeats", "1"),
            {"ratio_native", "ratio_224px", "peak_mb"},
        ),
        (
            ("extraction", "--device", "cpu", "--small", "--videos", "3", "--seconds", "6"),
            {"clips", "clips_per_s", "decode_wait_ratio"},
        ),
    ],
    ids=["decoding", "extraction"],
)
def test_video_benchmark_prints_json_lines(arguments: tuple[str, ...], figures: set[str]) -> None:
    module, *options = arguments
    command = [sys.executable, "-m", f"benchmarks.{module}", "--json", *options]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines
    for line in lines:
        assert line.keys() >= figures
        assert all(line[name] > 0 for name in figures)
