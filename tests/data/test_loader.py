import numpy as np
import pytest
import torch

from mrmodel.data.loader import BatchBuilder, LoaderSettings, MomentDataset, RowLimits
from mrmodel.data.targets import TargetSettings
from mrmodel.errors import DataError, FeatureError, FeatureMismatch
from mrmodel.features.index import IndexEntry
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.prepare import prepare_text, prepare_video
from mrmodel.features.store import FeatureStore, MemoryStore, to_stored
from mrmodel.features.writer import FeatureWriter
from mrmodel.types import Annotation
from tests.rounding import rounding
from tests.steps import python_steps

LENGTHS = {f"v{number}": 3 + number % 5 for number in range(23)}


def encoded(dim, lengths, seed):
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal((n, dim), np.float32) for key, n in lengths.items()}


def texts_of(annotations):
    return {text_key(row.query): 2 + len(row.query) % 4 for row in annotations}


def annotate(lengths):
    return [
        Annotation(
            qid=number,
            query=f"query {number % 11}",
            vid=vid,
            duration=2.0 * n,
            relevant_windows=((0.0, 2.0), (2.0, 6.0)),
            relevant_clip_ids=(0, 1, 2),
            saliency_scores=((1.0, 2.0), (3.0, 3.0), (0.0, 0.0)),
        )
        for number, (vid, n) in enumerate(lengths.items())
    ]


ROWS = annotate(LENGTHS)
VIDEO = encoded(6, LENGTHS, 1)
MOTION = encoded(3, {vid: n + 1 for vid, n in LENGTHS.items()}, 2)
TEXT = encoded(4, texts_of(ROWS), 3)


def builder(limits=None):
    return BatchBuilder(
        [MemoryStore("video", VIDEO, 2.0), MemoryStore("motion", MOTION, 2.0)],
        [MemoryStore("text", TEXT)],
        limits or RowLimits(None, None),
    )


def dataset(batch_size=4, seed=5, rows=ROWS, limits=None):
    settings = LoaderSettings(batch_size, seed, TargetSettings(max_windows=5))
    return MomentDataset(rows, builder(limits), settings)


def test_a_batch_holds_the_prepared_rows():
    data = dataset()
    batch, targets = data.batch([4, 0], epoch=0)
    assert batch.qids == [4, 0]
    assert batch.vids == ["v4", "v0"]
    assert batch.duration_s == [14.0, 6.0]
    assert batch.clip_len_s == 2.0
    assert batch.video.shape == (2, 7, 6 + 3 + 2)
    assert batch.video_mask.sum(dim=1).tolist() == [7, 3]
    assert batch.text.shape[2] == 4
    vid, n = "v0", 3
    mask = torch.ones(1, n, dtype=torch.bool)
    streams = [torch.from_numpy(to_stored(s[vid][:n]))[None] for s in (VIDEO, MOTION)]
    assert torch.equal(batch.video[1, :n], prepare_video(streams, mask)[0])
    tokens = torch.from_numpy(to_stored(TEXT[text_key("query 0")]))[None]
    expected = prepare_text([tokens], torch.ones(tokens.shape[:2], dtype=torch.bool))[0]
    assert torch.equal(batch.text[1][batch.text_mask[1]], expected)
    assert targets.span_counts == [2, 2]
    assert targets.saliency_labels.shape == (2, 7)


