"""The difference between what is wanted and what is, as pyinfra operations. No difference, no yield."""
