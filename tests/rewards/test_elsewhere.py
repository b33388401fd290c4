"""Scores from a server: `onebase serve` itself, and one that fails in every way a server may."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase import asking
from onebase.config.remedies import with_remedy
from onebase.config.rollouts import PPOConfig
from onebase.data.chat import chat_format
from onebase.engines.budget import TokenBudget
from onebase.engines.opening import load_base
from onebase.errors import CheckpointError, ConfigError, DataError, ModelError, RewardError, UnansweredError
from onebase.models.role_files import load_role
from onebase.recipes import ppo
from onebase.records import Example, Message, Row, ScoreRequest
from onebase.rewards.elsewhere import ElsewhereReward, body_of
from onebase.rewards.learned import RoleReward
from onebase.training.loop import Loop
from tests.recipes.conftest import SMALL_PPO, Options, common, load, make_base, metric_rows, prompt_rows, write_rows
from tests.serving.conftest import KEY, Served, folders, server

__all__ = ["folders", "server"]


class Scoring(ThreadingHTTPServer):
    """Answers /v1/score with the number of vowels, until it is told to do otherwise."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self.version, self.rewards = "1a2b3c4d", ["judge"]
        self.bad = 0
        """So many further answers are `change`d."""
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.status = 200
        self.drop = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        scores = [sum(letter in "aeiou" for letter in text) / 4 for text in body["completions"]]
        data = [{"index": k, "score": score, "normalised": score - 1} for k, score in enumerate(scores)]
        found: Any = {"object": "score", "model": body["model"], "version": self.version, "data": data}
        if self.bad > 0:
            self.bad -= 1
            return self.status, self.change(found)
        return 200, found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Scoring
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.send({"rewards": self.server.rewards}, 200)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        dropped = self.server.drop and self.server.bad > 0
        status, found = self.server.answer(body)
        if dropped:
            self.connection.shutdown(2)
            self.close_connection = True
            return
        self.send(found, status)

    def send(self, found: Any, status: int) -> None:
        data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scoring]:
    monkeypatch.setattr(asking, "WAITS", (0.0, 0.0))
    served = Scoring()
    yield served
    served.shutdown()
    served.server_close()


ROW = Row((Message("user", "Is it?"),), place="rows.jsonl:7")
EXAMPLE = Example([1], [[5], [6], [7]], row=ROW)
REQUEST = ScoreRequest([EXAMPLE], ["Is it?"] * 3, ["yes", "no", "aeiou"])


def test_scores_are_those_of_the_role_itself(server: Served, folders: dict[str, str]) -> None:
    source = ElsewhereReward(server.url, key=KEY)
    source.meet()
    base = load_base(folders["base"], dtype="float32")
    load_role(base, "reward", folders["judge"], kinds=("reward",))
    chat = chat_format(base.tokenizer, "hh")
    rows = [Row((Message("user", f"Is the {n} good?"),), (f"Yes, {n}.", "No.")) for n in ("cat", "dog")]
    examples = [chat.encode_example(row) for row in rows]
    texts = [text for row in rows for text in row.answers]
    request = ScoreRequest(examples, ["unused"] * 4, texts)
    expected = RoleReward(base, "reward", budget=TokenBudget(4096)).score(request).total
    assert torch.allclose(source.score(request).total, expected, atol=2e-6)
    normal = ElsewhereReward(server.url, role="judge", key=KEY, normalize=True).score(request).total
    assert torch.allclose(normal, (expected - 0.5) / 2.0, atol=2e-6)
    assert source.name == "judge" and source.fingerprint.startswith("judge@") and len(source.fingerprint) == 14


def test_a_wrong_key_is_a_mistake_of_the_configuration(server: Served) -> None:
    for name, key in (("judge", "wrong"), ("nobody", KEY)):
        with pytest.raises(ConfigError, match="answered 40") as raised:
            ElsewhereReward(server.url, role=name, key=key).meet()
        assert "correct reward.url_role or reward.url_key" in with_remedy(raised.value) and KEY not in str(raised.value)


