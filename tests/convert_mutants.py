"""Faults of conversion and of configs, each with the law that must notice it.

(file, old text, new text, test).
"""

GGUF, PACKED = "test_convert_gguf.py::test_", "test_convert_packed.py::test_"
ADAPTER, CONVERT = "test_convert_adapter.py::test_", "test_convert.py::test_"
CLI = "test_cli.py::test_"
CONFIG, ROPE = "test_config.py::test_", "test_rope.py::test_"

MUTANTS = [
    # ---- GGUF
    (
        "convert/meta.py",
        "return heads[:, halves_order(D)].reshape(tensor.shape)",
        "return heads.reshape(tensor.shape)",
        GGUF + "a_file_of_floats_comes_back_whole",
    ),
    (
        "convert/meta.py",
        r"[qk]_proj\.(weight|bias)$",
        r"[qk]_proj\.weight$",
        GGUF + "a_file_of_floats_comes_back_whole",
    ),
    (
        "convert/gguf_file.py",
        "axes)[::-1].tolist()",
        "axes).tolist()",
        GGUF + "a_file_of_floats_comes_back_whole",
    ),
    (
        "convert/gguf_file.py",
        "result[first : first + count] =",
        "result[:count] =",
        GGUF + "a_row_of_blocks_is_the_same_read_at_once_or_in_pieces",
    ),
    (
        "convert/gguf_file.py",
        "if count > len(self.data) - self.at:",
        "if count < 0:",
        GGUF + "a_header_that_lies_is_refused",
    ),
    (
        "convert/gguf.py",
        "return float(str(np.float32(value)))",
        "return float(value)",
        GGUF + "a_float_is_read_as_its_author_wrote_it",
    ),
    (
        "convert/gguf.py",
        "scaled = plain / llama3_frequencies",
        "scaled = plain * llama3_frequencies",
        GGUF + "llama3_scaling_is_recovered_from_its_divisors",
    ),
    (
        "convert/gguf.py",
        "lambda: np.zeros(shape, np.float32)",
        "lambda: np.ones(shape, np.float32)",
        GGUF + "biases_of_some_projections_are_zero_in_the_others",
    ),
    (
        "convert/gguf.py",
        '"expert_count": (0,),',
        '"expert_count": (0, 8),',
        GGUF + "what_is_no_llama_is_refused_by_name",
    ),
    (
        "convert/gguf_text.py",
        "+ _float(2, score)",
        "+ _float(2, 0.0)",
        GGUF + "a_sentencepiece_model_is_written_anew",
    ),
    # ---- packed weights
    (
        "convert/packed.py",
        "(32 - shift[over])",
        "shift[over]",
        PACKED + "numbers_laid_end_to_end_come_back",
    ),
    (
        "convert/packed.py",
        "w -= zeros[groups]",
        "w += zeros[groups]",
        PACKED + "weights_equal_those_of_the_library_that_packed_them",
    ),
    (
        "convert/layouts.py",
        "AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)",
        "AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)",
        PACKED + "awq_columns_stand_in_its_order",
    ),
    (
        "convert/layouts.py",
        "return (stored + less_one) &",
        "return stored &",
        PACKED + "both_versions_of_gptq_say_the_same_zeros",
    ),
    (
        "convert/layouts.py",
        "if gptq.symmetric and np.all(stored == other):",
        "if False:",
        PACKED + "zeros_that_must_be_the_middle_tell_the_version",
    ),
    (
        "convert/layouts.py",
        'groups = given_groups(parts["g_idx"], len(scales))  # (S,)',
        "groups = groups_of(S, len(scales), gptq.group_size)  # (S,)",
        PACKED + "inputs_in_any_order_of_groups_come_back",
    ),
    (
        "convert/layouts.py",
        "if np.any(tensor.read()):",
        "if False:",
        PACKED + "biases_that_are_zero_are_left_out_and_others_refused",
    ),
    # ---- adapters
    (
        "convert/adapter.py",
        "(math.sqrt(rank) if",
        "(rank if",
        ADAPTER + "the_scale_is_alpha_over_rank_or_its_root",
    ),
    (
        "convert/adapter.py",
        "(m / np.linalg.norm(y, axis=1))[:, None]",
        "m[:, None]",
        ADAPTER + "merging_adds_the_scaled_product",
    ),
    (
        "convert/adapter.py",
        'rf"(.*\\.)?({pattern})$"',
        'rf".*({pattern})$"',
        ADAPTER + "patterns_give_a_module_its_own_rank_and_alpha",
    ),
    (
        "convert/adapter.py",
        "both = checkpoint.tensors | {HEAD: checkpoint.tensors[EMBED]}",
        "return checkpoint",
        ADAPTER + "one_of_two_that_were_tied_may_change_alone",
    ),
    # ---- folders
    (
        "convert/hf.py",
        "default = 2 if told is None else None",
        "default = 2",
        CONVERT + "an_end_token_that_is_not_given_is_not_added",
    ),
    (
        "convert/hf.py",
        "if name in needed and name != HEAD:",
        "if True:",
        CONVERT + "what_an_index_promises_and_nobody_needs_may_be_absent",
    ),
    # ---- configs
    (
        "config.py",
        "scaling = both[0] or both[1]",
        "scaling = both[1] or both[0]",
        CONFIG + "rope_scaling_beside_rope_parameters_is_the_one_used",
    ),
    (
        "config.py",
        "if scaled and part not in (None, 1):",
        "if part not in (None, 1):",
        CONFIG + "all_pairs_turn_in_a_llama",
    ),
    # ---- what is given in place of the result, and a context of another length
    (
        "files/checkpoint.py",
        '".pt" if path.suffix == ".bin" and of_torch else path.suffix',
        "path.suffix",
        CONVERT + "another_format_given_as_weights_is_told_its_command",
    ),
    (
        "files/checkpoint.py",
        "    if packaged(str(name)):\n",
        "    if False:\n",
        CONVERT + "an_adapter_or_a_package_given_as_weights_is_told_its_command",
    ),
    (
        "cli/options.py",
        "return model._replace(config=config)",
        "return model",
        CLI + "a_text_goes_beyond_the_model_s_positions_if_that_is_asked_for",
    ),
    (
        "cli/offload.py",
        "model_on_storage(layers)._replace(config=config)",
        "model_on_storage(layers)",
        CLI + "a_text_goes_beyond_the_model_s_positions_if_that_is_asked_for",
    ),
    (
        "serving/prompts.py",
        "    if context is None:\n",
        "    if True:\n",
        CLI + "many_prompts_have_a_context_too",
    ),
    (
        "cli/prompts.py",
        'weights |= {} if context is None else {"context": str(context)}',
        "pass",
        CLI + "many_prompts_have_a_context_too",
    ),
    (
        "convert/params.py",
        "16384 if theta == 1e6 else 4096",
        "4096",
        CONFIG + "the_context_of_metas_models_is_told_by_their_theta",
    ),
    (
        "rope.py",
        "long = S > rope.original_max_position_embeddings",
        "long = S >= rope.original_max_position_embeddings",
        ROPE + "longrope_takes_its_long_factors_after_the_trained_length",
    ),
]
