"""Speed and memory, side by side with a peer or with another way of the same thing."""
