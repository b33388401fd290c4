"""Mutants of `onebase/data`: positions, masks, the shift by one, what counts, what a step reads."""

from tests.mutants.mutant import Mutant

TREE = "onebase/data/tree.py"
ROWS = "onebase/data/rows.py"
BATCHES = "onebase/data/batches.py"
CHAT = "onebase/data/chat.py"
RENDERING = "onebase/data/rendering.py"
TEMPLATES = "onebase/data/templates.py"
TOOLS = "onebase/reading/tools.py"
VIEW = "onebase/data/view.py"
FIT = "onebase/data/fit.py"
PREPARE = "onebase/data/prepare.py"
SELECTION = "onebase/data/selection.py"
COMPARED = "onebase/data/compared.py"
MIXING = "onebase/data/mixing.py"
TEXTS = "onebase/data/texts.py"
CACHE = "onebase/data/token_cache.py"
ENCODED = "onebase/data/encoded.py"
FORMATS = "onebase/reading/formats.py"
FIELDS = "onebase/reading/fields.py"
FILES = "onebase/reading/files.py"
CONTAINERS = "onebase/reading/containers.py"
TABLES = "onebase/reading/tables.py"
LAYOUTS = "onebase/reading/layouts.py"
RANKED = "onebase/reading/ranked.py"
EXPORTS = "onebase/reading/exports.py"
COLUMNS = "onebase/reading/columns.py"
UNREAD = "onebase/reading/unread.py"
REMARKS = "onebase/data/remarks.py"

TEST_TREE = "tests/data/test_tree.py"
TEST_ROWS = "tests/data/test_rows.py"
TEST_BATCHES = "tests/data/test_batches.py"
TEST_CHAT = "tests/data/test_chat.py"
TEST_TEMPLATES = "tests/data/test_templates.py"
TEST_TOOLS = "tests/data/test_tools.py"
TEST_VIEW = "tests/data/test_view.py"
TEST_PREPARE = "tests/data/test_prepare.py"
TEST_SELECTION = "tests/data/test_selection.py"
TEST_COMPARED = "tests/data/test_compared.py"
TEST_MIXING = "tests/data/test_mixing.py"
TEST_BLOCKS = "tests/streaming/test_blocks.py"
TEST_CACHE = "tests/data/test_token_cache.py"
TEST_CONTAINERS = "tests/reading/test_containers.py"
TEST_LAYOUTS = "tests/reading/test_layouts.py"
TEST_COLUMNS = "tests/reading/test_columns.py"
TEST_LOST = "tests/reading/test_nothing_lost.py"

