"""Mutants of `onebase/data`: positions, masks, the shift by one, what counts, what a step reads."""

from tests.mutants.mutant import Mutant

TREE = "onebase/data/tree.py"
ROWS = "onebase/data/rows.py"
BATCHES = "onebase/data/batches.py"
CHAT = "onebase/data/chat.py"
FIT = "onebase/data/fit.py"
PREPARE = "onebase/data/prepare.py"
SELECTION = "onebase/data/selection.py"
COMPARED = "onebase/data/compared.py"

TEST_TREE = "tests/data/test_tree.py"
TEST_ROWS = "tests/data/test_rows.py"
TEST_BATCHES = "tests/data/test_batches.py"
TEST_CHAT = "tests/data/test_chat.py"
TEST_PREPARE = "tests/data/test_prepare.py"
TEST_SELECTION = "tests/data/test_selection.py"
TEST_COMPARED = "tests/data/test_compared.py"

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
    Mutant(BATCHES, "order = torch.randperm(num_examples, generator=generator)", "order = torch.arange(num_examples)",
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
    Mutant(CHAT, '"").token_id if self.template else self._eos', '"").token_id if not self.template else self._eos',
           "an answer ends with the tokenizer's end token, whatever the template closes turns with", TEST_CHAT),
    Mutant(CHAT, "text = self._render(messages, place, add_generation_prompt=True)",
           "text = self._render(messages, place, add_generation_prompt=False)",
           "a prompt does not open the assistant's turn", TEST_CHAT),
    Mutant(CHAT, "counted += [True] * len(answer_ids) + [False] * len(between)",
           "counted += [True] * len(answer_ids) + [True] * len(between)",
           "what the user says between turns counts", TEST_CHAT),
    Mutant(CHAT, "prompt_ids[:1], [prompt_ids[1:] + ids for ids in completions]",
           "prompt_ids[:1], [prompt_ids[2:] + ids for ids in completions]",
           "the second token of a text that counts whole is lost", TEST_CHAT),
    Mutant(CHAT, "add_end=bool(ending.closing))", "add_end=True)",
           "earlier turns end where the template does not end them", TEST_CHAT),
    Mutant(CHAT, "return whole[len(before_ids) :]", "return self._ids(text)",
           "a continuation is encoded as a beginning", TEST_CHAT),
    # --------------------------------------------------------------------------------- fit, prepare and formats
    Mutant(FIT, "ids[len(ids) - most + keeps_bos :]", "ids[keeps_bos:most]",
           "long prompts are cut on the right", TEST_PREPARE),
    Mutant(FIT, "ids[0] == chat.tokenizer.bos_token_id and most > 1", "ids[0] != chat.tokenizer.bos_token_id",
           "a prompt that is cut loses its beginning token", TEST_PREPARE),
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
    Mutant(FIT, "text = chat.encode_example(row, add_end=False)", "text = chat.encode_example(row)",
           "a text to go on from ends with the end token", TEST_PREPARE),
    Mutant(SELECTION, "row for row, key in zip(rows, keys, strict=True) if key not in held_out",
           "row for row in rows",
           "held-out rows are trained on", f"{TEST_SELECTION} {TEST_PREPARE}"),
    Mutant(COMPARED, "grades[k] > grades[best[ids]]", "grades[k] < grades[best[ids]]",
           "of equal answers the worst grade is kept", TEST_COMPARED),
    Mutant(COMPARED, "answers=(b.answers[0], w.answers[0])", "answers=(w.answers[0], b.answers[0])",
           "labelled texts are paired the wrong way round", TEST_COMPARED),
]  # fmt: skip
