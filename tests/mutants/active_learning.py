"""Mutants of `onebase/active_learning`: heads on features, what to rank next, and when to stop."""

from tests.mutants.mutant import Mutant

HEADS = "onebase/active_learning/heads.py"
CHOOSE = "onebase/active_learning/choose.py"
CEILING = "onebase/active_learning/ceiling.py"
POWER_LAW = "onebase/active_learning/power_law.py"
CURVE = "onebase/active_learning/curve.py"

TEST_HEADS = "tests/active_learning/test_heads.py"
TEST_CHOOSE = "tests/active_learning/test_choose.py"
TEST_CEILING = "tests/active_learning/test_ceiling.py"
TEST_POWER_LAW = "tests/active_learning/test_power_law.py"
TEST_CURVE = "tests/active_learning/test_curve.py"

MUTANTS = [
    Mutant(HEADS, "rankings.grades[:, None, :] <= rankings", "rankings.grades[:, None, :] >= rankings",
           "a head learns the rankings upside down", TEST_HEADS),
    Mutant(HEADS, "rankings.grades[:, None, :] <= rankings", "rankings.grades[:, None, :] < rankings",
           "an answer is not among those it is chosen from", TEST_HEADS),
    Mutant(HEADS, "((apart > 0) + 0.5 * (apart == 0))", "(apart > 0)",
           "equal scores count as wrong", TEST_HEADS),
    Mutant(HEADS, "len(weights) - ridge * float(", "len(weights) - float(",
           "the evident ridge counts the weights wrongly", TEST_HEADS),
    Mutant(HEADS, "counts=own.astype(float), start=start", "start=start",
           "all bootstrap heads are the same", TEST_HEADS),
    Mutant(CHOOSE, "free[best] = False", "free[best] = True", "a task is chosen twice", TEST_CHOOSE),
    Mutant(CHOOSE, "inner = inner - shared @ shrink", "inner = inner + 0 * shrink",
           "what was chosen tells as much again", TEST_CHOOSE),
    Mutant(CHOOSE, "chance * (1 - chance) / len(opinions)", "chance / len(opinions)",
           "large margins are as informative as small ones", TEST_CHOOSE),
    Mutant(CHOOSE, "split = 1 - numpy.abs(2 * first - 1)", "split = numpy.abs(2 * first - 1)",
           "heads that agree disagree", TEST_CHOOSE),
    Mutant(CHOOSE, "numpy.arange(num)) * (count / num)", "numpy.arange(num)) * 1.0",
           "a sample is of the first topics alone", TEST_CHOOSE),
    Mutant(CHOOSE, "labels[shuffled]], kind=", "labels[labels]], kind=",
           "a sample is not spread over topics", TEST_CHOOSE),
    Mutant(CEILING, "if n != m:", "if n < m:", "only the first of two people is asked", TEST_CEILING),
    Mutant(CEILING, "math.sqrt(max(0.0, 2 * agreement - 1))", "max(0.0, 2 * agreement - 1)",
           "a perfect head agrees as often as people do", TEST_CEILING),
    Mutant(CEILING, "second[first > 0]", "second[first >= 0]", "a person's own tie is asked about", TEST_CEILING),
    Mutant(POWER_LAW, "gap = numpy.maximum(gap, 0.0)", "gap = gap + 0.0", "a curve may fall", TEST_POWER_LAW),
    Mutant(POWER_LAW, "over = limit > 1", "over = limit > 9", "a curve may pass one", TEST_POWER_LAW),
    Mutant(POWER_LAW, "gap[line, best] * unit**rate", "gap[line, best]",
           "the gap is that of scaled sizes", TEST_POWER_LAW),
    Mutant(CURVE, "if self.fold_of.get(one.prompt) != fold and", "if",
           "a head is tested on what it learned", TEST_CURVE),
    Mutant(CURVE, "if one.random and self.fold_of[one.prompt] == fold", "if self.fold_of.get(one.prompt) == fold",
           "accuracy is measured on tasks that a role chose", TEST_CURVE),
    Mutant(CURVE, "one.round <= until_round", "one.round >= until_round",
           "a round's heads know the rounds after it", TEST_CURVE),
]  # fmt: skip
