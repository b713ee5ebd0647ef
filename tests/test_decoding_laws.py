"""Properties that tie the strategies to each other."""

import numpy as np
from beams import asked
from goldens.tiny_models import npllama_model, tiny
from hypothesis import example, given
from hypothesis import strategies as st

import npllama
from npllama import GenerationConfig, generate, stream
from npllama.decoding.beam import beam_search
from npllama.decoding.constrained_beam import constrained_beam_search, constraints_of
from npllama.decoding.group_beam import group_beam_search
from npllama.decoding.stopping import at_tokens

SEEDS = st.integers(0, 10_000)


@given(SEEDS, st.integers(2, 4), st.sampled_from([0.0, 1.0, 2.0]))
def test_one_group_is_beam_search(seed, num_beams, length_penalty):
    made = tiny(seed)
    model, stop = npllama_model(made), at_tokens([3])
    options = {"eos": [3], "length_penalty": length_penalty}
    # Stopped early, the two forget other texts: that of transformers 5, and that of 4.
    options["early_stopping"] = "never"
    plain = beam_search(*asked(model, made.prompt, stop, 6, num_beams, **options))
    groups = group_beam_search(
        *asked(model, made.prompt, stop, 6, num_beams, **options), 1, 0.5
    )
    assert [h.tokens for h in groups] == [h.tokens for h in plain]


@given(SEEDS, st.integers(2, 4), st.sampled_from([True, False, "never"]))
@example(495, 3, True)  # the last beam to finish does so in the last step
@example(576, 3, True)
@example(706, 3, True)
@example(736, 3, True)
@example(931, 3, True)
def test_without_constraints_it_is_beam_search(seed, num_beams, early_stopping):
    made = tiny(seed)
    model, stop = npllama_model(made), at_tokens([3])
    options = {"eos": [3], "early_stopping": early_stopping}
    plain = beam_search(*asked(model, made.prompt, stop, 6, num_beams, **options))
    free = constrained_beam_search(
        *asked(model, made.prompt, stop, 6, num_beams, **options), []
    )
    assert free == plain


@given(SEEDS, st.integers(2, 4))
def test_constraints_that_the_prompt_fulfils_change_nothing_at_the_end(seed, num_beams):
    # With room for all extensions the best one of each beam is among them anyway.
    made = tiny(seed)
    model, stop = npllama_model(made), at_tokens([])
    phrases = constraints_of([made.prompt[1:3], made.prompt[2:4]])
    plain = beam_search(*asked(model, made.prompt, stop, 6, num_beams))
    held = constrained_beam_search(
        *asked(model, made.prompt, stop, 6, num_beams), phrases
    )
    assert held == plain


@given(SEEDS, st.booleans())
def test_beams_of_one_prompt_do_not_depend_on_the_others(seed, sampled):
    made, rng = tiny(seed), np.random.default_rng(seed)
    model, V = npllama_model(made), made.config["vocab_size"]
    prompts = [rng.integers(4, V, n).tolist() for n in (2, 5, 3)]
    config = GenerationConfig(
        max_new_tokens=5, num_beams=3, num_return_sequences=2, eos_token_id=3
    )
    together = generate(model, prompts, config)
    alone = [text for prompt in prompts for text in generate(model, [prompt], config)]
    assert [text.tokens for text in together] == [text.tokens for text in alone]
    scores = [text.score for text in together]
    assert all(a >= b for a, b in zip(scores[::2], scores[1::2]))


@given(st.integers(0, 300))
def test_what_is_streamed_is_what_is_generated(seed):

    model = npllama.load("stories-draft")
    rng = np.random.default_rng(seed)
    stop = rng.choice([". ", "the", "e w", "and", '."'])
    config = GenerationConfig(
        max_new_tokens=40,
        do_sample=True,
        stop_strings=[str(stop)],
        include_stop_str_in_output=bool(rng.random() < 0.5),
    )
    whole = generate(model, "Once", config, np.random.default_rng(seed)).text
    pieces = list(stream(model, "Once", config, np.random.default_rng(seed)))
    assert "".join(pieces) == whole
    assert (stop in whole) == (config.include_stop_str_in_output and stop in whole)


def test_log_probabilities_sum_to_one_and_the_first_token_has_none():

    model = npllama.load("stories-draft")
    V = model.config.vocab_size
    config = GenerationConfig(max_new_tokens=3, logprobs=V, prompt_logprobs=True)
    found = generate(model, "Once upon", config)
    for entry in found.logprobs:
        assert np.isclose(sum(np.exp(p) for _, p in entry.top), 1, atol=1e-4)
    assert found.prompt_logprobs[0] is None and len(found.prompt_logprobs) > 2
