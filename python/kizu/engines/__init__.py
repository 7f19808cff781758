"""One file an engine; the file's name is the engine's name. None imports its package before it is used."""
