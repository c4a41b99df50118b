"""What holds for all tests."""

import os


# MKL's sums do not hang on where in memory the weights lie, as on AMD's processors they would: a model that is loaded computes what the
# saved one did, bit for bit. Read when torch is first imported.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
