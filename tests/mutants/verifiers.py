"""Mutants of `onebase/verifiers` and the reward made of them: what is the answer, what is equal, what is right."""

from tests.mutants.mutant import Mutant

EXTRACT = "onebase/verifiers/extract.py"
NUMBERS = "onebase/verifiers/numbers.py"
NUMERIC = "onebase/verifiers/numeric.py"
CHOICE = "onebase/verifiers/choice.py"
EXACT = "onebase/verifiers/exact.py"
SHAPE = "onebase/verifiers/shape.py"
VERIFIED = "onebase/rewards/verified.py"

TEST_EXTRACT = "tests/verifiers/test_extract.py"
TEST_NUMERIC = "tests/verifiers/test_numeric.py"
TEST_CHOICE = "tests/verifiers/test_choice.py"
TEST_EXACT = "tests/verifiers/test_exact.py"
TEST_FORM = "tests/verifiers/test_form.py"
TEST_VERIFIED = "tests/rewards/test_verified.py"

MUTANTS = [
    # -------------------------------------------------------------------------------------------------- extraction
    Mutant(EXTRACT, "for span in found), reverse=True)", "for span in found))",
           "the first mark is the answer, not the last", TEST_EXTRACT),
    Mutant(EXTRACT, "    return max(spans, default=None)", "    return next(spans, None)",
           "the first box is the answer, not the last", TEST_EXTRACT),
    Mutant(EXTRACT, 'and found[0] != "\\\\{"', "", "an escaped brace opens a box's braces", TEST_EXTRACT),
    Mutant(EXTRACT, '_MANY_MARKS.sub(r"\\1", text)', "text",
           "a run of combining marks takes quadratic time", TEST_EXTRACT),
    # ----------------------------------------------------------------------------------------------------- numbers
    Mutant(NUMBERS, "if below else None", "if below is not None else None", "1/0 raises an error", TEST_NUMERIC),
    Mutant(NUMBERS, "    if not text.isascii():\n", "    if False:\n", "full-width digits are not read", TEST_NUMERIC),
    Mutant(NUMBERS, "return -value if value is not None", "return value if value is not None",
           "a minus sign is dropped", TEST_NUMERIC),
    Mutant(NUMERIC, "<= self._allowed(gold.value)", ">= 0", "every number is the gold number", TEST_NUMERIC),
    Mutant(NUMERIC, "min(most, Fraction(1, 2)) if", "most if",
           "1234568 is 1234567 within the default tolerance", TEST_NUMERIC),
    Mutant(NUMERIC, "[found.value * theirs[1] / ours[1]]", "[found.value]", "5 m are 5 km", TEST_NUMERIC),
    Mutant(NUMERIC, "gold + 1 + int(2 * self._allowed(gold))", "gold + 1",
           "the corrupted twin is within a wide tolerance", TEST_NUMERIC),
    # ------------------------------------------------------------------------------------------------ texts, letters
    Mutant(EXACT, "1.0 if answer in golds else self.wrong", "1.0", "every text is the gold text", TEST_EXACT),
    Mutant(CHOICE, "            options = {}\n        if letter ==", "            pass\n        if letter ==",
           "an earlier question's options count", TEST_CHOICE),
    Mutant(CHOICE, "named.pop() if len(named) == 1 else None", "min(named, default=None)",
           "naming several options is an answer", TEST_CHOICE),
    Mutant(SHAPE, "len(set(grams)) / len(grams)", "1.0", "repetition costs nothing", TEST_FORM),
    # -------------------------------------------------------------------------------------------------- the reward
    Mutant(VERIFIED, "total += part.weight * parts[name]", "total += parts[name]",
           "weights have no effect", TEST_VERIFIED),
    Mutant(VERIFIED, "right & is_right", "right | is_right", "one deciding verifier is enough", TEST_VERIFIED),
    Mutant(VERIFIED, "(found.verdict.score >= 1) != ", "(found.verdict.score < 0) == ",
           "a verifier that accepts everything passes the check", TEST_VERIFIED),
    Mutant(VERIFIED, 'if not getattr(verifier, "slow", False):', "if True:",
           "slow verifiers wait for one another", TEST_VERIFIED),
]
