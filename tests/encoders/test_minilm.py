import numpy as np
import pytest
import torch

from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.minilm import (
    DEPTH,
    MAX_TOKENS,
    PACK_TOKENS,
    SentenceModel,
    _Packs,
    convert_checkpoint,
)
from mrmodel.encoders.torch_base import TEXT_BATCH as BATCH
from mrmodel.encoders.torch_base import TokenBatches
from tests.rounding import rounding


@pytest.fixture(scope="module")
def model():
    return SentenceModel(WeightsLock())


def similarity(model, first, second):
    one, two = model.sentence_vectors([first, second])
    return float(one @ two)


def test_paraphrases_are_near_and_other_sentences_far(model):
    near = similarity(model, "a man is riding a bicycle", "somebody cycles down the road")
    far = similarity(model, "a man is riding a bicycle", "the soup has too much salt")
    assert near > 0.3
    assert far < 0.05


def test_published_example(model):
    """A pair of sentences whose cosine was computed with transformers.BertModel."""
    cosine = similarity(model, "This is an example sentence", "Each sentence is converted")
    assert cosine == pytest.approx(0.40456, abs=5e-5)


def test_one_state_a_token_special_ones_included(model):
    (states,) = model.token_states(["a dog"])
    assert states.shape == (4, 384)


def test_case_and_accents_do_not_count(model):
    plain, fancy = model.sentence_vectors(["a naive cafe", "A Naïve Café"])
    torch.testing.assert_close(plain, fancy)


def test_long_texts_are_cut(model):
    (states,) = model.token_states(["word " * 1000])
    assert len(states) == MAX_TOKENS


def test_a_full_batch_and_one_text_give_the_same_states(model):
    texts = [f"a {colour} dog runs" for colour in ("red", "blue", "green", "white", "black")] * 4
    assert len(texts) > 2 * BATCH
    together = model.token_states(texts)
    for index in (0, 3, 7, 8, 19):
        (alone,) = model.token_states([texts[index]])
        # 384 channels a sum, states below 4; the place in the batch decides the order. A token of
        # another text would move a state by 0.01 or more.
        close = {"rtol": 0, "atol": rounding(384, magnitude=4.0)}
        np.testing.assert_allclose(alone.numpy(), together[index].numpy(), **close)


@pytest.mark.parametrize(("shape_decides", "last"), [(False, 1), (True, BATCH)])
def test_a_part_of_a_batch_is_filled_up_only_where_its_size_decides_bits(shape_decides, last):
    sizes = []

    def run(ids):
        sizes.append(len(ids))
        return ids.float().unsqueeze(2) + len(ids) * shape_decides

    batches = TokenBatches(run)
    full = batches([[1, 2]] * BATCH)
    for _ in range(2):
        (alone,) = batches([[1, 2]])
        assert torch.equal(alone, full[0])
    # One comparison for the length, then what it decided.
    assert sizes == [BATCH, 1, BATCH, last, last]


def test_one_text_gives_the_bits_of_a_full_batch(model):
    for text in ("a dog", "a child with a kite waits near the station for the third time"):
        (alone,) = model.token_states([text])
        assert torch.equal(alone, model.token_states([text] * BATCH)[0])


def test_one_text_gives_the_bits_that_it_has_beside_texts_of_other_lengths(model):
    lengths = (PACK_TOKENS - 4, 5, 1, PACK_TOKENS + 9, 5, 40, PACK_TOKENS - 2, 1000, 5, 30, 60, 90)
    texts = [f"{'word ' * (length - 1)}{number}" for number, length in enumerate(lengths)]
    together = model.token_states(texts)
    for text, states in zip(texts, together, strict=True):
        (alone,) = model.token_states([text])
        assert torch.equal(states, alone)


@pytest.mark.parametrize("shape_decides", [False, True])
def test_a_pack_is_filled_up_only_where_its_size_decides_bits(shape_decides):
    sizes = []

    def run(token_ids, layers=DEPTH):
        rows = torch.cat([ids.flatten() for ids in token_ids]).float().unsqueeze(1)
        sizes.append((len(rows), layers))
        return rows + len(rows) * shape_decides

    packs = _Packs(run)
    full = packs([[number] * 3 for number in range(PACK_TOKENS // 3)])
    for _ in range(2):
        (alone,) = packs([[7] * 3])
        assert torch.equal(alone, full[7])
    # One comparison of a layer for the size, then what it decided.
    last = (PACK_TOKENS if shape_decides else 3, DEPTH)
    assert sizes == [(PACK_TOKENS, DEPTH), (3, 1), (PACK_TOKENS, 1), last, last]


def test_an_incomplete_checkpoint_is_noticed():
    with pytest.raises(KeyError, match="word_embeddings"):
        convert_checkpoint({})
