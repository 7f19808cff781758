"""Network blocks shared by the methods."""
