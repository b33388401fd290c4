"""Mutants of `onebase/streaming`: which row stands where, what is kept, what a resumed run reads."""

from tests.mutants.mutant import Mutant

ROWS = "onebase/streaming/rows.py"
EXAMPLES = "onebase/streaming/examples.py"
MINIBATCHES = "onebase/streaming/minibatches.py"
INDEXED = "onebase/streaming/indexed.py"
BLOCKS = "onebase/streaming/blocks.py"
KEPT = "onebase/streaming/kept.py"
SETUP = "onebase/recipes/setup/data.py"

TEST_STREAMING = "tests/streaming/test_streaming.py"
TEST_INDEXED = "tests/streaming/test_indexed.py"
TEST_BLOCKS = "tests/streaming/test_blocks.py"
TEST_RUNS = "tests/recipes/test_streaming.py"

MUTANTS = [
    Mutant(EXAMPLES, 'if self._rows.is_held_out(row) else None', "if False else None",
           "prompts of held-out rows are streamed", TEST_STREAMING),
    Mutant(EXAMPLES, "self._rows[(index + step) % len(self)]", "self._rows[index]",
           "a row that cannot be used is tried again and again", TEST_STREAMING),
    Mutant(EXAMPLES, "bad > self._limits.max_dropped_share * self.read", "False",
           "any share of the rows may be unusable", TEST_STREAMING),
    Mutant(MINIBATCHES, "for step in range(first, self._total):", "for step in range(self._total):",
           "a resumed run reads from the beginning", TEST_STREAMING),
    Mutant(MINIBATCHES, "found = laid([self._train[i] for i in self.indices(step)])",
           "found = [self._train[i] for i in self.indices(step)]",
           "trees are not laid out ahead", TEST_STREAMING),
    Mutant(MINIBATCHES, "if isinstance(found, BaseException):\n            raise found",
           "if False:\n            raise found",
           "an error of the thread is handed on as examples", TEST_STREAMING),
    Mutant(ROWS, "limit -= self.counts[number]", "limit -= 0",
           "a limit of streamed rows counts for every source anew", TEST_STREAMING),
    Mutant(ROWS, "None if source.replayed else limit)", "limit)",
           "a limit of streamed rows counts replayed ones", TEST_STREAMING),
    Mutant(ROWS, "left = None if left is None else left - len(file)", "left = left",
           "a source's limit counts for every file anew", TEST_STREAMING),
    Mutant(ROWS, 'side="right"', 'side="left"',
           "a file's first row is looked for behind the file before", TEST_STREAMING),
    Mutant(ROWS, "if not self.sources[source].replayed)", ")",
           "rows are held out of what is replayed",
           f"{TEST_RUNS}::test_streamed_pretraining_mixes_holds_out_and_plans"),
    Mutant(ROWS, "[*parts, str(self._share_held_out)]", "parts",
           "tokens are kept whatever is held out", TEST_BLOCKS),
    Mutant(ROWS, "{n} {self.sources[n].columns}", "{n}",
           "tokens are kept whatever is read of a row", TEST_BLOCKS),
    Mutant(ROWS, "check_named_once(sources)", "pass",
           "a file that is named twice is streamed twice", TEST_STREAMING),
    Mutant(INDEXED, "+ size + 1)", "+ size)",
           "a line begins with the line end before it", TEST_STREAMING),
    Mutant(INDEXED, "size += len(block)", "size = len(block)",
           "lines of a file's second part are looked for in its first", TEST_STREAMING),
    Mutant(INDEXED, ".strip())", ")",
           "a line of blanks is a row", TEST_STREAMING),
    Mutant(INDEXED, "return found if line else found.removeprefix", "return found if True else found.removeprefix",
           "a byte order mark belongs to the first streamed line", TEST_STREAMING),
    Mutant(INDEXED, "{content} {kind_of(path)} ", "{kind_of(path)} ",
           "two files of a kind share a copy", TEST_INDEXED),
    Mutant(INDEXED, 'typed=about["typed"], ', "",
           "the copy of a CSV file has texts where numbers are needed", TEST_INDEXED),
    Mutant(INDEXED, ', notes=about["notes"])', ")",
           "what is read differently is not noted of a copy", TEST_INDEXED),
    Mutant(INDEXED, 'f"{self._path}:{number}"', 'f"{self._path}:{index}"',
           "a copied row is placed where it stands in the copy", TEST_INDEXED),
    Mutant(BLOCKS, "place = index - self._ends[source] + self._counts[source]", "place = index",
           "blocks of the second source are looked for behind its end", TEST_BLOCKS),
    Mutant(BLOCKS, "count // length + (count % length > 1)", "count // length",
           "a shorter last block is lost", TEST_BLOCKS),
    Mutant(BLOCKS, "elif not rows.is_held_out(row):", "else:",
           "held-out texts are in the blocks", TEST_BLOCKS),
    Mutant(BLOCKS, "                held = []", "                held = held[:1]",
           "a token is written twice", TEST_BLOCKS),
    Mutant(BLOCKS, "check_share(dropped, len(rows), max_dropped_share)", "pass",
           "any share of the texts may be unusable", TEST_BLOCKS),
    Mutant(KEPT, "shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed", "pass",
           "what a killed process left stops all later runs", TEST_INDEXED),
    Mutant(KEPT, "fcntl.flock(lock, fcntl.LOCK_EX)", "pass",
           "two runs write the same folder", TEST_INDEXED),
    Mutant(KEPT, "            os.utime(folder)", "            pass",
           "what is used every day goes first", TEST_INDEXED),
    Mutant(KEPT, "if path != used:", "if True:",
           "the folder in use is removed", TEST_INDEXED),
    Mutant(SETUP, "check_split(data.files, data.eval)", "pass",
           "streamed rows are evaluated on what was learned",
           f"{TEST_RUNS}::test_evaluation_data_is_no_streamed_training_data"),
    Mutant(SETUP, "limit=data.limit, tell=say", "tell=say",
           "a limit does not hold for streamed rows",
           f"{TEST_RUNS}::test_a_limit_and_the_columns_hold_for_streamed_rows"),
]  # fmt: skip
