"""Who gets in, and what every request passes first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from markupsafe import escape
from starlette.testclient import TestClient

from onebase.errors import ConfigError
from onebase.labeling.passwords import Limiter, Passwords
from onebase.labeling.sessions import Sessions, secret_in
from tests.labeling.conftest import HERE, PASSWORD, Open, Visitor

CLOSED = ["/", "/history", "/help", "/account", "/token", "/tasks/1/answers/0", "/admin", "/admin/people", "/nowhere"]
POSTED = ["/judgements", "/undo", "/account", "/admin/people", "/admin/people/1"]


@pytest.mark.parametrize("path", CLOSED)
def test_without_a_session_every_page_leads_to_the_login(opened: Open, path: str) -> None:
    answer = opened().visitor().get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "What is 2" not in answer.text


@pytest.mark.parametrize("path", POSTED)
def test_without_a_session_no_form_is_taken(opened: Open, path: str) -> None:
    visitor = opened().visitor()
    visitor.get("/login")
    answer = visitor.post(path)
    assert (answer.status_code, answer.text) == (401, "you are logged out; log in and send it again\n")


def test_pages_for_admins_are_shown_to_nobody_else(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    for path in ("/admin", "/admin/people", "/admin/tasks", "/admin/agreement"):
        assert ann.get(path).status_code == 403
    ann.get("/")
    answer = ann.post("/admin/people", {"name": "Eve", "role": "admin", "days": "1"})
    assert (answer.status_code, answer.text) == (403, "this page is for those who run the project\n")
    assert project.person("Bob", admin=True).get("/admin").status_code == 200


def test_a_password_lets_in_and_a_logout_lets_out(opened: Open) -> None:
    project = opened()
    project.person("Ann")
    visitor = project.visitor()
    visitor.get("/login")
    assert visitor.post("/login", {"name": "Ann", "password": PASSWORD}).headers["location"] == "/"
    assert "What is 2 + 2?" in visitor.get("/").text
    assert visitor.get("/login").headers["location"] == "/"
    assert visitor.post("/logout").headers["location"] == "/login"
    assert visitor.get("/").headers["location"] == "/login"


@pytest.mark.parametrize(("name", "password"), [("Ann", "wrong password"), ("Nobody", PASSWORD), ("", "")])
def test_a_wrong_login_does_not_say_what_was_wrong(opened: Open, name: str, password: str) -> None:
    project = opened()
    project.person("Ann")
    visitor = project.visitor()
    visitor.get("/login")
    answer = visitor.post("/login", {"name": name, "password": password})
    assert answer.status_code == 403 and "Name and password do not go together." in answer.text
    assert visitor.get("/").status_code == 303


def test_an_unknown_name_takes_as_long_as_a_wrong_password() -> None:
    passwords = Passwords()
    assert passwords.hash(PASSWORD).startswith("$argon2id$")
    passwords._hasher = PasswordHasher(time_cost=1, memory_cost=16_384, parallelism=1)
    passwords._nobody, kept = passwords.hash("nobody's"), passwords.hash(PASSWORD)
    passwords.is_right(kept, "warm up")
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    for _ in range(4):
        for who, hashed in (("known", kept), ("unknown", None)):
            began = time.process_time()
            assert not passwords.is_right(hashed, "wrong password")
            times[who].append(time.process_time() - began)
    assert 0.5 < min(times["unknown"]) / min(times["known"]) < 2
    assert passwords.is_right(kept, PASSWORD) and not passwords.is_right("no hash", PASSWORD)


def test_too_many_attempts_have_to_wait(opened: Open) -> None:
    project = opened()
    project.person("Ann")
    visitor = project.visitor()
    visitor.get("/login")
    for _ in range(10):
        assert visitor.post("/login", {"name": "Ann", "password": "wrong"}).status_code == 403
    answer = visitor.post("/login", {"name": "ann ", "password": PASSWORD})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "600"
    assert "Too many attempts; wait ten minutes" in answer.text
    assert project.visitor().get("/login").status_code == 200


def test_attempts_are_counted_by_address_too(opened: Open) -> None:
    visitor = opened().visitor()
    visitor.get("/login")
    answers = [visitor.post("/login", {"name": f"n{n}", "password": "x"}).status_code for n in range(51)]
    assert answers == [403] * 50 + [429]


def test_attempts_are_forgotten_with_time_and_after_the_right_one() -> None:
    now = [0.0]
    limiter = Limiter(2, seconds=60, keys=3, clock=lambda: now[0])
    assert [limiter.allows("a") for _ in range(3)] == [True, True, False]
    now[0] = 61
    assert limiter.allows("a") and limiter.allows("a") and not limiter.allows("a")
    limiter.forget("a")
    assert limiter.allows("a")
    assert [limiter.allows(key) for key in "bcd"] == [True] * 3  # the oldest key makes room
    assert limiter.allows("a") and limiter.allows("a")


@pytest.mark.parametrize("token", ["wrong", "x" * 5000, "..%2f..", "%00", "'; drop table people; --"])
def test_a_wrong_link_gets_a_sentence(opened: Open, token: str) -> None:
    visitor = opened().visitor()
    answer = visitor.get(f"/invitation/{token}")
    assert answer.status_code in (303, 404)
    if answer.status_code == 404:
        assert "Ask for a new one." in answer.text or "There is no such page." in answer.text


def test_a_link_without_a_name_works_once(opened: Open) -> None:
    project = opened()
    link = f"/invitation/{project.store.people.invite()}"
    for _ in range(3):  # programs that preview links open them, too
        assert "You are invited" in project.visitor().get(link).text
    first, second = project.visitor(), project.visitor()
    first.get(link), second.get(link)
    assert first.post(link, {"name": "Ann"}).status_code == 303
    answer = second.post(link, {"name": "Bob"})
    assert answer.status_code == 404 and "wrong, used or too old" in answer.text
    assert [person.name for person in project.store.people.all()] == ["Ann"]


def test_a_link_with_a_name_lets_that_person_in_again_and_changes_no_password(opened: Open) -> None:
    project = opened()
    link = f"/invitation/{project.store.people.invite(name='Ann')}"
    for password in (PASSWORD, "another password"):
        visitor = project.visitor()
        assert "Ann" in visitor.get(link).text
        assert visitor.post(link, {"name": "Eve", "password": password}).status_code == 303
    visitor.get("/logout")
    later = project.visitor()
    later.get("/login")
    assert later.post("/login", {"name": "Ann", "password": PASSWORD}).status_code == 303
    assert [person.name for person in project.store.people.all()] == ["Ann"]


def test_an_admin_comes_in_with_a_password_only(opened: Open) -> None:
    project = opened()
    link = f"/invitation/{project.store.people.invite('admin')}"
    visitor = project.visitor()
    visitor.get(link)
    answer = visitor.post(link, {"name": "Ann", "password": "short"})
    assert answer.status_code == 400 and "A password has 10 to 256 characters." in answer.text
    assert visitor.post(link, {"name": "Ann", "password": PASSWORD}).headers["location"] == "/admin"


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\u202eb", "Ann"])
def test_a_name_that_cannot_be_used_gets_a_sentence(opened: Open, name: str) -> None:
    project = opened()
    project.store.people.add("Ann")
    link = f"/invitation/{project.store.people.invite()}"
    visitor = project.visitor()
    visitor.get(link)
    answer = visitor.post(link, {"name": name})
    assert answer.status_code == 400 and ("is no name" in answer.text or "choose another name" in answer.text)


@pytest.mark.parametrize("name", ['O\'Brien "Bob"', "<b>Ann</b>", "王小明", "a&b; --", "{{ 7 * 7 }}"])
def test_a_name_with_quotes_is_shown_as_it_is(opened: Open, name: str) -> None:
    project = opened()
    project.person(name)
    admin = project.person("Root", admin=True)
    for path in ("/admin", "/admin/people"):
        page = admin.get(path).text
        assert f"<bdi>{escape(name)}</bdi>" in page and "<b>Ann" not in page
    assert project.store.people.all()[0].name == name


def test_who_is_shut_out_is_out_at_once(opened: Open) -> None:
    project = opened()
    ann, root = project.person("Ann"), project.person("Root", admin=True)
    root.get("/admin/people")
    number = str(project.store.people.all()[0].id)
    assert "shut out" in root.post(f"/admin/people/{number}", {"active": "no"}).text
    assert ann.get("/").headers["location"] == "/login"
    ann.get("/login")
    assert ann.post("/login", {"name": "Ann", "password": PASSWORD}).status_code == 403
    root.post(f"/admin/people/{number}", {"active": "yes"})
    assert ann.post("/login", {"name": "Ann", "password": PASSWORD}).status_code == 303
    mine = str(project.store.people.all()[1].id)
    assert "You cannot shut yourself out." in root.post(f"/admin/people/{mine}", {"active": "no"}).text
    assert root.post("/admin/people/999", {"active": "no"}).status_code == 404


def test_logging_out_ends_every_session_of_this_person_and_nobody_elses(opened: Open) -> None:
    project = opened()
    ann, bob = project.person("Ann"), project.person("Bob")
    copied = Visitor(project.app)
    copied.client.cookies.update(ann.client.cookies)
    assert copied.get("/").status_code == ann.get("/").status_code == 200
    assert ann.post("/logout").headers["location"] == "/login"
    assert copied.get("/").headers["location"] == "/login"
    task = {"kind": "all_bad", "key": "k", "task": "1"}
    assert copied.post("/judgements", task).status_code == 401  # with the token of before
    assert project.store.judgements.all() == [] and bob.get("/").status_code == 200
    ann.get("/login")
    assert ann.post("/login", {"name": "Ann", "password": PASSWORD}).status_code == 303
    assert ann.get("/").status_code == 200


def test_logging_out_twice_leads_to_the_login_both_times(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    ann.get("/")
    kept, before = dict(ann.client.cookies), project.store.people.all()[0].session
    for _ in range(2):  # a double click sends the form again, with the cookie and the token of before
        answer = ann.post("/logout")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        ann.client.cookies.update(kept)
    assert project.store.people.all()[0].session == before + 1


def test_who_was_shut_out_comes_back_by_logging_in_only(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    for active in (False, True):
        project.store.people.set_active("Ann", active)
        assert ann.get("/").headers["location"] == "/login"
    ann.get("/login")
    assert ann.post("/login", {"name": "Ann", "password": PASSWORD}).status_code == 303


def test_a_cookie_of_an_older_version_is_nobodys(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    sessions = project.site.sessions
    for said in ([1, "0123456789abcdef"], [1, True], [1, 0, 0], []):
        ann.client.cookies.clear()
        ann.client.cookies.set(sessions.name, str(sessions._signed.dumps(said)))
        assert ann.get("/").headers["location"] == "/login", said


def test_a_new_password_ends_all_other_sessions(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    other = project.visitor()
    other.get("/login")
    other.post("/login", {"name": "Ann", "password": PASSWORD})
    ann.get("/account")
    for old, new, said in [("wrong", "a new password", "is not right"), (PASSWORD, "short", "10 to 256")]:
        answer = ann.post("/account", {"old": old, "password": new})
        assert answer.status_code == 400 and said in answer.text
    assert "The new password is kept" in ann.post("/account", {"old": PASSWORD, "password": "a new password"}).text
    assert ann.get("/").status_code == 200
    assert other.get("/").headers["location"] == "/login"


def test_an_admin_makes_links_that_are_shown_once(opened: Open) -> None:
    project = opened()
    root = project.person("Root", admin=True)
    root.get("/admin/people")
    page = root.post("/admin/people", {"name": "O'Neil", "role": "annotator", "days": "3"}).text
    link = page.split(f'value="{HERE}')[1].split('"')[0]
    assert link.startswith("/invitation/") and link not in root.get("/admin/people").text
    visitor = project.visitor()
    assert "O&#39;Neil" in visitor.get(link).text
    for days, role in (("0", "annotator"), ("5", "owner")):
        answer = root.post("/admin/people", {"name": "", "role": role, "days": days})
        assert answer.status_code == 400 and "for an annotator or an admin, for 1 to 365 days" in answer.text
    assert root.post("/admin/people", {"name": "", "role": "annotator", "days": "x"}).status_code == 400


def test_a_form_of_another_site_is_refused(opened: Open) -> None:
    ann = opened().person("Ann")
    task = ann.task()
    for headers in ({"Origin": "https://evil.test"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = ann.post("/judgements", {**task, "kind": "all_bad"}, headers=headers)
        assert (answer.status_code, answer.text[:42]) == (403, "this was sent by a page of another site; o")
    assert ann.post("/judgements", {**task, "kind": "all_bad"}, headers={"Origin": HERE}).status_code == 303


def test_a_form_without_its_token_is_refused(opened: Open) -> None:
    project = opened()
    ann, bob = project.person("Ann"), project.person("Bob")
    task = ann.task()
    for token in ("", "0" * 64, bob.task()["csrf"], "ä"):
        answer = ann.post("/judgements", {**task, "csrf": token, "kind": "all_bad"})
        assert (answer.status_code, answer.text[:20]) == (403, "this form is from be")
    assert project.store.judgements.all() == []


def test_a_cookie_that_we_did_not_sign_is_nobodys(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    name = project.site.sessions.name
    good = ann.client.cookies[name]
    forged = Sessions(b"x" * 32).enter(project.store.people.all()[0]).cookie
    for cookie in (forged, good[:-1], good + "a", "", '"', "a.b.c"):
        visitor = Visitor(project.app)
        visitor.client.cookies.set(name, cookie)
        assert visitor.get("/").headers["location"] == "/login"


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8100", "127.0.0.1.evil.test", ""])
def test_a_name_that_is_not_this_machines_is_not_answered(opened: Open, host: str) -> None:
    answer = opened().visitor().client.get("/login", headers={"Host": host})
    assert answer.status_code == 403 and answer.text.startswith("this server answers only under its own address")


def test_an_address_that_the_project_names_is_answered(opened: Open) -> None:
    project = opened(address="https://rank.example.org", host="0.0.0.0")
    for host, status in (("rank.example.org", 200), ("localhost", 200), ("evil.test", 403)):
        assert project.visitor().client.get("/login", headers={"Host": host}).status_code == status


def test_cookies_are_out_of_reach_and_travel_encrypted_where_pages_do(opened: Open) -> None:
    project = opened()
    cookie = project.visitor().client.get("/login").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    client = TestClient(project.app, base_url="https://127.0.0.1:8100")
    assert "; Secure" in client.get("/login").headers["set-cookie"]


def test_every_answer_forbids_scripts_and_sources_from_elsewhere(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    for path in ("/", "/login", "/nowhere", "/static/label.css", "/tasks/1/answers/0"):
        headers = ann.get(path).headers
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"


def test_a_body_that_is_too_large_or_no_form_is_refused(opened: Open) -> None:
    ann = opened().person("Ann")
    task = ann.task()
    big = ann.post("/judgements", {**task, "kind": "all_bad", "note": "x" * 200_000})
    assert big.status_code == 413 and "more than the 100000 bytes" in big.text
    chunks = ann.client.post(
        "/judgements",
        content=(b"x" * 50_000 for _ in range(4)),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert chunks.status_code == 413
    assert ann.client.post("/judgements", json=task).status_code == 415
    many = {f"f{n}": "x" for n in range(200)}
    assert ann.post("/judgements", many).text == "this form cannot be read; open the page again\n"


def test_languages_are_chosen_and_lead_nowhere_else(opened: Open) -> None:
    project = opened()
    visitor = project.visitor()
    assert "登录" in visitor.get("/login", headers={"Accept-Language": "zh-CN,en;q=0.5"}).text
    assert "Log in" in visitor.get("/login", headers={"Accept-Language": "fr, *;q=0.1"}).text
    for to in ("//evil.test", "https://evil.test", "/\\evil.test"):
        assert visitor.post("/language", {"language": "zh", "to": to}).headers["location"] == "/"
    assert visitor.post("/language", {"language": "zh", "to": "/help"}).headers["location"] == "/help"
    assert "登录" in visitor.get("/login").text
    assert "登录" in opened(language="zh").visitor().get("/login", headers={"Accept-Language": "en"}).text


def test_a_secret_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".project.secret"
    assert secret_in(path) == secret_in(path) and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read this secret; chmod 600 it"):
        secret_in(path)
    path.chmod(0o600)
    for text in ("no hex", "abcd"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holds no secret; delete the file to get another"):
            secret_in(path)
    with pytest.raises(ConfigError, match="No such file or directory; delete"):
        secret_in(tmp_path / "nowhere" / "secret")
