"""``prunekit run`` of a stranger's recipe: what it asks for is refused until the user confirms it on the command line."""

import copy
from pathlib import Path

import pytest
import yaml
from command_line import done, listing, typed
from loopback import loopback

SECRET = "wJalrXUtnFEMI-K7MDENG"  # noqa: S105 - a test's
STOLEN = "AWS_SECRET_ACCESS_KEY"
RECIPE = {
    "name": "stranger",
    "base": {
        "model": {
            "class": "UNet2DModel",
            "config": {
                "sample_size": 8,
                "in_channels": 1,
                "out_channels": 1,
                "layers_per_block": 1,
                "block_out_channels": [8, 16],
                "down_block_types": ["DownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "UpBlock2D"],
                "norm_num_groups": 4,
            },
        },
        "train": {"steps": 2, "batch_size": 4, "warmup_steps": 1},
    },
    "groups": {"count": 2},
    "allocation": {"budget": 0.9, "rule": "uniform", "steps": 3},
    "prune": {"samples": 4, "batch_size": 4},
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(STOLEN, SECRET)
    monkeypatch.chdir(tmp_path)
    with loopback() as endpoint:
        yield endpoint


def write(path, url, variable=STOLEN, **changes):
    data = {**copy.deepcopy(RECIPE), **changes}
    llm = {
        "url": url,
        "model": "any",
        "retries": 0,
        "timeout": 20.0,
        **({"key_variable": variable} if variable else {}),
    }
    data["prune"] |= {"search": {"proposer": "llm", "rounds": 1, "llm": llm}}
    path.write_text(yaml.safe_dump(data))


@pytest.mark.slow
def test_nothing_is_sent_or_written_without_a_confirmation_and_the_key_goes_out_with_it(server, tmp_path):
    write(tmp_path / "r.yaml", server.url)
    before = listing(tmp_path)
    options = f"--llm-endpoint {server.url} --llm-key-variable {STOLEN}"
    mistakes = {
        "": f"confirm it with {options} ",
        f"--llm-endpoint {server.url}": f"asks for {options};",
        f"--llm-endpoint {server.url}/ --llm-key-variable {STOLEN}": f"asks for {options};",
        f"--llm-endpoint {server.url} --llm-key-variable HOME": f"asks for {options};",
        f"--llm-key-variable {STOLEN}": "Got 0 --llm-endpoint and 1 --llm-key-variable",
        "--executor local": f"confirm it with {options} ",
        "--jobs 2": f"confirm it with {options} ",
    }
    for typed_options, said in mistakes.items():
        result = typed(f"prunekit run r.yaml {typed_options}")
        assert (result.code, said in result.sentence) == (2, True), result.err
        assert SECRET not in result.out + result.err
    assert server.asked == []
    assert listing(tmp_path) == before

    done(f"prunekit run r.yaml {options}")
    assert len(server.asked) == 2  # a round for each group
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    made = b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file())
    assert SECRET.encode() not in made

    # The recipe changes: the confirmation of before is worth nothing, though every stage is kept.
    write(tmp_path / "r.yaml", server.url, "PATH")
    before = listing(tmp_path)
    assert "--llm-key-variable PATH" in typed(f"prunekit run r.yaml {options}").sentence
    assert "--llm-key-variable PATH" in typed("prunekit run r.yaml").sentence
    assert len(server.asked) == 2
    assert listing(tmp_path) == before


@pytest.mark.slow
def test_worker_processes_have_the_confirmation(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # workers run the code that is tested
    write(tmp_path / "r.yaml", server.url, None)
    done(f"prunekit run r.yaml --jobs 2 --llm-endpoint {server.url}")
    assert len(server.asked) == 2
    assert all("Authorization" not in headers for headers in server.headers)


def test_commands_that_only_read_a_recipe_send_nothing(server, tmp_path):
    write(tmp_path / "r.yaml", server.url)
    done("prunekit estimate r.yaml")
    done("prunekit train --recipe r.yaml --output own.pt")
    assert server.asked == []


def test_an_option_that_no_recipe_needs_is_refused(server, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    result = typed(f"prunekit run r.yaml --llm-endpoint {server.url}")
    assert result.code == 2
    assert "asks for no endpoint" in result.sentence


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../up"}, "name"),
        ({"name": "/tmp/up"}, "name"),  # noqa: S108 - refused
        ({"prune": {"search": {"proposer": "tpe", "study": "../../study.log"}}}, "study"),
        ({"prune": {"search": {"proposer": "tpe", "study": "sqlite:///study.db"}}}, "study"),
        ({"prune": {"search": {"target_of": "latency"}, "latency_table": "../table.json"}}, "latency_table"),
        ({"prune": {"search": {"target_of": "latency"}, "latency_table": "~/table.json"}}, "latency_table"),
        ({"data": {"source": "x\x1b]0;title\x07"}}, "data.source"),
        ({"evaluation": {"samples": 10**18}}, "evaluation.samples"),
        ({"\x1b[2J": 1}, "a key has a control character"),
    ],
)
def test_what_would_leave_the_runs_folder_or_obey_a_terminal_is_refused(tmp_path, monkeypatch, changes, said):
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    (tmp_path / "desk" / "r.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}))
    before = listing(tmp_path)
    result = typed("prunekit run r.yaml")
    assert result.code == 2
    assert said in result.sentence
    assert result.sentence.isprintable()
    assert listing(tmp_path) == before


def test_a_name_from_the_command_line_is_shown_with_escapes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = typed("prunekit run no\x1b[31mthing.yaml")
    assert r"no\x1b[31mthing.yaml" in result.sentence
    assert result.sentence.isprintable()
