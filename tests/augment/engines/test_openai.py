"""The remote engine against a server that fails in every way a server can, over real HTTP."""

import gzip
import json
import os
import random
import re
import resource
import socket
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from augment import corpus
from augment.data.images import open_image
from augment.engines import Ask, EngineOptions, load_engine, openai, vllm
from augment.engines.base import PACKAGED
from augment.engines.canaries import canary_pictures
from augment.engines.inputs import PixelBudget, fit
from augment.engines.openai import OpenAIEngine
from augment.errors import EngineError
from augment.records import Item, Request, Sampling, one_picture
from augment.store import Store
from tests.fakes import FakeServer, Fault, answer_to, parse_fault, write_root

SAMPLING = Sampling(64)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    dice = random.Random(3)
    for number, size in enumerate([(40, 30), (301, 207), (64, 64), (900, 20)]):
        Image.frombytes("RGB", size, dice.randbytes(3 * size[0] * size[1])).save(
            folder / f"{number}.png"
        )
    (folder / "broken.png").write_bytes(b"\x89PNG nothing else")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same pauses, a hundred times shorter."""
    monkeypatch.setattr(openai, "BACKOFF", (0.005, 0.3))


def ask(count):
    pictures = [None, "0.png", "1.png", "2.png", "3.png"]
    return [
        Request(f"1:{n}", "Be exact.", f"request {n}!", one_picture(pictures[n % len(pictures)]))
        for n in range(count)
    ]


def expected(root, request):
    """What a server without faults says, computed without the engine."""
    image = request.image and fit(open_image(root, request.image), PixelBudget())
    return answer_to(request.system, request.text, image or None)


def engine(root, *servers, canaries=False, budget=None, tend=None, **limits):
    """With limits that no slow machine exhausts, unless a test is about them."""
    limits = {"concurrency": 8, "timeout": 60.0, "patience": 60.0, **limits}
    urls = [server if isinstance(server, str) else server.url for server in servers]
    options = EngineOptions(urls=urls, canaries=canaries, **limits)
    return OpenAIEngine("fake", root=root, options=options, budget=budget, tend=tend)


def answers(made, requests):
    return [reply.text or reply.reason for reply in made.generate(requests, SAMPLING)]


def ends(made, message):
    """The error that ends the run."""
    with pytest.raises(EngineError, match=message) as caught:
        answers(made, ask(20))
    return str(caught.value)


def whole(root, requests):
    return [expected(root, request) for request in requests]


def test_every_request_is_answered_with_its_own_picture(root):
    requests = ask(60)
    with FakeServer(latency=0.05) as server:
        replies = list(engine(root, server, canaries=True).generate(requests, SAMPLING))
    assert [reply.text for reply in replies] == whole(root, requests)
    assert all(reply.finish == "stop" for reply in replies)
    assert 2 <= server.peak <= 8
    # Tokens are the server's own count: 28-pixel squares, words, template.
    words = len(["Be", "exact.", "request", "1!"])
    assert replies[1].prompt_tokens == words + 9 + 2 * 2


def test_pictures_that_cannot_be_used_fail_alone_and_cost_no_request(root):
    requests = [
        *ask(3),
        Request("a", "s", "t", ("broken.png",)),
        Request("b", "s", "t", ("no.png",)),
        Request("c", "s", "t", ("1.png",), expected="0" * 64),
    ]
    with FakeServer() as server:
        replies = list(engine(root, server).generate(requests, SAMPLING))
    assert [reply.finish for reply in replies] == ["stop"] * 3 + ["error"] * 3
    assert replies[3].reason.startswith("corrupt: broken.png")
    assert replies[4].reason.startswith("missing: no.png")
    assert replies[5].reason.startswith("changed: ")
    assert server.statuses == {"200": 3}


def test_a_cut_answer_and_an_empty_run(root):
    with FakeServer() as server:
        made = engine(root, server)
        (reply,) = made.generate(ask(1), Sampling(2))
        assert (reply.finish, reply.text, reply.output_tokens) == ("length", "answer to", 2)
        assert list(made.generate([], SAMPLING)) == []


@pytest.mark.parametrize(
    "fault",
    [
        "429:every=3,retry_after=0.1",
        "429:first=9",
        "503:every=4",
        "500:every=7,times=12,each=2",
        "garbage:every=7,times=12,each=2",
        "schema:every=7,times=12,each=2",
        "truncated:every=9,times=6,each=1",
        "close:every=9,times=6,each=1",
    ],
)
def test_transient_faults_lose_and_double_nothing(root, fault):
    """Whatever the order in which a busy machine asks, no request meets a fault four times."""
    requests = ask(60)
    with FakeServer(faults=[parse_fault(fault)], latency=0.001) as server:
        assert answers(engine(root, server), requests) == whole(root, requests)
    assert server.statuses[fault.partition(":")[0]] > 1
    assert server.statuses["200"] == 60
    assert set(server.asked.values()) == {1}, "a request was answered twice"


def test_retry_after_is_honoured_and_the_flood_stops(root):
    with FakeServer(faults=[parse_fault("429:first=1,retry_after=1")]) as server:
        start = time.monotonic()
        assert answers(engine(root, server, concurrency=1), ask(2)) == whole(root, ask(2))
        assert time.monotonic() - start >= 1.0
    assert server.statuses == {"429": 1, "200": 2}


def test_retry_after_takes_seconds_and_dates():
    assert openai.retry_after("2.5") == 2.5
    assert openai.retry_after("-3") == 0.0
    assert openai.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert 3e9 < openai.retry_after("Wed, 21 Oct 2150 07:28:00 GMT") < 5e9
    assert openai.retry_after("soon") is None
    assert openai.retry_after(None) is None


def test_a_hanging_answer_is_given_up_and_asked_again(root):
    requests = ask(20)
    with FakeServer(faults=[parse_fault("hang:every=8,times=2")]) as server:
        assert answers(engine(root, server, timeout=0.4), requests) == whole(root, requests)
    assert server.statuses["hang"] == 2
    with FakeServer(faults=[parse_fault("hang:every=1")]) as server:  # always
        (said,) = answers(engine(root, server, timeout=0.1), ask(1))
    assert said.startswith("timeout: http://127.0.0.1")
    assert "tried 4 times" in said


@pytest.mark.parametrize(
    ("fault", "patience", "message"),
    [
        ("429:every=1,retry_after=0.1", 1.0, r"no server could be used.*HTTP 429.*Retry-After"),
        # Its patience is less, so that waiting is hopeless; a test of minutes would show it.
        ("429:every=1,retry_after=3600", 600.0, "Retry-After 3600 s"),
        ("500:every=1", 60.0, r"had to be repeated.*HTTP 500: asked for: 500"),
        ("401:every=1", 60.0, "OPENAI_API_KEY"),
    ],
)
def test_a_server_that_does_nothing_else_ends_the_run(root, monkeypatch, fault, patience, message):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeServer(faults=[parse_fault(fault)]) as server:
        assert "sk-secret" not in ends(engine(root, server, patience=patience), message)
    assert server.statuses["500"] < 120, "the retry budget is spent"


def test_an_unknown_model_names_those_that_are_served(root):
    with FakeServer("other-vlm") as server:
        ends(engine(root, server), r"has no model 'fake'.*it has other-vlm")


def test_several_servers_share_the_work_and_a_dead_one_is_dropped(root, caplog):
    requests = ask(120)
    dying = FakeServer(faults=[parse_fault("die:every=20,times=1")], latency=0.003)
    with dying, FakeServer(latency=0.003) as other, FakeServer(latency=0.003) as third:
        said = answers(engine(root, dying, other, third, concurrency=4), requests)
    assert said == whole(root, requests)
    assert min(server.statuses["200"] for server in (dying, other, third)) >= 10
    assert "dropped until it answers again" in caplog.text


def test_a_server_that_comes_back_is_used_again(root):
    requests = ask(80)
    with FakeServer(latency=0.01) as server:
        said = []
        for number, reply in enumerate(engine(root, server).generate(requests, SAMPLING)):
            said.append(reply.text or reply.reason)
            if number == 20:
                server.kill()
                server.start()
    assert said == whole(root, requests)


def test_no_server_at_all_ends_the_run_with_the_reason(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        ends(engine(root, url, patience=0.5), r"no server could be used.*ConnectError")


def test_a_request_that_kills_its_server_is_set_aside(root):
    """Whoever was in flight with it is answered; the server is started again each time."""
    requests = ask(40)
    server = FakeServer(faults=[parse_fault("die:on=request 7!")], latency=0.002)

    def tend():
        if server.http is None:
            server.start()

    with server:
        made = engine(root, server, tend=tend)
        said = answers(made, requests)
    assert said[7].startswith("connection-lost: ")
    said[7] = expected(root, requests[7])
    assert said == whole(root, requests)
    assert server.statuses["die"] == 2 * openai.SUSPECT


def test_closing_the_iterator_ends_at_once_even_if_the_server_hangs(root):
    with FakeServer(faults=[parse_fault("hang:every=3")]) as server:
        batches = engine(root, server, timeout=600.0).batches(Ask(one, SAMPLING) for one in ask(50))
        assert next(filter(None, batches))  # a heartbeat has none
        batches.close()  # or this takes ten minutes


def test_it_tells_how_long_pictures_kept_the_server_waiting(root, monkeypatch):
    opened = openai.open_image
    requests = [Request(f"1:{n}", "s", "describe", (f"{n % 4}.png",)) for n in range(6)]
    monkeypatch.setattr(openai, "open_image", lambda *a, **k: (time.sleep(0.2), opened(*a, **k))[1])
    with FakeServer() as server:
        made, start = engine(root, server, concurrency=2, workers=1), time.monotonic()
        assert all(r.finish == "stop" for r in made.generate(requests, SAMPLING))
        # One thread opens six pictures; both places stand empty for the first one at least.
        assert 0.2 <= made.waited <= time.monotonic() - start


# What a server may send


def completion(content="fine", **more):
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], **more}).encode()


DEEP = b"[" * 100_000
ODD = {
    "a page": (200, {}, b"<html>502 Bad Gateway</html>"),
    "an error": (500, {}, b'{"error":{"message":"out of memory"}}'),
    "a refusal": (400, {}, b'{"error":{"message":"too long"}}'),
    "null message": (400, {}, b'{"error":{"message":null}}'),
    "numeric message": (400, {}, b'{"error":{"message":17}}'),
    "list for an error": (400, {}, b'{"error":[]}'),
    "deep 400": (400, {}, DEEP),
    "deep 200": (200, {}, DEEP),
    "deep 500": (500, {}, DEEP),
    "no gzip 200": (200, {"Content-Encoding": "gzip"}, completion()),
    "no gzip 400": (400, {"Content-Encoding": "gzip"}, b"{}"),
    "no gzip 500": (500, {"Content-Encoding": "gzip"}, b"{}"),
    "unknown packing": (200, {"Content-Encoding": "br"}, b"x"),
    "numbers": (200, {}, b'{"choices": 7}'),
    "no dictionary": (200, {}, b'[{"choices": 7}]'),
    "message of null": (200, {}, b'{"choices": [{"message": null}]}'),
    "finish of 3": (200, {}, b'{"choices": [{"message": {"content": "x"}, "finish_reason": 3}]}'),
    "empty": (200, {}, b""),
    "bytes of no text": (200, {"Content-Type": "text/plain; charset=utf-7"}, b"\xff\xfe\x00"),
    "huge number": (200, {}, b'{"choices": ' + b"9" * 5000 + b"}"),
    "redirect": (307, {"Location": "/elsewhere"}, b""),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_a_reply_does_to_its_parser_its_item_fails_with_a_reason(root, name):
    requests = ask(6)
    with FakeServer(faults=[Fault("odd", on="request 3!", answer=ODD[name])]) as server:
        said = answers(engine(root, server), requests)
    kind = {200: "garbage: ", 500: "server-error: "}.get(ODD[name][0], "request-refused: ")
    assert said[3].startswith(kind), said[3]
    assert server.url in said[3]
    assert len(said[3]) < 700
    assert said[3].isprintable()
    said[3] = expected(root, requests[3])
    assert said == whole(root, requests)


@pytest.mark.parametrize("name", ["null message", "deep 200", "deep 500", "no gzip 200", "numbers"])
def test_an_odd_list_of_models_neither_hangs_nor_ends_the_run(root, name):
    with FakeServer(listing=ODD[name]) as server:
        assert answers(engine(root, server), ask(3)) == whole(root, ask(3))


def endless():
    while True:
        yield b" " * (1 << 16)


def test_what_is_received_is_bounded(root, monkeypatch):
    """The body never ends."""
    monkeypatch.setattr(openai, "MOST_BYTES", 1 << 20)

    class Answer:
        def __iter__(self):
            return endless()

    fault = Fault("odd", on="request 1!", answer=(200, {}, Answer()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FakeServer(faults=[fault], listing=(200, {}, Answer())) as server:
        said = answers(engine(root, server), ask(3))
    assert re.match(r"garbage: .* answered more than 1,048,576 bytes", said[1])
    assert [said[0], said[2]] == [expected(root, one) for one in (ask(3)[0], ask(3)[2])]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_nothing_is_unpacked(root):
    """A few bytes may hold gigabytes, and nobody asked for them."""
    packed = gzip.compress(completion("packed"))
    fault = Fault("odd", on="request 1!", answer=(200, {"Content-Encoding": "gzip"}, packed))
    with FakeServer(faults=[fault]) as server:
        said = answers(engine(root, server), ask(2))
    assert "answered a body packed as 'gzip'" in said[1]
    busy = (429, {"Content-Encoding": "gzip", "Retry-After": "0.1"}, gzip.compress(b"slow down"))
    with FakeServer(faults=[Fault("odd", first=1, answer=busy)]) as server:
        assert answers(engine(root, server), ask(2)) == whole(root, ask(2))


@pytest.mark.parametrize(
    ("count", "kept"),
    [(12, 12), (2**31 - 1, 2**31 - 1)]
    + [(odd, 0) for odd in (2**40, 2**31, -1, "12", 1.5, None, True, [1], {"a": 1}, float("inf"))],
)
def test_counts_of_tokens_are_numbers_that_a_store_holds(count, kept):
    usage = {"prompt_tokens": count, "completion_tokens": count}
    reply = openai.read_reply(completion(usage=usage))
    assert (reply.text, reply.prompt_tokens, reply.output_tokens) == ("fine", kept, kept)
    assert openai.read_reply(completion(usage=count)).output_tokens == 0


def test_texts_can_be_written_down_and_may_come_in_parts():
    lone = openai.read_reply(completion("a\ud83d b"))
    assert lone.text.encode() == b"a? b"
    parts = [{"type": "text", "text": "a "}, {"type": "x"}, {"type": "output_text", "text": "b"}, 3]
    assert openai.read_reply(completion(parts)).text == "a b"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_beside_or_among_the_parts_is_no_text(field):
    def reply(content, finish="stop"):
        message = {"content": content, field: "It may be red."}
        return openai.read_reply(
            json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()
        )

    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "Red?"}]}]
    thought += [{"type": kind, "text": "Red?"} for kind in ("reasoning", "thinking", "refusal")]
    assert reply("A coat.").text == "A coat."
    assert reply([*thought, {"type": "text", "text": "A coat."}]).text == "A coat."
    assert reply(thought).text == ""
    cut = reply(None, "length")
    assert (cut.text, cut.finish) == ("", "error")
    assert cut.reason.endswith("while it still reasoned; raise --max-new-tokens")


def test_the_limit_of_tokens_has_the_name_that_a_server_knows(root):
    with FakeServer(defects=["new-limit"]) as new, FakeServer() as old:
        made = engine(root, new, old, canaries=True, concurrency=1)
        assert answers(made, ask(20)) == whole(root, ask(20))
        (cut,) = engine(root, new).generate(ask(1), Sampling(2))
    assert cut.finish == "length"
    assert new.statuses["refused"] == 2, "one a run"
    assert min(new.statuses["200"], old.statuses["200"]) > 1


def test_a_signal_ends_a_run_whose_server_hangs(tmp_path):
    """The first one: who waits for replies is asked again and again whether to stop."""
    write_root(tmp_path / "root", count=1)
    with FakeServer(faults=[parse_fault("hang:every=1")]) as server:
        command = [sys.executable, "-m", "augment.corpus", "--root", str(tmp_path / "root")]
        command += ["--store", str(tmp_path / "store"), "--model", "fake", "--urls", server.url]
        command += ["--canaries", "false"]
        run = subprocess.Popen(command, cwd=Path(__file__).parents[3], stderr=subprocess.PIPE)
        while not server.statuses["hang"]:
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.05)
        run.terminate()
        run.communicate()
    assert run.returncode == 4


def test_work_that_ends_early_is_an_error_and_no_silence(root, monkeypatch):
    async def broken(self, *unused):
        raise LookupError("a defect")

    monkeypatch.setattr(OpenAIEngine, "_answer", broken)
    with FakeServer() as server, pytest.raises(LookupError, match="a defect"):
        answers(engine(root, server), ask(3))


@pytest.mark.parametrize("key", ["sk-secret\nX: y", "sk secret", "sk-s\u00e9cret"])
def test_a_key_that_is_none_is_refused_and_not_shown(root, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EngineError, match="OPENAI_API_KEY holds") as caught:
        engine(root, "http://localhost:1/v1")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_a_server_repeats_is_not_shown(root, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\r\n")  # as a file gives it
    said = json.dumps({"error": {"message": "Incorrect API key: sk-secret"}}).encode()
    with FakeServer(faults=[Fault("odd", every=1, answer=(status, {}, said))]) as server:
        if status == 401:
            told = ends(engine(root, server), r"Incorrect API key: \*\*\*.*OPENAI_API_KEY")
        else:
            (told,) = answers(engine(root, server), ask(1))
    assert "Incorrect API key: ***" in told
    assert "sk-secret" not in told


@pytest.mark.parametrize("url", ["http://me:pass@host:1/v1", "https://host:1/v1?key=pass"])
def test_a_url_with_a_secret_is_refused_and_not_shown(root, url):
    with pytest.raises(EngineError, match=r"the URL of .*host:1/v1 holds") as caught:
        engine(root, url)
    assert "pass" not in str(caught.value)


def test_this_machine_is_asked_without_the_proxy_of_the_environment(root, monkeypatch):
    def proxy(url):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, url)

    proxy("socks9://me:secret@nowhere:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with FakeServer() as server:
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104
            made = engine(root, server.url.replace("127.0.0.1", host))
            assert answers(made, ask(1)) == whole(root, ask(1))
    assert openai._is_here("http://[::1]:8000/v1")
    assert openai._is_here("http://vllm.localhost/v1")
    told = ends(engine(root, "http://example.com/v1"), r"proxy of the environment.*socks9")
    assert "secret" not in told
    proxy("socks5://127.0.0.1:1")
    # Without httpx's extra for SOCKS it cannot be used; with it, nobody answers there.
    ends(engine(root, "http://example.com/v1", patience=0.3), r"proxy of the env.*SOCKS|no server")


# Canaries


@pytest.mark.parametrize("defects", [[], ["no-usage"]])
def test_canaries_pass_and_are_asked_once(root, defects):
    with FakeServer(defects=defects) as server:
        made = engine(root, server, canaries=True)
        assert answers(made, ask(2)) == whole(root, ask(2))
        before = server.statuses["200"]
        answers(made, ask(2))
    assert server.statuses["200"] == before + 2


@pytest.mark.parametrize(
    ("defects", "faults", "message"),
    [
        (["blind"], [], "pictures are not seen"),
        (["no-usage", "blind"], [], "pictures are not seen"),
        (["mute"], [], "pictures are not seen"),
        (["no-system"], [], "drops the system message"),
        (["upscale"], [], "resizing has no effect"),
        (["template-marks"], [], r"shows the control token <\|im_start\|>"),
        ([], ["400:every=1"], "cannot answer a simple question"),
    ],
)
def test_canaries_find_each_defect_before_the_data_is_sent(root, defects, faults, message):
    budget = PixelBudget(max_pixels=256 * 192)
    with FakeServer(defects=defects, faults=[*map(parse_fault, faults)]) as server:
        ends(engine(root, server, canaries=True, budget=budget), message)
    assert not any(text.startswith("request") for text in server.asked)


def test_canary_pictures_differ_in_every_pair():
    pictures = [picture.tobytes() for picture in canary_pictures()]
    assert len(set(pictures)) == len(pictures)


# Sizes


@pytest.mark.parametrize("multiple", [28, 32])
def test_sizes_are_those_of_the_models_processor(multiple):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    dice = random.Random(multiple)
    for _ in range(300):
        width, height = dice.randrange(32, 1500), dice.randrange(32, 1500)
        low, high = dice.choice([(0, 802_816), (12_288, 28_672), (100_352, 200_704)])
        budget = PixelBudget(low, high, multiple)
        assert (
            budget.size(width, height)
            == smart_resize(height, width, factor=multiple, min_pixels=low, max_pixels=high)[::-1]
        )


def test_pictures_are_resized_here_as_the_local_engine_does(root):
    """The same pixels reach the model through transformers and through a server."""
    hf = pytest.importorskip("augment.engines.transformers")
    made = hf.HFEngine("flagland-vlm", root=root)
    size = made._processor.image_processor.size
    budget = PixelBudget(size["shortest_edge"], size["longest_edge"], 32)
    for name in ("0.png", "1.png", "2.png"):
        image = open_image(root, name)
        local = hf.resized(made._processor, image)
        assert local.tobytes() == fit(image, budget).tobytes()


def test_large_pictures_cost_no_more_than_the_limit(root, tmp_path):
    Image.new("RGB", (4000, 3000), "teal").save(tmp_path / "large.png")
    budget = PixelBudget(max_pixels=50_000)
    with FakeServer() as server:
        made = engine(tmp_path, server, budget=budget)
        (reply,) = made.generate([Request("a", "", "", ("large.png",))], SAMPLING)
    assert reply.text.endswith("of 258 by 193 pixels")
    assert reply.prompt_tokens <= 10 * 7 + 9


# By name


def test_make_engine_takes_urls(root):
    with FakeServer("org/model") as server:
        made = load_engine("org/model", root=root, urls=[server.url], max_pixels=50_000)
        assert (made.model, made.revision) == ("org/model", "served")
        assert made.settings == {"min_pixels": 0, "max_pixels": 50_000}
        assert answers(made, ask(1)) == whole(root, ask(1))
    for urls in (["localhost:8000"], ["ftp://a/v1"]):
        with pytest.raises(EngineError, match=r"expected e\.g\. http://"):
            load_engine("m", root=root, urls=urls)


def test_the_command_enriches_through_a_url(tmp_path, capsys):
    data = tmp_path / "root"
    pool = write_root(data, count=24)
    faults = [parse_fault("429:every=5,retry_after=0.05"), parse_fault("500:every=7")]
    with FakeServer("fake", faults=faults) as server:
        command = ["--root", str(data), "--store", str(tmp_path / "store"), "--model", "fake"]
        assert corpus.command([*command, "--urls", server.url]) == 0
    assert " 0 failed" in capsys.readouterr().out
    texts = Store(tmp_path / "store").texts("corpus")
    assert texts.keys() == {item.id for item in pool}
    assert all("of 30 by 20 pixels" in text.text for text in texts.values())


@pytest.mark.slow
def test_a_real_server_transformers_serve(tmp_path):
    """The packaged model behind the server of transformers: its texts are those of the engine."""
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name, reason="transformers serve needs the extra 'serving'")
    from augment.prompts import load_prompt
    from benchmarks.flagland import atlas
    from benchmarks.flagland.render import draw_flat

    prompt, requests = load_prompt("rar/corpus"), []
    for n, country in enumerate(islice(atlas.countries(5), 4)):
        # In the model's own limits and multiples, so that nobody resizes.
        draw_flat(country.flag, 160, random.Random(n)).resize((160, 96)).save(tmp_path / f"{n}.png")
        requests.append(prompt.render(Item(f"1:{n}", None, (f"{n}.png",), "image")))
    (tmp_path / "hub").mkdir()
    folder, port = str(PACKAGED["flagland-vlm"]), vllm._free_port()
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", folder, "--device", "cpu", "--port", str(port)]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        options = EngineOptions(
            urls=[f"http://127.0.0.1:{port}/v1"], concurrency=2, timeout=120.0, patience=240.0
        )
        made = OpenAIEngine(folder, root=tmp_path, options=options)
        served = list(made.generate(requests, Sampling(48)))
    finally:
        server.kill()
        server.wait()
    local = load_engine("flagland-vlm", root=tmp_path, device="cpu")
    assert served == list(local.generate(requests, Sampling(48)))
