"""Mutants beyond one process: the launcher, blocks and actors, jobs, and rollouts that a server draws."""

from tests.mutants.mutant import Mutant

LAUNCH = "onebase/distributed/launch.py"
ACTORS = "onebase/distributed/ray_actors.py"
BLOCKS = "onebase/tools/blocks.py"
SCORE = "onebase/tools/score.py"
CLEANING = "onebase/tools/data_clean.py"
JUDGED = "onebase/quality/judged.py"
HERE = "onebase/submitting/here.py"
JOB = "onebase/submitting/job.py"
RAY = "onebase/submitting/ray_train.py"
RENDER = "onebase/submitting/render.py"
VLLM = "onebase/sampling/vllm.py"
PUBLISHED = "onebase/sampling/published.py"
AHEAD = "onebase/sampling/ahead.py"
DELIVERY = "onebase/rollouts/delivery.py"

TEST_LAUNCH = "tests/distributed/test_launch.py"
TEST_CODES = f"{TEST_LAUNCH}::test_the_exit_code_is_that_of_the_process_that_failed_first"
TEST_MACHINES = f"{TEST_LAUNCH}::test_machines_that_meet_number_their_processes_and_keep_their_codes"
TEST_BLOCKS = "tests/tools/test_blocks.py"
TEST_DEALT = f"{TEST_BLOCKS}::test_a_block_is_the_same_read_in_order_or_by_its_number"
TEST_JUDGED = "tests/quality/test_judged.py"
TEST_HERE = "tests/submitting/test_here.py"
TEST_RAY = "tests/submitting/test_ray_train.py"
TEST_RENDER = "tests/submitting/test_render.py"
TEST_VLLM = "tests/sampling/test_vllm.py"
TEST_DELIVERY = "tests/rollouts/test_delivery.py"

