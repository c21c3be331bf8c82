"""The 8-, 6- and 4-bit formats of OCP, and their siblings in LLVM and ml_dtypes."""
