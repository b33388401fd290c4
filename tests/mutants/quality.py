"""Mutants of `onebase/quality`: what counts as a fault in data, what decides it, and coefficients of agreement."""

from tests.mutants.mutant import Mutant

AGREEMENT = "onebase/quality/agreement.py"
TEXTS = "onebase/quality/texts.py"
NEAR = "onebase/quality/near_duplicates.py"
ENCODINGS = "onebase/quality/encodings.py"
VOTES = "onebase/quality/votes.py"
LEAKS = "onebase/quality/leaks.py"
NOISE = "onebase/quality/noise.py"
CLEAN = "onebase/quality/clean.py"
SPLIT = "onebase/quality/split.py"
STATISTICS = "onebase/quality/statistics.py"
RELIABILITY = "onebase/quality/reliability.py"
ANNOTATORS = "onebase/quality/annotators.py"
DATA_CLEAN = "onebase/tools/data_clean.py"
ROW_DIFFICULTY = "onebase/tools/row_difficulty.py"

TEST_AGREEMENT = "tests/quality/test_agreement.py"
TEST_TEXTS = "tests/quality/test_texts.py"
TEST_NEAR = "tests/quality/test_near_duplicates.py"
TEST_ROWS = "tests/quality/test_row_filters.py"
TEST_VOTES = "tests/quality/test_votes.py"
TEST_LEAKS = "tests/quality/test_leaks.py"
TEST_NOISE = "tests/quality/test_noise.py"
TEST_CLEAN = "tests/quality/test_clean.py"
TEST_SPLIT = "tests/quality/test_split.py"
TEST_STATISTICS = "tests/quality/test_statistics.py"
TEST_RELIABILITY = "tests/quality/test_reliability.py"
TEST_ANNOTATORS = "tests/quality/test_annotators.py"
TEST_VERBS = "tests/tools/test_data_verbs.py"
TEST_ROW_DIFFICULTY = "tests/tools/test_row_difficulty.py"

