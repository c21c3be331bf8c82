"""The 16- and 32-bit formats of today's training: bf16, fp16, tf32, fp32."""
