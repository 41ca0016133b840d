"""New systems from those of a training, labelled by the teacher: a dataset, and the teacher cache of it."""
