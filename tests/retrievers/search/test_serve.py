"""The search page: what it answers, and what it refuses."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from augment.data.pools import open_queries
from augment.errors import DataError
from retrievers import Searcher
from retrievers.cli import main
from retrievers.data.examples import Example
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.mllm.layout import Layout
from retrievers.models.mllm.reasoning import Reasoning
from retrievers.search import serve
from retrievers.search.command import names_of
from retrievers.search.serve import (
    address_of,
    foreign_host,
    foreign_page,
    is_loopback,
    listen,
    make_server,
    search_app,
)
from tests.worlds import HOSTILE, World, served

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
def searchers(world):
    return world.searchers(max_bytes=200_000, max_pixels=10_000)


@pytest.fixture(scope="module")
def site(searchers):
    """The page without a server."""
    app = search_app(searchers, ["flags.example"])
    return TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def port(searchers):
    """The page behind its server."""
    with served(searchers) as address:
        yield int(address.rpartition(":")[2].strip("/"))


def ask(port, method, target, body=None, **headers):
    """One request; status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        # A refused upload is answered before it was sent to its end.
        with contextlib.suppress(BrokenPipeError):
            connection.request(method, target, body, named)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_what_a_retriever_wrote_is_told_with_its_tokens(folders, root):
    """Of a typed query, and of a candidate that is asked with; both write here."""
    encoder = Mllm(
        str(folders["qwen3"]), layout=Layout(pooling="before", mark="<|emb|>"),
        reasoning=Reasoning("always", max_tokens=5, candidates=True),
    ).eval()  # fmt: skip
    searcher = Searcher.open(encoder, root, pools=["squares_task0"])
    answer = searcher.search("red squares", k=2, instruction="")
    batch = encoder.collator()([Example(0, "red squares", None, id="typed")], "query")
    (want,) = encoder.encode(batch, "query").writings
    assert (answer.wrote, answer.tokens) == (want.text, want.tokens)
    assert want.tokens > 0
    assert any(f"{want.tokens} tokens written before the vector" in note for note in answer.notes)
    found = searcher.like(answer[0].id, k=2)
    assert found.tokens > 0 < len(found.wrote)
    assert searcher.pace.searches == 2
    assert searcher.pace.tokens == (found.tokens + answer.tokens) / 2
    site = TestClient(search_app({"own": searcher}), "http://127.0.0.1")
    told = site.get("/search.json", params={"q": "red squares", "instruction": "none"}).json()
    assert told["answers"]["own"]["wrote"] == want.text
    assert told["answers"]["own"]["tokens"] == want.tokens
    assert told["pace"]["own"]["searches"] == 3
    shown = site.get("/", params={"q": "red squares", "instruction": "none"}).text
    assert "Written by the retriever" in shown
    assert "tokens written a query" in shown


def page(site, **fields):
    response = site.get("/", params=fields)
    return response.status_code, response.text


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
    assert len(tags.all("option")) == 2 + 2 + 5 + 2 + 5
    pictures = tags.all("img")
    assert all(tag.get("alt") for tag in pictures)
    assert all(tag["src"].startswith("/image/7%3A") for tag in pictures if "src" in tag)


def test_a_picture_is_uploaded_asked_with_and_rewritten(site):
    kept = site.post("/picture", content=encoded(), headers={"Content-Type": "image/png"})
    assert (kept.status_code, kept.headers["Content-Type"]) == (200, "application/json")
    name = kept.json()["picture"]
    status, text = page(site, q="", picture=name, own="Say it")
    assert status == 200
    assert "Rewritten query" in text
    assert "Say it answer to" in text
    assert f'src="/picture/{name}"' in text
    assert "and the picture" in text
    assert Image.open(io.BytesIO(site.get(f"/picture/{name}").content)).size == (9, 6)
    status, text = page(site, q="what is this?", picture=name)
    assert status == 200
    assert "the rewritten query was refused" in text
    found = site.get("/search.json", params={"picture": name, "k": 3}).json()
    assert {name: len(answer["results"]) for name, answer in found["answers"].items()} == {
        "raw": 3,
        "enriched": 3,
    }


