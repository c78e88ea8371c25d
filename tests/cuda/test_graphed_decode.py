"""Decoding steps as CUDA graphs, through the stand-in: the kernels on the CPU, captured and repeated (`capture.py`).

A replayed step must have the bits of the step; ids and lengths, which change at each, must not be recorded as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import capture, emulator, standin
from tests.cuda.graph_runs import DEVICE
from tinygpt._ext import cuda
from tinygpt.errors import UsageError
from tinygpt.generation.decoder import Decoder
from tinygpt.generation.graphed_decode import EAGER, GraphedDecode
from tinygpt.generation.row_decoder import RowDecoder
from tinygpt.generation.token_sampler import Draw, TokenSampler, Uniforms
from tinygpt.ops.packed import Matrix

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)"),
]
CONFIG = tg.GPTConfig(vocab_size=23, block_size=16, n_layer=1, n_head=2, n_embd=16)


class Bare:
    """A layer, with NumPy's arrays in the place of the stand-in's."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return bare(getattr(self._held, name))


def bare(value: Any) -> Any:
    if isinstance(value, standin.ndarray):
        return value.held
    if isinstance(value, Matrix):
        return Matrix(*map(bare, value))
    return value if value is None or isinstance(value, (bool, int, float, str)) else Bare(value)


def kernel_body(name: str) -> Callable[..., Any] | None:
    """A CUDA kernel run on the CPU; in a captured stream it is written down, to run at each replay."""
    launcher = cuda.body(DEVICE, name)  # type: ignore[arg-type]
    if launcher is None:
        return None

    def body(*args: Any) -> Any:
        given = [bare(value) for value in args]
        return standin.wrapped(capture.launched(lambda: launcher(*given), *given, writes=True))

    return body


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with standin.recording(monkeypatch, kernel_body):
        yield


def decoders(pack: str | None = None) -> tuple[Decoder, Decoder]:
    """One with graphs and one without, of one model."""
    model = tg.GPT(CONFIG, seed=1).eval()
    model = (model.pack(pack) if pack else model).to("cupy")
    on, off = Decoder(model), Decoder(model)
    return on, off


def begin(on: Decoder, off: Decoder) -> None:
    """Two texts; afterwards `off` has no graphs."""
    for decoder in (on, off):
        decoder.prefill([np.array([1, 2, 3]), np.array([4])])
    off.graphed = None


@pytest.mark.parametrize("pack", [None, "int8"])
def test_a_replayed_step_has_the_bits_of_the_step(pack: str | None) -> None:
    on, off = decoders(pack)
    begin(on, off)
    rng = np.random.default_rng(0)
    for _ in range(EAGER + 5):
        ids = rng.integers(0, 23, 2)
        assert np.allclose(on.step(ids).get(), off.step(ids).get(), rtol=1e-5, atol=1e-6)
    assert isinstance(on.graphed, GraphedDecode)
    assert (on.graphed.replays, on.graphed.failed) == (5, False)
    for a, b in zip(on.cache, off.cache, strict=True):
        assert np.allclose(a.keys.get(), b.keys.get(), rtol=1e-5, atol=1e-6)
    on.select(np.array([1, 0]))
    off.select(np.array([1, 0]))
    for _ in range(2):
        ids = rng.integers(0, 23, 2)
        assert np.allclose(on.step(ids).get(), off.step(ids).get(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 4, 5), (2, 5, 1), (1, 12, 1)])
