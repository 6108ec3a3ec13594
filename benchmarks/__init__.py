"""Speed of the engine, measured: `make bench`. Not a part of the package."""
