"""One file a backend; they share `protocol` and never import each other. `registry` knows them by name."""