MUTANTS = [
    Mutant(LAUNCH, "ended[1] not in {*ON_REQUEST, *SAYS_WHY}", "0",
           "a process that only lost another speaks for the run",
           f"{TEST_LAUNCH}::test_of_several_codes_that_of_the_process_that_says_why_counts"),
    Mutant(LAUNCH, "return 128 - code", "return -code",
           "a killed process has the code of its signal alone", TEST_CODES),
    Mutant(LAUNCH, "self.first, self.total = worker_group.workers[0].global_rank,", "self.first, self.total = 0,",
           "every machine counts its processes from 0", TEST_MACHINES),
    Mutant(LAUNCH, 'word.replace("$", "$$")', "word",
           "the launcher fills in what a word of the command means",
           f"{TEST_LAUNCH}::test_words_reach_the_processes_as_they_are"),
    Mutant(LAUNCH, "os.environ.update(before)", "pass",
           "the environment is lost after a launch", TEST_CODES),
    Mutant(LAUNCH, "if agent.failed.get(0) != code:", "if False:",
           "what another process said of its failure is lost", TEST_CODES),
    Mutant(ACTORS, "        while wanted in early:", "        if wanted in early:",
           "what came early is left behind", f"{TEST_BLOCKS}::test_what_comes_out_of_order_waits_for_its_turn"),
    Mutant(ACTORS, "        except OnebaseError as error:", "        except KeyError as error:",
           "an error of an actor reaches nobody as itself",
           f"{TEST_BLOCKS}::test_an_actor_hands_on_an_error_of_ours_and_no_other"),
    Mutant(ACTORS, "if there.get(name, 0) < count:", "if there.get(name, count) < count:",
           "a cluster without GPUs is waited for", f"{TEST_BLOCKS}::test_a_cluster_without_room_is_said"),
    Mutant(BLOCKS, "number * self.size : (number + 1) * self.size", "number * self.size : number * self.size + 1",
           "an actor reads the first row of its block alone", TEST_DEALT),
    Mutant(BLOCKS, "Source(self.files, columns=self.columns)", "Source(self.files)",
           "an actor reads rows by their own keys", TEST_DEALT),
    Mutant(BLOCKS, "replace(row, notes=())", "replace(row, notes=(), answers=())",
           "answers that changed are taken for those read first",
           f"{TEST_BLOCKS}::test_rows_that_changed_since_they_were_read_first_are_not_taken_for_them"),
    Mutant(BLOCKS, 'rows = hashlib.sha256("".join(digests).encode())', "rows = hashlib.sha256(b'')",
           "blocks of other rows are gone on from",
           f"{TEST_BLOCKS}::test_the_blocks_of_another_job_are_not_taken_for_these"),
    Mutant(BLOCKS, "if number in wanted:", "if True:",
           "finished blocks are computed again",
           f"{TEST_BLOCKS}::test_blocks_in_a_folder_give_the_same_lines_and_are_not_computed_twice"),
    Mutant(BLOCKS, 'found.update(f"{path.relative_to(folder)}\\n".encode())', "pass",
           "a role whose files are renamed is the same role",
           f"{TEST_BLOCKS}::test_what_is_kept_depends_on_the_names_and_contents_of_a_role"),
    Mutant(JUDGED, '[(b64decode(what), says) for what, says in said]', "[(b64decode(what), 0) for what, says in said]",
           "votes from elsewhere all say the same", TEST_JUDGED),
    Mutant(JUDGED, 'told["verdict"],', "None,",
           "rows judged elsewhere have no verdicts", TEST_JUDGED),
    Mutant(HERE, "if code != Stopped.exit_code or process.asked:", "if code != Stopped.exit_code:",
           "a run that was asked to stop is started again",
           f"{TEST_HERE}::test_a_stop_that_was_asked_for_is_handed_on_and_is_the_end"),
    Mutant(HERE, "if there == reached:", "if False:",
           "a run that stops where it began is started for ever",
           f"{TEST_HERE}::test_a_run_is_started_again_after_a_stop_that_saved"),
    Mutant(HERE, "return code if code >= 0 else 128 - code", "return code",
           "a killed job has a negative code",
           f"{TEST_HERE}::test_the_variables_reach_the_process_and_a_killed_one_has_a_shells_code"),
    Mutant(JOB, "if SECRET_SIGNS.search(name):", "if False:",
           "a secret's value is written into a file", f"{TEST_RENDER}::test_what_a_place_cannot_do_is_one_line"),
    Mutant(JOB, 'return bool(self._keys.get("on_finding") == "pause")', "return False",
           "a run that waits for a person is started again and again",
           f"{TEST_RENDER}::test_a_run_that_waits_for_a_person_is_not_submitted"),
    Mutant(RENDER, "if missing and not KEEPS_SECRETS & {to}:", "if False:",
           "a secret that is not there is noticed by the job", TEST_RENDER),
    Mutant(RAY, "len(set(last)) == 1 and any(codes)", "any(codes)",
           "a run that gets on is ended after two failures",
           f"{TEST_RAY}::test_a_failure_that_repeats_itself_without_a_newer_checkpoint_is_the_end"),
    Mutant(RAY, "one.code and one.start == len(self._reached)", "one.code",
           "the failure of an earlier start ends the run",
           f"{TEST_RAY}::test_the_board_finds_the_process_that_failed_first_for_a_reason_of_its_own"),
    Mutant(RAY, "(not final_code(one.code), one.at)", "one.at",
           "the first to fail counts, whatever it says",
           f"{TEST_RAY}::test_the_board_finds_the_process_that_failed_first_for_a_reason_of_its_own"),
    Mutant(VLLM, '"top_p": 1.0,', '"top_p": 0.5,',
           "a server draws from a truncated distribution",
           f"{TEST_VLLM}::test_tokens_and_log_probs_are_those_of_the_policy"),
    Mutant(VLLM, '"seed": seeds[place * samples_per_prompt]', '"seed": seeds[0]',
           "all prompts are drawn with one seed", TEST_VLLM),
    Mutant(VLLM, "if named != model:", "if False:",
           "an answer of another model is used", f"{TEST_VLLM}::test_an_answer_of_another_model_is_not_used"),
    Mutant(VLLM, "if not sample.ended and len(sample.ids) < sampling.max_new_tokens:", "if False:",
           "a completion that was cut off is used",
           f"{TEST_VLLM}::test_a_completion_that_stops_without_an_end_is_not_used"),
    Mutant(PUBLISHED, "if name not in self.server.models():\n            raise", "if False:\n            raise",
           "an adapter that is not listed is used", f"{TEST_VLLM}::test_an_adapter_that_is_never_loaded_is_noticed"),
    Mutant(PUBLISHED, "if rest_of_these > moved / 2:", "if False:",
           "a stale version is used", f"{TEST_VLLM}::test_a_stale_version_is_noticed_however_small_the_step"),
    Mutant(PUBLISHED, "max(self._noise, self._rounding * _size(ours))", "self._noise",
           "rounding of improbable tokens stops a run",
           f"{TEST_VLLM}::test_rounding_of_improbable_tokens_is_not_taken_for_another_version"),
    Mutant(PUBLISHED, "group.from_main(lambda: self._forget(before))", "pass",
           "older versions stay loaded",
           f"{TEST_VLLM}::test_a_version_has_a_fresh_name_and_the_one_before_is_unloaded"),
    Mutant(PUBLISHED, "if before is not None and before.digest == digest:", "if False:",
           "unchanged weights are published again", f"{TEST_VLLM}::test_unchanged_weights_are_not_published_again"),
    Mutant(AHEAD, "if under_way is not None and under_way[0] == draw:", "if under_way is not None:",
           "another draw is taken for the one that was begun",
           f"{TEST_VLLM}::test_what_is_drawn_ahead_is_of_the_policy_before_and_a_resumed_run_draws_it_again"),
    Mutant(AHEAD, "self._base.roles[DRAWS].version = self._base.roles[self._policy].version", "pass",
           "samples drawn ahead name no newer version",
           f"{TEST_VLLM}::test_what_is_drawn_ahead_is_of_the_policy_before_and_a_resumed_run_draws_it_again"),
    Mutant(AHEAD, "self._error = error", "pass",
           "an error ahead is lost", f"{TEST_VLLM}::test_an_error_ahead_is_raised_when_the_draw_is_asked_for"),
    Mutant(DELIVERY, "apart <= STOP and nats <= STOP_NATS", "apart <= STOP",
           "tokens that are all improbable are never compared", TEST_DELIVERY),
    Mutant(DELIVERY, "if index % self._every:", "if False:",
           "every rollout is compared",
           f"{TEST_DELIVERY}::test_only_every_few_rollouts_are_compared_and_staleness_is_always_told"),
    Mutant(DELIVERY, "self._base.roles[policy].version - version", "0",
           "staleness is always 0",
           f"{TEST_DELIVERY}::test_only_every_few_rollouts_are_compared_and_staleness_is_always_told"),
    Mutant(DELIVERY, "cap=MOST_WEIGHT", "cap=1e9",
           "importance weights have no cap", f"{TEST_DELIVERY}::test_the_weights_of_tokens_are_the_ratio_up_to_a_cap"),
]  # fmt: skip
