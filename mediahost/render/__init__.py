"""Pure functions from what is wanted to artefacts: files, rules and labels. Nothing here reads a host."""
