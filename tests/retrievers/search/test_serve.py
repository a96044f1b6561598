"""The search page: what it answers, and what it refuses."""

import contextlib
import http.client
import io
import json
import re
import threading
from email.message import Message
from html.parser import HTMLParser
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from augment.errors import DataError
from retrievers import Searcher
from retrievers.search.pictures import QueryPictures
from retrievers.search.serve import command
from retrievers.search.serve.guard import foreign_host, foreign_page, is_loopback
from retrievers.search.serve.server import PageServer
from retrievers.search.serve.site import Site
from tests.worlds import HOSTILE, World

FIRST = "/image/7:1"


def encoded(size=(6, 9), kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("serve"))
    (made.folder / "secret.png").write_bytes(encoded())
    return made


@pytest.fixture(scope="module")
def site(world):
    pictures = QueryPictures(max_bytes=200_000, max_pixels=10_000)
    given = {"store": world.store, "pictures": pictures}
    enriched = Searcher.open(world.enriched, world.root, vlm="scripted:", **given)
    return Site({"raw": Searcher.open(world.raw, world.root, **given), "enriched": enriched})


@pytest.fixture(scope="module")
def server(site):
    made = PageServer("127.0.0.1", 0, site, ["flags.example"])
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def ask(server, method, target, body=None, **headers):
    """One request; status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        # A refused upload is answered before it was sent to its end.
        with contextlib.suppress(BrokenPipeError):
            connection.request(method, target, body, named)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def page(site, **fields):
    response = site.get("/?" + urlencode(fields))
    return response.status, response.body.decode()


class Tags(HTMLParser):
    """The tags of a page with their attributes, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_shows_both_retrievers_with_both_texts(site):
    status, text = page(site, q="red number 5", k="12")
    assert status == 200
    tags = Tags(text)
    assert [tag["id"] for tag in tags.all("section")] == ["r1", "r2"]
    assert text.count('<li class="card">') == 24
    assert "reads published text" in text
    assert "Generated, not read" in page(site, q="red", k="48")[1]
    assert "reads published and generated text" in text
    assert "Find it. red number 5" in text
    assert re.search(r"enriched: (rank \d+|not in the first 12)", text)
    assert len(tags.all("option")) == 2 + 2 + 5
    pictures = tags.all("img")
    assert all(tag.get("alt") for tag in pictures)
    assert all(tag["src"].startswith("/image/7%3A") for tag in pictures if "src" in tag)


def test_a_picture_is_uploaded_asked_with_and_rewritten(site, server):
    status, headers, body = ask(server, "POST", "/picture", encoded(), Content_Type="image/png")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    name = json.loads(body)["picture"]
    status, text = page(site, q="", picture=name, own="Say it")
    assert status == 200
    assert "Rewritten query" in text
    assert "answer to" in text
    assert "Say it answer to" in text
    assert f'src="/picture/{name}"' in text
    sent = site.get(f"/picture/{name}")
    assert Image.open(io.BytesIO(sent.body)).size == (9, 6)
    assert "and the picture" in text
    status, text = page(site, q="what is this?", picture=name)
    assert status == 200
    assert "the rewritten query was refused" in text
    found = json.loads(site.get("/search.json?" + urlencode({"picture": name, "k": 3})).body)
    assert {name: len(answer["results"]) for name, answer in found["answers"].items()} == {
        "raw": 3,
        "enriched": 3,
    }


