"""Faults in the database of judgements, in reading it, and in what is imported and exported."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

STORE = "onebase/labels/store.py"
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
    Mutant(STORE, "leases.c.person_id == person_id, leases.c.until > moment)",
           "leases.c.person_id == person_id, leases.c.until > moment + timedelta(days=99))",
           "a second tab gets another task",
           f"{TEST_STORE}::test_a_second_tab_draws_no_gold_question_in_place_of_the_open_task[sqlite]"),
    Mutant(STORE, "return judged.scalar_subquery() + leased.scalar_subquery()", "return judged.scalar_subquery()",
           "a lease takes no place", f"{TEST_STORE}::test_a_task_goes_to_as_many_people_as_its_overlap"),
    Mutant(STORE, "withdrawn[:] = [last.id]", "withdrawn[:] = []",
           "an undo whose answer is lost withdraws two judgements",
           f"{DISTURBED}::test_an_answer_lost_after_the_commit_does_nothing_twice"),
    Mutant(STORE, 'judgements.c.kind != "skipped",\n            _in_force(),', "_in_force(),",
           "a skipped task keeps its place", f"{TEST_STORE}::test_a_skipped_task_is_for_someone_else"),
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