MUTANTS = [
    # ------------------------------------------------------------------------------------------------------- tree
    Mutant(TREE, "[prompt_length - 1, *range(", "[first - 1, *range(",
           "a branch begins behind the last token of the branch before", TEST_TREE),
    Mutant(TREE, "source.append(sources[c])", "source.append(first + c)",
           "a token is predicted from itself", TEST_TREE),
    Mutant(TREE, "range(prompt_length, prompt_length + len(completion))",
           "range(len(positions), len(positions) + len(completion))",
           "positions go on from the branch before", TEST_TREE),
    Mutant(TREE, "if counted is None or counted[c]:", "if True:",
           "tokens that do not count are targets", TEST_TREE),
    Mutant(TREE, "lasts.append(len(ids) - 1)", "lasts.append(len(ids) - 2)",
           "the last place is the one before it", TEST_TREE),
    Mutant(TREE, 'source=end_to_end("source", start)', 'source=end_to_end("source")',
           "every token is predicted from the first tree", TEST_TREE),
    Mutant(TREE, 'end_to_end("completion_index", first_completion)', 'end_to_end("completion_index")',
           "completions are numbered within their prompt", TEST_TREE),
    Mutant(TREE, "token.append(first + c)", "token.append(sources[c])",
           "a token's own place is its predecessor's", TEST_TREE),
    Mutant(TREE, "return max(batch.branches) == 1", "return max(batch.branches) <= 2",
           "two completions pass for a plain causal row", TEST_TREE),
    # ------------------------------------------------------------------------------------------------------- rows
    Mutant(ROWS, "causal & visible & rows.is_token[:, :, None]", "causal & rows.is_token[:, :, None]",
           "a branch sees all earlier branches", TEST_ROWS),
    Mutant(ROWS, "(rows.branch[:, None, :] == 0) | (rows.branch[:, None, :] == rows.branch[:, :, None])",
           "rows.branch[:, None, :] <= rows.branch[:, :, None]",
           "a branch sees the branches before it", TEST_ROWS),
    Mutant(ROWS, "rows.position_ids[:, None, :] < window", "rows.position_ids[:, None, :] <= window",
           "the window is one position too wide", TEST_ROWS),
    Mutant(ROWS, "rows.position_ids[:, :, None] - rows.position_ids[:, None, :] < window",
           "order[:, None] - order[None, :] < window",
           "the window counts columns", TEST_ROWS),
    Mutant(ROWS, "torch.where(is_token, batch.position_ids[place], past_the_end)",
           "torch.where(is_token, batch.position_ids[place], 0)",
           "padding stands at position zero", TEST_ROWS),
    Mutant(ROWS, "torch.where(columns >= prompt[:, None], jump, 0)", "0",
           "every row of a tree holds its first completion", TEST_ROWS),
    Mutant(ROWS, "torch.where(behind_prompt, self.skipped[completion], 0)", "self.skipped[completion]",
           "a prompt's places are moved as if they were a completion's", TEST_ROWS),
    Mutant(TREE, "[example.counted[k]]", "[example.counted[0]]",
           "separate rows count by the first completion's mask", TEST_TREE),
    Mutant(TREE, "len({lower.num_layers for lower in found}) > 1", "False",
           "lower states of different layers are laid together", TEST_TREE),
    # ---------------------------------------------------------------------------------------------------- batches
    Mutant(BATCHES, "return -(-num_examples // size)", "return num_examples // size",
           "the examples of a smaller last minibatch are left out", TEST_BATCHES),
    Mutant(BATCHES, "return torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))",
           "return torch.arange(num_examples)",
           "examples come in the order of the file", TEST_BATCHES),
    Mutant(BATCHES, 'mixed_seed("order", seed, epoch)', 'mixed_seed("order", seed)',
           "every epoch has the same order", TEST_BATCHES),
    Mutant(BATCHES, 'mixed_seed("order", seed, epoch)', 'mixed_seed("order", epoch)',
           "every seed has the same order", TEST_BATCHES),
    Mutant(BATCHES, "order[position * size : (position + 1) * size]",
           "order[position * size : (position + 1) * size - 1]",
           "the last example of every minibatch is left out", TEST_BATCHES),
    Mutant(BATCHES, "epoch, position = divmod(step, num_minibatches(num_examples, size))",
           "epoch, position = 0, step % num_minibatches(num_examples, size)",
           "the second epoch repeats the first", TEST_BATCHES),
    Mutant(BATCHES, "(rows + shapes[i][0]) * width <= max_tokens", "rows * width <= max_tokens",
           "a microbatch has a row more than its budget", TEST_BATCHES),
    Mutant(BATCHES, "width + shapes[i][1] <= max_tokens", "width <= max_tokens",
           "packed trees overrun the budget by one", TEST_BATCHES),
    Mutant(BATCHES, "len(example.prompt_ids) + max(map(len, example.completions))",
           "len(example.prompt_ids) + min(map(len, example.completions))",
           "separate rows are as wide as the shortest completion", TEST_BATCHES),
    # ------------------------------------------------------------------------------------------------------- chat
    Mutant(CHAT, "completions.append(ids + [ending.token_id] * (add_end and ended))", "completions.append(ids)",
           "answers have no end token", TEST_CHAT),
    Mutant(CHAT, "[ending.token_id] * (add_end and ended)", "[ending.token_id] * add_end",
           "an answer that did not end gets an end token", TEST_CHAT),
    Mutant(CHAT, "[self._eos] * (add_end and ended) for", "[self._eos] * add_end for",
           "a text that did not end gets an end token", TEST_CHAT),
    Mutant(CHAT, "with_bos=adds_bos(tokenizer)", "with_bos=tokenizer.bos_token_id is not None",
           "prompts begin with a token that the tokenizer does not put there", TEST_CHAT),
    Mutant(CHAT, "while ids and ids[-1] == end_token_id:", "while not end_token_id:",
           "an answer that closes itself ends twice", TEST_CHAT),
    Mutant(CHAT, "[(ids + end)[1:] for ids, end in", "[ids[1:] for ids, end in",
           "plain texts have no end token", TEST_CHAT),
    Mutant(CHAT, ".token_id if self.template else self._eos", ".token_id if not self.template else self._eos",
           "an answer ends with the tokenizer's end token, whatever the template closes turns with", TEST_CHAT),
    Mutant(RENDERING, "text = self.text(asked, opens_answer=True)\n        # Assistant",
           "text = self.text(asked, opens_answer=False)\n        # Assistant",
           "a prompt does not open the assistant's turn", TEST_CHAT),
    Mutant(CHAT, "(stop, following, False)", "(stop, following, True)",
           "what the user says between turns counts", TEST_CHAT),
    Mutant(CHAT, "prompt_ids[:1], [prompt_ids[1:] + ids for ids in completions]",
           "prompt_ids[:1], [prompt_ids[2:] + ids for ids in completions]",
           "the second token of a text that counts whole is lost", TEST_CHAT),
    Mutant(RENDERING, "if ending.closing and text.startswith(closing, stop) else 0)", "if False else 0)",
           "an earlier turn's end token does not count", TEST_TEMPLATES),
    Mutant(RENDERING, "ending.closing and text.startswith(closing, stop) else", "ending.closing else",
           "an earlier turn that no token closes counts what follows it", TEST_TEMPLATES),
    Mutant(RENDERING, "start = min(start, len(opened))", "start = max(start, len(opened))",
           "the blank that a template puts before an earlier turn does not count", TEST_TEMPLATES),
    Mutant(RENDERING, "return commonprefix([prompt, *elsewhere])", "return prompt",
           "an answer that thinks follows a thought that is closed already", TEST_TEMPLATES),
    Mutant(RENDERING, "if len(elsewhere) < len(wholes):", "if len(elsewhere) > len(wholes):",
           "answers that think share the prompt of answers that do not", TEST_TEMPLATES),
    Mutant(RENDERING, "return answer.lstrip()[len(opened) :]", "return answer",
           "a thought that the prompt opened is opened twice", TEST_TEMPLATES),
    # ----------------------------------------------------------------------------------------- templates and tools
    Mutant(RENDERING, "if _count(text, words) - _count(bare, words) < times:", "if _count(text, words) < times:",
           "a tool whose name stands in a question counts as written", TEST_TOOLS),
    Mutant(RENDERING, "        self._check_tools(asked, text)\n", "",
           "tools that a template does not write are dropped in silence", TEST_TOOLS),
    Mutant(RENDERING, "if _count(text, name) < times:", "if False:",
           "an answer's call that a template does not write is dropped in silence", TEST_TOOLS),
    Mutant(TOOLS, "found[text] = found.get(text, 0) + 1", "found[text] = 1",
           "the second of two calls to one function may be missing", TEST_TOOLS),
    Mutant(TOOLS, "found |= set(value[\"properties\"])", "found |= set()",
           "the names of a tool's properties may be missing", TEST_VIEW),
    Mutant(TEMPLATES, "tools=defined or None,", "tools=None,",
           "no template is given the row's tools", TEST_TOOLS),
    Mutant(TEMPLATES, "turns = [for_template(message) for message in messages]",
           'turns = [{"role": message.role, "content": message.content} for message in messages]',
           "no template is given the calls", TEST_TOOLS),
    Mutant("onebase/records.py", "calls=None if self.calls is None else tuple(self.calls[k] for k in chosen),",
           "calls=self.calls,", "the answers that are chosen keep the calls of others", TEST_TOOLS),
    Mutant(SELECTION, "row.answer(k).text.strip()", "row.answers[k].strip()",
           "an answer that only calls a tool counts as empty", TEST_TOOLS),
    Mutant(VIEW, "n == last or (example.counted and p.learned)", "n == last",
           "an earlier turn's end is shown as any token", TEST_VIEW),
    Mutant(VIEW, "self.pieces[-1].ends and (self.pieces[-1].learned or self.scored)", "self.pieces[-1].learned",
           "an answer without an end token is shown as one that ends", TEST_VIEW),
    Mutant(VIEW, "counted = [scored is None] * len(ids)", "counted = [True] * len(ids)",
           "tokens of scored answers are shown as learned", TEST_VIEW),
    Mutant(VIEW, "place = at + length\n    marked", "place = 0\n    marked",
           "a turn's text is looked for before the turn", TEST_VIEW),
    Mutant(CHAT, "return whole[len(before_ids) :]", "return self._ids(text)",
           "a continuation is encoded as a beginning", TEST_CHAT),
    # --------------------------------------------------------------------------------- fit, prepare and formats
    Mutant(FIT, "content=text[start:])", "content=text[: len(text) - start])",
           "long prompts are cut on the right", TEST_PREPARE),
    Mutant(FIT, "cut(start) if text[start:].strip() else None", "cut(start)",
           "a prompt may lose all that is asked", TEST_PREPARE),
    Mutant(FIT, "        cuts.dropped.append(row.place)\n        return None\n    if shorter",
           "        return None\n    if shorter",
           "rows without room for their last turn are left out in silence", TEST_PREPARE),
    Mutant(FIT, "example.counted and [flags[:room] for flags in example.counted]",
           "example.counted and [flags[-room:] for flags in example.counted]",
           "the mask is cut on the other side than the completion", TEST_PREPARE),
    Mutant(FIT, "return self.context - kept, reason + above", "return self.context, reason + above",
           "prompts leave no room for what is generated", TEST_PREPARE),
    Mutant(FIT, "limits.context - len(example.prompt_ids))", "limits.context)",
           "prompt and completion together exceed the context", TEST_PREPARE),
    Mutant(FIT, "(*system, *turns[start:])", "(*turns[start:],)",
           "a prompt that is cut loses its system turn", TEST_PREPARE),
    Mutant(PREPARE, "row.grades.index(max(row.grades))", "row.grades.index(min(row.grades))",
           "SFT learns the worst answer", TEST_PREPARE),
    Mutant(FIT, "if ids[-1] in ends and", "if True and",
           "a run starts in which no answer ends", TEST_PREPARE),
    Mutant(PREPARE, 'row.messages and row.messages[0].role != "system"', "row.messages",
           "a row with a system turn gets a second one", TEST_PREPARE),
    Mutant(FIT, "text = chat.encode_example(row, add_end=False)", "text = chat.encode_example(row)",
           "a text to go on from ends with the end token", TEST_PREPARE),
    Mutant(SELECTION, "row for row, key in zip(rows, keys, strict=True) if key not in held_out",
           "row for row in rows",
           "held-out rows are trained on", f"{TEST_SELECTION} {TEST_PREPARE}"),
    Mutant(COMPARED, "grades[k] > grades[best[ids]]", "grades[k] < grades[best[ids]]",
           "of equal answers the worst grade is kept", TEST_COMPARED),
    Mutant(COMPARED, "answers=(b.answers[0], w.answers[0])", "answers=(w.answers[0], b.answers[0])",
           "labelled texts are paired the wrong way round", TEST_COMPARED),
    Mutant(COMPARED, "if len({one.grades for one in same}) < 2:", "if len(same) < 2:",
           "answers with equal scores are ranked", TEST_COMPARED),
    # ------------------------------------------------------------------------------------------------------ reading
    Mutant(FILES, r'line = line.removeprefix(b"\xef\xbb\xbf")', "pass",
           "a byte order mark belongs to the first line", TEST_CONTAINERS),
    Mutant(FILES, "for path in sorted(folder.rglob(\"*\"))", "for path in sorted(folder.rglob(\"*\"), reverse=True)",
           "a folder is read from its end", TEST_CONTAINERS),
    Mutant(CONTAINERS, "if len(cells) != len(header):", "if len(cells) > len(header):",
           "a row of a table may lack cells", TEST_CONTAINERS),
    Mutant(CONTAINERS, "if len(line) > LONGEST_FIELD:", "if False:",
           "a text of 10 MB is read", TEST_CONTAINERS),
    Mutant(CONTAINERS, "[dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]",
           "[dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)][:1]",
           "a table of columns has one row", TEST_CONTAINERS),
    Mutant(TABLES, "if source.read() != _END_OF_STREAM:", "if False:",
           "a stream that was cut between two batches is read as a shorter one", TEST_CONTAINERS),
    Mutant(TABLES, "for start in range(0, batch.num_rows, _ROWS):", "for start in range(0, 1):",
           "a large batch of Arrow loses its end", TEST_CONTAINERS),
    Mutant(FORMATS, "if _layout_again(read, self._known) != self._name:", "if False:",
           "rows of another layout are read as if they had the first row's", "tests/reading/test_formats.py"),
    Mutant(FORMATS, "columns={**mapped.columns, **row.columns}", "columns=row.columns",
           "keys that a mapping does not name are lost", TEST_COLUMNS),
    Mutant(UNREAD, "others = [key for key in _OTHER_READINGS if key in columns]", "others: list[str] = []",
           "of two answers the second is lost", TEST_LAYOUTS),
    Mutant(UNREAD, "options if len(options) > 1 else []", "[]",
           "options beside a prompt are lost", TEST_LAYOUTS),
    Mutant(FIELDS, 'self.note_left_out(key, turn, (*names, *more, "weight", *_CALLS, *_UNREAD))', "pass",
           "what a message holds beside its text is lost", TEST_LAYOUTS),
    Mutant(REMARKS, "if found := columns_beside(row):", "if found := list(row.columns)[:0]:",
           "columns that no model reads are not named", TEST_LOST),
    Mutant(RANKED, "won[first] += sign", "won[first] -= sign",
           "a win counts as a loss", TEST_LAYOUTS),
    Mutant(RANKED, "else 0\n    return fields.row(prompt, answers, grades=(float(won), float(-won)))",
           "else ranked[0][0]\n    return fields.row(prompt, answers, grades=(float(won), float(-won)))",
           "without a majority the first annotator decides", TEST_LAYOUTS),
    Mutant(RANKED, "-1 if key in RANKS else 1", "1",
           "the last rank is the best", TEST_LAYOUTS),
    Mutant(EXPORTS, 'if status in (None, "submitted") and', "if",
           "responses that were discarded count", TEST_LAYOUTS),
    Mutant(LAYOUTS, 'fields.text("response_j"), fields.text("response_k")',
           'fields.text("response_k"), fields.text("response_j")',
           "the answer with fewer votes is chosen", TEST_LAYOUTS),
    Mutant(COLUMNS, "used.add(str(step))", "used.add(path)",
           "a key that a mapping reads inside is a column, too", TEST_COLUMNS),
    # ----------------------------------------------------------------------------------------- mixing and kept tokens
    Mutant(MIXING, "epoch * self._quotas[source] + place", "place",
           "every epoch draws the same rows of a larger source", TEST_MIXING),
    Mutant(MIXING, "min(counts[n] / weights[n] for n in main)", "max(counts[n] / weights[n] for n in main)",
           "weights are cut off by the sources' sizes", TEST_MIXING),
    Mutant(MIXING, "round(total * source.share / (1 - source.share))", "round(total * source.share)",
           "the share of replay is that of the other rows", TEST_MIXING),
    Mutant(MIXING, 'mixed_seed("source", seed, source, again)', 'mixed_seed("source", 0, source, again)',
           "the seed does not order a source's rows", TEST_MIXING),
    Mutant(PREPARE, "if row.messages not in asked]", "]",
           "rows with a held-out prompt are replayed", TEST_MIXING),
    Mutant(MIXING, "again, position = divmod(visit, self._counts[source])",
           "again, position = 0, visit % self._counts[source]",
           "a source that is read again comes in the order it had before", TEST_MIXING),
    Mutant(MIXING, "if not self.mixes:", "if True:",
           "a replayed source is left out", TEST_MIXING),
    Mutant(MIXING, "int(most * weights[n] + 1e-9)", "int(most * weights[n])",
           "the source that is read once loses its last row to rounding", TEST_MIXING),
    Mutant(MIXING, "left -= len(found)", "left -= 0",
           "a limit counts for every source anew", TEST_MIXING),
    Mutant(MIXING, "if first is not None:", "if False:",
           "a file that is named twice is read twice", TEST_MIXING),
    Mutant(MIXING, "round(quota * share)", "quota",
           "what was drawn is what an epoch draws", TEST_MIXING),
    Mutant(TEXTS, "if text.prompt_ids[0] == last else ids", "if False else ids",
           "two end tokens stand between texts that begin with one", TEST_BLOCKS),
    Mutant(TEXTS, "if len(block) > 1]", "]",
           "a block of one token is learned from", TEST_BLOCKS),
    Mutant(FIT, "return example.grades[k] > min(example.grades)", "return True",
           "a policy is trained of which only the worse answers end", TEST_PREPARE),
    Mutant(FIT, 'return bool(row.columns.get("label", True))', "return True",
           "a policy is trained of which only the bad answers end", TEST_PREPARE),
    Mutant(CACHE, "if keys[place, 1] == second:", "if True:",
           "a row gets the tokens of another with the same half key", TEST_CACHE),
    Mutant(CACHE, "(\"grades\", \"margin\",", "(\"ended\", \"grades\", \"margin\",",
           "an unfinished answer has the key of a finished one", TEST_CACHE),
    Mutant(ENCODED, '_note(cuts, flags, row.place, "as when', '_note(cuts, 0, row.place, "as when',
           "what was cut is told the first time only", TEST_CACHE),
]  # fmt: skip
