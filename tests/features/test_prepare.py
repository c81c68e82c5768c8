import pytest
import torch

from mrmodel.features import prepare
from mrmodel.features.prepare import prepare_text, prepare_video
from tests.rounding import rounding

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)


def padded(counts, dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    length = max(counts)
    mask = torch.arange(length) < torch.tensor(counts)[:, None]
    streams = [torch.randn(len(counts), length, dim, generator=generator).half() for dim in dims]
    return streams, mask


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_video_rows_against_the_formula(device):
    streams, mask = padded([3, 5], [4, 2])
    prepared = prepare_video([s.to(device) for s in streams], mask.to(device)).cpu()
    assert prepared.shape == (2, 5, 8)
    assert prepared.dtype == torch.float32
    for sample, count in enumerate([3, 5]):
        for clip in range(count):
            parts = [stream[sample, clip].double() for stream in streams]
            expected = [part / (part.norm() + 1e-5) for part in parts]
            end_points = torch.tensor([clip / count, (clip + 1) / count], dtype=torch.float64)
            torch.testing.assert_close(
                prepared[sample, clip].double(),
                torch.cat([*expected, end_points]),
                atol=1e-6,
                rtol=0,
            )
    assert not prepared[~mask].any()


def test_zero_rows_stay_finite():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert not prepare_text([torch.zeros(1, 2, 3).half()], mask).any()


def test_padding_and_batch_mates_change_no_bit():
    streams, mask = padded([7, 75, 30], [768, 32], seed=1)
    together = prepare_video(streams, mask)
    for sample, count in enumerate([7, 75, 30]):
        alone = prepare_video(
            [stream[sample : sample + 1, :count] for stream in streams],
            mask[sample : sample + 1, :count],
        )
        assert torch.equal(together[sample, :count], alone[0])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_lies_in_the_padding_is_not_seen(device):
    streams, mask = padded([2, 4], [8])
    clean = prepare_video([s.to(device) for s in streams], mask.to(device))
    for garbage in (torch.nan, torch.inf, 6e4):
        dirty = [torch.where(mask[..., None], s, torch.tensor(garbage).half()) for s in streams]
        assert torch.equal(clean, prepare_video([d.to(device) for d in dirty], mask.to(device)))


def test_float16_values_prepare_alike_whatever_their_type():
    streams, mask = padded([3, 2], [16, 4])
    assert torch.equal(
        prepare_text(streams, mask), prepare_text([s.float() for s in streams], mask)
    )


def test_text_has_no_end_points():
    streams, mask = padded([3, 2], [16, 4])
    assert prepare_text(streams, mask).shape == (2, 3, 20)


def test_the_way_of_the_gpu_gives_the_same(monkeypatch):
    streams, mask = padded([7, 75, 30], [768, 32], seed=2)
    streams[0][~mask] = torch.nan
    expected = prepare_video(streams, mask)
    monkeypatch.setattr(prepare, "_fill_by_sample", prepare._fill_at_once)
    # A row is divided by its norm, a sum of up to 768 squares.
    close = {"rtol": rounding(768), "atol": 0.0}
    torch.testing.assert_close(prepare_video(streams, mask), expected, **close)
