"""The stages of gpu_first_contact.sh. `DRY=1`: tiny sizes on NumPy and PyTorch's CPU build, to test it without a GPU.

python gpu_first_contact.py warm | attention [small] | fused | model | graph | time | profile | expected | summary
The data is never all zeros, and outputs are poisoned with NaN. Each figure is printed and appended to $RESULTS as soon
as it is known.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
from gpu_first_times import profile, times
from gpu_first_tools import (
    BACKEND,
    DEVICE,
    DRY,
    RESULTS,
    B,
    T,
    attempt,
    burst_of,
    gpu,
    host,
    kind,
    make_model,
    ms,
    off,
    poison,
    put,
)


def compile_one(job: tuple[str, str]) -> str:
    import cupy

    from tinygpt.backends.cupy_kernels import device

    try:
        device(cupy).compiled(*job)
        return ""
    except Exception as error:
        return f"{job}: {str(error)[:300]}"


def warm() -> None:
    from tinygpt._ext import cuda

    jobs = sorted(
        {
            (f, e)
            for real in ("float", "bfloat16", "float16", "double")
            for f in cuda.FILES
            for e in cuda.expressions(f, real)
        }
    )
    put("instances of kernels", len(jobs))
    if DRY:
        return
    import multiprocessing as mp

    begin = time.perf_counter()
    with mp.get_context("spawn").Pool(14) as pool:
        wrong = [words for words in pool.imap_unordered(compile_one, jobs, chunksize=8) if words]
    put("compiled in", time.perf_counter() - begin, "s with 14 processes")
    for words in wrong[:10]:
        put("FAILED compile", words)


# Attention ------------------------------------------------------------------------------------------


def attention() -> None:
    import torch

    from tinygpt.ops.attention import attention_backward, attention_forward

    small = "small" in sys.argv or DRY
    sizes = (
        [(1, 2, 70, 64), (1, 1, 33, 32)]
        if small
        else [(2, 12, 1024, 64), (2, 6, 256, 64), (1, 3, 257, 128), (2, 4, 130, 32), (1, 2, 65, 40)]
    )
    rng = np.random.default_rng(0)
    for dtype in ("float32", "bfloat16"):
        for b, h, t, d in sizes:
            with attempt(f"attention {dtype} {(b, h, t, d)}"):
                qkv, g = (rng.standard_normal(s).astype(np.float32) for s in ((b, t, 3, h, d), (b, t, h, d)))
                xs = [gpu().asarray(x).astype(kind(dtype)) for x in (qkv, g)]
                q, k, v = xs[0].transpose(2, 0, 3, 1, 4)
                dy = xs[1].transpose(0, 2, 1, 3)
                back = [
                    torch.from_numpy(host(x.astype("float32"))).double().to(DEVICE).requires_grad_() for x in (q, k, v)
                ]
                s = (back[0] @ back[1].transpose(-1, -2)) / d**0.5
                s = s.masked_fill(torch.ones(t, t, dtype=torch.bool, device=DEVICE).triu(1), float("-inf"))
                y = s.softmax(-1) @ back[2]
                y.backward(torch.from_numpy(host(dy.astype("float32"))).double().to(DEVICE))
                poison()
                ours, lse = attention_forward(q, k, v, True, d**-0.5, 0.0, 0, 0)
                grads = gpu().full((b, t, 3, h, d), np.nan, np.float32).astype(kind(dtype))
                dq, dk, dv = grads.transpose(2, 0, 3, 1, 4)
                attention_backward(dy, q, k, v, ours, lse, True, d**-0.5, 0.0, 0, 0, dq, dk, dv)
                wanted = [y, s.logsumexp(-1), *(x.grad for x in back)]
                errors = [
                    off(host(x.astype("float32")), w.detach().cpu().numpy())
                    for x, w in zip((ours, lse.sum(-1), dq, dk, dv), wanted, strict=False)  # lse: two parts
                ]
                put(f"attention {dtype} {(b, h, t, d)} y lse dq dk dv", " ".join(f"{e:.1e}" for e in errors))
                again, _ = attention_forward(q, k, v, True, d**-0.5, 0.0, 0, 0)
                if not np.array_equal(host(again.astype("float32")), host(ours.astype("float32"))):
                    put(f"FAILED attention {dtype}", "two runs differ")


# Products with epilogues ----------------------------------------------------------------------------


def fused() -> None:
    """Each epilogue against float64, in GPT-2's layers, and its time beside a plain product and kernels."""
    from tinygpt import backends

    put("fused products", "none on a CPU" if DRY else backends.get("cupy").describe_epilogues())
    for sizes in ((24, 16, 48),) if DRY else ((B * T, 768, 2304), (B * T, 768, 3072)):
        fused_products(*sizes)


