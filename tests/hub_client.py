"""The Hub's real client in this process: it knows one small Hub alone, with a cache of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api
from transformers.utils import hub as transformers_hub

from model_card.evals.fuzz.small_hub import NO_PROXY, Hub


@contextmanager
def hub_client(hub: Hub, home: Path) -> Iterator[Callable[[bool], None]]:
    """The client's settings, which it reads once, are as if it had started so; the function that is yielded takes the
    network from it (True) or gives it back (False).
    """
    pattern = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    settings = {"ENDPOINT": hub.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": pattern, "HF_HUB_CACHE": str(home / "hub")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NO_PROXY.items():
            patch.setenv(name, value)
        for name, each in (settings | {"HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_OFFLINE": False}).items():
            patch.setattr(constants, name, each)
        patch.setattr(hf_api.api, "endpoint", hub.endpoint)
        patch.setattr(transformers_hub, "_hf_api", None, raising=False)  # its own client, which keeps an address
        huggingface_hub.close_session()  # one that was opened with other settings
        yield lambda without: patch.setattr(constants, "HF_HUB_OFFLINE", without)
        huggingface_hub.close_session()
