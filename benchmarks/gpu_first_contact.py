# ruff: noqa: B023  functions defined in a loop here are only called in the same iteration
"""The stages of gpu_first_contact.sh. `DRY=1`: tiny sizes on NumPy and PyTorch's CPU build, to test it without a GPU.

python gpu_first_contact.py warm | attention [small] | model | graph | time | profile | summary
The data is never all zeros, and outputs are poisoned with NaN. Each figure is printed and appended to $RESULTS as soon
as it is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

DRY = bool(os.environ.get("DRY"))
BACKEND, DEVICE = ("numpy", "cpu") if DRY else ("cupy", "cuda")
RESULTS = os.environ.get("RESULTS", "results.jsonl")
B, T = (2, 32) if DRY else (16, 1024)


def put(name: str, value: Any, unit: str = "") -> None:
    print(f"{name:64s} {value if not isinstance(value, float) else f'{value:.4g}'} {unit}", flush=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps({"name": name, "value": value, "unit": unit}) + "\n")


@contextlib.contextmanager
def attempt(name: str) -> Any:
    """Record an exception as a result and continue with the next attempt."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        put(f"FAILED {name}", f"{type(error).__name__}: {lines[0][:200]}")
        if "--trace" in sys.argv:
            raise


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


# Timing ---------------------------------------------------------------------------------------------


def ms(call: Any, trials: int = 20, rounds: int = 5) -> float:
    """Milliseconds per call, by events around `trials` back-to-back calls: the median of `rounds` runs."""
    call()
    found = []
    for _ in range(rounds if not DRY else 1):
        if DRY:
            begin = time.perf_counter()
            call()
            found.append((time.perf_counter() - begin) * 1e3)
            continue
        xp = gpu()
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record()
        for _ in range(trials):
            call()
        end.record()
        end.synchronize()
        found.append(xp.cuda.get_elapsed_time(start, end) / trials)
    return float(np.median(found))


def gpu() -> Any:
    """The array library: CuPy, or NumPy in a dry run."""
    from tinygpt import backends

    return np if DRY else backends.get("cupy").require()


def host(x: Any) -> np.ndarray:
    return np.asarray(x) if isinstance(x, np.ndarray) else gpu().asnumpy(x)


def off(found: Any, truth: Any) -> float:
    """The relative error |found - truth| / |truth|; NaN if some element was never written."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-300))


def poison(size: int = 1 << 28) -> None:
    """Fill the memory pool with NaN, so that elements that are never written are noticed."""
    if not DRY:
        xp = gpu()
        for _ in range(2):
            x = xp.full(size // 4, np.nan, np.float32)
            del x


def kind(dtype: str) -> Any:
    from tinygpt.backends.precision import activation_dtype

    return np.dtype(np.float32) if dtype == "float32" or DRY else activation_dtype(dtype, "cupy")


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


# The model ------------------------------------------------------------------------------------------


def quick_normal(self: Any, shape: Any, std: float = 1.0, dtype: Any = np.float64) -> np.ndarray:
    """Replaces Generator.normal, which takes 14 s for 124 million numbers; the values do not matter here."""
    self.stream += 1
    return (np.random.default_rng(self.stream).standard_normal(shape, np.float32) * np.float32(std)).astype(dtype)


def make_model(config: Any, seed: int = 0) -> Any:
    import tinygpt as tg

    tg.Generator.normal = quick_normal  # type: ignore[method-assign]

    with tg.use_backend("numpy"):
        return tg.GPT(config, seed=seed)


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


def burst_of(config: Any, dtype: str, graphs: str, batch: int, length: int) -> tuple[Any, Any, Any]:
    """(a function that takes one step as the training loop does, the graphed step, the optimizer)."""
    import tinygpt as tg
    from tinygpt.training.graphed_step import GraphedStep

    net = make_model(config).to(BACKEND)
    parameters, optimizer = (
        list(net.parameters()),
        tg.optim.AdamW(net.named_parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1),
    )
    data = np.random.default_rng(7).integers(0, config.vocab_size, (4, batch, length + 1))
    pairs = [(np.ascontiguousarray(x[:, :-1]), np.ascontiguousarray(x[:, 1:])) for x in data]

    def work(inputs: Any, targets: Any) -> Any:
        loss = net.loss(inputs, targets)
        loss.backward()
        return loss

    graphed = GraphedStep(net, work, "off" if DRY else graphs)
    count, spent = [0], {"step": 0.0, "norm": 0.0, "adamw": 0.0}

    def step() -> float:
        a = time.perf_counter()
        with net.compute_in(dtype if not DRY else "float32"):
            loss = graphed(*pairs[count[0] % 4])
        b = time.perf_counter()
        norm = tg.optim.grad_norm(parameters)  # waits
        c = time.perf_counter()
        optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0))
        optimizer.zero_grad()
        for name, seconds in (("step", b - a), ("norm", c - b), ("adamw", time.perf_counter() - c)):
            spent[name] += seconds
        count[0] += 1
        return float(loss.item())

    step.spent = spent  # type: ignore[attr-defined]
    step.pairs = pairs  # type: ignore[attr-defined]
    return step, graphed, optimizer


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


# Times ----------------------------------------------------------------------------------------------


def times() -> None:
    import tinygpt as tg

    tg.use_backend(BACKEND)
    for part in (bandwidth, products, attention_times, small_kernels, steps, decoding):
        with attempt(part.__name__):
            part()


def bandwidth() -> None:
    xp = gpu()
    a = xp.asarray(np.random.default_rng(0).standard_normal(1 << (16 if DRY else 20), np.float32))
    a = xp.concatenate([a] * (1 if DRY else 256))
    b = xp.empty_like(a)
    put("copy on the device", 2 * a.nbytes / ms(lambda: xp.copyto(b, a)) / 1e6, "GB/s")


def products() -> None:
    """The GEMMs of GPT-2's step as tinygpt calls them; the head with V = 50257 and, padded, 50304."""
    from tinygpt.ops._matmul import matmul_arrays

    xp, N = gpu(), B * T

    def make(*s):
        return (xp.asarray(np.random.default_rng(1).standard_normal(s[-2:], np.float32)) * 0.1).astype(kind("bfloat16"))

    C = 48 if DRY else 768
    rows = min(N, 1335)
    for name, m, k, n in [("qkv", N, C, 3 * C), ("proj", N, C, C), ("fc", N, C, 4 * C), ("fc back", N, 4 * C, C)]:
        a, b, dy = make(m, k), make(k, n), make(m, n)
        put(f"GEMM {name} forward", 2e-9 * m * k * n / ms(lambda: matmul_arrays(a, b)), "TFLOP/s")
        put(f"GEMM {name} dx", 2e-9 * m * k * n / ms(lambda: matmul_arrays(dy, b.T)), "TFLOP/s")
        put(
            f"GEMM {name} dW (float32 out)",
            2e-9 * m * k * n / ms(lambda: matmul_arrays(a.T, dy, float32_result=True)),
            "TFLOP/s",
        )
    for V in (97, 104) if DRY else (50257, 50304):
        for R in (rows, min(N, 8192)):
            x, w, logits, wide = make(R, C), make(V, C), make(R, V), xp.empty((V, C), np.float32)
            f = 2e-9 * R * C * V
            put(f"GEMM head V={V} rows={R} logits", f / ms(lambda: matmul_arrays(x, w.T, out=logits)), "TFLOP/s")
            put(f"GEMM head V={V} rows={R} dx", f / ms(lambda: matmul_arrays(logits, w)), "TFLOP/s")
            put(f"GEMM head V={V} rows={R} dW", f / ms(lambda: matmul_arrays(logits.T, x, out=wide)), "TFLOP/s")


