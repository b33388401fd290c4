"""Faults in the server and in the running batch."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

RUNNING = "onebase/sampling/running.py"
TEXT = "onebase/serving/text.py"
WORKER = "onebase/serving/worker.py"
CHOICE = "onebase/serving/choice.py"
READER = "onebase/serving/reader.py"
GATE = "onebase/serving/gate.py"
WEB_REQUESTS = "onebase/web/requests.py"
ROLES = "onebase/serving/roles.py"
SCORING = "onebase/serving/scoring.py"

TEST_TEXT = "tests/serving/test_text.py"
REQUESTS = "tests/serving/test_requests.py"
BAD = f"{REQUESTS}::test_a_bad_request_gets_one_sentence_in_openais_shape"
JOINING = "tests/sampling/test_running.py"
MIXED = f"{REQUESTS}::test_answers_of_mixed_roles_prompts_and_seeds_are_the_same_together_as_one_by_one"
KEY = f"{REQUESTS}::test_a_key_is_asked_for_where_models_answer_and_compared_whole"
DEFAULTS = f"{REQUESTS}::test_a_roles_own_defaults_hold_where_a_request_says_nothing"
CLIENT = "tests/serving/test_openai_client.py"

MUTANTS = [
    Mutant(RUNNING, "numbers[slots], sampling)", "numbers[slots], self._groups[0][0])",
           "every row is drawn with the settings of the first", JOINING),
    Mutant(RUNNING, "draw(logits[slots], numbers[slots], ", "draw(logits[slots], numbers[: len(slots)], ",
           "a group of rows draws by other rows' numbers", JOINING),
    Mutant(RUNNING, "plain = logits[slots].log_softmax(-1)", "plain = logits[: len(slots)].log_softmax(-1)",
           "log-probs are told of other rows", JOINING),
    Mutant(TEXT, "if text.endswith(INCOMPLETE) or", "if",
           "half a character is handed out", TEST_TEXT),
    Mutant(TEXT, "kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)", "kept = 0",
           "the beginning of a stop string is handed out", TEST_TEXT),
    Mutant(TEXT, "text, self._held = self._held[: min(found)]", "text, self._held = self._held[: max(found)]",
           "the text ends at the last stop string", TEST_TEXT),
    Mutant(TEXT, "self._held = self._held.lstrip()", "pass",
           "blanks before an answer stay", TEST_TEXT),
    Mutant(CHOICE, "if not ends:  # the end token is no text", "if True:",
           "the end token is part of the text", "tests/serving/test_choice.py"),
    Mutant(WORKER, "batch.drop([row for row in finished if not row.is_over])", "pass",
           "a row that a stop string ended is drawn on", MIXED),
    Mutant(WORKER, "rows = [row for row, choice in self._choices.items() if choice.job.gone]", "rows: list[Row] = []",
           "rows of clients that went away stay", f"{REQUESTS}::test_a_client_that_goes_away_frees_its_rows_at_once"),
    Mutant(WORKER, "if self._role != role:", "if not self._role:",
           "every role answers as the first", f"{CLIENT}::test_an_answer_is_that_of_chat_and_says_who_gave_it"),
    Mutant(WORKER, "if self.num_waiting + count > most_waiting and self.num_waiting:", "if False:",
           "any number of answers may wait", f"{REQUESTS}::test_more_than_may_wait_is_refused_and_who_waits_is_served"),
    Mutant(WORKER, "{self._choices.pop(row).job for row in rows} | set(self._entering)",
           "{self._choices.pop(row).job for row in rows}",
           "answers whose prompt could not be read wait for ever",
           f"{REQUESTS}::test_a_step_that_fails_ends_its_answers_with_an_error_and_the_server_goes_on"),
    Mutant(READER, "if asked is not None and asked > room:", "if False:",
           "a billion tokens may be asked for", BAD),
    Mutant(READER, "if served.defaults.system is not None and", "if False and",
           "a role's system turn is left out", DEFAULTS),
    Mutant(READER, "return getattr(usual, name) if given is None else given", "return getattr(usual, name)",
           "a request's own settings are ignored", DEFAULTS),
    Mutant(READER, "if room < 1:", "if room < -10**9:",
           "a prompt longer than the context is let through", BAD),
    Mutant(WEB_REQUESTS, "if size > most_bytes:", "if False:",
           "a body of undeclared length may be of any size",
           f"{REQUESTS}::test_a_body_that_does_not_say_its_length_is_measured"),
    Mutant(GATE, "hmac.compare_digest(key.strip(), self._key)", "self._key.startswith(key.strip())",
           "the beginning of a key is enough", KEY),
    Mutant(GATE, "if self._local and not is_local(", "if False and not is_local(",
           "a web page may send requests under a name of its own", BAD),
    Mutant(ROLES, "hashlib.file_digest(file, \"sha256\").hexdigest()[:8]", "\"00000000\"",
           "all versions are the same", f"{CLIENT}::test_the_base_and_every_policy_is_listed_with_its_version"),
    Mutant(SCORING, "1 + sum(other > score for other in numbers)", "1 + sum(other < score for other in numbers)",
           "the worst completion ranks first",
           f"{CLIENT}::test_scores_are_those_of_the_reward_role_normalised_and_ranked"),
]
