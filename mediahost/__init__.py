"""Domain of mediahost: configuration, catalogue, stack, secrets, rendering. Never imports pyinfra."""
