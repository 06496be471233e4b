"""Access control: hosts, origins, the API key, and the size of a body. Checked before the request is read.

An ASGI middleware, so that streams and disconnects pass through it unchanged. Knows nothing of the API.
"""

import hmac
import ipaddress
import json
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..files_reading import shown
from .errors import ApiError

_OPEN = ("/", "/health")  # allowed without the key: a page without data, and the health check


@dataclass(frozen=True)
class Access:
    """
    Attributes:
        host: the address that the server listens on.
        key: the API key; None: no key is required.
        hosts: additional host names of the server.
        origins: other origins whose pages may send requests, as "https://example.com".
        body: largest request in bytes.
    """

    host: str = "127.0.0.1"
    key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body: int = 64 * 2**20

    def check(self, path: str, headers: dict[str, str]) -> None:
        """
        Raises:
            ApiError: The request is not allowed.
        """
        name = _name(headers.get("host", ""))
        if not self._known(name):
            raise ApiError(
                f"The host {shown(name[:80])} is not served here; --allowed-host allows another host.", status=403
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and origin.partition("://")[2] != headers.get("host"):
            raise ApiError("Pages of this origin may not send requests; --allowed-origin allows an origin.", status=403)
        if self.key is not None and path not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
                raise ApiError(
                    "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.", status=401,
                    code="invalid_api_key", headers={"www-authenticate": "Bearer"},
                )  # fmt: skip
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:19]) > self.body:
            raise ApiError(f"The body is larger than the {self.body} bytes allowed.", status=413)

    def _known(self, name: str) -> bool:
        """This machine's names, the allowed ones, and plain addresses. (DNS rebinding needs a name.)"""
        if name in ("localhost", self.host, *self.hosts):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self.host in ("0.0.0.0", "::") or ipaddress.ip_address(name.strip("[]")).is_loopback


class Guard:
    """Wraps an ASGI application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        allowed = [(b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"origin")] if origin in self.access.origins and origin else []  # fmt: skip
        if allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            allowed += [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", b"600")]
            allowed.append((b"access-control-allow-headers", b"authorization, content-type"))
            await send({"type": "http.response.start", "status": 204, "headers": allowed})
            await send({"type": "http.response.body"})
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *allowed, (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            self.access.check(scope["path"], headers)
        except ApiError as error:
            await refuse(error, send_allowed)
            return
        await self.app(scope, receive, send_allowed)


async def refuse(error: ApiError, send: Send) -> None:
    """Sends an error."""
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower().rstrip(".")