def test_everything_is_escaped(site):
    status, text = page(site, q=HOSTILE, own=HOSTILE, k="96")
    assert status == 200
    tags = Tags(text)
    assert [tag.get("src") for tag in tags.all("script")] == ["/static/page.js"]
    assert not [tag for _, tag in tags.found if "onerror" in tag]
    assert "&lt;script&gt;" in text
    assert not [tag for _, tag in tags.found if "style" in tag]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"q": ""}, "The query is empty; type a text or give a picture."),
        ({"q": "   "}, "The query is empty"),
        ({"q": "x", "k": "0"}, "ask for 1 to 100"),
        ({"q": "x", "k": "many"}, "cannot find &#39;many&#39; results"),
        ({"q": "x", "k": "²"}, "results; ask for 1 to 100"),
        ({"q": "x" * 4001}, "the query has 4,001 characters; the most is 4,000"),
        ({"q": "x", "picture": "0" * 40}, "The picture: is no longer here; add it again."),
        ({"q": "x", "picture": "../../etc/passwd"}, "is no longer here"),
    ],
)
def test_bad_fields_are_told_on_the_page(site, fields, message):
    status, text = page(site, **fields)
    assert status == 400
    assert message.lower() in text.lower()
    assert 'role="alert"' in text
    told = site.get("/search.json?" + urlencode(fields))
    assert told.status == 400
    assert json.loads(told.body)["error"].endswith(".")


def test_too_many_fields_are_refused(site):
    assert site.get("/?" + "&".join(f"a{n}=1" for n in range(30))).status == 400


def test_pictures_come_from_candidates_in_the_root_only(site, world):
    sent = site.get(FIRST)
    assert sent.kind == "image/jpeg"
    assert Image.open(io.BytesIO(sent.body)).size == (16, 16)
    assert site.get(FIRST + "?size=large").status == 200
    for target in (
        "/image/../../secret.png",
        "/image/%2e%2e%2f%2e%2e%2fsecret.png",
        "/image//etc/passwd",
        "/image/mbeir_images/squares_images/0.png",
        "/static/../site.py",
        "/static/%2e%2e/site.py",
        "/picture/..%2f..%2fsecret.png",
        "/images/x",
        "/etc/passwd",
    ):
        assert site.get(target).status == 404, target
    # A candidate whose data points out of the root, to a file that is there.
    refused = site.get("/image/7:99")
    assert refused.status == 404
    assert b"climbs with '..'" in refused.body
    # A link out of the root under the name of a candidate's picture.
    inside = world.root / "mbeir_images" / "squares_images" / "19.png"
    inside.unlink()
    inside.symlink_to(world.folder / "secret.png")
    refused = site.get("/image/7:20?size=large")
    assert refused.status == 404
    assert b"symbolic link leads out" in refused.body


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"no picture", "image/png", 415, "is no picture that can be read; use JPEG"),
        (b"", "image/png", 415, "is no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415, "is no picture"),
        (encoded((300, 300)), "image/png", 413, "more than 10,000 pixels"),
        (b"x" * 200_001, "image/png", 413, "more than 0 MiB"),
        (encoded(), "text/plain", 415, "A picture is expected, not text/plain"),
        (encoded(), "multipart/form-data; boundary=x", 415, "expected, not multipart"),
    ],
)
def test_bad_uploads_are_refused(server, body, kind, status, message):
    got, _, told = ask(server, "POST", "/picture", body, Content_Type=kind)
    assert got == status
    assert message in json.loads(told)["error"]


