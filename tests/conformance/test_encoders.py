"""What every registered encoder promises; no encoder is named here."""

import json

import numpy as np
import pytest

from mrmodel.components import ENCODERS
from mrmodel.encoders.base import TextEncoder, VideoEncoder, build_encoder
from mrmodel.encoders.user_weights import WEIGHTS_VARIABLE
from mrmodel.files import digest_of
from tests.encoders.tiny_sets import make_all
from tests.rounding import rounding

TEXTS = [
    "a dog bounces up and down on the beach",
    "Two red apples!",
    "a dog",
    "we see a very old clock tower that shakes in the desert at night, again and again",
    "a cat bounces up and down on the beach",
]
NATIVE = (64, 48)  # where an encoder takes pictures of any size


def modality(name):
    return ENCODERS.get(name).modality


# Rows of a text that are no tokens.
MARKS = {"sentence, tokens": 1, "sentence, tokens, end": 2, "start, tokens, end": 2}

VIDEO = [name for name in ENCODERS if modality(name) == "video"]
TEXT = [name for name in ENCODERS if modality(name) == "text"]
# Loading weights takes a second; the encoders hold no state that a test could change.
_BUILT = {}


@pytest.fixture(scope="module", autouse=True)
def weight_sets(tmp_path_factory):
    """Tiny random weights for the encoders whose weights a user brings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WEIGHTS_VARIABLE, str(make_all(tmp_path_factory.mktemp("sets"))))
        yield


def encoder_of(name):
    return _BUILT.setdefault(name, build_encoder(name))


def random_clips(encoder, count, seed=0):
    """Smooth random pictures that drift, so that nothing about a clip is trivial."""
    width, height = encoder.sampling.size or NATIVE
    frames = encoder.sampling.frames_per_clip
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8 + 2, width // 8 + 4, 3), dtype=np.uint8)
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return np.stack([fine[:, :height, t : t + width] for t in range(frames)], axis=1)


def assert_rows_equal(rows, expected):
    """Equal but for the rounding of sums as long as a row.

    A batch of sentences always has one shape, but a sentence may stand at another place of it. One
    token of another sentence, or of padding, would move a row by 0.01 or more.
    """
    largest = max(1.0, float(np.abs(expected).max()))
    atol = rounding(np.shape(expected)[-1], largest)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=atol)


def test_there_are_encoders_of_both_kinds():
    assert VIDEO
    assert TEXT


@pytest.mark.parametrize("name", [*VIDEO, *TEXT])
class TestEveryEncoder:
    def test_follows_its_protocol(self, name):
        encoder = encoder_of(name)
        assert isinstance(encoder, VideoEncoder if name in VIDEO else TextEncoder)
        assert encoder.name == name
        assert encoder.dim >= 1

    def test_fingerprint_is_json_and_the_same_for_every_instance(self, name):
        first, second = build_encoder(name).fingerprint(), build_encoder(name).fingerprint()
        assert json.loads(json.dumps(first)) == first
        assert digest_of(first) == digest_of(second)
        assert first["encoder"] == name

    def test_fingerprint_names_what_decides_the_rows(self, name):
        fingerprint = encoder_of(name).fingerprint()
        assert {"encoder", "schema", "dim", "sampling", "libraries"} <= fingerprint.keys()
        assert (fingerprint["sampling"] is None) == (name in TEXT)


def test_no_two_encoders_share_a_fingerprint():
    names = [*VIDEO, *TEXT]
    digests = {digest_of(encoder_of(name).fingerprint()) for name in names}
    assert len(digests) == len(names)


@pytest.mark.parametrize("name", VIDEO)
class TestVideoEncoder:
    def test_shape_type_and_finite_values(self, name):
        encoder = encoder_of(name)
        rows = encoder.encode_clips(random_clips(encoder, 3))
        assert rows.shape == (3, encoder.dim)
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()

    def test_no_clips_give_no_rows(self, name):
        encoder = encoder_of(name)
        rows = encoder.encode_clips(random_clips(encoder, 0))
        assert rows.shape == (0, encoder.dim)
        assert rows.dtype == np.float32

    @pytest.mark.parametrize("level", [0, 255])
    def test_a_clip_of_one_colour_is_a_clip(self, name, level):
        encoder = encoder_of(name)
        clips = np.full_like(random_clips(encoder, 1), level)
        rows = encoder.encode_clips(clips)
        assert np.isfinite(rows).all()
        assert np.linalg.norm(rows) > 0

    def test_deterministic_also_across_instances(self, name):
        encoder = encoder_of(name)
        clips = random_clips(encoder, 2)
        rows = encoder.encode_clips(clips)
        np.testing.assert_array_equal(rows, encoder.encode_clips(clips))
        np.testing.assert_array_equal(rows, build_encoder(name).encode_clips(clips))

    def test_a_row_depends_on_its_clip_alone(self, name):
        encoder = encoder_of(name)
        clips = random_clips(encoder, 5)
        rows = encoder.encode_clips(clips)
        order = [3, 0, 4, 1, 2]
        assert_rows_equal(encoder.encode_clips(clips[order]), rows[order])
        for index in range(len(clips)):
            assert_rows_equal(encoder.encode_clips(clips[index : index + 1])[0], rows[index])

    def test_input_is_left_alone(self, name):
        encoder = encoder_of(name)
        clips = random_clips(encoder, 2)
        before = clips.copy()
        encoder.encode_clips(clips)
        np.testing.assert_array_equal(clips, before)

    def test_strided_and_read_only_input(self, name):
        encoder = encoder_of(name)
        clips = random_clips(encoder, 4)
        expected = encoder.encode_clips(clips)
        clips.setflags(write=False)
        assert_rows_equal(encoder.encode_clips(clips[::2]), expected[::2])

    def test_different_clips_differ(self, name):
        encoder = encoder_of(name)
        rows = encoder.encode_clips(random_clips(encoder, 2))
        assert np.abs(rows[0] - rows[1]).max() > 1e-3

    @pytest.mark.parametrize("change", ["type", "frames", "rank"])
    def test_other_shapes_are_refused(self, name, change):
        encoder = encoder_of(name)
        clips = random_clips(encoder, 1)
        wrong = {
            "type": clips.astype(np.float32),
            "frames": np.concatenate((clips, clips), axis=1),
            "rank": clips[0],
        }[change]
        with pytest.raises(ValueError, match="expected"):
            encoder.encode_clips(wrong)


@pytest.mark.parametrize("name", TEXT)
class TestTextEncoder:
    def test_shape_type_and_finite_values(self, name):
        encoder = encoder_of(name)
        encoded = encoder.encode_texts(TEXTS)
        assert len(encoded) == len(TEXTS)
        for rows in encoded:
            assert rows.ndim == 2
            assert rows.shape[1] == encoder.dim
            assert len(rows) > MARKS[encoder.layout], "at least one token"
            assert rows.dtype == np.float32
            assert np.isfinite(rows).all()

    def test_longer_texts_have_more_rows(self, name):
        short, long = encoder_of(name).encode_texts(["a dog", "a dog runs along the wide river"])
        assert len(short) == 2 + MARKS[encoder_of(name).layout]
        assert len(long) > len(short)

    def test_a_sentence_vector_comes_first_where_the_layout_says_so(self, name):
        encoder = encoder_of(name)
        first, second = encoder.encode_texts(["a dog runs", "a dog falls"])
        assert np.abs(first[-1] - second[-1]).max() > 1e-3
        if encoder.layout.startswith("sentence"):
            assert np.abs(first[0] - second[0]).max() > 1e-3
        if encoder.layout == "sentence, tokens":
            assert np.linalg.norm(first[0]) == pytest.approx(1.0, abs=1e-5)

    def test_empty_text_has_the_rows_that_are_no_tokens(self, name):
        (rows,) = encoder_of(name).encode_texts([""])
        assert rows.shape == (MARKS[encoder_of(name).layout], encoder_of(name).dim)
        assert np.isfinite(rows).all()

    def test_no_texts_give_no_rows(self, name):
        assert encoder_of(name).encode_texts([]) == []

    def test_deterministic_also_across_instances(self, name):
        first = encoder_of(name).encode_texts(TEXTS)
        second = build_encoder(name).encode_texts(TEXTS)
        for one, two in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, two)

    def test_rows_do_not_depend_on_the_other_texts(self, name):
        encoder = encoder_of(name)
        texts = [*TEXTS, *(f"number {count} of many" for count in range(20))]
        together = encoder.encode_texts(texts)
        for index in [*range(len(TEXTS)), 12, 24]:
            assert_rows_equal(encoder.encode_texts([texts[index]])[0], together[index])
        for rows, expected in zip(encoder.encode_texts(texts[::-1])[::-1], together, strict=True):
            assert_rows_equal(rows, expected)

    def test_different_texts_differ(self, name):
        first, second = encoder_of(name).encode_texts(["a dog runs", "a red apple falls"])
        assert np.abs(first[-1] - second[-1]).max() > 1e-3
