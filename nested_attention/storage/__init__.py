"""Files: tensors on disk, layouts of encoder files, saved subjects, known weights and their sources."""