def attention_times() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from tinygpt.ops.attention import attention_backward, attention_forward

    for name, b, h, t, d in [("gpt2", B, 12, T, 64), ("baby", 64 if not DRY else 1, 6, 256 if not DRY else T, 64)]:
        flops = 2.0 * b * h * t * t * d  # forward: two products, of which the mask leaves half
        for dtype in ("float32", "bfloat16"):
            qkv = (
                gpu().asarray(np.random.default_rng(2).standard_normal((b, t, 3, h, d), np.float32)).astype(kind(dtype))
            )
            q, k, v = qkv.transpose(2, 0, 3, 1, 4)
            grads = gpu().empty_like(qkv)
            dq, dk, dv = grads.transpose(2, 0, 3, 1, 4)
            y, lse = attention_forward(q, k, v, True, d**-0.5, 0.0, 0, 0)
            for what, factor, call in (
                ("forward", 1.0, lambda: attention_forward(q, k, v, True, d**-0.5, 0.0, 0, 0)),
                ("backward", 2.5, lambda: attention_backward(y, q, k, v, y, lse, True, d**-0.5, 0.0, 0, 0, dq, dk, dv)),
            ):
                took = ms(call, 5, 3)
                put(f"attention {name} {dtype} {what}: {took:.3f} ms", factor * flops / took / 1e9, "TFLOP/s")
        x = torch.randn(3, b, h, t, d, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        out = sdpa(x[0], x[1], x[2], is_causal=True)
        dout = torch.randn_like(out)
        with torch.no_grad():
            took = torch_ms(lambda: sdpa(x[0], x[1], x[2], is_causal=True))
        put(f"attention {name} PyTorch's forward: {took:.3f} ms", flops / took / 1e9, "TFLOP/s")
        took = torch_ms(lambda: torch.autograd.grad(out, x, dout, retain_graph=True))
        put(f"attention {name} PyTorch's backward: {took:.3f} ms", 2.5 * flops / took / 1e9, "TFLOP/s")


def torch_ms(call: Any, trials: int = 10) -> float:
    import torch

    call()
    if DRY:
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(trials):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / trials


def small_kernels() -> None:
    if DRY:
        return
    import gpu_worker

    for dtype in ("bfloat16", "float32"):
        for row in gpu_worker.kernel_rows(dtype):
            with attempt(row.name):
                put(f"{row.name} {dtype}", row.bytes / ms(row.call, 10, 3) / 1e6, "GB/s")


def steps() -> None:
    """A step's wall time and where the host spends it, then replays alone; the difference is idle time of the GPU."""
    from gpu_worker import BABY, GPT2

    tiny = replace(BABY, n_layer=1, n_embd=24, n_head=2, block_size=T)
    cases = [("baby", tiny, 2, T)] if DRY else [("baby", BABY, 64, 256), ("gpt2", GPT2, B, T)]
    for name, config, batch, length in cases:
        for dtype in ("float32", "bfloat16"):
            for mode in ("on", "off"):
                if dtype == "float32" and (mode == "off" or name == "gpt2"):
                    continue
                with attempt(f"steps {name} {dtype} {mode}"):
                    step, graphed, _optimizer = burst_of(config, dtype, mode, batch, length)
                    for _ in range(5):
                        step()
                    for key in step.spent:
                        step.spent[key] = 0.0
                    count = 3 if DRY else 20
                    begin = time.perf_counter()
                    for _ in range(count):
                        step()
                    took = (time.perf_counter() - begin) / count * 1e3
                    label = f"step {name} {dtype} graphs {mode}"
                    put(f"{label}: {batch * length / took * 1e3:,.0f} tokens/s", took, "ms")
                    put(
                        f"{label}: host ms in step, norm (waits), adamw",
                        " ".join(f"{s / count * 1e3:.2f}" for s in step.spent.values()),
                    )
                    if graphed.replays:
                        kept = next(k for k in graphed.kinds.values() if k.graph is not None)
                        put(f"{label}: a replay alone", ms(lambda: kept.graph.replay(step.pairs[0], 0), 5, 3), "ms")
                        mb = graphed.recorder.pool.total_bytes() / 1e6
                        put(f"{label}: memory of the graph", mb, "MB")
    if DRY:
        return
    import gpu_worker
    import torch

    import tinygpt as tg

    tg.Generator.normal = quick_normal  # type: ignore[method-assign]
    for name in ("baby", "gpt2"):
        with attempt(f"PyTorch {name}"):
            burst = gpu_worker.torch_burst(name, "bfloat16", compiled=False)
            burst(5)
            put(f"step {name} bfloat16 PyTorch eager", burst(20).ms, "ms")
            torch.set_default_device("cpu")


def decoding() -> None:
    from gpu_worker import BABY, GPT2

    import tinygpt as tg

    config = replace(BABY, n_layer=1, n_embd=24, n_head=2) if DRY else GPT2
    for pack in (None, "bfloat16", "int8"):
        for rows in (1, 8):
            with attempt(f"decoding {pack} {rows}"):
                net = make_model(config)
                net = (net.pack(pack) if pack else net).to(BACKEND)
                prompt = np.random.default_rng(0).integers(0, config.vocab_size, (rows, 16))
                net.generate(prompt, max_new_tokens=4, do_sample=False)
                new = 4 if DRY else 96
                begin = time.perf_counter()
                net.generate(prompt, max_new_tokens=new, do_sample=False)
                put(
                    f"decoding gpt2 {pack or 'float32'} {rows} rows",
                    rows * new / (time.perf_counter() - begin),
                    "tokens/s",
                )
    del tg


def profile() -> None:
    """The time of each kernel in three steps, by CUPTI (torch.profiler sees all kernels of the process)."""
    from gpu_worker import BABY, GPT2
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    import tinygpt as tg

    tg.use_backend(BACKEND)
    tiny = replace(BABY, n_layer=1, n_embd=24, n_head=2, block_size=T)
    for name, config, batch, length in (
        [("tiny", tiny, 2, T)] if DRY else [("gpt2", GPT2, B, T), ("baby", BABY, 64, 256)]
    ):
        with attempt(f"profile {name}"):
            step, _, _ = burst_of(config, "bfloat16", "on", batch, length)
            for _ in range(6):
                step()
            begin = time.perf_counter()
            with record(activities=[ProfilerActivity.CPU if DRY else ProfilerActivity.CUDA]) as found:
                for _ in range(3):
                    step()
                wall = time.perf_counter() - begin
            spent = [
                (getattr(e, "self_device_time_total", 0) or (e.self_cpu_time_total if DRY else 0), e.count, e.key)
                for e in found.key_averages()
            ]
            total = sum(row[0] for row in spent) or 1
            lines = [f"{name}, bfloat16: 3 steps, wall {wall * 1e3:.1f} ms, kernels {total / 1e3:.1f} ms"]
            lines += [
                f"{us / 3e3:9.3f} ms a step {us / total:6.1%} {count / 3:7.1f} times  {key[:110]}"
                for us, count, key in sorted(spent, reverse=True)[:45]
            ]
            print("\n".join(lines))
            put(f"profile {name}: kernels' ms a step (wall under the profiler {wall * 1e3 / 3:.1f})", total / 3e3, "ms")
            with open(os.environ.get("KERNELS", "kernels.txt"), "a") as file:
                file.write("\n".join(lines) + "\n")


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
        "model": model,
        "graph": graph,
        "time": times,
        "profile": profile,
        "summary": summary,
    }[sys.argv[1]]()
