"""Processors against cases made by hand, the sampler against frequencies, and that a seed fixes the text."""

import math

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import GPT, GPTConfig, UsageError
from tinygpt.generation import generate, stream
from tinygpt.generation.processors import apply_temperature, keep_top_k, keep_top_p, softmax
from tinygpt.generation.sampler import draw, process, uniforms

INF = math.inf
CONFIG = GPTConfig(vocab_size=13, block_size=6, n_layer=2, n_head=2, n_embd=16, dropout=0.5)
PROMPTS = np.random.default_rng(0).integers(0, 13, (5, 4))


def make(dtype=np.float64):
    """A model with opinions: random weights large enough that the next token is far from uniform."""
    model = GPT(CONFIG, seed=1, dtype=dtype)
    for parameter in model.parameters():
        parameter.data += 0.2 * np.random.default_rng(parameter.size).standard_normal(parameter.shape)
    return model


# Processors -----------------------------------------------------------------------------------------


def test_temperature():
    logits = np.array([[1.0, 3.0, 2.0]])
    np.testing.assert_array_equal(apply_temperature(logits, 0.5), [[-4, 0, -2]])
    np.testing.assert_allclose(softmax(apply_temperature(logits, 1.0)), softmax(logits))
    np.testing.assert_array_equal(softmax(apply_temperature(logits, 1e-320)), [[0, 1, 0]])  # no overflow, no nan


def test_top_k_keeps_ties():
    logits = np.array([[1.0, 3.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 1.0, 2.0]])
    np.testing.assert_array_equal(keep_top_k(logits, 1), [[-INF, 3, -INF, -INF, -INF], [5, 5, 5, -INF, -INF]])
    np.testing.assert_array_equal(keep_top_k(logits, 2), [[-INF, 3, 2, 2, -INF], [5, 5, 5, -INF, -INF]])
    np.testing.assert_array_equal(keep_top_k(logits, 4), [[1, 3, 2, 2, -INF], [5, 5, 5, -INF, 2]])
    np.testing.assert_array_equal(keep_top_k(logits, 5), logits)
    np.testing.assert_array_equal(keep_top_k(logits, 50), logits)


def test_top_p_keeps_the_crossing_token():
    logits = np.log([[0.1, 0.5, 0.15, 0.25]])

    def kept(p):
        return np.isfinite(keep_top_p(logits, p))[0].tolist()

    assert kept(1e-9) == [False, True, False, False]  # at least one stays
    assert kept(0.49) == [False, True, False, False]
    assert kept(0.51) == [False, True, False, True]  # 0.5 is not enough: the next one crosses
    assert kept(0.74) == [False, True, False, True]
    assert kept(0.76) == [False, True, True, True]
    assert kept(1.0) == [True, True, True, True]
    np.testing.assert_array_equal(keep_top_p(logits, 0.6)[0, [1, 3]], logits[0, [1, 3]])


def test_top_p_among_equals_takes_the_lower_ids():
    np.testing.assert_array_equal(np.isfinite(keep_top_p(np.zeros((1, 4)), 0.5)), [[True, True, False, False]])


def test_processors_leave_their_input_alone_and_take_rows_apart():
    logits = np.random.default_rng(0).standard_normal((4, 9))
    before = logits.copy()
    for function in (lambda x: apply_temperature(x, 0.7), lambda x: keep_top_k(x, 3), lambda x: keep_top_p(x, 0.6)):
        together = function(logits)
        np.testing.assert_array_equal(logits, before)
        for b in range(4):
            np.testing.assert_array_equal(function(logits[b : b + 1])[0], together[b])


def test_the_order_is_temperature_then_top_k_then_top_p():
    logits = np.log([[0.4, 0.3, 0.2, 0.1]])
    # Of the two that top_k leaves, the first has 4/7 of the probability: enough for 0.55. Before top_k it has 0.4.
    assert np.isfinite(process(logits, 1.0, 2, 0.55))[0].tolist() == [True, False, False, False]
    assert np.isfinite(process(logits, 1.0, None, 0.55))[0].tolist() == [True, True, False, False]
    # A low temperature first gives the best token most of the probability.
    assert np.isfinite(process(logits, 0.25, None, 0.55))[0].tolist() == [True, False, False, False]


# Drawing --------------------------------------------------------------------------------------------


def test_draw_inverts_the_cumulative_probabilities():
    logits = np.log([[0.25, 0.5, 0.25]])
    for u, token in [(0.0, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 2), (1 - 2**-53, 2)]:
        assert draw(logits, np.array([u])).tolist() == [token]


def test_draw_never_takes_what_was_ruled_out():
    logits = np.array([[-INF, 0.0, -INF, 0.0, -INF]])
    u = np.concatenate([[0.0, 0.5, 1 - 2**-53], np.random.default_rng(0).random(1000)])
    drawn = draw(np.repeat(logits, len(u), axis=0), u)
    assert set(drawn.tolist()) == {1, 3}