def fused_products(n: int, c: int, d: int) -> None:
    from tinygpt import backends
    from tinygpt.ops.gelu import gelu_backward, gelu_forward
    from tinygpt.ops.linear import add_bias, column_sum
    from tinygpt.ops.linear import matmul_arrays as product

    rng, shapes = np.random.default_rng(0), ((n, c), (c, d), (d,), (n, d), (n, c))
    x, w, b, dy, z = (gpu().asarray(rng.standard_normal(s), np.float32).astype(kind("bfloat16")) for s in shapes)
    wide = [a.astype(np.float64) for a in (x, w, b, dy, z)]
    ours, y = backends.epilogues(x), wide[0] @ wide[1] + wide[2]
    for name, call, plain, truths in (
        ("BIAS", lambda: ours.linear(x, w, b), lambda: add_bias(product(x, w), b), [y]),
        ("GELU_AUX_BIAS", lambda: ours.linear_gelu(x, w, b), lambda: gelu_forward(add_bias(product(x, w), b)),
         [gelu_forward(y), y]),
        ("DGELU", lambda: ours.gelu_gradient(dy, w, z), lambda: gelu_backward(product(dy, w.T), z),
         [gelu_backward(wide[3] @ wide[1].T, wide[4])]),
        ("BGRADA", lambda: ours.gradients(x, dy), lambda: (product(x.T, dy, None, True), column_sum(dy)),
         [wide[0].T @ wide[3], wide[3].sum(axis=0)]),
    ):  # fmt: skip
        with attempt(f"fused {name} {(n, c, d)}"):
            poison()
            made = plain if ours is None else call
            found = made()
            if found is None:
                put(f"fused {name} {(n, c, d)}", "no algorithm, or not used")
                continue
            found = found if isinstance(found, tuple) else (found,)
            wrong = [off(host(f.astype("float32")), host(t)) for f, t in zip(found, truths, strict=False)]
            put(f"fused {name} {(n, c, d)}", " ".join(f"{e:.1e}" for e in wrong))
            put(f"fused {name} {(n, c, d)}, and plain", f"{ms(made):.4g} {ms(plain):.4g}", "ms")


# The model ------------------------------------------------------------------------------------------


def model() -> None:
    """Two layers of GPT-2's width: errors of the loss and each gradient against float64, ours and PyTorch's."""
    import torch
    from gpu_worker import GPT2
    from peer_torch import TorchGPT

    import tinygpt as tg

    config = (
        replace(GPT2, n_layer=2)
        if not DRY
        else replace(GPT2, n_layer=1, n_embd=48, n_head=3, vocab_size=97, block_size=T)
    )
    ours = make_model(config)
    weights = {name: np.array(p.data) for name, p in ours.named_parameters()}
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (2, T + 1))
    idx, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])

    def theirs(dtype: Any, autocast: bool) -> tuple[float, dict[str, np.ndarray]]:
        torch.set_default_device(DEVICE)
        torch.backends.cuda.matmul.allow_tf32 = False
        peer = TorchGPT(config).to(dtype)
        with torch.no_grad(), torch.device("cpu"):
            peer.cpu().take_weights(weights)
        peer.to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss = peer(*(torch.from_numpy(x).to(DEVICE) for x in (idx, targets)))
        loss.backward()
        turned = lambda n, g: g.T if g.ndim == 2 and (".attn." in n or ".mlp." in n) else g  # noqa: E731
        found = {n: turned(n, p.grad.double().cpu().numpy()) for n, p in peer.named_parameters()}
        torch.set_default_device("cpu")
        return float(loss.detach()), found

    loss, truth = theirs(torch.float64, False)
    ours.to(BACKEND)
    for dtype in ("float32",) if DRY else ("float32", "bfloat16"):
        with attempt(f"model {dtype}"):
            peer_loss, peer = theirs(torch.float32, dtype == "bfloat16")
            with tg.use_backend(BACKEND), ours.compute_in(dtype):
                ours.zero_grad()
                poison()
                made = ours.loss(idx, targets)
                made.backward()
            put(f"model {dtype}: loss float64 {loss:.6f}, PyTorch {peer_loss:.6f}, ours", float(made.item()))
            rows = sorted(
                ((off(host(p.grad), truth[n]), off(peer[n], truth[n]), n) for n, p in ours.named_parameters()),
                reverse=True,
            )
            for mine, other, name in rows[:6]:
                put(f"  gradient {dtype} {name}: PyTorch off by {other:.1e}, ours", mine)
            put(f"model {dtype}: worst (ours / PyTorch's error)", max(m / max(o, 1e-12) for m, o, _ in rows))