def test_prompts_of_similar_lengths_are_read_in_one_pass(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, alone = decoders()
    prompts = [np.random.default_rng(i).integers(0, 23, T) for i, T in enumerate(lengths)]
    usual, passes = decoder.model.hidden, []

    def hidden(idx: Any, cache: Any = None) -> Any:
        passes.append(np.shape(idx))
        return usual(idx, cache)

    expected = [alone.prefill([prompt]).get()[0] for prompt in prompts]
    monkeypatch.setattr(decoder.model, "hidden", hidden)
    found = decoder.prefill(prompts).get()
    assert passes == ([(3, 5)] if max(lengths) == 5 else [(1, T) for T in lengths])
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
    steps = [decoder.step(ids).get() for ids in ([1, 2, 3], [4, 5, 6])]
    for b, prompt in enumerate(prompts):
        alone.prefill([prompt])
        for step, ids in zip(steps, ([1, 2, 3], [4, 5, 6]), strict=True):
            assert np.allclose(step[b], alone.step([ids[b]]).get()[0], rtol=1e-5, atol=1e-6)


def test_a_replay_launches_nothing_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    on, off = decoders()
    begin(on, off)
    for _ in range(EAGER + 1):
        on.step([1, 2])
    monkeypatch.setattr(on, "one_pass", None)
    monkeypatch.setattr(on.graphed, "compute", None)
    on.step([3, 4])
    assert on.graphed.replays == 2


def test_what_can_not_be_recorded_goes_on_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    on, off = decoders()
    begin(on, off)
    usual = on.graphed.compute

    def compute(ids: Any, lengths: Any) -> Any:
        result = usual(ids, lengths)
        result.sum().item()  # for the host
        return result

    monkeypatch.setattr(on.graphed, "compute", compute)
    for _ in range(EAGER + 3):
        assert np.allclose(on.step([1, 2]).get(), off.step([1, 2]).get(), rtol=1e-5, atol=1e-6)
    assert on.graphed.failed
    assert on.graphed.replays == 0
    assert capture.stack[-1].tape is None


def test_a_number_that_is_recorded_is_found_out() -> None:
    on, off = decoders()
    begin(on, off)
    usual, count = on.graphed.compute, iter(range(100))
    on.graphed.compute = lambda ids, lengths: usual(ids, lengths) * float(next(count))
    for _ in range(EAGER + 1):
        on.step([1, 2])
    assert on.graphed.failed


# Sampling where the logits are ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.8}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.8}, {"top_k": 3, "eos_token_id": [2, 7]}],
)
def test_a_text_is_that_of_the_sampler_on_the_host(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of each step's logits none come to the host: the first ones, after the prompt, do."""
    model = tg.GPT(CONFIG, seed=1).eval().to("cupy")
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    usual, sizes = standin.ndarray.get, []

    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(self.size)
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(standin.ndarray, "get", get)
    found = model.generate(prompts, 12, seed=3, **options)
    if "eos_token_id" not in options:
        assert sizes.count(2 * 23) == 1
        assert sizes.count(2) == 11
    monkeypatch.setattr("tinygpt.generation.token_sampler.TokenSampler.draws_on_device", False)
    assert np.array_equal(found, model.generate(prompts, 12, seed=3, **options))


COMMON = [
    {"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.9, "top_k": 7, "top_p": 0.9},
]  # fmt: skip


def launches_of_each_step(model: Any, options: Any) -> tuple[list[int], list[int]]:
    """Of 12 steps: how many kernels Python launches in each, and how many graphs.

    Its patches end when it returns: the stand-in, which patches the same, is taken away before a test's own fixtures.
    """
    kernels, graphs, counts = [0], [0], ([], [])  # type: ignore[var-annotated]
    usual = capture.Launches.launch

    def counted(name: str) -> Callable[..., Any] | None:
        body = kernel_body(name)
        return None if body is None else lambda *args: (kernels.append(1), body(*args))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinygpt.backends.cupy.native_body", counted)
        patch.setattr(capture.Launches, "launch", lambda self: (graphs.append(1), usual(self))[1])
        for _ in tg.generation.stream(model, np.array([[1, 2, 3], [4, 5, 6]]), 12, seed=3, **options):
            for count, seen in zip(counts, (kernels, graphs), strict=True):
                count.append(sum(seen))
                seen.clear()
    return counts


@pytest.mark.parametrize("options", COMMON)
def test_a_step_is_one_launch_and_the_draw_is_in_it(options: Any) -> None:
    model = tg.GPT(CONFIG, seed=1).eval().to("cupy")
    kernels, graphs = launches_of_each_step(model, options)
    assert kernels[0] > 0  # the prompt's
    assert all(count > 0 for count in kernels[1 : EAGER + 2])  # eager ones, and that which is recorded
    assert kernels[EAGER + 2 :] == [0] * (12 - EAGER - 2)
    assert graphs == [0] * (EAGER + 1) + [1] * (12 - EAGER - 1)


def test_a_step_whose_logits_are_read_is_one_launch_too() -> None:
    """Of a processor, which is a function on the host."""
    model = tg.GPT(CONFIG, seed=1).eval().to("cupy")
    kernels, graphs = launches_of_each_step(model, {"repetition_penalty": 1.2, "do_sample": True})
    assert kernels[EAGER + 2 :] == [0] * (12 - EAGER - 2)
    assert graphs == [0] * (EAGER + 1) + [1] * (12 - EAGER - 1)


def test_a_draw_with_other_settings_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = decoders()
    decoder.prefill([np.array([1, 2, 3]), np.array([4])])
    for k in (1, 3, 1):
        config = tg.generation.GenerationConfig(do_sample=True, top_k=k)
        sampler = TokenSampler(config, [], Uniforms(5, 2))
        replays = decoder.graphed.replays
        for step in range(EAGER + 2):
            draw = sampler.draw(step, np.array([0, 1]))
            assert draw is not None
            ids = decoder.step(np.array([1, 2]), draw).get()
            assert np.array_equal(ids, draw(decoder.logits).get())
            assert k > 1 or np.array_equal(ids, decoder.logits.get().argmax(axis=1))
            decoder.truncate(np.array([3, 1]))
        assert decoder.graphed.replays == replays + 2


def test_a_random_number_that_is_recorded_is_found_out() -> None:
    decoder, _ = decoders()
    decoder.prefill([np.array([1, 2, 3]), np.array([4])])
    sampler = TokenSampler(tg.generation.GenerationConfig(do_sample=True), [], Uniforms(5, 2))

    class Fixed(Draw):
        def __call__(self, logits: Any) -> Any:
            return Draw(self.number * 0 + next(numbers), self.settings)(logits)

    numbers = iter([0] * (EAGER + 1) + [(1 << 53) - 1] * 9)
    for step in range(EAGER + 1):
        draw = sampler.draw(step, np.array([0, 1]))
        assert draw is not None
        decoder.step(np.array([1, 2]), Fixed(*draw))
    assert decoder.graphed.failed


def test_beyond_the_block_and_with_weights_that_are_not_finite() -> None:
    model = tg.GPT(CONFIG, seed=1).eval().to("cupy")
    assert model.generate(np.array([[1, 2, 3]]), 20, seed=3).shape == (1, 23)
    row = RowDecoder(model, [np.array([1, 2])], 5)
    row.start()
    model.ln_f.bias.data[...] = np.nan
    sampler = TokenSampler(tg.generation.GenerationConfig(do_sample=True), [], Uniforms(0, 1))
    logits = row.step(np.array([3]), sampler.draw(1, np.array([0])))
    with pytest.raises(UsageError, match="the model's logits are not finite"):
        sampler(row.rows(), logits, np.array([0]))