def test_a_prompt_is_one_request_and_connections_are_kept(scoring: Scoring) -> None:
    source = ElsewhereReward(scoring.url)
    request = ScoreRequest([EXAMPLE] * 40, ["Is it?"] * 120, ["yes", "no", "aeiou"] * 40)
    assert source.score(request).total.tolist() == [0.25, 0.25, 1.25] * 40
    assert len(scoring.asked) == 41 and scoring.connections <= 10
    assert scoring.asked[-1]["messages"] == [{"role": "user", "content": "Is it?"}]
    many = ScoreRequest([Example([1], [[5]] * 300, row=ROW)], ["Is it?"] * 300, ["a"] * 300)
    assert source.score(many).total.tolist() == [0.25] * 300
    assert sorted(len(body["completions"]) for body in scoring.asked[-2:]) == [44, 256]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: answer | {"data": answer["data"][:-1]}, "2 scores for 3 completions"),
        (lambda answer: answer | {"data": [*answer["data"], answer["data"][0]]}, "4 scores for 3 completions"),
        (lambda answer: answer | {"data": [item | {"score": math.nan} for item in answer["data"]]}, "not a finite"),
        (lambda answer: answer | {"data": [item | {"score": None} for item in answer["data"]]}, "not a finite number"),
        (lambda answer: answer | {"data": [item | {"score": True} for item in answer["data"]]}, "not a finite number"),
        (lambda answer: answer | {"version": None}, "or no version"),
        (lambda answer: [1, 2, 3], "no scores with the version"),
        (lambda answer: "<html>", "an answer that is not JSON: <html>"),
    ],
    ids=["too few", "too many", "NaN", "null", "true", "no version", "a list", "HTML"],
)
def test_an_unusable_answer_is_asked_for_again_and_never_becomes_a_score(
    change: Callable[[dict[str, Any]], Any], said: str, scoring: Scoring
) -> None:
    source = ElsewhereReward(scoring.url, role="judge")
    source.meet()
    scoring.change, scoring.bad = change, 2
    assert source.score(REQUEST).total.tolist() == [0.25, 0.25, 1.25]
    scoring.bad = 3
    with pytest.raises(UnansweredError, match="3 tries") as raised:
        source.score(REQUEST)
    assert said in str(raised.value) and raised.value.exit_code == 75


@pytest.mark.parametrize(
    ("fault", "said"),
    [({"status": 500}, "status 500"), ({"status": 429}, "status 429"), ({"drop": True}, "the connection was dropped")],
)
def test_a_failing_server_is_asked_again(fault: dict[str, Any], said: str, scoring: Scoring) -> None:
    source = ElsewhereReward(scoring.url, role="judge")
    source.meet()
    for name, value in fault.items():
        setattr(scoring, name, value)
    scoring.bad = 2
    assert source.score(REQUEST).total.tolist() == [0.25, 0.25, 1.25]
    scoring.bad = 3
    with pytest.raises(UnansweredError, match=said):
        source.score(REQUEST)


def test_a_refused_prompt_is_told_with_its_row(scoring: Scoring) -> None:
    source = ElsewhereReward(scoring.url, role="judge")
    source.meet()
    scoring.status, scoring.bad, scoring.change = 400, 1, lambda answer: {"error": {"message": "too long"}}
    with pytest.raises(RewardError, match=r"rows.jsonl:7: the reward at http://\S+ answered 400: too long"):
        source.score(REQUEST)


def test_a_role_that_is_exchanged_is_noticed(scoring: Scoring) -> None:
    source = ElsewhereReward(scoring.url, role="judge")
    source.meet()
    scoring.version = "99999999"
    with pytest.raises(RewardError, match="judge had the weights 1a2b3c4d and now has 99999999"):
        source.score(REQUEST)


def test_of_several_roles_one_has_to_be_named(scoring: Scoring) -> None:
    scoring.rewards = ["a", "b"]
    with pytest.raises(ConfigError, match=r"has 2 reward roles \(a, b\)"):
        ElsewhereReward(scoring.url).meet()
    scoring.rewards = "judge"  # type: ignore[assignment]
    with pytest.raises(UnansweredError, match="no list of reward roles"):
        ElsewhereReward(scoring.url).meet()


def test_a_role_without_held_out_scores_cannot_be_normalised(scoring: Scoring) -> None:
    scoring.change = lambda answer: answer | {"data": [item | {"normalised": None} for item in answer["data"]]}
    scoring.bad = 1
    with pytest.raises(ModelError, match="judge has no held-out scores to normalise by"):
        ElsewhereReward(scoring.url, role="judge", normalize=True).meet()


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WAITS", (0.0,))
    with pytest.raises(UnansweredError, match="nothing listens there") as raised:
        ElsewhereReward("http://127.0.0.1:9", role="judge").meet()
    assert "the same command resumes" in with_remedy(raised.value)


