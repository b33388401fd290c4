"""Mutants of what is for GPUs: block masks, decoding from recorded steps, bases in 4 bits, what waits for a device."""

from tests.mutants.mutant import Mutant

FLEX = "onebase/engines/flex.py"
FLAT = "onebase/engines/flat.py"
CAPTURED = "onebase/engines/captured.py"
PROJECTION = "onebase/engines/projection.py"
ENGINE = "onebase/engines/engine.py"
EXACTNESS = "onebase/engines/exactness.py"
ROWS = "onebase/data/rows.py"
RUNNING = "onebase/sampling/running.py"
LISTS = "onebase/training/lists.py"
PASSES = "onebase/engines/passes.py"

TEST_FLEX = "tests/engines/test_flex.py"
TEST_CAPTURED = "tests/engines/test_captured.py"
BLOCKS = f"{TEST_FLEX}::test_the_blocks_hold_every_allowed_pair_and_no_block_is_computed_in_vain"
READS = f"{TEST_FLEX}::test_flex_attention_reads_what_the_tree_attention_of_the_cpu_reads"
MODELS = f"{TEST_FLEX}::test_a_model_under_flex_attention_gives_the_same_log_probs_values_and_gradients"
KERNEL = f"{TEST_FLEX}::test_the_kernel_is_used_only_if_it_gives_what_plain_products_give"
ROWS_GO = f"{TEST_CAPTURED}::test_rows_come_and_go_and_every_state_is_that_of_the_ordinary_decoding"
SAMPLES = f"{TEST_CAPTURED}::test_samples_drawn_several_tokens_at_a_time_from_graphs_are_the_same"

MUTANTS = [
    # -------------------------------------------------------------------------------------------------------- flex
    Mutant(FLEX, "(branch[key] == 0) | (branch[key] == branch[query])", "branch[key] <= branch[query]",
           "a branch sees the branches before it in the kernel", READS),
    Mutant(FLEX, "seen = (key <= query) & same", "seen = same",
           "a token sees the future in the kernel", READS),
    Mutant(FLEX, "| (last_prompt[key] >= trees[:, 0][query])", "",
           "the block of a prompt is skipped for completions far from it", f"{BLOCKS} {READS}"),
    Mutant(FLEX, "(parts[:, -1][key] >= parts[:, 0][query]) |", "",
           "a long completion does not see its own beginning", f"{BLOCKS} {READS}"),
    Mutant(FLEX, "whole = earlier & one_tree & (one_part | prompts.all(1)[key])", "whole = earlier & one_tree",
           "blocks of other branches are taken whole", f"{BLOCKS} {READS}"),
    Mutant(FLEX, "        whole = torch.zeros_like(whole)\n", "        pass\n",
           "a block beyond the window is taken whole", BLOCKS),
    Mutant(FLEX, "score_mod=None if softcap is None else _capped(softcap)", "score_mod=None",
           "scores are not capped", MODELS),
    Mutant(FLEX, "position[query] - position[key] < window", "query - key < window",
           "a window counts columns", MODELS),
    Mutant(FLEX, "except Exception as error:  # whatever a", "except ValueError as error:  # whatever a",
           "a kernel that does not compile ends the run", KERNEL),
    Mutant(FLEX, "        config._attn_implementation = before\n", "        pass\n",
           "a model keeps the kernel after a pass", f"{TEST_FLEX}::test_only_the_models_own_attention_is_left_behind"),
    Mutant(FLAT, "if window is not None:", "if window is None:", "windows are left out without padding", MODELS),
    Mutant(FLAT, "base.recomputing(lambda: attending_with_flex(base.model))", "base.recomputing()",
           "layers are recomputed with another attention", MODELS),
    Mutant(ENGINE, "return base.flex and not (soft_capped and base.recomputes)", "return base.flex",
           "soft caps are traced while a layer is recomputed", MODELS),
    Mutant(EXACTNESS, 'return "" if difference <= tolerance else f"under', 'return "" if difference <= 99 else f"under',
           "a model is run without padding whatever that gives",
           f"{TEST_FLEX}::test_a_model_is_run_end_to_end_only_if_that_gives_the_same_log_probs"),
    Mutant(ROWS, "columns.clamp(max=batch.longest - 1)", "columns.clamp(max=batch.longest - 2)",
           "positions of padding end before those of tokens", "tests/data/test_rows.py"),
    # ---------------------------------------------------------------------------------------------------- decoding
    Mutant(CAPTURED, "columns[None, :] > lengths[:, None]", "columns[None, :] >= lengths[:, None]",
           "a recorded step does not see its own token", ROWS_GO),
    Mutant(CAPTURED, "hidden = hidden.clone()  # the next", "pass  # the next",
           "the next replay changes states that are still read",
           f"{TEST_CAPTURED}::test_a_state_outlives_the_next_replay"),
    Mutant(CAPTURED, "columns = -(-(max(counts) + 1) // COLUMNS) * COLUMNS", "columns = max(counts)",
           "a recorded step reads a column too few", ROWS_GO),
    Mutant(CAPTURED, "self._ids[: len(ids)] = ids", "self._ids[: len(ids) - 1] = ids[:-1]",
           "the last row reads an old token", ROWS_GO),
    Mutant(RUNNING, "                if row.is_over:\n                    continue\n", "",
           "a sample goes on behind its end", SAMPLES),
    Mutant(RUNNING, "self._numbers[:, len(self.ids)]", "self._numbers[:, 0]",
           "tokens drawn at once share a random number", SAMPLES),
    # ------------------------------------------------------------------------------------- 4 bits, and what is laid
    Mutant(PROJECTION, "yield side, weight if isinstance(weight, Tensor) else weight.expanded()",
           "yield side, weight if isinstance(weight, Tensor) else weight.expanded().flip(0)",
           "rows of a 4-bit weight change places",
           "tests/engines/test_decoder.py::test_a_base_in_4_bits_packs_and_gives_what_transformers_gives"),
    Mutant(LISTS, "lengths = [sum(counted) for e in examples for counted in e.counted or",
           "lengths = [len(counted) for e in examples for counted in e.counted or",
           "lengths of answers hold tokens that are not counted",
           "tests/recipes/test_dpo.py::test_what_the_losses_read_of_a_list_counts_counted_tokens_and_names_its_first_best_answer"),
    Mutant(PASSES, "flat.split([sizes[i] for i in mine])", "flat.split([sizes[i] for i in sorted(mine)][::-1])",
           "numbers of examples go to their neighbours", "tests/engines/test_passes.py"),
]  # fmt: skip
