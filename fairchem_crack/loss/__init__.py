"""The loss: pure maths, of torch, numba and Triton."""
