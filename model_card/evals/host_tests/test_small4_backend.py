"""Small 4's tokenizer in transformers' own test class for tokenizers of the tokenizers library."""

import unittest

from tests.small4_folders import DEMO
from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin

from modeling_small4 import Small4Tokenizer


class Small4BackendTest(TokenizersBackendTesterMixin, unittest.TestCase):
    tokenizer_class = rust_tokenizer_class = Small4Tokenizer
    from_pretrained_id = DEMO
