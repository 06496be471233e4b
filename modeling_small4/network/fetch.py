"""Downloads one file over http(s), from allowed hosts only and never, unless told so, from private addresses.

Each name is resolved once, its addresses are checked, and one of them is connected to, so that a name cannot change
between check and use; each redirect is checked the same way. Must not know: images.
"""

import ipaddress
import queue
import socket
import ssl
import threading
import time
from typing import Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from ..files_reading import shown

MAX_REDIRECTS = 5


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
    """The body at `url`.

    It is fetched in a thread that is left behind when it takes too long: neither the system's resolver nor a server
    that sends a byte now and then can be told when to end.

    Raises:
        ValueError: A refused host or address, or a download that fails, takes too long or is too large.
    """
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    deadline = time.monotonic() + access.timeout

    def work() -> None:
        try:
            answers.put(_follow(url, access, deadline))
        except Exception as error:  # raised again below, where it is waited for
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=access.timeout)
    except queue.Empty:
        raise _too_slow(url, access) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _follow(url: str, access: Access, deadline: float) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        parts = _check_url(url, access)
        try:
            answer = _get(parts, _resolve(parts, access), access, deadline)
        except httpx2.TimeoutException:
            raise _too_slow(url, access) from None
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ValueError(f"{shown(url)} could not be fetched: {error or type(error).__name__}.") from None
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise ValueError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times.")


def _check_url(url: str, access: Access) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{shown(url)} is no valid URL: {error}.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{shown(url)} is no http(s) URL.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("A URL with a user name or password is not allowed.")
    host = host.rstrip(".").lower()
    for allowed in access.hosts:
        allowed = allowed.lower()
        if host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:])):
            return parts
    raise ValueError(f"The host {shown(host)} is not among the allowed hosts {list(access.hosts)}.")


def _resolve(parts: SplitResult, access: Access) -> str:
    """The address to connect to. Every address that the name has must be public."""
    found = socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not access.private_addresses:
        for address in addresses:
            if not is_public(address):
                raise ValueError(f"The host {shown(parts.hostname)} has the address {address}, which is not public.")
    return addresses[0]


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


def _get(parts: SplitResult, address: str, access: Access, deadline: float) -> bytes | str:
    """One request to a checked address: the body, or where it is redirected to. Host header and certificate are those
    of the name.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise _too_slow(parts.geturl(), access)
    named = httpx2.URL(parts.geturl())
    headers = {
        "Host": named.netloc.decode(),
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "User-Agent": "modeling-small4",
    }
    pinned, extensions = named.copy_with(host=address), {"sni_hostname": named.raw_host.decode()}
    # Neither proxies nor certificates are taken from the environment: a proxy would resolve the name again.
    with (
        httpx2.Client(trust_env=False, verify=ssl.create_default_context(), timeout=left) as client,
        client.stream("GET", pinned, headers=headers, extensions=extensions) as response,
    ):
        if response.has_redirect_location:
            return response.headers["Location"]
        if response.status_code != 200:
            raise ValueError(f"{shown(parts.geturl())} answered {response.status_code} {response.reason_phrase}.")
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > access.max_bytes:
                raise ValueError(f"The download is larger than the {access.max_bytes} bytes allowed for an image.")
            if time.monotonic() > deadline:
                raise _too_slow(parts.geturl(), access)
        return bytes(body)


def _too_slow(url: str, access: Access) -> ValueError:
    return ValueError(f"Fetching {shown(url)} took longer than {access.timeout} seconds.")
