"""Where images may come from: what is allowed by default, what only on request, and what never."""

import base64
import contextlib
import http.server
import io
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from modeling_small4.image_processing_small4 import Small4ImageProcessor
from modeling_small4.image_sources import ImageAccess, load_image
from modeling_small4.network import fetch

LOCAL = ImageAccess(hosts=("127.0.0.1", "localhost", "allowed.test"), private_addresses=True, timeout=300.0)


def png(width: int = 5, height: int = 4, color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, "PNG")
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []
    gone: ClassVar[threading.Event] = threading.Event()  # set when the tests are over

    def do_GET(self) -> None:
        self.seen.append(self.path)
        routes = {
            "/image.png": self.image,
            "/huge": self.huge,
            "/slow": self.slow,
            "/drip": self.drip,
            "/drop": self.drop,
        }
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path in routes:
            routes[self.path]()
        else:
            self.send_error(404)

    def image(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png())

    def huge(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(2000):
                self.wfile.write(b"\0" * 65536)

    def slow(self) -> None:
        self.gone.wait()

    def drip(self, begun: bytes = b"") -> None:
        """A header, or a body, that never ends."""
        with contextlib.suppress(OSError):
            self.wfile.write(begun)
            while not self.gone.wait(0.1):
                self.wfile.write(b"X")
                self.wfile.flush()

    def drop(self) -> None:
        self.drip(b"HTTP/1.0 200 OK\r\n\r\n")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    Handler.gone.set()
    httpd.shutdown()


def same(image: Image.Image) -> bool:
    return image.size == (5, 4) and image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_data_in_hand_is_allowed_by_default() -> None:
    array = np.zeros((4, 5, 3), np.uint8)
    array[..., 0] = 255
    tensor = torch.from_numpy(array.copy())
    sources = [
        Image.new("RGB", (5, 4), "red"), png(), bytearray(png()), data_url(png()), array, array.transpose(2, 0, 1),
        tensor, tensor.permute(2, 0, 1), array.astype(np.float32) / 255, tensor.float() / 255, array.astype(np.int64),
        (tensor / 255).bfloat16(), data_url(png()).replace("image/png", "IMAGE/x-thing;a=b"),
    ]  # fmt: skip
    for source in sources:
        assert same(load_image(source)), source
    gray = load_image(np.full((4, 5), 7, np.uint8))
    assert (gray.mode, gray.size) == ("L", (5, 4))
    assert load_image(np.zeros((4, 5, 4), np.uint8)).mode == "RGBA"
    assert load_image(np.zeros((4, 5, 1), np.uint8)).size == (5, 4)


def test_paths_and_urls_are_refused_by_default(tmp_path: Path, server: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    before = list(Handler.seen)
    for source in (
        path,
        str(path),
        path.as_uri(),
        f"{server}/image.png",
        f"{server}/image.png".upper(),
        "~/a.png",
        "x",
    ):
        with pytest.raises(ValueError, match="not allowed"):
            load_image(source)
    with pytest.raises(ValueError, match="not allowed"):
        Small4ImageProcessor()(str(path))
    assert Handler.seen == before


def test_paths_when_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    for folder in (inside, outside):
        (folder / "a.png").write_bytes(png())
    (inside / "link.png").symlink_to(outside / "a.png")
    anywhere, there = ImageAccess(paths=True), ImageAccess(paths=(inside,))
    for source in (inside / "a.png", str(inside / "a.png"), (inside / "a.png").as_uri()):
        assert same(load_image(source, anywhere))
        assert same(load_image(source, there))
    for source in (outside / "a.png", inside / "link.png", inside / ".." / "outside" / "a.png"):
        assert same(load_image(source, anywhere))
        with pytest.raises(ValueError, match="not below"):
            load_image(source, there)
    with pytest.raises(ValueError, match="cannot be read"):
        load_image(inside / "missing.png", anywhere)
    with pytest.raises(ValueError, match="not a file"):
        load_image(inside, anywhere)
    with pytest.raises(ValueError, match="cannot be read"):
        load_image("a\0b", anywhere)
    with pytest.raises(ValueError, match="larger than the 10 bytes"):
        load_image(inside / "a.png", ImageAccess(paths=True, max_bytes=10))


def test_urls_when_allowed(server: str) -> None:
    assert same(load_image(f"{server}/image.png", LOCAL))
    assert same(load_image(f"{server}/to?/image.png", LOCAL))
    port = server.rpartition(":")[2]
    assert same(load_image(f"http://localhost:{port}/image.png", LOCAL))
    with pytest.raises(ValueError, match="answered 404"):
        load_image(f"{server}/missing", LOCAL)
    with pytest.raises(ValueError, match="no image in any of the formats"):
        load_image(f"{server}/huge", ImageAccess(hosts=("127.0.0.1",), private_addresses=True, max_bytes=2**30))
    with pytest.raises(ValueError, match="larger than the 1000000 bytes"):
        load_image(f"{server}/huge", ImageAccess(hosts=("127.0.0.1",), private_addresses=True, max_bytes=10**6))


def test_only_allowed_hosts_also_behind_redirects(server: str) -> None:
    port = server.rpartition(":")[2]
    for url in (
        f"http://localhost:{port}/image.png",
        f"{server}/to?http://localhost:{port}/image.png",
        "http://127.0.0.1.evil.test/a.png",
        "http://evil.test@127.0.0.1/a.png",
        "http://127.0.0.1@evil.test/a.png",
    ):
        with pytest.raises(ValueError, match=r"not among the allowed hosts|user name or password"):
            load_image(url, ImageAccess(hosts=("127.0.0.1",), private_addresses=True))
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/"):
        with pytest.raises(ValueError, match=r"no http\(s\) URL"):
            load_image(f"{server}/to?{location}", LOCAL)
    with pytest.raises(ValueError, match="redirects more than"):
        load_image(f"{server}/to?/to?/to?/to?/to?/to?/to?/image.png", LOCAL)


def test_wildcards_match_subdomains_only(monkeypatch: pytest.MonkeyPatch) -> None:
    access = ImageAccess(hosts=("*.example.test",))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("10.0.0.1", 80))])
    with pytest.raises(ValueError, match="not public"):
        load_image("http://A.example.TEST./a.png", access)
    for host in ("example.test", "badexample.test", "example.test.evil.test"):
        with pytest.raises(ValueError, match="not among"):
            load_image(f"http://{host}/a.png", access)