def test_the_page_narrows_a_search(site, world):
    with (world.root / "mbeir_images/squares_images/3.png").open("rb") as file:
        name = site.post("/picture", content=file, headers={
            "Content-Type": "image/png", "Content-Length": str(os.fstat(file.fileno()).st_size)
        }).json()["picture"]  # fmt: skip
    fields = {"picture": name, "k": 96, "modality": "image", "own_picture": "content"}
    for answer in site.get("/search.json", params=fields).json()["answers"].values():
        assert len(answer["results"]) == 19
        assert "7:4" not in [result["id"] for result in answer["results"]]
    chosen = [tag["value"] for tag in Tags(page(site, q="red", **fields)[1]).all("option")
              if "selected" in tag and "value" in tag]  # fmt: skip
    assert chosen == ["auto", "image", "content"]


def test_an_empty_page_has_a_sample_and_queries_with_their_own_instruction(site, searchers, world):
    status, text = page(site)
    assert status == 200
    assert text.count('<li class="card">') == 24
    assert page(site, draw="1")[1] != page(site, draw="x")[1] == text == page(site, draw="²")[1]
    asked = {q.item.text: q for q in open_queries(
        world.root / "query/test/mbeir_squares_task0_test.jsonl")}  # fmt: skip
    found = [parse_qs(urlsplit(tag["href"]).query) for tag in Tags(text).all("a")
             if "instruction=" in tag["href"]]  # fmt: skip
    assert {bool(one.get("picture")) for one in found} == {True, False}
    for one in found:
        assert ("q" in one, one["instruction"]) in [(True, ["Find it."]), (False, ["Name it."])]
        assert "q" not in one or one["q"][0] in asked
        answers = site.get("/search.json", params=one).json()["answers"]
        assert answers["raw"]["read"].startswith(one["instruction"][0])
    few = Searcher.open("bm25", world.root, pools=["squares_task3"])
    assert not few.examples(8), "what answers texts is not searched, and BM25 sees no picture"


def test_more_like_a_candidate(site):
    text = page(site, like="7:1", k="6")[1]
    assert text.count('<li class="card">') == 12
    assert 'src="/image/7%3A1"' in text
    told = site.get("/search.json", params={"like": "7:1", "modality": "image"}).json()
    assert all("7:1" not in [r["id"] for r in a["results"]] for a in told["answers"].values())
    assert (
        site.get("/search.json", params={"like": "7:1", "q": "red"}).json()["asked"]["like"] == ""
    )
    status, text = page(site, like=HOSTILE)
    assert status == 400
    assert "<script>document" not in text
    assert "There is no candidate" in text
    assert "climbs with" in page(site, like="7:99")[1], "its picture is elsewhere"


def test_everything_is_escaped(site):
    status, text = page(site, q=HOSTILE, own=HOSTILE, k="96")
    assert status == 200
    tags = Tags(text)
    assert [tag.get("src") for tag in tags.all("script")] == ["/static/page.js"]
    assert not [tag for _, tag in tags.found if "onerror" in tag]
    assert "&lt;<mark>script</mark>&gt;" in text
    assert not [tag for _, tag in tags.found if "style" in tag]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"q": ""}, "The query is empty; type a text or give a picture."),
        ({"q": "   "}, "The query is empty"),
        ({"q": "x", "k": "0"}, "ask for 1 to 100"),
        (
            {"q": "x", "modality": "video"},
            "no modality &#39;video&#39;; there are text; image; image",
        ),
        ({"q": "x", "k": "many"}, "cannot find &#39;many&#39; results"),
        ({"q": "x", "k": "²"}, "results; ask for 1 to 100"),
        ({"q": "x" * 4001}, "the query has 4,001 characters; the most is 4,000"),
        ({"q": "x", "picture": "0" * 40}, "The picture: is no longer here; add it again."),
        ({"q": "x", "picture": "../../etc/passwd"}, "is no longer here"),
        ({f"a{n}": "1" for n in range(30)}, "too many fields"),
    ],
)
def test_bad_fields_are_told_on_the_page(site, fields, message):
    status, text = page(site, **fields)
    assert status == 400
    assert message.lower() in text.lower()
    assert 'role="alert"' in text
    told = site.get("/search.json", params=fields)
    assert told.status_code == 400
    assert told.json()["error"].endswith(".")


