#!/usr/bin/env bash
# First run of tinygpt on a GPU: one command, under 8 minutes, installs nothing.
#     bash benchmarks/gpu_first_contact.sh         with a GPU: python3 has CuPy, PyTorch, pytest, pytest-xdist, hypothesis
#     DRY=1 bash benchmarks/gpu_first_contact.sh   without: the same stages on NumPy and PyTorch's CPU build, at toy sizes
# Every stage is a process with its own time limit, so a stage that hangs or crashes costs at most its limit. The most
# informative stages come first, pytest and the sanitizers last.
# Results: $OUT/first.log (all output), $OUT/results.jsonl (one line per figure), $OUT/pytest.log, $OUT/kernels.txt.
set -u
cd "$(dirname "$0")/.."
here=$(pwd)
OUT=${OUT:-$PWD/out/gpu_first_contact}
mkdir -p "$OUT"
export PYTHONPATH="$here:$here/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TINYGPT_OFFLINE=1
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$OUT/cupy_cache} RESULTS="$OUT/results.jsonl" KERNELS="$OUT/kernels.txt"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
PY=${PY:-python3}
: > "$RESULTS"
began=$SECONDS
stage() { # stage NAME LIMIT COMMAND...
    local name=$1 limit=$2
    shift 2
    local left=$((470 - (SECONDS - began)))
    [ "$left" -lt 15 ] && { echo "=== $name: LEFT OUT, no time"; return; }
    [ "$limit" -gt "$left" ] && limit=$left
    local t=$SECONDS
    echo "=== $name (limit $limit s)"
    timeout -k 5 "$limit" "$@"
    local rc=$?
    echo "=== $name: rc $rc after $((SECONDS - t)) s"
    echo "{\"stage\": \"$name\", \"rc\": $rc, \"seconds\": $((SECONDS - t))}" >> "$RESULTS"
}
{
    [ "${DRY:-}" ] || stage env 20 bash -c 'nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader; nvcc --version | tail -n 2; git log -1 --format=%h || true'
    stage doctor 30 "$PY" -m tinygpt doctor
    stage warm 60 "$PY" benchmarks/gpu_first_contact.py warm            # compile every instance in 14 processes, which fills CuPy's cache
    stage attention 40 "$PY" benchmarks/gpu_first_contact.py attention  # kernels against float64 at real sizes; poisoned memory
    stage fused 30 "$PY" benchmarks/gpu_first_contact.py fused          # products with biases and GELU, against float64 and plain ones
    stage model 60 "$PY" benchmarks/gpu_first_contact.py model          # loss and gradients of GPT-2's shape against PyTorch in float64
    stage graph 45 "$PY" benchmarks/gpu_first_contact.py graph          # does CUDA accept the capture; do replays give the same bits
    stage time 150 "$PY" benchmarks/gpu_first_contact.py time           # copy, GEMMs by shape, attention, elementwise, steps, decode
    stage profile 60 "$PY" benchmarks/gpu_first_contact.py profile      # each kernel of a step, by CUPTI (torch.profiler)
    stage expected 30 "$PY" benchmarks/gpu_first_contact.py expected    # each launch of a step: what it should cost, what it did
    [ "${DRY:-}" ] || stage pytest 170 "$PY" -m pytest -q -m gpu -n "${WORKERS:-12}" -o filterwarnings=default -p no:cacheprovider \
        tests/gpu > "$OUT/pytest.log" 2>&1
    tail -n 25 "$OUT/pytest.log" 2> /dev/null
    if command -v compute-sanitizer > /dev/null; then
        stage racecheck 60 compute-sanitizer --tool racecheck "$PY" benchmarks/gpu_first_contact.py attention small 2>&1 | tail -n 8
        stage memcheck 60 compute-sanitizer --tool memcheck "$PY" benchmarks/gpu_first_contact.py attention small 2>&1 | tail -n 8
    fi
    echo "=== all: $((SECONDS - began)) s"
    "$PY" benchmarks/gpu_first_contact.py summary
} 2>&1 | tee "$OUT/first.log"
