"""Tasks: generators of text whose answer needs steps, with the true steps known."""
