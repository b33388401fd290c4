"""Mutants of `onebase/labeling`: who gets in, what a form says, how answers are shown, and the report on agreement."""

from tests.mutants.mutant import Mutant

GUARD = "onebase/labeling/guard.py"
SESSIONS = "onebase/labeling/sessions.py"
PASSWORDS = "onebase/labeling/passwords.py"
ENTERING = "onebase/labeling/entering.py"
RANKING = "onebase/labeling/ranking.py"
RENDERING = "onebase/labeling/rendering.py"
AGREEMENT = "onebase/labeling/agreement.py"

ENTRY = "tests/labeling/test_entering.py"
RANKED = "tests/labeling/test_ranking.py"
REPORT = "tests/labeling/test_agreement.py"

MUTANTS = [
    Mutant(GUARD, "return person if person.session == session.number else None", "return person",
           "a copied cookie outlives the logout",
           f"{ENTRY}::test_logging_out_ends_every_session_of_this_person_and_nobody_elses"),
    Mutant(GUARD, "if foreign or headers.get(", "if headers.get(",
           "a form of another origin is taken", f"{ENTRY}::test_a_form_of_another_site_is_refused"),
    Mutant(GUARD, '(path + "/").startswith("/admin/")', 'path.startswith("/admin/")',
           "anybody sees the page of progress", f"{ENTRY}::test_pages_for_admins_are_shown_to_nobody_else"),
    Mutant(GUARD, "if not hmac.compare_digest(token.encode(), session.token.encode()):", "if False:",
           "a form needs no token", f"{ENTRY}::test_a_form_without_its_token_is_refused"),
    Mutant(GUARD, "or path == LEAVING else", "else", "a second logout is an error",
           f"{ENTRY}::test_logging_out_twice_leads_to_the_login_both_times"),
    Mutant(SESSIONS, "all(type(number) is int for number in said)", "True",
           "an older version's cookie ends in an error", f"{ENTRY}::test_a_cookie_of_an_older_version_is_nobodys"),
    Mutant(PASSWORDS, "return kept is not None", "return True",
           "who has no password comes in with nobody's",
           f"{ENTRY}::test_an_unknown_name_takes_as_long_as_a_wrong_password"),
    Mutant(PASSWORDS, "attempts[0] <= now - self._seconds", "False",
           "attempts are never forgotten", f"{ENTRY}::test_attempts_are_forgotten_with_time_and_after_the_right_one"),
    Mutant(ENTERING, "or not right or not person.active:", "or not right:",
           "who was shut out logs in again", f"{ENTRY}::test_who_is_shut_out_is_out_at_once"),
    Mutant(ENTERING, "if password and entered.password is None:", "if password:",
           "a link changes a password",
           f"{ENTRY}::test_a_link_with_a_name_lets_that_person_in_again_and_changes_no_password"),
    Mutant(ENTERING, 'to.startswith("/") and not to.startswith(("//", "/\\\\"))', 'to.startswith("/")',
           "choosing a language leads elsewhere", f"{ENTRY}::test_languages_are_chosen_and_lead_nowhere_else"),
    Mutant(RANKING, "ties = place > 0 and number in tied", "ties = False",
           "ties are lost", f"{RANKED}::test_places_become_grades_in_the_tasks_order"),
    Mutant(RANKING, "if ties else count - place", "if ties else place + 1",
           "the best answer gets the lowest grade", f"{RANKED}::test_places_become_grades_in_the_tasks_order"),
    Mutant(RANKING, "return task if lease is not None and lease.task.id == task.id else None", "return task",
           "anybody reads the answers of every task",
           f"{RANKED}::test_an_answer_of_two_megabytes_is_cut_with_a_link_to_all_of_it"),
    Mutant(RENDERING, "min(6, 3 + int(", "min(6, int(", "an answer's heading stands above the page's",
           f"{RANKED}::test_markdown_is_shown_and_its_headings_stand_below_the_pages"),
    Mutant(AGREEMENT, "last = {(one.task_id, one.person): one for one in judgements",
           "last = {(one.task_id, one.person): one for one in reversed(judgements)",
           "the first of several judgements counts", f"{REPORT}::test_the_last_of_several_judgements_counts"),
    Mutant(AGREEMENT, "(~numpy.isnan(pairs.outcomes)).sum(1) > 1", "(~numpy.isnan(pairs.outcomes)).sum(1) > 0",
           "a task that one person ranked is shared", REPORT),
    Mutant(AGREEMENT, "numpy.where(right == 0.5, numpy.nan, right)", "right",
           "gold answers of equal grades count", REPORT),
]  # fmt: skip
