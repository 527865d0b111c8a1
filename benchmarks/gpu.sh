#!/usr/bin/env bash
# Every record of an accelerator in under 10 minutes, without a network: benchmarks/gpu.sh
# Results, with the log of the numerics, go to $OUT, or to runs/bench; copy the records to benchmarks/records
# and run benchmarks/readme.py. PYTHON names the interpreter. LIMIT is when no case begins any more, in seconds:
# what is left out is named in the records. TUNE=1 measures tile sizes first, which takes minutes; they are
# written to pallas_kernels/tuned, and copied beside the records.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/bench}
python=${PYTHON:-python3}
mkdir -p "$out"
# XLA_FLAGS: the numerics are those of programs as users compile them, not as other tests do.
export PYTHONPATH=. PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS="${XLA_FLAGS-}"
started=$SECONDS

# Numerics first: of every case of every op, whatever this device runs. Our pytest options name packages that
# such a machine may lack; without them the tests are the same.
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(--numprocesses 6 --dist loadfile)
timeout 150 "$python" -m pytest tests/pallas_kernels --override-ini addopts= --override-ini filterwarnings= \
    --quiet -rs "${workers[@]}" >"$out/numerics.log" 2>&1 || echo "numerics: not all passed, see numerics.log"
tail -n 1 "$out/numerics.log"

"$python" - "$out" "$((${LIMIT:-540} - (SECONDS - started)))" "${TUNE:-}" <<'EOF_PYTHON'
import sys
from viditq_jax.bench import bench
from viditq_jax.report.speed import summary

out, limit, tune = sys.argv[1:]
for name, record in bench(out, limit_s=float(limit), tuned=bool(tune)).items():
    print(name, summary(record), sep="\n", flush=True)
EOF_PYTHON
cp pallas_kernels/tuned/*.json "$out" 2>/dev/null || true
echo "$((SECONDS - started)) s; records in $out"
