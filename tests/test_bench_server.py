"""The benchmark of the server, on a short prompt."""

import pytest
from forked import child


@pytest.mark.slow
def test_a_kept_prefix_is_read_once_and_requests_are_answered_together() -> None:
    rows = child("model_card.bench.server", "--runs", 1, "--prefix", 300, "--tokens", 4, "--clients", 3)["rows"]
    assert rows["prefix"]["prompt_tokens"] - rows["prefix"]["cached_tokens"] < 30
    assert rows["prefix"]["cached_tokens"] > 300
    assert rows["together"]["same_answers"] == 3
