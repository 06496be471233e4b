"""The error of a request that cannot be answered, in the form that OpenAI's clients show. Knows nothing of requests or
models.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..files_reading import one_line

LONGEST = 600  # characters of a message


class ApiError(Exception):
    """A request is refused.

    Args:
        message: one sentence: what was given, what is allowed.
        param: the path of the wrong field, such as `messages[0].content`.
        status: HTTP status.
        code: OpenAI's code for it.
        headers: additional headers of the response.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(one_line(message, LONGEST))
        self.param = None if param is None else one_line(param, 200)
        self.status, self.code, self.headers = status, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@contextmanager
def blamed_on(param: str) -> Iterator[None]:
    """Turns ValueErrors of the library into errors about a field."""
    try:
        yield
    except ValueError as error:
        raise ApiError(str(error), param) from None
    except RecursionError:
        raise ApiError(f"{param} is nested too deeply.", param) from None
