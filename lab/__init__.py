"""The VM lab: real machines with their own kernel, a registry and a package repository, on this host."""
