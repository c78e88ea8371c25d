# ruff: noqa: B023  functions defined in a loop here are only called in the same iteration
"""The stages `time` and `profile` of gpu_first_contact.py."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import numpy as np
from gpu_first_tools import (
    BACKEND,
    DEVICE,
    DRY,
    B,
    T,
    attempt,
    burst_of,
    gpu,
    host,
    kind,
    make_model,
    ms,
    put,
    quick_normal,
)


def times() -> None:
    import tinygpt as tg

    tg.use_backend(BACKEND)
    for part in (bandwidth, products, attention_times, small_kernels, steps, sampling, decoding):
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
                    count = 3 if DRY else 20
                    begin = time.perf_counter()
                    for _ in range(count):
                        step()
                    took = (time.perf_counter() - begin) / count * 1e3
                    label = f"step {name} {dtype} graphs {mode}"
                    put(f"{label}: {batch * length / took * 1e3:,.0f} tokens/s", took, "ms")
                    if graphed.replays:
                        kept = list(graphed.kinds.values())[-1]  # with the update, if that is in it
                        hosts = (*step.pairs[0], step.late.update.numbers)
                        put(f"{label}: a replay alone", ms(lambda: kept.graph.replay(hosts, 0), 5, 3), "ms")
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
                new = 4 if DRY else 96
                for way, options in (("greedy", {"do_sample": False}), ("sampled", {"temperature": 0.8, "top_k": 50})):
                    net.generate(prompt, max_new_tokens=4, **options)
                    begin = time.perf_counter()
                    net.generate(prompt, max_new_tokens=new, **options)
                    took = time.perf_counter() - begin
                    put(f"decoding gpt2 {pack or 'float32'} {rows} rows, {way}", rows * new / took, "tokens/s")
    del tg


def sampling() -> None:
    """Tokens drawn on the GPU are those of the reference in NumPy; how long it takes for a row and for 64."""
    from tinygpt.ops.sample_tokens import sample_tokens

    rng, V = np.random.default_rng(0), 97 if DRY else 50257
    for R in (1, 64):
        logits, number = (3 * rng.standard_normal((R, V))).astype(np.float32), rng.integers(0, 2**53, R)
        there, drawn = gpu().asarray(logits), gpu().asarray(number)
        for settings in ((0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 50, 1.0), (0.8, 50, 0.95), (1.0, 0, 0.9)):
            expected = sample_tokens.reference(logits, number, V, *settings)
            found = host(sample_tokens(there, drawn, V, *settings))
            if not np.array_equal(found, expected):
                put(f"FAILED sampling {settings}", f"{(found != expected).sum()} of {R} tokens differ")
            took = ms(lambda: sample_tokens(there, drawn, V, *settings), 10, 3)
            put(f"sampling {R} rows, temperature, top_k, top_p {settings}", took * 1e3, "us")


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
