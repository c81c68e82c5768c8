import numpy as np

from mrmodel.encoders.tiny import TinyTextEncoder, TinyVideoEncoder


def clip(first, last):
    frames = np.zeros((1, 2, 32, 32, 3), np.uint8)
    frames[0, 0], frames[0, 1] = first, last
    return frames


def test_video_sees_colour_and_change():
    encoder = TinyVideoEncoder()
    red, blue = (255, 0, 0), (0, 0, 255)
    still = encoder.encode_clips(clip(red, red))
    assert np.abs(still - encoder.encode_clips(clip(blue, blue))).max() > 0.05
    there = encoder.encode_clips(clip(red, blue))
    back = encoder.encode_clips(clip(blue, red))
    assert np.abs(there - back).max() > 0.05


def test_video_sees_where():
    left, right = np.zeros((2, 32, 32, 3), np.uint8)
    left[:, :8], right[:, -8:] = 255, 255
    encoder = TinyVideoEncoder()
    rows = [encoder.encode_clips(clip(picture, picture)) for picture in (left, right)]
    assert np.abs(rows[0] - rows[1]).max() > 0.05


def test_equal_words_have_equal_vectors():
    first, second = TinyTextEncoder().encode_texts(["a red dog", "The dog, a RED one"])
    np.testing.assert_array_equal(first[3], second[2])  # dog
    np.testing.assert_array_equal(first[2], second[5])  # red


def test_punctuation_is_a_token():
    (rows,) = TinyTextEncoder().encode_texts(["stop!"])
    assert len(rows) == 3


def test_sentences_that_share_words_are_near():
    rows = TinyTextEncoder().encode_texts(["a red dog runs", "a red dog sits", "blue sky over sea"])
    one, two, three = (row[0] for row in rows)
    assert one @ two > 0.5 > one @ three
