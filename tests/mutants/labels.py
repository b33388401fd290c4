"""Faults in the database of judgements, in reading it, and in what is imported and exported."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

LEASES = "onebase/labels/leases.py"
JUDGEMENTS = "onebase/labels/judgements.py"
PEOPLE = "onebase/labels/people.py"
TASKS = "onebase/labels/tasks.py"
DATABASE = "onebase/labels/database.py"
URLS = "onebase/labels/urls.py"
READING = "onebase/reading/databases.py"
INPUTS = "onebase/labeling/inputs.py"
OUTPUTS = "onebase/labeling/outputs.py"

TEST_STORE = "tests/labels/test_store.py"
TEST_DATABASE = "tests/labels/test_database.py"
DISTURBED = "tests/labels/test_disturbed.py"
TEST_READING = "tests/labels/test_reading.py"
FILES = "tests/labels/test_import_export.py"

MUTANTS = [
    Mutant(LEASES, "leases.c.person_id == person_id, leases.c.until > moment)",
           "leases.c.person_id == person_id, leases.c.until > moment + timedelta(days=99))",
           "a second tab gets another task",
           f"{TEST_STORE}::test_a_second_tab_draws_no_gold_question_in_place_of_the_open_task[sqlite]"),
    Mutant(LEASES, "return judged.scalar_subquery() + leased.scalar_subquery()", "return judged.scalar_subquery()",
           "a lease takes no place", f"{TEST_STORE}::test_a_task_goes_to_as_many_people_as_its_overlap"),
    Mutant(JUDGEMENTS, "withdrawn[:] = [last.id]", "withdrawn[:] = []",
           "an undo whose answer is lost withdraws two judgements",
           f"{DISTURBED}::test_an_answer_lost_after_the_commit_does_nothing_twice"),
    Mutant(LEASES, 'judgements.c.kind != "skipped",\n            in_force(),', "in_force(),",
           "a skipped task keeps its place", f"{TEST_STORE}::test_a_skipped_task_is_for_someone_else"),
    Mutant(LEASES, "or_(tasks.c.gold.is_not(None), _taken(person_id, now) < tasks.c.overlap)",
           "_taken(person_id, now) < tasks.c.overlap", "a gold question goes to one person",
           f"{TEST_STORE}::test_gold_questions_are_mixed_in_at_their_share_and_go_to_everybody"),
    Mutant(JUDGEMENTS, "undone += not connection", "undone += 0 and not connection",
           "what was undone is left out without a word",
           f"{TEST_STORE}::test_a_ranking_from_elsewhere_that_was_undone_stays_undone"),
    Mutant(JUDGEMENTS, 'key = f"brought:{one.task_key}"', 'key = f"brought:{one.task_key}:{connection.info}:{id(one)}"',
           "what was undone comes back with the next import",
           f"{TEST_STORE}::test_a_ranking_from_elsewhere_that_was_undone_stays_undone"),
    Mutant(JUDGEMENTS, "late = lease.until <= moment and", "late = lease.until > moment and",
           "a judgement in time is late",
           f"{TEST_STORE}::test_a_lease_that_ends_gives_the_task_to_the_next_and_loses_no_judgement"),
    Mutant(TASKS, "sorted(task.answers)", "list(task.answers)", "a task in another order is another task",
           f"{TEST_STORE}::test_a_task_is_added_once_whatever_the_order_of_its_answers"),
    Mutant(PEOPLE, 'values = {**values, "session": people.c.session + 1}', "values = {**values}",
           "no session ever ends", "tests/labeling/test_entering.py::test_a_new_password_ends_all_other_sessions"),
    Mutant(PEOPLE, "ends_sessions=not active", "ends_sessions=False",
           "who was shut out is back without logging in",
           "tests/labeling/test_entering.py::test_who_was_shut_out_comes_back_by_logging_in_only"),
    Mutant(PEOPLE, "or_(invitations.c.name.is_not(None), invitations.c.used_by.is_(None))", "invitations.c.id > 0",
           "an open invitation lets everybody in",
           f"{TEST_STORE}::test_an_invitation_lets_one_person_in_until_it_expires"),
    Mutant(PEOPLE, "invitations.c.until > now, usable", "usable", "an invitation never expires",
           f"{TEST_STORE}::test_an_invitation_lets_one_person_in_until_it_expires"),
    Mutant(PEOPLE, '"token_hash": hashed(token), "name"', '"token_hash": token, "name"',
           "tokens of invitations stand in the database", f"{TEST_STORE}::test_no_token_stands_in_the_database"),
    Mutant(DATABASE, '"BEGIN IMMEDIATE" if', '"BEGIN" if',
           "two writers of SQLite check before either writes",
           f"{TEST_DATABASE}::test_several_openings_at_once_make_one_database[sqlite]"),
    Mutant(DATABASE, '"synchronous=FULL", ', "",
           "SQLite does not wait for the disk", f"{TEST_DATABASE}::test_sqlite_is_durable_and_lets_readers_read"),
    Mutant(DATABASE, "if version is not None and version not in", "if version is None and version not in",
           "a newer version's database is changed",
           f"{TEST_DATABASE}::test_a_newer_or_unfinished_version_is_named[sqlite]"),
    Mutant(URLS, "{':***' if colon else ''}", "{user[len(name):]}",
           "a URL is shown with its password", f"{TEST_DATABASE}::test_names_of_databases"),
    Mutant(READING, "if given and task.gold is None:", "if given:",
           "gold questions are trained on", f"{TEST_READING}::test_a_task_with_rankings_is_one_row[sqlite]"),
    Mutant(INPUTS, "for answer in stored[key].answers", "for answer in task.answers",
           "imported grades go to the answers of another order",
           f"{FILES}::test_rankings_find_the_answers_of_a_task_that_has_them_in_another_order"),
    Mutant(OUTPUTS, "grades[first] >= grades[second] else", "grades[first] <= grades[second] else",
           "exported pairs are reversed",
           f"{FILES}::test_pairs_say_which_annotators_agree_and_ties_have_no_margin"),
    Mutant(OUTPUTS, 'record |= {"tie": True, "margin": 0.0}', "pass",
           "a tie is exported as a preference",
           f"{FILES}::test_pairs_say_which_annotators_agree_and_ties_have_no_margin"),
]  # fmt: skip