def test_private_addresses_are_never_reached(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(Handler.seen)
    port = server.rpartition(":")[2]
    public = ImageAccess(hosts=("127.0.0.1", "localhost", "allowed.test", "2130706433", "[::1]", "::1"))
    for url in (
        f"{server}/image.png",
        f"http://localhost:{port}/image.png",
        f"http://2130706433:{port}/",
        f"http://[::1]:{port}/",
    ):
        with pytest.raises(ValueError, match=r"not public|could not be fetched"):
            load_image(url, public)
    real = socket.getaddrinfo
    answers = iter([["93.184.215.14", "127.0.0.1"], ["169.254.169.254"]])

    def lying(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "allowed.test":
            return [(2, 1, 6, "", (address, int(port))) for address in next(answers)]
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    for _ in range(2):
        with pytest.raises(ValueError, match="not public"):
            load_image(f"http://allowed.test:{port}/image.png", public)
    assert Handler.seen == before


def test_a_name_is_resolved_once_and_the_address_pinned(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(server.rpartition(":")[2])
    calls: list[str] = []

    def once(host: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", once)
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    assert same(load_image(f"http://allowed.test:{port}/image.png", ImageAccess(hosts=("allowed.test",))))
    assert [host for host in calls if host == "allowed.test"] == ["allowed.test"]


def certificate(folder: Path, name: str) -> Path:
    """A key and a certificate for this name, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    file = folder / f"{name}.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    made += ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run(made, check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def test_the_certificate_must_be_that_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = certificate(tmp_path, "allowed.test")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(own)
    server.socket = secure.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    trusting = ssl.create_default_context(cafile=str(own))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("127.0.0.1", server.server_port))])
    access = ImageAccess(hosts=("allowed.test", "other.test", "127.0.0.1"), private_addresses=True)
    url = "https://{}:" + str(server.server_port) + "/image.png"
    with pytest.raises(ValueError, match=r"could not be fetched.*certificate"):
        load_image(url.format("allowed.test"), access)  # nobody vouches for it
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: trusting)
    assert same(load_image(url.format("allowed.test"), access))
    for host in ("other.test", "127.0.0.1"):
        with pytest.raises(ValueError, match=r"could not be fetched.*certificate"):
            load_image(url.format(host), access)
    server.shutdown()


def test_no_proxy_is_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would resolve the name anew."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert same(load_image(f"{server}/image.png", LOCAL))


def test_carried_code_does_not_fetch(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modeling_small4.network.fetch", None)
    with pytest.raises(ValueError, match="needs the installed package modeling-small4"):
        load_image(f"{server}/image.png", LOCAL)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::", "64:ff9b::7f00:1", "fe80::1%eth0", "192.0.0.1", "198.18.0.1", "::127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not fetch.is_public(address)


def test_addresses_that_are_public() -> None:
    assert all(
        fetch.is_public(address) for address in ("8.8.8.8", "93.184.215.14", "2606:4700::1111", "64:ff9b::808:808")
    )


def test_slow_servers_are_given_up(server: str) -> None:
    quick = ImageAccess(hosts=("127.0.0.1",), private_addresses=True, timeout=0.5)
    for path in ("/slow", "/drip", "/drop"):
        with pytest.raises(ValueError, match=rf"^Fetching '{server}{path}' took longer than 0\.5 seconds\.$"):
            load_image(f"{server}{path}", quick)


def test_a_slow_resolver_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(server.rpartition(":")[2])
    answer = threading.Event()

    def slow(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "quick.test":
            raise socket.gaierror(-2, "Name or service not known")
        answer.wait(20)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    before = list(Handler.seen)
    with pytest.raises(ValueError, match=r"took longer than 0\.3 seconds"):
        load_image(
            f"http://slow.test:{port}/image.png", ImageAccess(hosts=("slow.test",), private_addresses=True, timeout=0.3)
        )
    answer.set()  # the answer that comes too late is not connected to
    with pytest.raises(ValueError, match="could not be fetched"):
        load_image(f"http://quick.test:{port}/image.png", ImageAccess(hosts=("quick.test",), private_addresses=True))
    assert Handler.seen == before
    assert same(
        load_image(f"http://slow.test:{port}/image.png", ImageAccess(hosts=("slow.test",), private_addresses=True))
    )


def test_true_is_white() -> None:
    for array in (np.eye(2, dtype=bool), torch.eye(2).bool()):
        assert np.asarray(load_image(array)).tolist() == [[255, 0], [0, 255]]


def test_broken_images_get_a_clear_error() -> None:
    noise = io.BytesIO()
    Image.effect_noise((300, 300), 50).save(noise, "PNG")
    whole = noise.getvalue()
    for source, reason in {
        b"": "is empty",
        b"hello": "no image in any of the formats",
        whole[: len(whole) // 2]: "cannot be decoded",
        whole[:20]: "broken header|no image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "no image in any of the formats",
    }.items():
        with pytest.raises(ValueError, match=reason):
            load_image(source)
    for source in ("data:image/png,hello", "data:image/png;base64,", "data:;base64,%%%", "data:"):
        with pytest.raises(ValueError, match=r"data: URL|base64|is empty|no image"):
            load_image(source)
    for source in (None, 5, object(), {"url": "x"}):
        with pytest.raises(ValueError, match="An image must be"):
            load_image(source)
    for array in (np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros(3), np.full((2, 2), 300)):
        with pytest.raises(ValueError, match="image array"):
            load_image(array)
    for array in (np.zeros((2, 2), complex), np.array([["a"]]), np.array([[None]]), torch.zeros(2, 2, device="meta")):
        with pytest.raises(ValueError, match=r"An image (array|tensor)"):
            load_image(array)
    for array in (np.full((2, 2), 1.5), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="float image array"):
            load_image(array)


def test_colors_that_an_image_does_not_have_get_a_clear_error() -> None:
    image = Image.new("P", (8, 8))
    image.info["transparency"] = bytes(300)  # a PNG may say so of more colors than there are
    with pytest.raises(ValueError, match=r"image 2 of 2 cannot be read: .*palette"):
        Small4ImageProcessor().preprocess([Image.new("RGB", (8, 8)), image])


def test_the_pixel_count_is_read_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    for size in ((50_000, 50_000), (60_000, 2_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ValueError, match="pixels"):
            load_image(png_header(*size))
    lazy = Image.open(io.BytesIO(png_header(10_000, 9_000)))
    with pytest.raises(ValueError, match="10000 x 9000 pixels"):
        load_image(lazy)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="5 x 4 pixels, but at most 10"):
        load_image(png(), ImageAccess(max_pixels=10))


def test_access_is_an_object_that_json_cannot_make() -> None:
    with pytest.raises(ValueError, match="must be an ImageAccess"):
        load_image(png(), {"paths": True})  # type: ignore[arg-type]
    processor = Small4ImageProcessor()
    with pytest.raises(ValueError, match="must be an ImageAccess"):
        processor.access = True  # type: ignore[assignment]
    processor.access = ImageAccess(paths=True)
    assert "access" not in str(processor.to_dict())
