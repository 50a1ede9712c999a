"""Latents of a generator: found for real images, and moved until networks embed what is made of them as real images."""
