"""The model on the backend "cupy", on the stand-in for CuPy: see test_backend.py.

Shown here: the model, optimizer, clipping, generation, packing, scoring, checkpoints and the command line compute the
same as on the backend "numpy", bit for bit. In one test the model's call sites run the CUDA kernels' launchers and, on
the CPU, their .cu sources.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import emulator, standin
from tests.cuda.precision import IDS, TARGETS, as_numpy, model_on
from tests.training.helpers import OPTIONS, SHAPE, make_trainer, outcome
from tinygpt._ext import cuda
from tinygpt.errors import UsageError
from tinygpt.generation import score
from tinygpt.generation.decoder import Decoder
from tinygpt.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("stand_in")


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda p: tg.optim.AdamW(p, lr=1e-2),
    "adam": lambda p: tg.optim.Adam(p, lr=1e-2, weight_decay=0.1, l1=0.1),
    "lion": lambda p: tg.optim.Lion(tg.optim.layer_decay(p, 0.5), lr=1e-2, weight_decay=0.1),
    "muon": lambda p: tg.optim.Muon(p, lr=1e-2, weight_decay=0.1),
}


def steps(backend: str, make: Callable[[Any], Any]) -> list[Any]:
    """Losses, norms of the gradients, and the weights and their average in the end."""
    model = model_on(backend)
    optimizer, average = make(model.named_parameters()), tg.optim.EMA(model.named_parameters(), 0.5)
    found: list[Any] = []
    for _ in range(4):
        loss = model.loss(IDS, TARGETS)
        loss.backward()
        found += [loss.item(), tg.optim.clip_grad_norm(model.parameters(), 0.5)]
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    weights = [as_numpy(parameter.data).tobytes() for parameter in model.parameters()]
    with average.applied():
        return found + weights + [as_numpy(parameter.data).tobytes() for parameter in model.parameters()]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_steps_are_the_same(make: Callable[[Any], Any]) -> None:
    assert steps("cupy", make) == steps("numpy", make)


@pytest.mark.parametrize("optimizer", [tg.optim.SGD, tg.optim.AdamW, tg.optim.Lion, tg.optim.Muon])
def test_state_of_optimizers(optimizer: Any) -> None:
    """Moved along with the model, saved and loaded across backends."""
    model = model_on("numpy")
    settings = {"momentum": 0.9} if optimizer is tg.optim.SGD else {}
    first = optimizer(model.named_parameters(), lr=0.1, **settings)
    model.to("cupy")
    (model.loss(IDS, TARGETS) + tg.optim.regularization.l1(model.parameters(), 1e-3)).backward()
    first.step()
    other = optimizer(model_on("numpy").named_parameters(), lr=0.1, **settings)
    for target in (other, first):
        target.load_state_dict(first.state_dict())
        for slot, origin in zip(target.slots, first.slots, strict=True):
            assert {type(a) for a in slot.state.values()} == {type(slot.parameter.data)}
            assert all(np.array_equal(as_numpy(slot.state[kind]), as_numpy(origin.state[kind])) for kind in slot.state)


GENERATION: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"seed": 0, "top_k": 5, "temperature": 0.8},
    {"seed": 1, "top_p": 0.9, "repetition_penalty": 1.2},
    {"num_beams": 3, "temperature": 0.0},
    {"seed": 2, "num_return_sequences": 3},
    {"temperature": 0.0, "eos_token_id": 4, "pad_token_id": 99},
]


@pytest.mark.parametrize("options", GENERATION, ids=str)
def test_generation_is_the_same(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the block's end, too; prompts may be on the GPU.

    Bit for bit if prompts of one length are read in one pass, which only a GPU does; else up to float32's rounding.
    """
    more = {"max_new_tokens": 8, "return_details": True, **options}
    found, separate = (model_on(backend, block_size=6).generate(IDS[:, :3], **more) for backend in ("cupy", "numpy"))
    make_room = Decoder._make_room

    def with_joint_prefill(decoder: Decoder, B: int) -> None:
        make_room(decoder, B)
        decoder.joint_prefill = True

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "_make_room", with_joint_prefill)
        joint = model_on("numpy", block_size=6).generate(IDS[:, :3], **more)
    for name in ("sequences", "lengths", "log_probs", "processed_log_probs", "scores"):
        on_gpu, expected = getattr(found, name), getattr(joint, name)
        assert np.array_equal(on_gpu, expected), name
        if name in ("sequences", "lengths") or expected is None:
            assert np.array_equal(on_gpu, getattr(separate, name)), name
        else:
            np.testing.assert_allclose(on_gpu, getattr(separate, name), rtol=1e-6, atol=0, err_msg=name)
    prompt = tg.tensor(IDS[:, :3], backend="cupy")
    again = model_on("cupy", block_size=6).generate(prompt, max_new_tokens=8, **options)
    assert np.array_equal(again, found.sequences)


