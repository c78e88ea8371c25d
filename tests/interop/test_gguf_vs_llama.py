"""GGUF files in llama.cpp: the ids of every text, next-token probabilities and greedy text are tinygpt's.

llama.cpp computes in the file's format: before a matrix product it rounds the activations to it as well. In each format
it looks GELU up in a table of float16. `as_llama` does the same sums in float64 with the same roundings. What llama.cpp
has beyond them is float32 sums, and numbers so close to the middle between two neighbours that it rounds them the other
way. Those are off by twice what rounding does, so less than twice what the roundings do to our results is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinygpt as tg
from tinygpt import GPT, GPTConfig, interop
from tinygpt.ops.packed import pack, unpack
from tinygpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

EXTRA = "needs the extra llama: pip install -e '.[llama]'"
llama_cpp = pytest.importorskip("llama_cpp", reason=EXTRA)
gguf = pytest.importorskip("gguf", reason=EXTRA)
pytest.importorskip("tokenizers", reason=EXTRA)

DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
ENGLISH = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer 100 slings\n"
CHINESE = "床前明月光、疑是地上霜。\n举头望明月、低头思故乡。— “静夜思” 😀\n"
BLOCK = 48
SHAPE: dict[str, Any] = {"block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 32}


class Case(NamedTuple):
    """A model that has learned its text, and the folder in which it was saved."""

    model: GPT
    tokenizer: Tokenizer
    text: str
    folder: Path


def made(name: str) -> tuple[Tokenizer, str, dict[str, Any]]:
    """The tokenizer, the text and what is special about the model."""
    if name == "BPE":  # GPT-2's own format in every respect
        text = ENGLISH + CHINESE
        return BPETokenizer.train(text * 3, 300), text, {}
    if name == "BPE without an end, another head":
        return BPETokenizer.train(ENGLISH * 3, 290, special_tokens=()), ENGLISH, {
            "tie_word_embeddings": False, "n_inner": 64, "vocab_size": 300
        }  # fmt: skip
    if name == "bytes":
        return ByteTokenizer(), ENGLISH, {}
    if name == "characters":
        return CharTokenizer.from_text(CHINESE + ENGLISH), CHINESE, {"bias": False}
    return CharTokenizer("".join(sorted(set(ENGLISH))), end_token=True), ENGLISH, {"layer_norm_epsilon": 1e-3}


NAMES = ("BPE", "BPE without an end, another head", "bytes", "characters", "characters and an end")


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    tokenizer, text, settings = made(request.param)
    model = GPT(GPTConfig(**({"vocab_size": tokenizer.vocab_size} | SHAPE | settings)), seed=1)
    ids, rng = tokenizer.encode(text * 4), np.random.default_rng(0)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(160):
        starts = rng.integers(0, len(ids) - BLOCK, 4)
        rows = np.stack([ids[start : start + BLOCK + 1] for start in starts])
        model.loss(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("case")
    model.eval().save_pretrained(folder, tokenizer=tokenizer)
    return Case(model, tokenizer, text, folder)


def loaded(case: Case, dtype: str) -> Any:
    path = case.folder / f"{dtype}.gguf"
    if not path.exists():
        interop.convert(case.folder, path, dtype=dtype, to="gguf")
    float32 = llama_cpp.GGML_TYPE_F32  # of keys and values, which are otherwise rounded to float16
    return llama_cpp.Llama(
        str(path), n_ctx=BLOCK, n_threads=1, logits_all=True, type_k=float32, type_v=float32, verbose=False
    )


def log_softmax(logits: Any) -> np.ndarray:
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def theirs(llama: Any, ids: np.ndarray) -> np.ndarray:
    llama.reset()
    llama.eval(ids.tolist())
    return log_softmax(llama.scores[: len(ids)])


def ours(model: GPT, ids: np.ndarray) -> np.ndarray:
    with tg.no_grad():
        return log_softmax(model(ids[None]).data[0])


def as_llama(model: GPT, ids: np.ndarray, dtype: str, exact_head: bool) -> np.ndarray:
    """The log-probabilities (T, V) in float64, with llama.cpp's roundings."""
    config, T, C, H = model.config, len(ids), model.config.n_embd, model.config.n_head
    state = {name: array.astype(np.float64) for name, array in model.state_dict().items()}

    def rounded(x: np.ndarray, dtype: str = dtype) -> np.ndarray:
        kind = gguf.GGMLQuantizationType["Q8_0" if dtype == "q4_0" else dtype.upper()]  # of activations
        return gguf.dequantize(gguf.quantize(np.ascontiguousarray(x, np.float32), kind), kind).astype(np.float64)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_epsilon)
        return y * state[f"{name}.weight"] + state.get(f"{name}.bias", 0.0)

    def rounded_weight(rows: np.ndarray) -> np.ndarray:
        if dtype != "q4_0":
            return rounded(rows)
        return unpack(pack(np.ascontiguousarray(rows, np.float32), "int4", axis=1), axis=1).astype(np.float64)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return rounded(x) @ rounded_weight(state[f"{name}.weight"].T).T + state.get(f"{name}.bias", 0.0)

    def gelu(x: np.ndarray) -> np.ndarray:
        x = rounded(x, "f16")
        return rounded(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), "f16")

    x = rounded(state["wte.weight"])[ids] + state["wpe.weight"][:T]
    for i in range(config.n_layer):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")  # (T, 3C)
        q, k, v = (part.reshape(T, H, -1).transpose(1, 0, 2) for part in np.split(qkv, 3, -1))  # (H, T, D)
        scores = np.where(np.tri(T) > 0, q @ k.transpose(0, 2, 1) / np.sqrt(C // H), -np.inf)
        y = (np.exp(log_softmax(scores)) @ v).transpose(1, 0, 2).reshape(T, C)
        x = x + linear(y, f"h.{i}.attn.c_proj")
        x = x + linear(gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    head = "f32" if exact_head else dtype
    return log_softmax(
        rounded(norm(x, "ln_f"), head) @ rounded(state.get("lm_head.weight", state["wte.weight"]), head).T
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_next_token_probabilities(case: Case, dtype: str) -> None:
    ids = case.tokenizer.encode(case.text)[:BLOCK]
    V, llama = case.model.config.vocab_size, loaded(case, dtype)
    found, own = theirs(llama, ids), ours(case.model, ids)
    spare = isinstance(case.tokenizer, CharTokenizer) and case.tokenizer.eos_token_id is None
    assert found.shape == (len(ids), V + spare)
    assert not spare or found[:, V].max() < -900  # never predicted
    wanted = as_llama(case.model, ids, dtype, spare)
    allowed, beyond = np.abs(wanted - own).max(), np.abs(found[:, :V] - wanted).max()
    print(f"{dtype}: the format {allowed:.2g}, beyond it {beyond:.2g}")
    assert beyond < 2 * allowed
    assert (
        allowed < {"f32": 0.02, "f16": 0.05, "bf16": 0.5, "q8_0": 1.5, "q4_0": 2}[dtype]
    )  # so that nothing hides behind it
    assert own.max(-1).mean() > -1  # it has learned its text: a model that knows nothing is easily matched


@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_text(case: Case, dtype: str) -> None:
    prompt = case.text[:5]
    ids = case.tokenizer.encode(prompt)
    llama, count = loaded(case, dtype), BLOCK - len(ids)
    model = case.model
    if dtype == "q4_0":  # which may choose other tokens: those of our own model of the same weights
        model = GPT.from_pretrained(case.folder, quantize="int4", activations="int8")
    expected = model.generate(ids[None], max_new_tokens=count, do_sample=False, eos_token_id=None)[0]
    answer = llama.create_completion(prompt, max_tokens=count, temperature=0.0, echo=True)["choices"][0]
    assert answer["finish_reason"] == "length"
    assert answer["text"].strip("\ufffd") == case.tokenizer.decode(expected).strip("\ufffd")


def test_ids(case: Case) -> None:
    llama, rng = loaded(case, "f32"), np.random.default_rng(2)
    known = (
        sorted(set(case.text)) if isinstance(case.tokenizer, CharTokenizer) else list(CHINESE + ENGLISH + "\0\t\r é€")
    )
    texts = ["".join(rng.choice(known, rng.integers(1, 30))) for _ in range(200)]
    for text in [case.text, " ", "\n\n \n", *known, *texts]:
        wanted = case.tokenizer.encode(text).tolist()
        assert llama.tokenize(text.encode(), add_bos=True, special=False) == wanted, text
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == wanted, text
        assert llama.detokenize(wanted).decode() == text


def test_one_token_ends_a_text(case: Case) -> None:
    """Where a file names no end token, llama.cpp takes token 11, whatever that is."""
    llama, end, V = loaded(case, "f32"), case.tokenizer.eos_token_id, case.model.config.vocab_size
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    ends = [token for token in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
    assert ends == [llama.token_eos()]
    if end is not None:
        assert ends == [end]
    elif isinstance(case.tokenizer, CharTokenizer):
        assert ends == [V]  # the spare one
    else:
        assert case.tokenizer.token_bytes(ends) == b"\xff"


def test_special_tokens(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train(ENGLISH * 3, 290, ("<|endoftext|>", "<|pad|>")).with_tokens(["<name>"])
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size + 3, **SHAPE))
    interop.save_gguf(model, tokenizer, tmp_path / "model.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=BLOCK, vocab_only=True, verbose=False)
    text = "To be<|endoftext|> or <name>not<|pad|>"
    assert llama.tokenize(text.encode(), special=True) == tokenizer.encode_special(text).tolist()
    assert llama.tokenize(text.encode(), special=False) == tokenizer.encode(text).tolist()
    assert llama.token_eos() == tokenizer.eos_token_id
    end = CharTokenizer("".join(sorted(set(ENGLISH))), end_token=True)
    interop.save_gguf(GPT(GPTConfig(vocab_size=end.vocab_size, **SHAPE)), end, tmp_path / "model.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=BLOCK, vocab_only=True, verbose=False)
    assert llama.tokenize(b"be<|endoftext|>to", special=True, add_bos=False)[2:3] == [end.eos_token_id]
    assert end.eos_token_id not in llama.tokenize(b"be<|endoftext|>to", special=False)


def test_a_difference_is_noticed(case: Case) -> None:
    """The queries of one head, larger by half, are far outside what the formats round."""
    ids = case.tokenizer.encode(case.text)[:BLOCK]
    found = theirs(loaded(case, "f32"), ids)[:, : case.model.config.vocab_size]
    spare = isinstance(case.tokenizer, CharTokenizer) and case.tokenizer.eos_token_id is None
    allowed = np.abs(as_llama(case.model, ids, "f32", spare) - ours(case.model, ids)).max()
    other, _ = interop.load(case.folder)
    other.h[1].attn.c_attn.weight.data[:, :16] *= 1.5
    assert np.abs(found - ours(other, ids)).max() > 3 * allowed