def test_uploads_need_a_length_and_their_place(server):
    status, _, _ = ask(server, "POST", "/picture", iter([encoded()]), Content_Type="image/png")
    assert status == 411
    assert ask(server, "POST", "/", encoded(), Content_Type="image/png")[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        status, headers, _ = ask(server, method, "/picture")
        assert status == 501
        assert "Content-Security-Policy" in headers


def test_every_answer_is_locked_down(server):
    for target in ("/", "/?q=red", FIRST, "/static/page.js", "/static/page.css", "/none"):
        _, headers, body = ask(server, "GET", target)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Python" not in headers["Server"]
        _, headers, nothing = ask(server, "HEAD", target)
        assert (nothing, int(headers["Content-Length"])) == (b"", len(body))


def test_other_names_and_other_sites_are_turned_away(server):
    port = server.server_port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil",
    ):
        assert ask(server, "GET", "/", Host=host)[0] == 421
    for host in (
        f"localhost:{port}",
        f"127.0.0.1:{port}",
        "[::1]:80",
        "flags.example",
        "LOCALHOST",
    ):
        assert ask(server, "GET", "/", Host=host)[0] == 200
    own = {"Content_Type": "image/png", "Host": f"127.0.0.1:{port}"}
    good = encoded()
    assert ask(server, "POST", "/picture", good, Origin=f"http://127.0.0.1:{port}", **own)[0] == 200
    assert ask(server, "POST", "/picture", good, Origin="http://evil.example", **own)[0] == 403
    assert ask(server, "POST", "/picture", good, Origin="null", **own)[0] == 403
    assert ask(server, "GET", "/?q=x", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors")[0] == 403
    linked = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(server, "GET", "/", **linked)[0] == 200


def test_guards_by_themselves():
    assert foreign_host(None, ())
    assert foreign_host("", ())
    assert not foreign_host("8.8.8.8:1", ())
    assert foreign_page({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"})
    assert not foreign_page(Message())
    assert [is_loopback(h) for h in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "host.example"))  # noqa: S104


def test_a_failure_is_told_without_its_details(server, site, monkeypatch, caplog):
    monkeypatch.setattr(Site, "get", lambda *_: 1 // 0)
    status, _, body = ask(server, "GET", "/")
    assert status == 500
    assert b"the terminal of the server says what" in body
    assert "ZeroDivisionError" in caplog.text


def test_a_port_in_use_and_bad_addresses(server, site):
    with pytest.raises(DataError, match=rf"port {server.server_port}: Address already in use; cho"):
        PageServer("127.0.0.1", server.server_port, site)
    with pytest.raises(DataError, match=r"cannot listen on 203\.0\.113\.7"):
        PageServer("203.0.113.7", 0, site)
    with pytest.raises(DataError, match=r"cannot listen on 127\.0\.0\.1 port 70000"):
        PageServer("127.0.0.1", 70_000, site)


def test_names_of_retrievers():
    given = ["runs/raw/checkpoints/last.ckpt", "new=runs/a=b/checkpoints/best.ckpt"]
    assert command.names(given) == {
        "raw": "runs/raw/checkpoints/last.ckpt",
        "new": "runs/a=b/checkpoints/best.ckpt",
    }
    assert list(command.names(["best.ckpt"])) == ["best"]
    assert list(command.names(["flagland-clip"])) == ["flagland-clip"]
    with pytest.raises(DataError, match="two checkpoints are named raw"):
        command.names(["raw=a", "raw=b"])
    with pytest.raises(DataError, match="3 checkpoints; the page compares two at most"):
        command.names(["a", "b", "c"])


def test_the_command_listens_on_loopback_and_warns_otherwise(world, monkeypatch, capsys):
    def interrupted(server):
        assert server.site.get("/?q=red").status == 200
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", interrupted)
    args = ["--root", str(world.root), "--store", str(world.store), "--port=0", "--checkpoint"]
    both = [str(world.raw), str(world.enriched), "--vlm=scripted:"]
    assert command.main([*args, *both]) == 0
    printed = capsys.readouterr()
    assert re.search(r"serving on http://127\.0\.0\.1:\d+/ until", printed.out)
    assert "warning" not in printed.err
    assert command.main([*args, str(world.raw), "--host=0.0.0.0"]) == 0
    warned = capsys.readouterr().err
    assert "warning: 0.0.0.0 is not loopback" in warned
    assert "no password" in warned
    assert "ssh -L" in warned


def test_the_command_tells_errors_in_one_line(world, server, capsys):
    args = ["--root", str(world.root), "--checkpoint"]
    taken = f"--port={server.server_port}"
    assert command.main([*args, str(world.raw), taken]) == 2
    assert "Address already in use; choose another --port" in capsys.readouterr().err
    assert command.main([*args, "none.ckpt", "--port=0"]) == 2
    assert "error: none.ckpt: no such checkpoint" in capsys.readouterr().err
    assert command.main([*args, str(world.raw), "--port=0", "--vlm=scripted:"]) == 2
    assert "trained on queries as published" in capsys.readouterr().err
