"""Built-in datasets: ``stdlib``, ``text``, ``eurlex`` and ``tokens``, and the tokenizers they share."""
