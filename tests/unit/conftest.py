"""What tests of streams share; a module whose tests need others makes its own of the same names."""

import pytest
from toy_data import toy_background, toy_encoder

from lm2.data.encoding import TextEncoder
from lm2.data.noise import TokenizedBackground


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    return toy_encoder(vocab_size=1000)


@pytest.fixture(scope="session")
def background(encoder: TextEncoder) -> TokenizedBackground:
    return toy_background(encoder)
