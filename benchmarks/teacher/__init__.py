"""The teacher's speed: settled edges, bfloat16, torch.compile."""
