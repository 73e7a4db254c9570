"""The language model's proposer, against a server on loopback: whatever it answers, the search ends at the target."""

import json
import logging
import socket
import threading
import time

import pytest
from loopback import completion, loopback, reads_and_answers, says, send
from tiny_search import trained

from prunekit.errors import InputError
from prunekit.search import Endpoint, SearchOptions

SECRET = "sk-do-not-write-this-down"  # noqa: S105 - a test's
GROUP = "2"  # a channel group of the perceptron


@pytest.fixture(scope="module")
def tiny():
    return trained()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with loopback() as endpoint:
        yield endpoint


def ask(tiny, server, **options):
    options = {"timeout": 5.0, "retries": 1, **options}
    return tiny.search("llm", llm=Endpoint(server.url, "tiny", **options))


def test_the_best_of_the_answers_is_taken(tiny, server):
    found = ask(tiny, server)
    said = [entry for entry in found.memory if "ratios" in entry]
    assert len(server.asked) == len(said) == 4
    losses = [entry["loss"] for entry in found.measured if entry["round"] > 0]
    assert found.memory[-1]["loss"] == min(losses)
    assert found.memory[-1]["chosen"].startswith("round")
    assert 0 <= found.missed <= 0.01 * found.base


def test_the_model_reads_what_was_measured(tiny, server):
    found = ask(tiny, server)
    assert {question["path"] for question in server.asked} == {"/v1/chat/completions"}
    assert {question["model"] for question in server.asked} == {"tiny"}
    first, *_, last = (question["messages"][1]["content"] for question in server.asked)
    assert "nothing yet" in first
    assert all(f"{group.name}: {group.size}, " in first for group in tiny.graph)
    told = [line for line in last.splitlines() if "->" in line and line.startswith("{")]
    measured = [entry for entry in found.measured if entry["round"] > 0][: len(told)]
    assert told
    for line, entry in zip(told, measured, strict=True):
        assert line.endswith(f"{entry['loss']:.6g}")


def test_answers_are_followed(tiny, server):
    server.script = [says(json.dumps({"ratios": {GROUP: 0.9}}))]
    found = ask(tiny, server)
    kept = {name: after / before for name, (before, after) in found.widths.items()}
    assert kept[GROUP] == min(kept.values())
    assert len(found.measured) == 2  # the whole network, and the one answer


def bad(text):
    return pytest.param(says(text), id=str(text)[:24])


def slow(handler, _):
    time.sleep(1.5)
    send(handler, completion('{"ratios": {"2": 0.5}}'))


def drips(handler, _):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def raw(body, status=200, **headers):
    return lambda handler, _: send(handler, body, status, **headers)


def endless(handler, _):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(300):
        handler.wfile.write(b"x" * 10_000)


def hangs_up(handler, _):
    handler.connection.shutdown(socket.SHUT_RDWR)


def nonsense(handler, _):
    handler.wfile.write(b"\x00\xffHTTP what\r\n\r\n")


