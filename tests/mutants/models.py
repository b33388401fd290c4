"""Mutants of `onebase/models`: the forward pass, the decoder and its gradients, sampling, caches, roles."""

from tests.mutants.mutant import Mutant

FORWARD = "onebase/engines/forward.py"
OUTPUT = "onebase/engines/output_layer.py"
PADDED = "onebase/engines/padded.py"
PACKED_ENGINE = "onebase/engines/packed.py"
DECODING = "onebase/engines/decoding.py"
SEEDS = "onebase/seeds.py"
RECORDS = "onebase/records.py"
DECODER = "onebase/engines/decoder.py"
STEPS = "onebase/engines/decoder_steps.py"
PROJECTION = "onebase/engines/projection.py"
ATTENTION = "onebase/engines/tree_attention.py"
CACHE = "onebase/engines/slots.py"
PARTIAL = "onebase/engines/partial_attention.py"
FORKED = "onebase/engines/forked_cache.py"
GENERATION = "onebase/sampling/local.py"
DRAWING = "onebase/sampling/drawing.py"
RUNNING = "onebase/sampling/running.py"
ONE_BASE = "onebase/models/base.py"
PASSES = "onebase/engines/passes.py"
ROLE_FILES = "onebase/models/role_files.py"

TEST_FORWARD = "tests/engines/test_forward.py"
TEST_DECODER_LOWER = "tests/engines/test_decoder.py::test_a_role_that_adapts_nothing_starts_behind_the_last_layer"
TEST_FORKED = "tests/engines/test_forked_cache.py"
TEST_DECODER = "tests/engines/test_decoder.py"
TEST_STEPS = "tests/engines/test_decoder_steps.py"
TEST_PROJECTION = "tests/engines/test_projection.py"
TEST_ATTENTION = "tests/engines/test_tree_attention.py"
TEST_GENERATION = "tests/sampling/test_local.py"
TEST_ONE_BASE = "tests/models/test_one_base.py"
TEST_PASSES = "tests/engines/test_passes.py"
TEST_ROLE_FILES = "tests/models/test_role_files.py"

SELECTED = f"{TEST_FORWARD}::test_selected_logprobs_and_their_slope_are_those_of_log_softmax"
TEMPERATURE = f"{TEST_FORWARD}::test_temperature_and_entropy_are_those_of_a_direct_computation"
SCORES = f"{TEST_FORWARD}::test_scores_and_values_of_a_tree_are_those_of_separate_rows"
TREES = f"{TEST_FORWARD}::test_a_tree_gives_the_logprobs_and_gradients_of_separate_rows"
LIKE_TRANSFORMERS = f"{TEST_DECODER}::test_states_logprobs_and_gradients_are_those_of_transformers"
STEP = f"{TEST_STEPS}::test_a_step_and_its_gradient_are_the_papers_formula"
SIDE_BY_SIDE = f"{TEST_PROJECTION}::test_layers_side_by_side_are_those_one_by_one_in_both_directions"
PACKED = f"{TEST_ATTENTION}::test_packed_trees_are_the_softmax_over_what_each_token_may_see"
ALONE = f"{TEST_GENERATION}::test_samples_do_not_depend_on_what_stands_beside_them"
OF_THE_TREE = f"{TEST_GENERATION}::test_the_logprobs_of_samples_are_those_of_the_tree_built_from_them"
NEXT_NUMBER = f"{TEST_GENERATION}::test_every_token_is_drawn_by_the_next_random_number_of_its_samples_seed"
DRAWN = f"{TEST_GENERATION}::test_tokens_are_drawn_as_often_as_the_softmax_says"
TRUNCATED = f"{TEST_GENERATION}::test_top_k_and_top_p_exclude_exactly_what_they_should"
LIKE_THE_SAVED = f"{TEST_ROLE_FILES}::test_a_loaded_role_computes_what_the_saved_one_did"

