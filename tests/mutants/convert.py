"""Mutants of `onebase/convert`: what a layout holds, what it is refused for, and what is said of it."""

from tests.mutants.mutant import Mutant

CALLS = "onebase/convert/calls.py"
LAYOUTS = "onebase/convert/layouts.py"
ROWS = "onebase/convert/rows.py"

TEST_CALLS = "tests/convert/test_tool_calls.py"
TEST_PARTS = "tests/convert/test_rows.py::test_a_part_is_held_or_named_and_can_be_dropped"
TEST_LISTS = "tests/convert/test_rows.py::test_pairs_become_lists_where_a_file_holds_longer_ones"
TEST_SAID = "tests/convert/test_rows.py::test_what_was_read_otherwise_or_not_at_all_is_said"

MUTANTS = [
    Mutant(CALLS, "            waiting.remove(answered)\n", "",
           "two results answer one call", TEST_CALLS),
    Mutant(CALLS, "same or waiting", "waiting",
           "a result goes to the first call, whatever function it names", TEST_CALLS),
    Mutant(CALLS, 'if (name := f"call_{n}") not in taken', 'if (name := f"call_{n}")',
           "two calls get one id", TEST_CALLS),
    Mutant(CALLS, "call.id != message.call_id) or", "not call.id) or",
           "ids are dropped where results stand in another order", TEST_CALLS),
    Mutant(LAYOUTS, 'list(tool) == ["type", "function"]', '"function" in tool',
           "what stands around a definition is lost", TEST_CALLS),
    Mutant(LAYOUTS, '{"messages": turns, **_tools(row)}', '{"messages": turns}',
           "OpenAI's pairs lose their tools", TEST_CALLS),
    Mutant(LAYOUTS, '_SHAREGPT = _STEPS | {"margin", "ids", OUT_OF_ORDER, BESIDE_CALLS}',
           '_SHAREGPT = _STEPS | {"margin"}', "what ShareGPT cannot hold is not named", TEST_CALLS),
    Mutant(ROWS, "foreign(row, layout) or differences(row, record)", "foreign(row, layout)",
           "what is written is not compared with what was read", TEST_PARTS),
    Mutant(ROWS, "                raise ListsNeeded\n", "                pass\n",
           "a pair before a longer list ends the conversion", TEST_LISTS),
    Mutant(ROWS, "            told.notes.update(row.notes)\n", "",
           "what the reader leaves out is not said", TEST_SAID),
]