FAILURES = [
    bad("I would rather not."),
    bad(None),
    bad(["text"]),
    bad(""),
    bad("{"),
    bad("}{"),
    bad('{"ratios": [0.5]}'),
    bad('{"ratios": {}}'),
    bad('{"ratio": {"2": 0.5}}'),
    bad('{"ratios": {"no such group": 0.5}}'),
    bad('{"ratios": {"__class__": 0.5}}'),
    bad('{"ratios": {"2": 1.01}}'),
    bad('{"ratios": {"2": -0.01}}'),
    bad('{"ratios": {"2": NaN}}'),
    bad('{"ratios": {"2": Infinity}}'),
    bad('{"ratios": {"2": true}}'),
    bad('{"ratios": {"2": "0.5"}}'),
    bad('{"ratios": {"2": null}}'),
    bad('{"ratios": {"2": 1' + "0" * 5000 + "}}"),
    bad('{"ratios": {"2": 1e999}}'),
    bad('{"ratios": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    pytest.param(raw(b"[" * 200_000), id="deep"),
    pytest.param(raw(b"\xff\xfe"), id="bytes"),
    pytest.param(raw(b"{}"), id="no choices"),
    pytest.param(raw(b'{"choices": []}'), id="empty choices"),
    pytest.param(raw(b'{"choices": {"0": 1}}'), id="wrong choices"),
    pytest.param(raw(b"oops", 500), id="500"),
    pytest.param(raw(b"", 404), id="404"),
    pytest.param(raw(completion("x" * 1_100_000)), id="huge"),
    pytest.param(endless, id="endless"),
    pytest.param(slow, id="slow"),
    pytest.param(drips, id="drips"),
    pytest.param(hangs_up, id="hangs up"),
    pytest.param(nonsense, id="nonsense"),
]


@pytest.mark.parametrize("answer", FAILURES)
def test_greedy_takes_the_place_of_a_model_that_fails(tiny, server, caplog, answer):
    server.script = [answer]
    started = time.monotonic()
    found = ask(tiny, server, timeout=0.7)
    assert time.monotonic() - started < 4
    assert len(server.asked) == 2
    assert found.plan == tiny.search("greedy").plan
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "greedy takes its place" in warnings[0]
    assert len(warnings[0]) < 200
    assert found.memory[-1]["chosen"] == "greedy"


def test_an_answer_after_a_bad_one_counts_and_the_model_hears_why(tiny, server, caplog):
    server.script = [says('{"ratios": {"nobody": 0.5}}'), raw(b"", 500), reads_and_answers]
    found = ask(tiny, server, retries=2)
    assert not caplog.records
    assert sum("ratios" in entry for entry in found.memory) == 4
    assert "1 of its channel groups are unknown" in server.asked[1]["messages"][-1]["content"]


def test_what_was_found_before_the_model_failed_is_not_lost(tiny, server):
    server.script = [reads_and_answers, reads_and_answers, raw(b"", 500)]
    found = ask(tiny, server)
    failed = next(i for i, entry in enumerate(found.memory) if "failed" in entry)
    tried = [e["loss"] for e in found.memory[:failed] if "steps" in e and e["round"] > 0]
    assert len(tried) == 2
    assert found.memory[-1]["loss"] <= min(tried)
    greedy = tiny.search("greedy")
    assert found.memory[-1]["loss"] <= greedy.memory[-1]["loss"]


def test_nobody_there_is_a_failure_too(tiny, server, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = tiny.search("llm", llm=Endpoint(url, "tiny", retries=0))
    assert found.plan == tiny.search("greedy").plan
    assert "could not be asked" in caplog.text


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["file:///etc/passwd", "ftp://127.0.0.1/x", "{url}/elsewhere"])
def test_redirects_are_not_followed(server, status, scheme):
    server.script = [raw(b"", status, Location=scheme.format(url=server.url)), reads_and_answers]
    tiny = trained()
    found = ask(tiny, server, retries=0)
    assert [question["path"] for question in server.asked] == ["/v1/chat/completions"]
    assert found.memory[-1]["chosen"] == "greedy"


def test_the_key_goes_to_the_endpoint_and_nowhere_else(tiny, server, caplog, tmp_path, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", SECRET)

    def echoes(handler, _):
        send(handler, completion(json.dumps({"ratios": {handler.headers["Authorization"]: 0.5}})))

    def echoes_as_error(handler, _):
        send(handler, handler.headers["Authorization"].encode(), 401)

    server.script = [reads_and_answers, echoes, echoes_as_error]
    endpoint = Endpoint(server.url, "tiny", "MY_KEY", 5.0, 1)
    journal = tmp_path / "search.jsonl"
    found = tiny.search("llm", llm=endpoint, journal=journal)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    told = [json.dumps(question) for question in server.asked]
    for text in (journal.read_text(), caplog.text, repr(found), repr(endpoint), *told):
        assert SECRET not in text


def test_no_key_is_sent_unless_one_is_named(tiny, server):
    ask(tiny, server)
    assert all("Authorization" not in headers for headers in server.headers)


@pytest.mark.parametrize("value", [None, "", "  ", "two\nlines", "schlüssel", "a\x00b"])
def test_a_key_that_is_not_there_is_the_users_mistake(tiny, server, monkeypatch, value):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None and "\x00" not in value:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(InputError, match="MY_KEY holds no API key") as caught:
        ask(tiny, server, key_variable="MY_KEY")
    assert not value or not value.strip() or value not in str(caught.value)
    assert not server.asked


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "file:///etc/passwd",
        "ftp://host/v1",
        "http://",
        "https:///v1",
        "http://user:secret@host/v1",
        "http://host/v1?key=secret",
        "http://host/v1#part",
        "http://host:99999/v1",
        "http://host/v 1",
        "http://host/\r\nX: y",
        "http://[::1/v1",
        "javascript:alert(1)",
    ],
)
def test_only_plain_http_and_https_are_endpoints(url):
    with pytest.raises(InputError, match="plain http or https URL") as caught:
        Endpoint(url, "tiny")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"model": ""}, {"timeout": 0.0}, {"timeout": float("nan")}, {"retries": -1}])
def test_impossible_options_of_an_endpoint_are_refused(options):
    with pytest.raises(InputError):
        Endpoint(**{"url": "https://host/v1", "model": "tiny", **options})


def test_the_proposer_needs_an_endpoint():
    with pytest.raises(InputError, match="endpoint"):
        SearchOptions("llm")


def test_nothing_stays_behind(tiny, server):
    before = threading.active_count()
    ask(tiny, server)
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