def test_frequencies_are_the_probabilities():
    """Pearson's chi-square over 20,000 draws by the sampler's own random numbers, of a fixed seed."""
    probabilities = np.array([0.4, 0.05, 0.3, 0.01, 0.24])
    n = 20_000
    logits = np.repeat(np.log(probabilities)[None], 100, axis=0)
    drawn = np.concatenate([draw(logits, uniforms(seed=7, step=t, rows=100)) for t in range(n // 100)])
    counts = np.bincount(drawn, minlength=5)
    chi_square = ((counts - n * probabilities) ** 2 / (n * probabilities)).sum()
    assert chi_square < 18.47  # four degrees of freedom: exceeded once in a thousand seeds
    # and consecutive draws of one row are not tied to each other
    rows = drawn.reshape(-1, 100)
    both = np.mean((rows[:-1] == 0) & (rows[1:] == 0))
    assert both == pytest.approx(0.16, abs=0.012)


# Generation -----------------------------------------------------------------------------------------


def test_greedy_takes_the_greatest_by_hand():
    model = make().eval()
    ids = PROMPTS.copy()
    for _ in range(7):  # beyond the block of 6: the window slides
        logits = model(ids[:, -6:]).data[:, -1]
        ids = np.concatenate([ids, logits.argmax(axis=1)[:, None]], axis=1)
    for options in (
        {"temperature": 0},
        {"do_sample": False},
        {"top_k": 1, "seed": 3},
        {"temperature": 1e-9, "seed": 3},
    ):
        out = model.generate(PROMPTS, 7, **options)
        assert out.dtype == np.int64
        np.testing.assert_array_equal(out, ids)


def test_a_seed_fixes_the_text_whatever_the_batch():
    model = make()
    options = {"temperature": 1.3, "top_k": 9, "top_p": 0.95}
    whole = model.generate(PROMPTS, 12, seed=5, **options)
    np.testing.assert_array_equal(whole, model.generate(PROMPTS, 12, seed=5, **options))
    assert (whole != model.generate(PROMPTS, 12, seed=6, **options)).any()
    for rows in (1, 2, 4):
        np.testing.assert_array_equal(model.generate(PROMPTS[:rows], 12, seed=5, **options), whole[:rows])
    assert (whole[:, :4] == PROMPTS).all()
    assert ((whole >= 0) & (whole < 13)).all()


def test_equal_prompts_get_different_samples():
    samples = make().generate(np.repeat(PROMPTS[:1], 4, axis=0), 12, seed=0)
    assert len({tuple(row) for row in samples.tolist()}) > 1


def test_without_a_seed_the_default_generator_decides():
    model = make()
    texts = []
    for seed in (1, 1, 2):
        tg.manual_seed(seed)
        texts.append([model.generate(PROMPTS, 8).tolist(), model.generate(PROMPTS, 8).tolist()])
    tg.manual_seed(0)
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0] != texts[0][1]  # the second call goes on, it does not repeat


def test_stream_yields_what_generate_returns():
    model = make()
    out = generate(model, PROMPTS, 9, seed=4)
    tokens = list(stream(model, PROMPTS, 9, seed=4))
    assert len(tokens) == 9
    np.testing.assert_array_equal(np.stack(tokens, axis=1), out[:, 4:])
    np.testing.assert_array_equal(model.generate(PROMPTS, 0), PROMPTS)


def test_the_mode_and_the_graph_are_left_as_they_were():
    model = make()
    model.h[0].eval()
    modes = [m.training for m in model.modules()]
    state = model.generator.state_dict()
    tokens = stream(model, PROMPTS, 3, seed=0)
    next(tokens)
    assert [m.training for m in model.modules()] == modes
    assert not model(PROMPTS).is_leaf  # between two tokens a graph is made as usual
    model.generator.load_state_dict(state)
    list(tokens)
    assert [m.training for m in model.modules()] == modes
    assert model.generator.state_dict() == state  # dropout was off: no mask drawn
    assert all(p.grad is None for p in model.parameters())


def test_no_graph_is_made_for_a_token(monkeypatch):
    model, made = make(), []
    next_logits = model.next_logits
    monkeypatch.setattr(model, "next_logits", lambda ids: made.append(next_logits(ids)) or made[-1])
    model.generate(PROMPTS, 2, seed=0)
    assert [logits.is_leaf for logits in made] == [True, True]


def test_a_batch_without_rows():
    assert make().generate(np.zeros((0, 3), int), 4).shape == (0, 7)


def test_a_long_prompt_is_cut_to_the_window():
    model = make()
    long = np.concatenate([PROMPTS, PROMPTS], axis=1)  # 8 tokens for a block of 6
    out = model.generate(long, 3, seed=2)
    np.testing.assert_array_equal(out[:, :8], long)
    np.testing.assert_array_equal(out[:, 8:], model.generate(long[:, -6:], 3, seed=2)[:, 6:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature must be at least 0, not -1"),
        ({"temperature": math.nan}, "temperature must be at least 0, not nan"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"max_new_tokens": 1.0}, "max_new_tokens must be a whole number"),
        ({"seed": -1}, "a seed is an integer"),
        ({"idx": [1, 2]}, r"the shape \(batch, time\)"),
        ({"idx": [[]]}, "at least one token"),
        ({"idx": [[0.5]]}, "not float64"),
        ({"idx": [[13] + [0] * 9]}, "vocab_size is 13"),  # even where the window no longer sees it
    ],
)
def test_bad_options_get_a_sentence_before_the_first_token(options, words):
    arguments = {"idx": PROMPTS, "max_new_tokens": 3} | options
    with pytest.raises(UsageError, match=words):
        stream(make(), **arguments)


def test_a_ruined_model_gets_a_sentence():
    model = make()
    model.ln_f.weight.data[0] = math.nan
    with pytest.raises(UsageError, match="logits are not finite"):
        model.generate(PROMPTS, 1)
