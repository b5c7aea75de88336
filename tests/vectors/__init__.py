"""Published test vectors, in JSON, for whoever writes another implementation."""
