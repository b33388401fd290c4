"""Faults in what leaves: merged models, adapters for servers, cards and uploads."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MERGE = "onebase/exporting/merge.py"
VERIFY = "onebase/exporting/verify.py"
GO = "onebase/exporting/go_template.py"
CARD = "onebase/exporting/card.py"
PUSH = "onebase/exporting/push.py"
GGUF = "onebase/exporting/gguf.py"
TEST_MERGE = "tests/exporting/test_merge.py"
TEST_EXPORT = "tests/exporting/test_export.py"
TEST_GO = "tests/exporting/test_go_template.py"
TEST_CARD = "tests/exporting/test_card.py"
TEST_PUSH = "tests/exporting/test_push.py"
WRONG = f"{TEST_MERGE}::test_a_wrong_merge_is_refused_with_the_figures_and_leaves_nothing"

MUTANTS = [
    Mutant("onebase/models/base.py", "tuner.merge_and_unload(adapter_names=[adapter])", "tuner.unload()",
           "a merge leaves the adapter out",
           f"{TEST_MERGE}::test_plain_transformers_reads_a_merged_policy_as_the_role"),
    Mutant(VERIFY, "if not self.logprob <= limits.logprob:", "if self.logprob < 0:",
           "a policy is not checked", WRONG),
    Mutant(VERIFY, 'return "" if self.largest <= limit else', 'return "" if True else',
           "a classifier is not checked", WRONG),
    Mutant(VERIFY, "    if moved > LIMITS[dtype].logprob:\n        return []", "    return []",
           "a check that can tell nothing is not said to be blind",
           f"{TEST_MERGE}::test_a_role_that_changes_next_to_nothing_is_merged_with_a_line_that_the_check_is_blind"),
    Mutant(MERGE, "settings.eos_token_id = ends", "settings.eos_token_id = stops[0]",
           "a merged model stops at one end token only",
           f"{TEST_MERGE}::test_every_end_token_that_the_role_stops_at_ends_the_merged_models_answers"),
    Mutant(MERGE, "if needed > free:", "if needed > free + 10**12:",
           "a disk that is too small is found out by filling it",
           f"{TEST_MERGE}::test_a_disk_that_is_too_small_is_reported_before_anything_is_written"),
    Mutant(MERGE, 'if scalar.pooling != "last":', "if False:",
           "a reward role that averages becomes a classifier that does not",
           f"{TEST_MERGE}::test_what_cannot_be_a_plain_model_is_refused"),
    Mutant("onebase/models/classifier.py", "tokenizer.pad_token_id = config.pad_token_id = harmless_padding(tokenizer)",
           "pass", "a classifier does not know its padding",
           "tests/models/test_role_files.py::test_a_reward_trained_in_full_is_saved_as_a_classifier_that_scores_the_same"),
    Mutant("onebase/exporting/vllm.py", "if rank >= rank_of(source)", "if rank > rank_of(source)",
           "a rank that vLLM has is rounded up",
           f"{TEST_EXPORT}::test_the_rank_limit_is_the_next_that_vllm_has"),
    Mutant(GGUF, "    check_vocabulary(file, load_tokenizer(str(merged)))\n", "",
           "nobody looks at the tokens in a GGUF file",
           f"{TEST_EXPORT}::test_a_spoilt_gguf_file_is_refused_and_nothing_is_left"),
    Mutant(GO, "for k in (1, 3, 5))", "for k in (1,))",
           "a translated template is tried on one turn only",
           f"{TEST_GO}::test_what_go_cannot_write_is_said_not_to_be_translatable"),
    Mutant(CARD, "if Path(source.folder).resolve().parent != run.folder:", "if False:",
           "a checkpoint boasts of its run's results",
           f"{TEST_CARD}::test_results_of_a_run_are_not_those_of_its_checkpoints"),
    Mutant(PUSH, "private=not public", "private=public",
           "what is uploaded is public by default",
           f"{TEST_PUSH}::test_a_role_is_uploaded_whole_and_private_with_a_card_after_its_files_were_listed"),
    Mutant(PUSH, "if path.suffix in PICKLED:", "if False:",
           "pickled files are uploaded",
           f"{TEST_PUSH}::test_folders_without_a_model_or_with_files_that_run_code_are_refused"),
]  # fmt: skip