def test_limits_cut_clips_tokens_and_labels():
    batch, targets = dataset(limits=RowLimits(4, 2)).batch(np.arange(5), epoch=0)
    assert batch.video.shape[1] == 4
    assert batch.text.shape[1] == 2
    assert targets.saliency_labels.shape == (5, 4)
    # End-points and spans refer to the clips that are left.
    torch.testing.assert_close(batch.video[4, :, -1], torch.tensor([0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(targets.spans_cxw[-1], torch.tensor([0.5, 0.5]))


def test_served_input_equals_training_input(tmp_path):
    for name, modality, rows in (("video", "video", VIDEO), ("text", "text", TEXT)):
        info = StreamInfo(
            stream=name,
            dim=next(iter(rows.values())).shape[1],
            modality=modality,
            keyed_by="vid" if modality == "video" else "text",
            clip_len_s=2.0 if modality == "video" else None,
            fingerprint={},
        )
        with FeatureWriter(tmp_path / name, info) as writer:
            for key in sorted(rows):
                writer.add(IndexEntry(key, len(rows[key])), to_stored(rows[key]))
    limits = RowLimits(75, 32)
    stored = BatchBuilder(
        [FeatureStore(tmp_path / "video")], [FeatureStore(tmp_path / "text")], limits
    )
    settings = LoaderSettings(8, 1, TargetSettings(5))
    trained, _ = MomentDataset(ROWS, stored, settings).batch(range(8), epoch=3)
    row, key = ROWS[6], text_key(ROWS[6].query)
    served = BatchBuilder(
        [MemoryStore("upload", {row.vid: VIDEO[row.vid]}, 2.0)],
        [MemoryStore("query", {key: TEXT[key]})],
        limits,
    ).batch([Annotation("new", f" {row.query} ", row.vid, row.duration)])
    assert torch.equal(trained.video[6][trained.video_mask[6]], served.video[0])
    assert torch.equal(trained.text[6][trained.text_mask[6]], served.text[0])


def test_epochs_hold_every_row_once_in_changing_batches():
    data = dataset()
    epochs = [data.epoch_batches(epoch) for epoch in range(3)]
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(ROWS)))
        assert sorted(map(len, batches)) == [3, 4, 4, 4, 4, 4]
    flat = [[batch.tolist() for batch in batches] for batches in epochs]
    assert flat[0] != flat[1] != flat[2]
    again = [batch.tolist() for batch in dataset().epoch_batches(1)]
    assert again == flat[1]
    assert [batch.tolist() for batch in dataset(seed=6).epoch_batches(1)] != flat[1]


def test_batches_hold_like_lengths():
    data = dataset()
    padded = sum(data.n_clips[batch].max() * len(batch) for batch in data.epoch_batches(0))
    assert padded <= 1.15 * data.n_clips.sum()
    lengths = [data.n_clips[batch].max() for batch in data.eval_batches(4)]
    assert lengths == sorted(lengths, reverse=True)


def test_chance_belongs_to_the_row_not_to_the_batch():
    data = dataset()
    whole, _ = data.batch(range(10), epoch=2)[1], data.batch(range(10), epoch=9)
    alone = data.batch([7], epoch=2)[1]
    assert torch.equal(whole.saliency_pos[7], alone.saliency_pos[0])
    assert torch.equal(whole.saliency_neg[7], alone.saliency_neg[0])
    easy = {tuple(data.batch([7], epoch)[1].saliency_pos[0].tolist()) for epoch in range(20)}
    assert len(easy) > 1


def test_segments_share_their_video():
    rows = [Annotation(1, "query 1", "v4_2.0_8.0", 6.0, ((0.0, 2.0),))]
    batch, targets = dataset(rows=rows).batch([0], epoch=0)
    whole = builder().batch([ROWS[4]])
    assert batch.video.shape[1] == 3
    # Rows of length 1; the norms of three rows and of seven may round differently.
    close = {"rtol": 0, "atol": rounding(6)}
    torch.testing.assert_close(batch.video[0, :, :9], whole.video[0, 1:4, :9], **close)
    torch.testing.assert_close(targets.spans_cxw, torch.tensor([[1 / 6, 1 / 3]]))


def test_videos_without_features_are_left_out_and_named(tmp_path, caplog):
    info = StreamInfo(
        stream="s", dim=6, modality="video", keyed_by="vid", clip_len_s=2.0, fingerprint={}
    )
    with FeatureWriter(tmp_path, info) as writer:
        failed = IndexEntry("v0", 0, status="failed", reason="no_frames")
        writer.add(failed, np.zeros((0, 6), np.float16))
        writer.add(IndexEntry("v1", 4), to_stored(VIDEO["v1"]))
    stores = BatchBuilder(
        [FeatureStore(tmp_path)], [MemoryStore("text", TEXT)], RowLimits(None, None)
    )
    settings = LoaderSettings(2, 1, TargetSettings(None))
    data = MomentDataset(ROWS[:2], stores, settings)
    assert [row.vid for row in data.skipped] == ["v0"]
    assert [row.vid for row in data.annotations] == ["v1"]
    assert "1 of 2 queries left out, their 1 videos have no features: v0" in caplog.text
    with pytest.raises(FeatureError, match="no features for 'v2'"):
        MomentDataset(ROWS[:3], stores, settings)
    with pytest.raises(DataError, match="no annotation is left"):
        MomentDataset(ROWS[:1], stores, settings)


def test_streams_must_fit_together(caplog):
    video, text = MemoryStore("a", VIDEO, 2.0), MemoryStore("t", TEXT)
    with pytest.raises(FeatureMismatch, match=r"clips of one length.*1\.0"):
        BatchBuilder([video, MemoryStore("b", VIDEO, 1.0)], [text], RowLimits(None, None))
    short = MemoryStore("b", {vid: rows[:1] for vid, rows in VIDEO.items()}, 2.0)
    batch = BatchBuilder([video, short], [text], RowLimits(None, None)).batch(ROWS[:5])
    assert batch.video.shape[1] == 1
    assert "more than 2 rows apart" in caplog.text


def test_targets_need_no_loop_over_the_batch():
    data = dataset(rows=annotate({vid: LENGTHS[vid] for vid in LENGTHS}))
    _, draws, window_draws = data._draws
    few, many = np.arange(4), np.arange(23).repeat(2)[:32]
    steps = [
        python_steps(lambda rows=rows: data._table.targets(rows, 75, draws, window_draws))
        for rows in (few, many)
    ]
    assert steps[0] == steps[1]
