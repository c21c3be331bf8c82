"""The eight ways to split 8 bits into exponent and mantissa, under one rule, for fair comparison."""
