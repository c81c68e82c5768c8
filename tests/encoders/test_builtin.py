"""The aligned encoders: both backends agree, and pictures find their names without training."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from mrmodel.encoders import alignment, builtin
from mrmodel.encoders.builtin import AlignedTextEncoder, AlignedVideoEncoder
from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.errors import WeightsError
from mrmodel.files import digest_of
from mrmodel.synthetic.sprites import sprite, subjects

# Things that a classifier of 1000 everyday classes can be expected to know.
KNOWN = [
    "airplane", "ambulance", "backpack", "balloon", "banana", "banjo", "bus", "butterfly",
    "crab", "elephant", "flamingo", "pizza", "owl", "penguin", "pineapple", "red apple",
    "rooster", "sailboat", "shark", "snail", "spider", "tiger face", "umbrella", "violin",
]  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    return AlignedVideoEncoder()


def sprite_clip(name):
    """The subject before a grey wall: (1, 192, 192, 3) uint8."""
    picture = sprite(name)
    scale = 140 / max(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size])
    wall = Image.new("RGB", (192, 192), (140, 150, 160))
    wall.paste(picture, ((192 - picture.width) // 2, (192 - picture.height) // 2), picture)
    return np.asarray(wall)[None]


def random_clips(count):
    shape = (count, 1, 192, 192, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def area_under_curve(matching, other):
    return (matching[:, None] > other[None]).mean()


def test_backends_agree(encoder):
    clips = np.concatenate((random_clips(2), sprite_clip("crab")[None]))
    reference = AlignedVideoEncoder(backend="torch")
    np.testing.assert_allclose(
        encoder.encode_clips(clips), reference.encode_clips(clips), rtol=0, atol=1e-4
    )
    assert reference.fingerprint() == encoder.fingerprint()


def test_rows_have_unit_length(encoder):
    norms = np.linalg.norm(encoder.encode_clips(random_clips(2)), axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)


def test_pictures_find_their_names_without_training(encoder):
    chosen = [subject for subject in subjects() if subject.name in KNOWN]
    assert len(chosen) >= 15
    rows = encoder.encode_clips(np.stack([sprite_clip(subject.name) for subject in chosen]))
    texts = AlignedTextEncoder().encode_texts([subject.phrase for subject in chosen])
    similarity = rows @ np.stack([text[0] for text in texts]).T
    same = np.eye(len(chosen), dtype=bool)
    assert area_under_curve(similarity[same], similarity[~same]) > 0.75
    assert (similarity.argmax(axis=1) == np.arange(len(chosen))).mean() > 0.4


def test_sentence_rows_leave_special_tokens_out():
    (rows,) = AlignedTextEncoder().encode_texts(["a dog runs"])
    assert rows.shape == (4, 384)


def test_every_class_has_a_text():
    texts = alignment.class_texts(WeightsLock())
    assert len(texts) == 1000
    assert all(texts)
    assert texts[0].startswith("tench, Tinca tinca. A thick-bodied")
    assert texts[341] == "pig"  # a class without a description
    assert texts[999] == "toilet paper"


def test_ridge_is_the_minimum_of_its_objective():
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    vectors = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    centred = prototypes - prototypes.mean(0)

    def objective(matrix):
        fit = (centred @ matrix - vectors).square().sum()
        return fit + alignment.RIDGE_PENALTY * matrix.square().sum()

    solution = alignment.solve_ridge(prototypes, vectors)
    best = objective(solution)
    for _ in range(20):
        nudge = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        assert objective(solution + 1e-3 * nudge) > best


def test_neutral_images_are_fixed_and_plain():
    images = alignment.neutral_images((48, 32))
    assert images.shape == (64, 32, 48, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images, alignment.neutral_images((48, 32)))
    colours = [len(image.reshape(-1, 3).unique(dim=0)) for image in images]
    assert min(colours) >= 1
    assert 2 <= max(colours) <= 5


def test_a_graph_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    encoder = AlignedVideoEncoder(cache_dir=tmp_path)
    monkeypatch.setattr(alignment, "load_aligned_model", lambda path: None)
    for suffix in (".safetensors", f"-torch{torch.__version__.split('+')[0]}.onnx"):
        stem = f"embedded.video-{encoder_digest(encoder)}"
        (tmp_path / f"{stem}{suffix}").write_bytes(b"not a graph")
    with pytest.raises(WeightsError, match="delete it"):
        encoder.encode_clips(random_clips(1))


def encoder_digest(encoder):
    return digest_of(encoder.fingerprint())[:16]


def _count_builds(folder, results):
    def build(path):
        with (folder / "builds").open("a") as log:
            log.write("built\n")
        path.write_text(json.dumps(list(range(1000))))

    results.put(builtin.build_once(folder / "derived.json", build).read_text())


def test_parallel_workers_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_count_builds, args=(tmp_path, results)) for _ in range(6)]
    for worker in workers:
        worker.start()
    texts = {results.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join(timeout=30)
    assert texts == {json.dumps(list(range(1000)))}
    assert (tmp_path / "builds").read_text() == "built\n"


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        builtin.build_once(tmp_path / "x", fail)
    assert not (tmp_path / "x").exists()
    built = builtin.build_once(tmp_path / "x", lambda path: path.write_text("whole") and None)
    assert built.read_text() == "whole"
