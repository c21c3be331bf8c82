"""Block formats: the MX formats of OCP and NVIDIA's nvfp4."""
