"""OpenAI's own Python client against a real server process."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from onebase.recipes.setup.saved import open_saved
from onebase.records import Message
from onebase.sampling.local import generate, stop_ids
from onebase.sampling.sampler import Sampling
from tests.serving.conftest import KEY, Served

ASKED: list[Any] = [{"role": "user", "content": "Tell me of cats."}]


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_the_base_and_every_policy_is_listed_with_its_version(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert set(found) == {"base", "helpful", "brief"}
    versions = {name: model.model_extra["version"] for name, model in found.items() if model.model_extra}
    assert len(set(versions.values())) == 3 and all(len(version) == 8 for version in versions.values())
    assert client.models.retrieve("brief").id == "brief"


def test_an_answer_is_that_of_chat_and_says_who_gave_it(client: openai.OpenAI, folders: dict[str, str]) -> None:
    base, chat = open_saved({"helpful": (folders["helpful"], ("policy",))}, dtype="float32")
    prompt = chat.encode_prompt([Message("user", "Tell me of cats.")])
    greedy = Sampling(24, temperature=0, stop_ids=stop_ids(base, [chat.end_token_id]))
    (sample,) = generate(base, [prompt], role="helpful", sampling=greedy, seeds=[0])
    found = client.chat.completions.create(model="helpful", messages=ASKED, temperature=0, max_tokens=24)
    ids = sample.ids[:-1] if sample.ended else sample.ids
    assert found.choices[0].message.content == chat.decode(ids).strip()
    assert found.choices[0].finish_reason == ("stop" if sample.ended else "length")
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt), len(sample.ids))
    assert found.model == "helpful" and (found.system_fingerprint or "").startswith("helpful@")
    other = client.chat.completions.create(model="brief", messages=ASKED, temperature=0, max_tokens=24)
    assert other.choices[0].message.content != found.choices[0].message.content


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="helpful", messages=ASKED, max_tokens=30, seed=7, n=2)
    chunks = list(
        client.chat.completions.create(
            model="helpful",
            messages=ASKED,
            max_tokens=30,
            seed=7,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts, finishes = ["", ""], {}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len(chunks) > 20 and {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}


def test_n_choices_are_drawn_independently_and_the_same_again_with_the_same_seed(client: openai.OpenAI) -> None:
    def draw(**options: Any) -> list[str]:
        found = client.chat.completions.create(model="brief", messages=ASKED, max_tokens=12, n=4, **options)
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
        return [str(choice.message.content) for choice in found.choices]

    first = draw(seed=1)
    assert len(set(first)) == 4 and draw(seed=1) == first
    assert draw(seed=2) != first and draw() != draw()


def test_logprobs_are_the_models_own_at_every_temperature(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model="helpful", messages=ASKED, max_tokens=6, temperature=t, seed=3, logprobs=True, top_logprobs=3
        )
        for t in (0, 0.5)
    ]
    first = []
    for answer in answers:
        told = answer.choices[0].logprobs
        assert told is not None and told.content is not None and len(told.content) == 6
        for token in told.content:
            best = [other.logprob for other in token.top_logprobs]
            assert len(best) == 3 and best == sorted(best, reverse=True) and token.logprob <= best[0]
            assert token.bytes is None or bytes(token.bytes).decode() == token.token
        first.append(told.content[0])
    assert first[0].logprob == first[0].top_logprobs[0].logprob  # greedy takes the likeliest
    assert [t.logprob for t in first[0].top_logprobs] == pytest.approx([t.logprob for t in first[1].top_logprobs])


def test_plain_completions_of_several_prompts_in_words_or_tokens(client: openai.OpenAI) -> None:
    found = client.completions.create(model="base", prompt=["Once", "Twice"], max_tokens=5, n=2, seed=1, logprobs=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in found.choices}) == 4
    told = found.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.token_logprobs is not None
    assert len(told.tokens) == len(told.token_logprobs) == 5
    tokens = [1, *(3 + n for n in range(4))]
    one = client.completions.create(model="base", prompt=tokens, max_tokens=5, temperature=0)
    assert one.usage is not None and one.usage.prompt_tokens == 5
    assert client.completions.create(model="base", prompt="", max_tokens=2).usage.prompt_tokens == 1  # type: ignore


def test_an_answer_ends_before_a_stop_string_that_spans_tokens(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="base", prompt="Once", max_tokens=40, seed=5).choices[0].text
    stop = whole[8:13]
    assert stop
    cut = client.completions.create(model="base", prompt="Once", max_tokens=40, seed=5, stop=["never", stop])
    assert cut.choices[0].text == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"
    assert cut.usage is not None and cut.usage.completion_tokens < 40
    pieces = client.completions.create(model="base", prompt="Once", max_tokens=40, seed=5, stop=stop, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == cut.choices[0].text


def post(server: Served, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_scores_are_those_of_the_reward_role_normalised_and_ranked(server: Served, folders: dict[str, str]) -> None:
    found = post(server, "/v1/score", {"model": "judge", "prompt": "Hi", "completions": ["a", "bb", "a", "猫"]})
    data = found["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3] and data[0]["score"] == data[2]["score"]
    assert len({item["score"] for item in data}) == 3
    assert all(item["normalised"] == pytest.approx((item["score"] - 0.5) / 2) for item in data)
    ordered = sorted((item["score"] for item in data), reverse=True)
    assert [item["rank"] for item in data] == [1 + ordered.index(item["score"]) for item in data]
    turns = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    again = post(server, "/v1/score", {"model": "judge", "messages": turns, "completions": ["bb"]})
    assert again["data"][0]["score"] == pytest.approx(data[1]["score"], abs=1e-5)


def test_scores_are_what_the_score_command_prints(
    server: Served, folders: dict[str, str], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from onebase.cli.main import main

    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Hi", "completion": "a cat"}) + "\n")
    capsys.readouterr()
    assert main(["score", folders["judge"], str(tmp_path / "rows.jsonl"), "--dtype", "float32"]) == 0
    expected = json.loads(capsys.readouterr().out)["score"]
    found = post(server, "/v1/score", {"model": "judge", "prompt": "Hi", "completions": ["a cat"]})
    assert found["data"][0]["score"] == pytest.approx(expected, abs=1e-4)


def test_one_prompt_through_several_roles_with_a_score_beside_each(server: Served, client: openai.OpenAI) -> None:
    body = {"messages": ASKED, "models": ["helpful", "brief", "base"], "reward": "judge", "seed": 4, "max_tokens": 9}
    found = post(server, "/v1/compare", body)
    assert found["object"] == "comparison" and [item["model"] for item in found["data"]] == body["models"]
    for item in found["data"]:
        alone = client.chat.completions.create(model=item["model"], messages=ASKED, seed=4, max_tokens=9)
        assert item["message"]["content"] == alone.choices[0].message.content
        scored = post(
            server,
            "/v1/score",
            {"model": "judge", "messages": ASKED, "completions": [item["message"]["content"]]},
        )
        assert item["score"] == pytest.approx(scored["data"][0]["score"], abs=1e-5)
        assert item["normalised"] == pytest.approx((item["score"] - 0.5) / 2)
    assert "score" in post(server, "/v1/compare", body | {"reward": None})["data"][0]


def test_a_role_is_loaded_under_a_name_and_unloaded_while_others_answer(
    server: Served, client: openai.OpenAI, folders: dict[str, str]
) -> None:
    loaded = post(server, "/v1/roles", {"name": "second", "role": folders["brief"]})
    same = client.models.retrieve("brief")
    assert loaded["kind"] == "policy" and same.model_extra and loaded["version"] == same.model_extra["version"]

    def ask(model: str, seed: int) -> Any:
        return client.chat.completions.create(model=model, messages=ASKED, max_tokens=300, temperature=0.5, seed=seed)

    seed, answer = next((n, a) for n in range(40) if (a := ask("brief", n)).usage.completion_tokens == 300)
    stream = client.chat.completions.create(
        model="second", messages=ASKED, max_tokens=300, temperature=0.5, seed=seed, stream=True
    )
    next(stream)
    client.delete("/roles/second", cast_to=object)
    with pytest.raises(openai.NotFoundError, match="there is no model 'second' here; there are base, "):
        client.chat.completions.create(model="second", messages=ASKED)
    told = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
    assert "".join(told) == answer.choices[0].message.content  # whoever is being answered is answered to the end
    post(server, "/v1/roles", {"name": "second", "role": folders["helpful"]})
    client.delete("/roles/second", cast_to=object)
