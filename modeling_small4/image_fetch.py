"""Downloads one image over http(s), from allowed hosts only and never, unless told so, from private addresses.

Each name is resolved once, the address is checked and then connected to, so a name cannot change between check and
use; each redirect is checked the same way. Must not know: images.
"""

import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from typing import Any, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

MAX_REDIRECTS = 5
_CHUNK = 64 * 1024


class Access(Protocol):
    """The limits a download must keep."""

    @property
    def hosts(self) -> tuple[str, ...]: ...
    @property
    def private_addresses(self) -> bool: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def timeout(self) -> float: ...


def fetch(url: str, access: Access) -> bytes:
    """The body at `url`. Raises ValueError for a refused host or address, a failed or too long or too large download."""
    deadline = time.monotonic() + access.timeout
    for _ in range(MAX_REDIRECTS + 1):
        parts = _check_url(url, access)
        try:
            body, location = _get(parts, _resolve(parts, access, deadline), access, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{url!r} could not be fetched: {error or type(error).__name__}.") from None
        if location is None:
            return body
        url = urljoin(url, location)
    raise ValueError(f"{url!r} redirects more than {MAX_REDIRECTS} times.")


def _check_url(url: str, access: Access) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no valid URL: {error}.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{url!r} is no http(s) URL.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("A URL with a user name or password is not allowed.")
    host = host.rstrip(".").lower()
    for allowed in access.hosts:
        allowed = allowed.lower()
        if host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:])):
            return parts
    raise ValueError(f"The host {host!r} is not among the allowed hosts {list(access.hosts)}.")


def _resolve(parts: SplitResult, access: Access, deadline: float) -> tuple[str, int]:
    """The address to connect to. Every address that the name has must be public."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = _look_up(str(parts.hostname), port, deadline)
    if found is None:
        raise _too_slow(parts, access)
    addresses = [str(entry[4][0]) for entry in found]
    if not access.private_addresses:
        for address in addresses:
            if not is_public(address):
                raise ValueError(f"The host {parts.hostname!r} has the address {address}, which is not public.")
    return addresses[0], port


def _look_up(host: str, port: int, deadline: float) -> list[Any] | None:
    """`getaddrinfo`'s answer; None if it has not come by the deadline. The system's resolver cannot be told one, so it is
    asked from a thread that is left behind."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # raised again below, where it is waited for
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=max(deadline - time.monotonic(), 0))
    except queue.Empty:
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _too_slow(parts: SplitResult, access: Access) -> ValueError:
    return ValueError(f"Fetching {parts.geturl()!r} took longer than {access.timeout} seconds.")


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from anywhere: not loopback, private, link-local, multicast or reserved,
    nor one of those wrapped in IPv6 (mapped, 6to4, Teredo, NAT64)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        wrapped = [item for item in inner if item is not None]
        if wrapped:
            return all(is_public(str(item)) for item in wrapped)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _get(parts: SplitResult, address: tuple[str, int], access: Access, deadline: float) -> tuple[bytes, str | None]:
    """One request to a checked address. Returns the body, or where it is redirected to."""
    left = deadline - time.monotonic()
    connection = _Pinned(parts, address, left)
    # A socket's own timeout starts anew with each byte; this ends the whole exchange.
    timer = threading.Timer(max(left, 0), connection.give_up)
    timer.daemon = True
    timer.start()
    try:
        return _exchange(connection, parts, access)
    except (OSError, http.client.HTTPException, ValueError):
        if not connection.gave_up:
            raise
    finally:
        timer.cancel()
        connection.close()
    raise _too_slow(parts, access)


def _exchange(connection: "_Pinned", parts: SplitResult, access: Access) -> tuple[bytes, str | None]:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "modeling-small4"})
    response = connection.getresponse()
    if response.status in (301, 302, 303, 307, 308):
        location = response.getheader("Location")
        if not location:
            raise ValueError(f"{parts.hostname!r} redirects without saying where to.")
        return b"", location
    if response.status != 200:
        raise ValueError(f"{parts.geturl()!r} answered {response.status} {response.reason}.")
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > access.max_bytes:
            raise ValueError(f"The download is larger than the {access.max_bytes} bytes allowed for an image.")
    if connection.gave_up:
        raise ValueError("the download was ended before its end")
    return bytes(body), None


class _Pinned(http.client.HTTPConnection):
    """Speaks to the checked address, while Host header and certificate are those of the name."""

    def __init__(self, parts: SplitResult, address: tuple[str, int], timeout: float) -> None:
        self._secure = parts.scheme == "https"
        self.default_port = 443 if self._secure else 80
        super().__init__(str(parts.hostname), address[1], timeout=max(timeout, 0.001))
        self._address = address
        self.gave_up = False

    def connect(self) -> None:
        sock = socket.create_connection(self._address, timeout=self.timeout)
        if self._secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host)
        self.sock = sock

    def give_up(self) -> None:
        """Called from another thread: whatever is being waited for ends at once."""
        self.gave_up = True
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