MUTANTS = [
    # ---------------------------------------------------------------------------------------------------- forward
    Mutant(OUTPUT, "scale = final[0] / temperature", "scale = final[0]",
           "the temperature is ignored where the output layer is frozen", TEMPERATURE),
    Mutant(OUTPUT, "adjust_logits(head(states).float(), final) / temperature",
           "adjust_logits(head(states).float(), final)",
           "the temperature is ignored where the output layer is not plain", TEMPERATURE),
    Mutant(OUTPUT, "@ weight)[: len(chosen)].mul_(scale)", "@ weight)[: len(chosen)]",
           "the slope of a selected log-prob leaves the temperature out", SELECTED),
    Mutant(OUTPUT, "return (slope * gradient[:, None]).to(slope.dtype)", "return slope",
           "the slope of a selected log-prob ignores what comes from above", SELECTED),
    Mutant(OUTPUT, "difference = all_logprobs.exp_().neg_()", "difference = all_logprobs.exp_()",
           "the slope of a selected log-prob has the wrong sign on all other tokens", SELECTED),
    Mutant(OUTPUT, "entropy[part] = -(all_logprobs.exp() * all_logprobs)",
           "entropy[part] = (all_logprobs.exp() * all_logprobs)",
           "entropy is negative where the output layer is frozen", TEMPERATURE),
    Mutant(OUTPUT, "entropy = log_normaliser - (torch.softmax(logits, -1) * logits).sum(-1)",
           "entropy = log_normaliser + (torch.softmax(logits, -1) * logits).sum(-1)",
           "entropy adds the mean logit", TEMPERATURE),
    Mutant(OUTPUT, "gather(-1, targets[:, None]).squeeze(-1) - log_normaliser",
           "gather(-1, targets[:, None]).squeeze(-1)",
           "log-probs are not normalised where gradients go through the entropy", TEMPERATURE),
    Mutant(OUTPUT, "torch.tanh(logits / cap) * cap", "torch.tanh(logits / cap)",
           "capped logits are not scaled back", f"{TEST_FORWARD}::test_soft_caps_on_the_logits_are_the_models_own"),
    Mutant(OUTPUT, "scale = 1.0 / float(config.logits_scaling)", "scale = float(config.logits_scaling)",
           "Granite's logits are multiplied instead of divided",
           f"{TEST_FORWARD}::test_the_scale_of_the_logits_is_the_models_own"),
    Mutant(OUTPUT, "scale = float(config.logit_scale)", "scale = 1.0 / float(config.logit_scale)",
           "Cohere's logits are divided instead of multiplied",
           f"{TEST_FORWARD}::test_the_scale_of_the_logits_is_the_models_own"),
    Mutant(OUTPUT, "weight, bias).float()", "weight, bias)",
           "the softmax of selected log-probs runs in bfloat16",
           f"{TEST_FORWARD}::test_selected_logprobs_in_bfloat16_are_no_further_off_than_those_of_pytorch"),
    Mutant(FORWARD, "engine.states(batch, batch.last, every)", "engine.states(batch, batch.last - 1, every)",
           "a score is read before the last token", SCORES),
    Mutant(FORWARD, "engine.states(batch, batch.token, batch.completion_index)",
           "engine.states(batch, batch.source, batch.completion_index)",
           "a mean score is read from the tokens before",
           f"{SCORES} tests/recipes/test_reward.py::test_mean_pooling_scores_the_mean_of_the_answers_states"),
    Mutant(FORWARD, 'if scalar.pooling == "last":', "if True:",
           "the pooling of a reward role is ignored",
           "tests/recipes/test_reward.py::test_mean_pooling_scores_the_mean_of_the_answers_states"),
    Mutant(PADDED, 'arguments["position_ids"] = rows.position_ids', "pass",
           "transformers counts columns as positions", TREES),
    Mutant(PADDED, "if window is None and plain:", "if window is None:",
           "trees of several completions go without a mask", TREES),
    Mutant(PADDED, "None if window is None else attention_mask(rows, window=window)", "None",
           "sliding windows are ignored", TREES),
    Mutant("onebase/models/heads.py", "linear(hidden.float(), self.weight).squeeze(-1)",
           "linear(hidden, self.weight.to(hidden.dtype)).float().squeeze(-1)",
           "scores are computed in the base's number format", "tests/models/test_heads.py"),
    # ---------------------------------------------------------------------------------------------------- decoder
    Mutant(DECODER, "num_heads=self._num_heads + self._num_kv_heads)", "num_heads=self._num_heads)",
           "keys are not rotated", LIKE_TRANSFORMERS),
    Mutant(DECODER, "self._scaling = self._head_size**-0.5", "self._scaling = self._head_size**-1.0",
           "attention scores are scaled twice", LIKE_TRANSFORMERS),
    Mutant(DECODER, "ends = torch.tensor(lengths).cumsum(0) - 1",
           "ends = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)",
           "a completion begins behind the first token of its prompt",
           f"{TEST_GENERATION}::test_greedy_decoding_is_that_of_computing_everything_again"),
    Mutant(DECODER, "if lower is not None and not any(layer.is_adapted for layer in layers[: lower.num_layers]):",
           "if lower is not None:",
           "a role with an adapter below goes on from states without it",
           f"{TEST_DECODER}::test_a_role_with_an_adapter_below_leaves_lower_states_aside"),
    Mutant(DECODER, "layers = layers[lower.num_layers :]", "layers = layers[lower.num_layers - 1 :]",
           "the last of the lower layers is run twice",
           f"{TEST_DECODER}::test_lower_states_change_neither_logprobs_nor_gradients"),
    Mutant(PACKED_ENGINE, "adapted.index(True) if True in adapted", "adapted.index(True) + 1 if True in adapted",
           "an adapted layer is taken for a plain one",
           f"{TEST_DECODER}::test_lower_states_change_neither_logprobs_nor_gradients"),
    Mutant(DECODER, "return project(gated_silu(gate_up), layer.down).add_(x)",
           "return project(gated_silu(gate_up), layer.down)",
           "the residual behind the MLP is lost", LIKE_TRANSFORMERS),
    Mutant(DECODER, "x = _rows(x, columns)\n        return", "pass\n        return",
           "a role without an adapter reads the states of other tokens", TEST_DECODER_LOWER),
    Mutant(FORKED, "masked_fill_(later, -torch.inf)", "masked_fill_(later, 0.0)",
           "a decoding step sees the cache of earlier rows", TEST_FORKED),
    Mutant(FORKED, "masked_fill_(behind, -torch.inf)", "masked_fill_(behind, 0.0)",
           "a short prompt's rows see the zeros behind it", TEST_FORKED),
    Mutant(FORKED, "placed[self._place] = query", "placed[: len(query)] = query",
           "queries stand beside the wrong prompt", TEST_FORKED),
    Mutant(FORKED, "seen[prompt] += 1", "seen[prompt] += 0",
           "all completions of a prompt read with the last one's query", TEST_FORKED),
    Mutant(FORKED, "own[targets, :, :width] = own[sources, :, :width]", "pass",
           "rows that move up leave their own tokens behind", TEST_FORKED),
    Mutant(FORKED, "[used.index(prompt) for prompt in self._prompt_of]", "list(self._prompt_of)",
           "rows keep the place of a prompt that moved up", TEST_FORKED),
    Mutant(FORKED, "layer.prompt_keys[used, :, :longest]", "layer.prompt_keys[:, :, :longest]",
           "prompts that nobody reads are kept", TEST_FORKED),
    Mutant(FORKED, "(pad(x, (0, 0, 0, x.shape[2])) for", "(x for",
           "there is no room for more own tokens", TEST_FORKED),
    Mutant(STEPS, ".unsqueeze(-1).div_(-x.shape[-1])", ".unsqueeze(-1).div_(x.shape[-1])",
           "the gradient of the norm adds what it should take off", STEP),
    Mutant(STEPS, "_turn_(gradient, cosine, -sine, ctx.num_heads)", "_turn_(gradient, cosine, sine, ctx.num_heads)",
           "the gradient of a rotation is rotated on", STEP),
    Mutant(STEPS, "torch.mul(silu(gate), gradient, out=into_up)", "torch.mul(gate, gradient, out=into_up)",
           "the gradient of the gated unit leaves the SiLU out", STEP),
    Mutant(PROJECTION, "adapter.scaling * adapter.b.detach()", "adapter.b.detach()",
           "an adapter is not scaled", SIDE_BY_SIDE),
    Mutant(PROJECTION, "part.to(adapter.b.dtype).mul_(adapter.scaling)", "part.to(adapter.b.dtype)",
           "the gradient of an adapter's B is not scaled", SIDE_BY_SIDE),
    Mutant(PROJECTION, "slice(rank, rank + len(a))))", "slice(0, len(a))))",
           "adapters side by side share their ranks",
           f"{TEST_PROJECTION}::test_a_layer_is_read_with_the_adapter_that_is_in_force"),
    Mutant(PROJECTION, "through_b @ projection.a if through_b is not None and projection.a is not None else None",
           "None",
           "no gradient passes through adapters to lower layers", SIDE_BY_SIDE),
    Mutant(PROJECTION, "(name,) = active", "name = next(iter(module.lora_A))",
           "the first adapter is used, whichever is in force",
           f"{TEST_PROJECTION}::test_a_layer_is_read_with_the_adapter_that_is_in_force"),
    Mutant(ATTENTION, "& (branch != 0)[:, None, :]", "& (branch != 1)[:, None, :]",
           "branches see the first branch instead of the prompt", PACKED),
    Mutant(PARTIAL, "torch.bmm(g * scaling, v.transpose(1, 2))", "torch.bmm(g, v.transpose(1, 2))",
           "the gradient of attention is not scaled", PACKED),
    Mutant(PARTIAL, ".mul_(exact).mul_(scaling)", ".mul_(exact)",
           "the gradient of a tree in parts is not scaled", PACKED),
    Mutant(PARTIAL, ".sub_(product).mul_(exact)", ".mul_(exact)",
           "the gradient of a part forgets that all parts share one softmax", PACKED),
    Mutant(PARTIAL, "torch.sigmoid(other_lse - lse)", "torch.sigmoid(lse - other_lse)",
           "two parts of attention are weighed the wrong way round", PACKED),
    Mutant(PARTIAL, "torch.logaddexp(lse, other_lse)", "lse",
           "the gradient of a completion normalises over its own tokens alone", PACKED),
    Mutant(ATTENTION, "tensor.index_select(0, groups.columns).index_fill_(0, groups.padding, 0)",
           "tensor.index_select(0, groups.columns)",
           "the gradient of a tree's last token is counted once per padding", PACKED),
    Mutant(ATTENTION, "(num_kv_heads, -1)).sum(1)", "(num_kv_heads, -1)).mean(1)",
           "keys shared by several query heads get the mean of their gradients", PACKED),
    Mutant(ATTENTION, "masked_fill_(is_behind.view", "masked_fill_(is_behind.logical_not().view",
           "completions read what stands behind their prompt", PACKED),
    Mutant(ATTENTION, "causal=group.mask is None)", "causal=False)",
           "plain sequences see their future",
           f"{TEST_ATTENTION}::test_sequences_end_to_end_are_plain_causal_attention"),
    # ----------------------------------------------------------------------------------------- cache and sampling
    Mutant(CACHE, "(columns[None, :] <= lengths[:, None])", "(columns[None, :] < lengths[:, None])",
           "a token that is drawn does not see itself", OF_THE_TREE),
    Mutant(CACHE, "rows = first + prompts * copies + copy",
           "rows = first + copy * len(lengths) + prompts",
           "the slots of prompts let in together are dealt in turn", OF_THE_TREE),
    Mutant(CACHE, "self.counts = [self.counts[i] for i in kept]", "self.counts = self.counts[: len(kept)]",
           "rows that move up keep the length of the row before", ALONE),
    Mutant(CACHE, "slot.values[targets, :, :width] = slot.values[sources, :, :width]", "pass",
           "rows that move up leave their values behind", ALONE),
    Mutant(CACHE, "width = max(self.counts)\n", "width = max(self.counts) - 1\n",
           "rows that move up leave their last key and value behind", ALONE),
    Mutant(SEEDS, '{seed}/{stream}/{p}/{k}"', '{seed}/{stream}/{p}"',
           "all samples of a prompt are alike",
           f"{TEST_GENERATION}::test_seeds_are_a_pure_function_of_seed_stream_prompt_and_sample"),
    Mutant(SEEDS, '{seed}/{stream}/{p}/{k}"', '{seed}/{p}/{k}"',
           "every stream has the same random numbers",
           f"{TEST_GENERATION}::test_seeds_are_a_pure_function_of_seed_stream_prompt_and_sample"),
    Mutant(DRAWING, "generator.manual_seed(seed)) for seed in seeds", "generator.manual_seed(0)) for seed in seeds",
           "every sample has the same random numbers", NEXT_NUMBER),
    Mutant(DRAWING, "logits.float() / (sampling.temperature or 1.0)", "logits.float()",
           "tokens are drawn at temperature one", DRAWN),
    Mutant(DRAWING, "torch.searchsorted(cumulative, thresholds, right=True)",
           "torch.searchsorted(cumulative, thresholds, right=False)",
           "a token of probability zero can be drawn",
           f"{TEST_GENERATION}::test_a_token_of_probability_zero_is_never_drawn_at_the_ends_of_the_range"),
    Mutant(DRAWING, "randoms.to(wide)[:, None] * cumulative[:, -1:]", "randoms.to(wide)[:, None]",
           "a truncated distribution is not normalised before drawing", f"{TRUNCATED} {DRAWN}"),
    Mutant(DRAWING, "weights = _truncate(logprobs, sampling)", "weights = logprobs",
           "top-k and top-p are ignored", TRUNCATED),
    Mutant(DRAWING, "logprobs < least", "logprobs <= least",
           "top-k keeps one token too few", TRUNCATED),
    Mutant(DRAWING, "before = ordered.exp().cumsum(-1) - ordered.exp()", "before = ordered.exp().cumsum(-1)",
           "top-p leaves out the token that reaches it", TRUNCATED),
    Mutant(DRAWING, "logprobs.log_softmax(-1).sort(", "logprobs.sort(",
           "top-p behind top-k reads the mass of the whole distribution", TRUNCATED),
    Mutant(RUNNING, "row.numbers[len(row.sample.ids) :]", "row.numbers[max(0, len(row.sample.ids) - 1) :]",
           "the second token is drawn by the first random number", NEXT_NUMBER),
    Mutant(RUNNING, "numbers = [row.numbers[", "numbers = [rows[0].numbers[",
           "every row draws by the numbers of the first", ALONE),
    Mutant(RUNNING, "return self.sampling.max_new_tokens - len(self.sample.ids)",
           "return self.sampling.max_new_tokens - len(self.sample.ids) - 1",
           "decoding stops a token before the limit",
           f"{TEST_GENERATION}::test_a_stop_token_stays_as_the_last_one_and_the_length_limit_is_no_end"),
    Mutant(PADDED, "mine = [slot - begin for slot in slots if begin <= slot < begin + len(rows)]",
           "mine = list(slots[: len(rows)])",
           "rows that are read again are those of the first prompt", TEST_GENERATION),
    Mutant(RUNNING, "row.sample.ended = token in row.sampling.stop_ids",
           "row.sample.ended = token in row.sampling.stop_ids or row.num_left <= 0",
           "a completion cut by the limit has ended",
           f"{TEST_GENERATION}::test_a_stop_token_stays_as_the_last_one_and_the_length_limit_is_no_end"),
    Mutant(GENERATION, "[*ids, base.tokenizer.eos_token_id, *extra]", "[*ids, base.tokenizer.eos_token_id]",
           "further stop tokens are ignored",
           f"{TEST_GENERATION}::test_stop_ids_are_those_of_the_tokenizer_the_model_and_the_caller"),
    Mutant(DECODING, "return last.repeat_interleave(copies, dim=0)",
           "return last.repeat(copies, 1)",
           "first tokens are dealt to the samples of other prompts", OF_THE_TREE),
    # ------------------------------------------------------------------------------------------------------ roles
    Mutant(ONE_BASE, "self.adapter_config(source.name), self.adapter_weights(source.name)",
           "self.adapter_config(source.name), None",
           "a copied role starts from fresh weights", TEST_ONE_BASE),
    Mutant(ONE_BASE, "scalar.head.load_state_dict(source.head.state_dict())", "pass",
           "a copied role has a head of zeros", TEST_ONE_BASE),
    Mutant(ONE_BASE, "            self._apply(before)", "            self._apply(None)",
           "a role within a role leaves the bare base behind", TEST_ONE_BASE),
    Mutant(ONE_BASE, "layer.set_adapter([adapter] if adapter else [], inference_mode=True)",
           "layer.set_adapter([adapter] if adapter else layer.active_adapters, inference_mode=True)",
           "a role without an adapter runs with the one before", TEST_ONE_BASE),
    Mutant(ONE_BASE, "if role.trains and role.adapter == role.name:", "if role.adapter == role.name:",
           "every adapter trains", TEST_ONE_BASE),
    Mutant(ONE_BASE, "role.head.requires_grad_(role.trains)", "role.head.requires_grad_(False)",
           "heads do not train", TEST_ONE_BASE),
    Mutant("onebase/models/adapters.py", "everything[num_layers // 2 :]", "everything[: num_layers // 2]",
           "the lower half is adapted instead of the upper", "tests/models/test_adapters.py"),
    Mutant(RECORDS, "else sum(map(sum, self.counted))", "else sum(map(len, self.counted))",
           "tokens that do not count are in the normaliser", TEST_PASSES),
    Mutant(PASSES, "for n, i in enumerate(indices):",
           "for n, i in enumerate(sorted(indices)):",
           "results come back in the order of lengths", TEST_PASSES),
    Mutant(PASSES, "for i, example, states in zip(indices, chosen, of_trees, strict=True):",
           "for i, example, states in zip(sorted(indices), chosen, of_trees, strict=True):",
           "lower states go to other examples",
           f"{TEST_DECODER}::test_lower_states_change_neither_logprobs_nor_gradients"),
    Mutant(ROLE_FILES, "        role.pooling = card.pooling\n",
           "",
           "a loaded role forgets its pooling", LIKE_THE_SAVED),
    Mutant(ROLE_FILES, "role.head.weight.copy_(score)", "role.head.weight.copy_(score.abs())",
           "a loaded head has another sign", LIKE_THE_SAVED),
]  # fmt: skip