@pytest.mark.parametrize("url", ["http://u:p@h", "http://h/?key=secret", "ftp://h", "http://", "http://h:99999", "h:1"])
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ElsewhereReward(url)
    assert "secret" not in str(raised.value) and "u:p" not in str(raised.value)


def test_a_plain_text_is_sent_as_it_stands_and_tools_are_refused() -> None:
    assert body_of(Example([1], [[2]]), "Once") == {"prompt": "Once"}
    row = Row((Message("user", "What is the time?"),), tools=("{}",), place="rows.jsonl:3")
    with pytest.raises(DataError, match=r"rows.jsonl:3: a reward elsewhere is sent plain turns"):
        body_of(Example([1], [[2]], row=row), "What is the time?")


# --------------------------------------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    make_base(folder / "base")
    write_rows(folder / "prompts.jsonl", prompt_rows())
    return folder


def small(material: Path, output: Path, *more: Options) -> PPOConfig:
    return load(PPOConfig, common(material / "base", output, material / "prompts.jsonl"), SMALL_PPO, *more)


def by_url(scoring: Scoring, **more: Any) -> Options:
    return {"reward.callable": None, "reward.url": scoring.url, "max_steps": 3, **more}


def test_a_run_scored_by_a_server_is_the_run_scored_here(material: Path, scoring: Scoring, tmp_path: Path) -> None:
    summary = ppo.run(small(material, tmp_path / "url", by_url(scoring)))
    ppo.run(small(material, tmp_path / "here", {"max_steps": 3}))
    names = ("objective/scores", "loss/policy", "loss/value")
    found = [[[row[n] for n in names] for row in metric_rows(tmp_path / run)] for run in ("url", "here")]
    assert found[0] == found[1]
    assert summary["reward"] == "judge@1a2b3c4d"
    weights = [(tmp_path / run / "policy" / "adapter_model.safetensors").read_bytes() for run in ("url", "here")]
    assert weights[0] == weights[1]


def test_a_server_that_fails_in_a_run_loses_nothing(
    material: Path, scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo.run(small(material, tmp_path / "whole", by_url(scoring)))
    end_step = Loop.end_step

    def breaking(self: Loop, *arguments: Any, **words: Any) -> None:
        end_step(self, *arguments, **words)
        scoring.status, scoring.bad = 500, 10**6 if self.done == 2 else 0

    monkeypatch.setattr(Loop, "end_step", breaking)
    with pytest.raises(UnansweredError):
        ppo.run(small(material, tmp_path / "parts", by_url(scoring)))
    monkeypatch.setattr(Loop, "end_step", end_step)
    assert (tmp_path / "parts" / "checkpoint-2").is_dir()
    scoring.bad = 0
    ppo.run(small(material, tmp_path / "parts", by_url(scoring, **{"reward.timeout": 30})))
    parts, whole = ((tmp_path / n / "policy" / "adapter_model.safetensors").read_bytes() for n in ("parts", "whole"))
    assert parts == whole


def test_a_step_whose_evaluation_fails_is_kept(
    material: Path, scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = by_url(scoring, **{"evaluation.every_steps": 1})
    measured = Loop.measured

    def breaking(self: Loop, *arguments: Any) -> dict[str, float]:
        scoring.status, scoring.bad = 500, 10**6
        return measured(self, *arguments)

    monkeypatch.setattr(Loop, "measured", breaking)
    with pytest.raises(UnansweredError):
        ppo.run(small(material, tmp_path / "run", more))
    assert (tmp_path / "run" / "checkpoint-1").is_dir() and len(metric_rows(tmp_path / "run")) == 1


def test_other_weights_on_the_server_are_another_run(material: Path, scoring: Scoring, tmp_path: Path) -> None:
    ppo.run(small(material, tmp_path / "run", by_url(scoring)))
    scoring.version = "99999999"
    with pytest.raises(CheckpointError, match=r"reward from elsewhere \(judge@1a2b3c4d, now judge@99999999\) changed"):
        ppo.run(small(material, tmp_path / "run", by_url(scoring, max_steps=4)))


def test_verifiers_and_a_server_are_added_up(material: Path, scoring: Scoring, tmp_path: Path) -> None:
    more = {"reward.verifiers": "tests.recipes.conftest:count_vowels", "reward.weight": 2, "max_steps": 1}
    ppo.run(small(material, tmp_path / "run", by_url(scoring), more))
    (row,) = metric_rows(tmp_path / "run")
    assert row["objective/scores"] == pytest.approx(3 * row["rewards/judge/mean"], abs=1e-5)