MUTANTS = [
    # -------------------------------------------------------------------------------------------------- agreement
    Mutant(AGREEMENT, "number * (number - 1)", "number * number",
           "chance pairs a rating with itself", TEST_AGREEMENT),
    Mutant(AGREEMENT, " - counts[:, :, None] * numpy.eye(len(values))", "",
           "a rating is paired with itself, so that a lone one counts", TEST_AGREEMENT),
    Mutant(AGREEMENT, "numpy.cumsum(totals, -1) - totals / 2", "numpy.cumsum(totals, -1)",
           "ordinal steps count the ratings at their ends in full", TEST_AGREEMENT),
    Mutant(AGREEMENT, "most = m * (centred**2).sum((-1, -2))",
           "most = m * m * (ranks.shape[-1] ** 3 - ranks.shape[-1]) / 12",
           "W is not corrected for ties", TEST_AGREEMENT),
    Mutant(AGREEMENT, "ends - (sizes - 1) / 2", "ends", "tied units get the last rank", TEST_AGREEMENT),
    Mutant(AGREEMENT, "((counts**2).sum(1) - m)", "(counts**2).sum(1)",
           "Fleiss' kappa pairs a rating with itself", TEST_AGREEMENT),
    # ------------------------------------------------------------------------------------------------------ texts
    Mutant(TEXTS, "* inverses[: max(0, n - size + 1)]", "* numpy.uint64(1)",
           "a run's hash depends on where it stands", TEST_TEXTS),
    Mutant(TEXTS, "key=lambda k: -grades[k]", "key=lambda k: grades[k]",
           "answers are compared worst first", TEST_TEXTS),
    # -------------------------------------------------------------------------------------------- near-duplicates
    Mutant(NEAR, "if similarity >= threshold:\n                found[i]", "if True:\n                found[i]",
           "candidates are not compared exactly", TEST_NEAR),
    Mutant(NEAR, "        if i not in found:\n", "        if True:\n",
           "a row is a duplicate of one that was dropped", TEST_NEAR),
    Mutant(NEAR, "_SLACK = 0.15", "_SLACK = -0.1", "likely duplicates are not compared", TEST_NEAR),
    Mutant(NEAR, "if verdicts[i] == verdicts[j]]", "if True]",
           "rows that contradict each other are duplicates", TEST_NEAR),
    Mutant(NEAR, "sorted(buckets, key=len)", "sorted(buckets, key=len, reverse=True)",
           "candidates come from the commonest bands first", TEST_NEAR),
    Mutant(NEAR, "signatures, threshold)[:MOST_COMPARED]", "signatures, threshold)",
           "every likely candidate is compared exactly", TEST_NEAR),
    Mutant(VOTES, "by_other if says == first else by_first", "by_first",
           "a row is denied by itself", TEST_VOTES),
    # -------------------------------------------------------------------------------------------------- encodings
    Mutant(ENCODINGS, "if _PUNCTUATION.issuperset(found[1:]):", "if False:",
           "an accented letter before punctuation is mojibake", TEST_ROWS),
    Mutant(ENCODINGS, "if len(found) > 2 or first >= 0:", "if True:",
           "two letters that may be one character are mojibake", TEST_ROWS),
    # ------------------------------------------------------------------------------------------------------ votes
    Mutant(VOTES, "if says == winner and most > second:", "if says == winner:",
           "of two reversed preferences the first stands", TEST_VOTES),
    Mutant(VOTES, "first, second = sorted((answers[i], answers[k]))", "first, second = answers[i], answers[k]",
           "the order of the answers hides a contradiction", TEST_VOTES),
    # ------------------------------------------------------------------------------------------------------ leaks
    Mutant(LEAKS, "<= _COMMON", "<= 10**9", "an instruction that test prompts share is a leak", TEST_LEAKS),
    Mutant(LEAKS, 'own = self._runs("\\n".join(parts_of(row)))', "own = self._runs(prompt_of(row))",
           "a test prompt inside an answer is no leak", TEST_LEAKS),
    # ------------------------------------------------------------------------------------------------------ noise
    Mutant(NOISE, "numpy.array([numbers[order[claim.group]] for claim in claims], dtype=int)",
           "numpy.arange(len(claims)) % folds",
           "a head judges prompts it has seen", TEST_NOISE),
    Mutant(NOISE, "numpy.array([1.0, -1.0]) / numpy.sqrt", "numpy.array([1.0, 1.0]) / numpy.sqrt",
           "the worse answer counts for the verdict", TEST_NOISE),
    Mutant(NOISE, "return _sigmoid(low * sums)", "return _sigmoid(sums)",
           "probabilities are not scaled", TEST_NOISE),
    # ------------------------------------------------------------------------------------------------------ clean
    Mutant(CLEAN, "        if row.found:\n            self.findings[number] = row.found\n            return\n",
           "        if row.found:\n            self.findings[number] = row.found\n",
           "dropped rows take part in comparisons",
           f"{TEST_CLEAN}::test_a_row_is_compared_only_with_rows_that_no_filter_of_single_rows_dropped"),
    Mutant(CLEAN, "not given.low <= value <= given.high", "not given.low <= value",
           "rows that are too hard stay",
           f"{TEST_CLEAN}::test_difficulty_keeps_the_middle_and_what_was_not_measured"),
    Mutant(CLEAN, "[: int(given.share * len(judged))]", "",
           "noise may drop any share",
           f"{TEST_CLEAN}::test_noise_drops_at_most_the_share_of_the_largest_loss"),
    Mutant(CLEAN, "return len(standing) - len(judged)", "return 0",
           "rows that a reward role cannot judge are not counted",
           f"{TEST_CLEAN}::test_margins_of_a_role_take_the_place_of_heads"),
    Mutant(ROW_DIFFICULTY, "float(better - worse)", "float(worse - better)",
           "a reward role's margins are turned round",
           f"{TEST_ROW_DIFFICULTY}::test_a_reward_role_says_which_verdicts_are_noise"),
    # ------------------------------------------------------------------------------------------------------ split
    Mutant(SPLIT, "        for number, earlier in self.histories:\n            if earlier in self.numbers:",
           "        for number, earlier in self.histories:\n            if False:",
           "a conversation and its continuation are split", TEST_SPLIT),
    Mutant(SPLIT, "join(order[a], order[b])", "pass", "similar prompts are split", TEST_SPLIT),
    Mutant(SPLIT, "key = digest(str(seed), text)", "key = digest(str(number), text)",
           "the split depends on the order of the rows", TEST_SPLIT),
    # ------------------------------------------------------------------------------------- statistics, annotators
    Mutant(STATISTICS, "(rows <= budget)", "(rows < budget)", "a row of just the budget does not fit", TEST_STATISTICS),
    Mutant(STATISTICS, "0.5 if d == 0 else float(d > 0)", "float(d >= 0)",
           "answers of one length count as longer", TEST_STATISTICS),
    Mutant(ANNOTATORS, "2.0: -1.0}", "2.0: 2.0}", "a tie lies beside the two answers, not between", TEST_ANNOTATORS),
    # ------------------------------------------------------------------------------------------------ reliability
    Mutant(RELIABILITY, " + numpy.log(numpy.maximum(shares, 1e-300)))", ")",
           "all classes are taken for equally common", TEST_RELIABILITY),
    Mutant(RELIABILITY, "hessian -= observed.T @ (observed * times[:, None])", "hessian -= 0.0",
           "intervals of Dawid-Skene ignore that the truth is not known", TEST_RELIABILITY),
    Mutant(RELIABILITY, "_sandwich(hessian, group_sums(scores[kind], groups))", "_sandwich(hessian, scores[kind])",
           "intervals of Bradley-Terry ignore groups", TEST_RELIABILITY),
    Mutant(RELIABILITY, "slope = times @ scores + (GAMMA_MEAN - gamma) / GAMMA_SD**2", "slope = times @ scores",
           "discriminations have no prior", TEST_RELIABILITY),
    Mutant(RELIABILITY, "spread - crossed - crossed.T + pulls", "spread - crossed + pulls",
           "the Hessian of Bradley-Terry is not symmetric", TEST_RELIABILITY),
    Mutant(RELIABILITY, "slope = design.T @ (outcomes - chance) - found / sd**2",
           "slope = design.T @ (outcomes - chance)", "scores have no prior", TEST_RELIABILITY),
    Mutant(RELIABILITY, "return found - found.mean()", "return found", "scores have no mean of 0", TEST_RELIABILITY),
    # ------------------------------------------------------------------------------------------------------ verbs
    Mutant(DATA_CLEAN, '"row": original.values}', '"row": dict(original.row.columns)}',
           "dropped rows lose their texts", TEST_VERBS),
    Mutant(DATA_CLEAN, "if number != cleaned.rows:", "if False:", "a file that changed is written", TEST_VERBS),
]