def test_pictures_come_from_candidates_in_the_root_only(port, world):
    status, headers, body = ask(port, "GET", FIRST)
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(body)).size == (16, 16)
    assert ask(port, "GET", FIRST + "?size=large")[0] == 200
    for target in (
        "/image/../../secret.png",
        "/image/%2e%2e%2f%2e%2e%2fsecret.png",
        "/image//etc/passwd",
        "/image/mbeir_images/squares_images/0.png",
        "/static/../serve.py",
        "/static/%2e%2e/serve.py",
        "/static/%2e%2e%2fserve.py",
        "/picture/..%2f..%2fsecret.png",
        "/images/x",
        "/etc/passwd",
    ):
        assert ask(port, "GET", target)[0] == 404, target
    # A candidate whose data points out of the root, to a file that is there.
    status, _, body = ask(port, "GET", "/image/7:99")
    assert status == 404
    assert b"climbs with '..'" in body
    # A link out of the root under the name of a candidate's picture.
    inside = world.root / "mbeir_images" / "squares_images" / "19.png"
    inside.unlink()
    inside.symlink_to(world.folder / "secret.png")
    status, _, body = ask(port, "GET", "/image/7:20?size=large")
    assert status == 404
    assert b"symbolic link leads out" in body


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"no picture", "image/png", 415, "is no picture that can be read; use JPEG"),
        (b"", "image/png", 415, "is no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415, "is no picture"),
        (encoded((300, 300)), "image/png", 413, "more than 10,000 pixels"),
        (b"x" * 200_001, "image/png", 413, "more than 0 MiB"),
        (b"x" * 700_000, "text/plain", 415, "A picture is expected, not text/plain"),
        (encoded(), "multipart/form-data; boundary=x", 415, "expected, not multipart"),
    ],
)
def test_bad_uploads_are_refused(port, body, kind, status, message):
    got, _, told = ask(port, "POST", "/picture", body, Content_Type=kind)
    assert got == status
    assert message in told.decode()


def test_uploads_need_a_length_and_their_place(port):
    status, _, _ = ask(port, "POST", "/picture", iter([encoded()]), Content_Type="image/png")
    assert status == 411
    assert ask(port, "POST", "/", encoded(), Content_Type="image/png")[0] == 405
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        status, headers, _ = ask(port, method, "/picture")
        assert status in (404, 405)
        assert "Content-Security-Policy" in headers


