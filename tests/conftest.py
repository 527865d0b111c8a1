"""What the whole test run shares."""

import os

# Most of the time of the tests goes into compiling programs that run once. LLVM's optimizations change no
# result that a test states; without them the run takes a third less. XLA_FLAGS of your own replace this.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
