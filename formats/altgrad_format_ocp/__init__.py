"""The formats of OCP: fp8, the fp6, fp4, int8 and e8m0 of MX blocks; and their siblings in LLVM and ml_dtypes."""
