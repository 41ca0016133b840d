"""On-policy distillation: a student is trained on the frames of its own dynamics, labelled by its teacher."""
