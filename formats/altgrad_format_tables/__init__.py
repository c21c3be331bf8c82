"""Formats that are tables of values: posit8, takum8, takum_linear8 and nf4."""