def test_decoder_is_the_same() -> None:
    logits: dict[str, list[Any]] = {}
    for backend in ("cupy", "numpy"):
        decoder = Decoder(model_on(backend), 8)
        put = standin.on_gpu if backend == "cupy" else np.asarray
        logits[backend] = [as_numpy(decoder.prefill([IDS[0, :3], IDS[1, :1]])).copy()]
        for rows in ([1, 0], [0, 0, 1], [2, 1]):
            decoder.select(put(np.array(rows)))
            logits[backend].append(as_numpy(decoder.step(put(np.arange(len(rows))))).copy())
    for found, expected in zip(*logits.values(), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(("format", "group"), [("bfloat16", None), ("int8", None), ("int8", 8), ("int4", None)])
def test_packed_models_are_the_same(format: str, group: int | None) -> None:
    """Packed here, packed there, packed and then moved."""
    shape = {"n_embd": 32} if format == "int4" else {}
    models = [model_on(backend, **shape).pack(format, group) for backend in ("numpy", "cupy")]
    models.append(model_on("numpy", **shape).pack(format, group).to("cupy"))
    for model in models[1:]:
        assert np.array_equal(as_numpy(model(IDS).data), models[0](IDS).data)
        assert model.loss(IDS, TARGETS).item() == models[0].loss(IDS, TARGETS).item()
        prompt = {"idx": IDS[:2, :3], "max_new_tokens": 4, "seed": 0}
        assert np.array_equal(model.generate(**prompt), models[0].generate(**prompt))


def test_evaluation_and_scores_are_the_same() -> None:
    tokens = np.arange(70) % 11
    found = [model_on(backend) for backend in ("cupy", "numpy")]
    assert len({evaluate(model, tokens, 4) for model in found}) == 1
    assert len({score(model, tokens, 3).loss for model in found}) == 1


def test_anomalies_are_found() -> None:
    x = tg.tensor([-1.0], requires_grad=True, backend="cupy")
    with tg.detect_anomaly(), pytest.raises(UsageError, match="Log is the first operation to produce nan"):
        x.log()


# The kernels at their call sites --------------------------------------------------------------------

LAUNCHED = {
    "layer_norm_forward", "residual_layer_norm_forward", "residual_layer_norm_backward", "attention_forward",
    "attention_backward", "add_bias", "column_sum", "bias_gelu_forward", "bias_gelu_backward", "dropout_apply",
    "embedding_forward", "embedding_backward", "cross_entropy_inplace", "sum_of_squares_each", "adamw_update_each",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(emulator.COMPILER is None, reason="needs a C++ compiler")
def test_a_model_trains_on_the_cuda_kernels() -> None:
    """What the model, the optimizer and clipping hand to the kernels is what the launchers take; no kernel declines.

    In float64, where the reference and the kernels may differ by the order of sums only.
    """
    device, launched = emulator.Device(), set()

    def emulated(kernel: str) -> Any:
        launcher = cuda.body(device, kernel)
        if launcher is None:
            return None

        def body(*args: Any) -> Any:
            result = launcher(*standin.bare(args))
            if result is not NotImplemented:
                launched.add(kernel)
            return standin.wrapped(result)

        return body

    def run(backend: str) -> list[float]:
        config = tg.GPTConfig(vocab_size=11, **SHAPE)
        model = tg.GPT(config, seed=1, dtype=np.float64).to(backend)
        optimizer = tg.optim.AdamW(model.named_parameters(), lr=1e-2)
        found = []
        for _ in range(3):
            loss = model.loss(IDS, TARGETS)
            loss.backward()
            norm = tg.optim.grad_norm(model.parameters())
            found += [loss.item(), norm]
            optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 0.5))
            optimizer.zero_grad()
        return [*found, model.eval().loss(IDS, TARGETS).item()]

    expected = run("numpy")
    with standin.installed(bodies=emulated), tg.use_kernels("auto"):
        assert run("cupy") == pytest.approx(expected, rel=1e-12)
    assert launched >= LAUNCHED


# Runs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("changed_at", [1, 7, 12])
def test_a_run_moves_between_backends_at_any_checkpoint(tmp_path: Path, changed_at: int) -> None:
    """numpy, then cupy, then numpy again: the outcome of a run that stayed, bit for bit."""
    stayed = make_trainer(tmp_path / "stayed")
    stayed.run()
    for steps, backend in ((changed_at, "numpy"), (changed_at + 5, "cupy"), (20, "numpy")):
        with tg.use_backend(backend):
            trainer = make_trainer(tmp_path / "moved", steps=steps, decay_steps=20)
            if (tmp_path / "moved" / "checkpoints.json").exists():
                trainer.resume()
            trainer.run()
    found, expected = outcome(tmp_path / "moved"), outcome(tmp_path / "stayed")
    for name in expected:
        if name.startswith("latest") and "state" not in name:
            assert found[name] == expected[name], name


@pytest.mark.slow
def test_a_run_on_the_gpu_alone(tmp_path: Path) -> None:
    make_trainer(tmp_path / "cpu").run()
    with tg.use_backend("cupy"):
        trainer = make_trainer(tmp_path / "gpu")
        trainer.run()
    assert {p.backend for p in trainer.parameters} == {"cupy"}
    model = {name: as_numpy(array) for name, array in trainer.model.state_dict().items()}
    expected = outcome(tmp_path / "cpu")
    assert all(expected[f"latest model {name}"][2] == array.tobytes() for name, array in model.items())


@pytest.mark.slow
def test_the_command_line(run: Any, text: Path, tmp_path: Path) -> None:
    """train, eval, sample on the GPU print what they print on the CPU."""
    said: dict[str, list[str]] = {}
    for backend in ("numpy", "cupy"):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        trained = run("train", *OPTIONS, f"--data={text}", f"--out={folder}", f"--backend={backend}")
        assert trained.code == 0, trained.err
        losses = [line for line in trained.out.splitlines() if line.startswith("Loss over")]
        where = (f"--model={folder}", f"--backend={backend}")
        evaluated = run("eval", *where, "--stride=3")
        written = run("sample", *where, "--prompt=To be", "--max-new-tokens=20", "--seed=3")
        assert (evaluated.code, written.code) == (0, 0), evaluated.err + written.err
        said[backend] = [*losses, evaluated.out, written.out]
    assert said["cupy"] == said["numpy"]
