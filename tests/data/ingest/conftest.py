"""The folder of a person, for the tests of its import."""

from tests.synthetic.conftest import own_folder, small_corpus

__all__ = ["own_folder", "small_corpus"]