def graph() -> None:
    from gpu_worker import BABY

    import tinygpt as tg

    shape = (
        replace(BABY, n_layer=2, dropout=0.1)
        if not DRY
        else replace(BABY, n_layer=1, n_embd=24, n_head=2, block_size=T, dropout=0.1)
    )
    with tg.use_backend(BACKEND):
        for dtype in ("float32", "bfloat16"):
            with attempt(f"graph {dtype}"):
                runs = {}
                for mode in ("on", "off"):
                    poison()
                    step, graphed, _ = burst_of(shape, dtype, mode, 4, T if DRY else 256)
                    runs[mode] = [step() for _ in range(12)]
                    put(f"graph {dtype} {mode}: replays", graphed.replays)
                put(
                    f"graph {dtype}: greatest difference of 12 losses, on and off",
                    max(abs(a - b) for a, b in zip(runs["on"], runs["off"], strict=False)),
                )
    if not DRY:
        with attempt("nccl"):
            nccl()


def nccl() -> None:
    """NCCL with one rank, directly and in a captured stream: checks that the calls of data parallel training work."""
    from cupy.cuda import nccl as library

    xp = gpu()
    one = library.NcclCommunicator(1, library.get_unique_id(), 0)
    x, y = xp.arange(1024, dtype="float32"), xp.full(1024, np.nan, "float32")
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        one.allReduce(x.data.ptr, y.data.ptr, x.size, library.NCCL_FLOAT32, library.NCCL_SUM, stream.ptr)
        stream.synchronize()
        put("nccl allReduce, one rank", bool((x == y).all()))
        stream.begin_capture()
        one.reduceScatter(x.data.ptr, y.data.ptr, x.size, library.NCCL_FLOAT32, library.NCCL_SUM, stream.ptr)
        captured = stream.end_capture()
        y.fill(np.nan)
        captured.launch()
        stream.synchronize()
        put("nccl reduceScatter in a CUDA graph, one rank", bool((x == y).all()))


def expected() -> None:
    """What each launch should cost, and what the profile says that it did."""
    import gpu_model

    measured = ["--measured", os.environ["KERNELS"]] if os.path.exists(os.environ.get("KERNELS", "")) else []
    for preset in ("tiny",) if DRY else ("gpt2", "baby"):
        with attempt(f"expected {preset}"):
            gpu_model.main(["--preset", preset, "--dtype", "float16" if DRY else "bfloat16", *measured])


def summary() -> None:
    with open(RESULTS) as file:
        lines = [json.loads(line) for line in file]
    bad = [r for r in lines if str(r.get("name", "")).startswith("FAILED") or r.get("rc", 0) != 0]
    print(f"{len(lines)} results, {len(bad)} of them failures:")
    for r in bad:
        print("  ", r.get("name", "stage " + str(r.get("stage"))), r.get("value", r.get("rc")))


if __name__ == "__main__":
    {
        "warm": warm,
        "attention": attention,
        "fused": fused,
        "model": model,
        "graph": graph,
        "time": times,
        "profile": profile,
        "expected": expected,
        "summary": summary,
    }[sys.argv[1]]()
