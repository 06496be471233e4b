"""Small 4's tokenizer in transformers' own test class for tokenizers."""

import unittest

from tests.small4_folders import DEMO
from tests.test_tokenization_common import TokenizerTesterMixin

from modeling_small4 import Small4Tokenizer


class Small4TokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = Small4Tokenizer
    from_pretrained_id = DEMO
    test_seq2seq = False  # a switch of transformers, for tokenizers of encoder-decoder models