def test_an_endless_upload_is_not_read_to_its_end(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /picture HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 999999999999\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(1000):  # 64 MB, where the bounds are 0.2 MB kept and 0.8 MB read
                connection.sendall(bytes(1 << 16))
            pytest.fail("all of it was read")


def test_an_upload_that_falls_silent_is_given_up(port, monkeypatch):
    monkeypatch.setattr(serve, "_PATIENCE", 0.1)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = b"POST /picture HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        connection.sendall(head + b"Content-Length: 9\r\n\r\n")
        assert b" 408 " in connection.recv(1 << 16)


def test_every_answer_is_locked_down(port):
    for target in ("/", "/?q=red", FIRST, "/static/page.js", "/static/page.css", "/none"):
        _, headers, body = ask(port, "GET", target)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Server" not in headers
        _, headers, nothing = ask(port, "HEAD", target)
        assert (nothing, int(headers["Content-Length"])) == (b"", len(body))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost.evil"}, 421),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "flags.example"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_other_names_and_other_sites_are_turned_away(site, headers, status):
    assert site.get("/", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1", 200), ("http://evil.example", 403), ("null", 403)],
)
def test_other_origins_cannot_upload(site, origin, status):
    headers = {"Content-Type": "image/png", "Origin": origin}
    got = site.post("/picture", content=encoded(), headers=headers)
    assert got.status_code == status
    assert "Content-Security-Policy" in got.headers


def test_guards_by_themselves():
    assert foreign_host(None, ())
    assert foreign_host("", ())
    assert not foreign_host("8.8.8.8:1", ())
    assert foreign_page({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"})
    assert not foreign_page({})
    assert [is_loopback(h) for h in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "host.example"))  # noqa: S104


def test_a_failure_is_told_without_its_details(searchers, caplog):
    class Broken:
        root, pictures = searchers["raw"].root, searchers["raw"].pictures

    with served({"raw": Broken()}) as address:
        status, headers, body = ask(int(address.rpartition(":")[2].strip("/")), "GET", "/")
    assert status == 500
    assert b"the terminal of the server says what" in body
    assert "Content-Security-Policy" in headers
    assert "has no attribute" in caplog.text


def test_many_who_come_at_once_are_all_answered(searchers):
    listening = listen("127.0.0.1", 0)
    server = make_server(search_app(searchers))
    waiting = [socket.create_connection(listening.getsockname(), timeout=60) for _ in range(200)]
    for connection in waiting:
        connection.sendall(b"GET /search.json?q=red&k=1 HTTP/1.0\r\nHost: localhost\r\n\r\n")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    answers = [connection.recv(1 << 16)[9:12] for connection in waiting]
    for connection in waiting:
        connection.close()
    server.should_exit = True
    thread.join()
    listening.close()
    assert answers == [b"200"] * 200


def test_a_port_in_use_and_bad_addresses():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address_of(taken) == f"http://127.0.0.1:{port}/"
        with pytest.raises(DataError, match=rf"port {port}: Address already in use; choose"):
            listen("127.0.0.1", port)
    with pytest.raises(DataError, match=r"cannot listen on 203\.0\.113\.7"):
        listen("203.0.113.7", 0)
    with pytest.raises(DataError, match=r"cannot listen on 127\.0\.0\.1 port 70000"):
        listen("127.0.0.1", 70_000)


def test_names_of_retrievers():
    given = ["runs/raw/checkpoints/last.ckpt", "new=runs/a=b/checkpoints/best.ckpt"]
    assert names_of(given) == {
        "raw": "runs/raw/checkpoints/last.ckpt",
        "new": "runs/a=b/checkpoints/best.ckpt",
    }
    assert list(names_of(["best.ckpt"])) == ["best"]
    assert list(names_of(["flagland-clip", "bm25"])) == ["flagland-clip", "bm25"]
    with pytest.raises(DataError, match="two checkpoints are named raw"):
        names_of(["raw=a", "raw=b"])
    with pytest.raises(DataError, match="3 checkpoints; the page compares two at most"):
        names_of(["a", "b", "c"])


def test_the_command_listens_on_loopback_and_warns_otherwise(world, monkeypatch, capsys):
    def interrupted(app):
        assert TestClient(app, "http://localhost").get("/?q=red").status_code == 200
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "make_server", interrupted)
    args = ["--root", str(world.root), "--store", str(world.store), "--port=0", "--checkpoint"]
    both = [str(world.raw), str(world.enriched), "--vlm=scripted:"]
    assert main(["serve", *args, *both]) == 0
    printed = capsys.readouterr()
    assert re.search(r"serving on http://127\.0\.0\.1:\d+/ until", printed.out)
    assert "warning" not in printed.err
    assert main(["serve", *args, str(world.raw), "--host=0.0.0.0"]) == 0
    warned = capsys.readouterr().err
    assert "warning: 0.0.0.0 is not loopback" in warned
    assert "no password" in warned
    assert "ssh -L" in warned


def test_the_command_tells_errors_in_one_line(world, port, capsys):
    args = ["--root", str(world.root), "--checkpoint"]
    assert main(["serve", *args, str(world.raw), f"--port={port}"]) == 2
    assert "Address already in use; choose another --port" in capsys.readouterr().err
    assert main(["serve", *args, "none.ckpt", "--port=0"]) == 2
    assert "error: none.ckpt: no such checkpoint" in capsys.readouterr().err
    assert main(["serve", *args, str(world.raw), "--port=0", "--vlm=scripted:"]) == 2
    assert "trained on queries as published" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_command_and_deletes_pictures(world, tmp_path, number):
    command = [
        sys.executable, "-m", "retrievers", "serve", "--port=0", "--checkpoint=bm25",
        f"--root={world.root}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A background job of a shell, such as these tests may be, has SIGINT ignored; under nohup
        # it is SIGHUP.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    found = re.search(r":(\d+)/", process.stdout.readline())
    assert found is not None
    port = int(found[1])
    assert ask(port, "POST", "/picture", encoded(), Content_Type="image/png")[0] == 200
    assert len(list(tmp_path.glob("query-pictures-*/*"))) == 1
    told = json.loads(ask(port, "GET", "/search.json?q=red&k=1")[2])
    assert told["pace"]["bm25"]["p50"] == told["answers"]["bm25"]["seconds"] > 0
    process.send_signal(number)
    out, err = process.communicate()
    assert re.fullmatch(r"bm25: latest 1: p50 (\d\.\d{3}) s, p95 \1 s\n", out)
    assert err == "stopped\n"
    assert process.returncode == 0
    assert not list(tmp_path.glob("query-pictures-*"))
