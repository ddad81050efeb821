"""What the lab's registry serves: the definitions, and the programs that run inside the images."""
