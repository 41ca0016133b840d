"""A student where simulations are done: a pure forward over its weights, its neighbor lists, one file of both."""
