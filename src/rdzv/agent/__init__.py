"""What runs the protocol inside a training process: threads, sockets and requests around the pure functions, and torch's interface."""
