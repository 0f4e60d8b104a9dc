"""Tensors in, tensors out: preprocessing, the engine, its server and the client of that server."""
