"""The fleet page: what people watch and decide by, in a browser, on top of what the API serves to programs."""
